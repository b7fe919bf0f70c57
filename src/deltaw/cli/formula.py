"""The equation that a docstring begins with, as LaTeX for the catalogue's pages."""

from __future__ import annotations

import re

GREEK = ("alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi omega "
         "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega").split()  # fmt: skip
LETTERS = dict(zip("αβγδεζηθκλμνξπρστφχψωΓΔΘΛΞΠΣΦΨΩ", GREEK))
BIG = {"sum": r"\sum", "prod": r"\prod", "max": r"\max", "min": r"\min", "exp": r"\exp", "log": r"\log", "sin": r"\sin",
       "cos": r"\cos", "tanh": r"\tanh", "det": r"\det", "Re": r"\mathrm{Re}", "Im": r"\mathrm{Im}", "mod": r"\bmod",
       "mean": r"\mathrm{mean}", "tr": r"\mathrm{tr}"}  # fmt: skip
SIGNS = {
    "⊙": r"\odot ", "⊗": r"\otimes ", "⊕": r"\oplus ", "∘": r"\circ ", "·": r"\cdot ", "×": r"\times ", "±": r"\pm ", "…": r"\ldots ",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∈": r"\in ", "→": r"\to ", "‖": r"\|", "∞": r"\infty ", "∇": r"\nabla ",
    "∂": r"\partial ", "√": r"\surd ", "½": r"\tfrac{1}{2}", "ℓ": r"\ell ", "−": "-", "–": "-", "<=": r"\le ", ">=": r"\ge ", "!=": r"\ne ",
    "->": r"\to ", "<-": r"\gets ", "...": r"\ldots ", "~": r"\sim ", "*": r"\cdot ", "%": r"\%", "#": r"\#", "&": r"\&", "$": r"\$", "{": r"\{",
    "}": r"\}", "\\": r"\backslash ", "_": r"\_", "`": "", "^": "",
    "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "∥": r"\|", "⟨": r"\langle ", "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ",
    "⌈": r"\lceil ", "⌉": r"\rceil ", "∀": r"\forall ", "≪": r"\ll ", "≫": r"\gg ", "⋆": r"\star ", "∗": "*", "†": r"\dagger ",
}  # fmt: skip
RAISED = {"ᵀ": r"\top", "⁻": "-", "⁺": "+", "⁰": "0", "¹": "1", "²": "2", "³": "3", "⁴": "4", "ⁿ": "n", "ᴴ": "H", "ᵏ": "k", "ʳ": "r", "ᵗ": "t"}
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉ᵢⱼᵣₖₙₘₜ", "0123456789ijrknmt"))
COMBINING = {"\u0302": r"\hat", "\u0303": r"\tilde", "\u0304": r"\bar", "\u0307": r"\dot"}

TOKEN = re.compile(
    r'(?P<quote>"[^"]*")|(?P<code>`[^`]*`)'
    r"|(?P<power>\^(?:\{[^}]*\}|\([^()]*\)|-?\w+))"
    rf"|(?P<raised>[{''.join(RAISED)}]+)|(?P<lowered>[{''.join(LOWERED)}]+)"
    r"|(?P<word>[A-Za-z]+(?:\d+|['’]s\b|(?:-[a-z]{2,})+)?)"
    r"|(?P<number>\d+(?:\.\d+)?)"
    r"|(?P<sub>_(?:\{[^}]*\}|\([^()]*\)|(?:[A-Za-z0-9⊥]|:)+(?:,(?:\w|:)+)*))"
    r"|(?P<space>\s+)|(?P<sign><=|>=|!=|->|<-|\.\.\.|.)"
)


def equation(doc: str) -> str | None:
    """The clauses that are equations, from the start of the first line of the first paragraph that has one; or None."""
    for line in doc.split("\n\n")[0].splitlines():
        clauses = _clauses(line)
        start = next((k for k, c in enumerate(clauses) if _is_equation(c)), None)
        if start is not None:
            rest = clauses[start:]
            end = next((k for k, c in enumerate(rest) if "=" not in c), len(rest))
            return ", ".join(rest[:end])
    return None


def _is_equation(clause: str) -> bool:
    """Is what stands left of the first sign a quantity, and no sentence?"""
    left, sign, _ = clause.partition("=")
    words = re.findall(r"(?<![A-Za-z_])[A-Za-z]{3,}", left)
    return bool(sign and left.strip()) and all(w in GREEK or w in BIG for w in words) or bool(re.match(r"\w+ = ", clause))


def _clauses(line: str) -> list[str]:
    """Split at commas, colons, semicolons and full stops that stand before a space, outside brackets."""
    out, depth, start = [], 0, 0
    for k, c in enumerate(line):
        depth += (c in "([{") - (c in ")]}")
        if c in ",:;." and depth <= 0 and (k + 1 == len(line) or line[k + 1] == " "):
            out.append(line[start:k].strip())
            start = k + 1
    return [c for c in (*out, line[start:].strip()) if c]


def latex(text: str) -> str:
    """A line of our notation: W', B A x, s = alpha / r, diag(b), x_i, sqrt(r), Uᵀ, ⊙. Words are set as text."""
    parts: list[str] = []
    tokens = [(m.lastgroup or "", m.group()) for m in TOKEN.finditer(text)]
    for k, (kind, t) in enumerate(tokens):
        after = tokens[k + 1][1] if k + 1 < len(tokens) else ""
        parts.append(_one(kind, t, after))
    done = "".join(parts)
    article = r"\\text\{([^{}]*)\} a \\text\{"
    for pattern, to in ((article, r"\\text{\1 a "), (r"\\text\{([^{}]*)\} *\\text\{", r"\\text{\1 ")):
        while re.search(pattern, done):
            done = re.sub(pattern, to, done)
    done = re.sub(r" *\\text\{([^{}]*)\} *", lambda m: rf"\ \text{{{m[1].strip()}}}\ ", done)
    done = re.sub(r"\\ (?=$|[,)\]])", "", re.sub(r"(^|[(\[])\\ ", r"\1", done))
    while re.search(r"[_^]\{[^{}]*\}[_^]\{", done) and (more := _joined(done)) != done:
        done = more
    return _roots(re.sub(r"  +", " ", done)).strip()


def _joined(text: str) -> str:
    """TeX takes one index and one exponent: several of a kind become one."""
    text = re.sub(r"_\{([^{}]*)\}_\{([^{}]*)\}", r"_{\1,\2}", text)
    return re.sub(r"\^\{([^{}]*)\}\^\{([^{}]*)\}", r"^{\1\2}", text)


def _one(kind: str, t: str, after: str) -> str:
    if kind in ("quote", "code"):
        return rf"\text{{{_safe(t.strip('`'))}}}"
    if kind == "power":
        return rf"^{{{latex(t[1:].strip('{}()'))}}}"
    if kind == "raised":
        return "^{" + "".join(RAISED[c] for c in t) + "}"
    if kind == "lowered":
        return "_{" + "".join(LOWERED[c] for c in t) + "}"
    if kind == "sub":
        inner = t[1:].strip("{}()").replace("⊥", r"\perp")
        if inner in GREEK:
            return rf"_{{\{inner}}}"
        if re.fullmatch(r"[A-Za-z]{3,}", inner):
            return rf"_{{\mathrm{{{inner}}}}}"
        return "_{" + (inner if re.fullmatch(r"\\?[\w:,]+", inner) else latex(inner)) + "}"
    if kind == "word":
        return _word(t, after)
    if kind == "number":
        return t
    if kind == "space":
        return " "
    if t in COMBINING:
        return ""
    if t in LETTERS:
        return rf"\{LETTERS[t]} "
    return SIGNS.get(t, t if t.isascii() else rf"\text{{{t}}}")


def _word(t: str, after: str) -> str:
    stem = t.rstrip("0123456789")
    index = f"_{{{t[len(stem):]}}}" if stem != t else ""
    if t == "sqrt":
        return r"\sqrt"
    if stem in GREEK:
        return rf"\{stem} " if not index else rf"\{stem}{index}"
    if t in BIG and (after[:1] in "_( " or not after):
        return BIG[t] + " "
    if len(stem) == 1:
        return stem + index
    if after.startswith("("):
        return rf"\operatorname{{{t}}}"
    if after.startswith("_"):
        return rf"\mathrm{{{t}}}"
    if len(stem) == 2 and stem.lower() not in ENGLISH:  # Wp, Uh: an index; BA, dW: a product
        return f"{stem[0]}_{{{stem[1]}{t[2:]}}}" if stem[0].isupper() and stem[1].islower() else stem + index
    return rf"\text{{{t}}}"


ENGLISH = ("an", "as", "at", "be", "by", "do", "if", "in", "is", "it", "no", "of", "on", "or", "so", "to", "up", "we")


def _safe(t: str) -> str:
    return re.sub(r"([_%#&$])", r"\\\1", t.replace("{", "(").replace("}", ")"))


def _roots(text: str) -> str:
    """sqrt(...) and sqrt x with their argument in braces."""
    while (at := re.search(r"\\sqrt *(?!\{)", text)) and at.end() < len(text):
        start = at.end()
        if text[start] == "(":
            depth, end = 0, start
            for end in range(start, len(text)):
                depth += (text[end] == "(") - (text[end] == ")")
                if depth == 0:
                    break
            inner, rest = text[start + 1 : end], text[end + 1 :]
        else:
            one = re.match(r"\\[A-Za-z]+|\w", text[start:])
            end = start + (one.end() if one else 0)
            inner, rest = text[start:end], text[end:]
        text = text[: at.start()] + rf"\sqrt{{{inner}}}" + rest
    return text
