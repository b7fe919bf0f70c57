"""The equations on the catalogue's pages: found in the docstrings, and LaTeX that a renderer takes."""

from __future__ import annotations

import inspect
import re

import pytest

from deltaw.catalogue import entry
from deltaw.cli.docs import page
from deltaw.cli.formula import equation, latex
from deltaw.spec import METHODS

KNOWN = set(
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi omega Gamma Delta Theta "
    "Lambda Xi Pi Sigma Phi Psi Omega text operatorname mathrm sqrt top perp sum prod max min exp log sin cos tanh det bmod odot otimes "
    "oplus circ cdot times pm ldots le ge ne approx in to gets infty nabla partial surd tfrac ell sim backslash cup cap emptyset langle "
    "rangle lfloor rfloor lceil rceil forall ll gg star dagger".split()
)


def sound(tex: str) -> None:
    """Known commands, balanced braces, nothing that TeX refuses: two indices, a bare sign, letters outside ASCII."""
    assert set(re.findall(r"\\([A-Za-z]+)", tex)) <= KNOWN, tex
    depth = 0
    for c in re.sub(r"\\[{}]", "", tex):
        depth += (c == "{") - (c == "}")
        assert depth >= 0, tex
    assert depth == 0, tex
    flat = re.sub(r"\\text\{[^{}]*\}", "", tex)
    assert flat.isascii() and not re.search(r"(?<!\\)[#$%&~]", flat), tex
    assert not re.search(r"\^\{[^{}]*\}\^|_\{[^{}]*\}_|\\sqrt(?!\{)|[_^](?!\{)", re.sub(r"\\_", "", flat)), tex


@pytest.mark.parametrize(
    "text, tex",
    [
        ("y = W x + b + s B A x, s = alpha / sqrt(r1 r2)", r"y = W x + b + s B A x, s = \alpha / \sqrt{r_{1} r_{2}}"),
        ("W' = diag(g / c) V", r"W' = \operatorname{diag}(g / c) V"),
        ("h' = h + R (Wp h - Rᵀ h)", r"h' = h + R (W_{p} h - R^{\top} h)"),
        ("y = gamma sum_e w_e B_e A_e x", r"y = \gamma \sum _{e} w_{e} B_{e} A_{e} x"),
        ("K_ij = |Q1_i - P1_j|", r"K_{ij} = |Q_{1,i} - P_{1,j}|"),
        ("T = (I - Q)⁻¹ ⊙ C²", r"T = (I - Q)^{-1} \odot C^{2}"),
        ("b = `block_size`", r"b =\ \text{block\_size}"),
        ("r <= n for every row of a block", r"r \le n\ \text{for every row of a block}"),
        ("x^2 + (-1)^r + sqrt m", r"x^{2} + (-1)^{r} + \sqrt{m}"),
        ("50 % of A_{l-i}", r"50 \%\ \text{of}\ A_{l-i}"),
    ],
)
def test_our_notation_as_latex(text, tex):
    assert latex(text) == tex
    sound(tex)


def test_an_equation_ends_where_prose_begins():
    assert equation("y = W x + b + s B A x, s = alpha / r. A (r, n), B (m, r) trained; rank <= r.") == "y = W x + b + s B A x, s = alpha / r"
    assert equation("W' = W + scatter(I, v): v (K,) trained, K = r (m + n)") == "W' = W + scatter(I, v)"
    assert equation('side "out": y = l ⊙ (W x + b), l (m,). side "in": y = W (l ⊙ x)') == "y = l ⊙ (W x + b)"
    assert equation("Low rank, cleverly.\ny = W x + B A x.") == "y = W x + B A x"
    assert equation("Rows of tokens (rho = 1) are trained.\n\nCount: m = 2 n.") is None


@pytest.mark.parametrize("key", list(METHODS))
def test_the_equation_of_every_method_is_sound(key):
    found = equation(inspect.getdoc(METHODS[key]) or "")
    if found is not None:
        sound(latex(found))


def test_a_page_shows_the_equation():
    text = page(METHODS["lora"], entry(METHODS["lora"]))
    assert "```math\ny = W x + b + s B A x, s = \\alpha / r\n```\n\n```text\ny = W x" in text
    with_one = [k for k in METHODS if equation(inspect.getdoc(METHODS[k]) or "")]
    assert len(with_one) > 0.9 * len(list(METHODS)), sorted(set(METHODS) - set(with_one))
