"""Token ids and labels of examples: only what the model itself has to say carries a label."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SpecError
from .data import Example, Message

IGNORE = -100
Item = dict[str, list[int]]  # input_ids, labels and, when packed, position_ids


@dataclass
class Encoded:
    """items, and what became of the rows: cut at max_length, dropped because no label was left, split into pieces."""

    items: list[Item]
    rows: int
    cut: int = 0
    dropped: int = 0
    split: int = 0

    @property
    def tokens(self) -> int:
        return sum(len(i["input_ids"]) for i in self.items)

    @property
    def labels(self) -> int:
        return sum(y != IGNORE for i in self.items for y in i["labels"])

    def notes(self, max_length: int | None) -> list[str]:
        out = []
        if self.split:
            out.append(
                f"{self.split} of {self.rows} texts are longer than max_length={max_length} and were split into pieces"
            )
        if self.cut:
            out.append(f"{self.cut} of {self.rows} rows are longer than max_length={max_length} and were cut")
        if self.dropped:
            out.append(
                f"{self.dropped} of {self.rows} rows were left out: nothing to learn in their first {max_length} tokens"
            )
        return out

    def digest(self) -> str:
        """Tells whether a resumed run sees the same tokens."""
        h = hashlib.sha256()
        for item in self.items:
            for key in sorted(item):
                h.update(repr(item[key]).encode())
        return h.hexdigest()[:16]


def set_template(tokenizer: Any, template: str | None) -> None:
    """Give the tokenizer a chat template: a file, or the template itself."""
    if template is not None:
        is_file = len(template) < 4096 and "\n" not in template and Path(template).is_file()
        tokenizer.chat_template = Path(template).read_text(encoding="utf-8") if is_file else template


def render(tokenizer: Any, messages: Sequence[Message], prompt: bool = False) -> str:
    """The conversation as the model's template writes it; prompt: opened for the assistant to go on."""
    if not getattr(tokenizer, "chat_template", None):
        raise SpecError("these rows are conversations and the tokenizer has no chat template: set data.chat_template, "
                        "or data.chat=false for prompt/completion and alpaca rows")  # fmt: skip
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)  # type: ignore[no-any-return]
    except Exception as error:  # templates raise jinja errors of their own, e.g. for roles that do not alternate
        raise SpecError(
            f"the chat template refuses a conversation with roles {[m['role'] for m in messages]}: {error}"
        ) from error


def segments(tokenizer: Any, example: Example) -> list[tuple[str, bool]]:
    """(text, learned) pieces in order. Of a conversation the learned pieces are what the template writes between the
    opening of an assistant turn and the end of that turn: exactly what the model has to write when it is used."""
    if not example.messages:
        return [(example.prompt, False), (example.completion + (tokenizer.eos_token or ""), True)]
    whole = render(tokenizer, example.messages)
    pieces: list[tuple[str, bool]] = []
    at = 0
    for i, message in enumerate(example.messages):
        if message["role"] != "assistant" or i < example.first:
            continue
        done = render(tokenizer, example.messages[: i + 1])
        opened = render(tokenizer, example.messages[:i], prompt=True)
        if not done.startswith(opened):  # a template that opens turns with more than it writes into a transcript
            opened = render(tokenizer, example.messages[:i])
        if not (whole.startswith(done) and done.startswith(opened) and len(opened) >= at):
            continue  # a template that rewrites earlier turns (drops their thinking): those are context only
        pieces += [(whole[at : len(opened)], False), (whole[len(opened) : len(done)], True)]
        at = len(done)
    if not pieces:
        raise SpecError("the chat template writes no assistant turn where it can be found: its output for a conversation "
                        "does not begin with its output for the turns before")  # fmt: skip
    return pieces  # what follows the last learned turn is of no use to a causal model


def encode(examples: Iterable[Example], tokenizer: Any, max_length: int | None = None) -> Encoded:
    """Tokenise piece by piece, so that a prompt has the very tokens it has when the model is asked.

    Labels are the ids of learned pieces up to their last end-of-sequence token, IGNORE elsewhere. Rows longer than
    max_length are cut on the right; plain texts are split instead. The first token of an item is never a label.
    """
    rows = [(segments(tokenizer, e), not e.messages, not e.messages and not e.prompt) for e in examples]
    texts = [text for pieces, _, _ in rows for text, _ in pieces]
    ids = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
    starts, ends = _bos(tokenizer), {tokenizer.eos_token_id, *_ends(tokenizer)}
    out = Encoded([], len(rows))
    for pieces, plain, whole in rows:
        x, y = (list(starts), [IGNORE] * len(starts)) if plain else ([], [])
        for _, learned in pieces:
            tokens = next(ids)
            last = max((k for k, t in enumerate(tokens) if t in ends), default=len(tokens) - 1)
            x += tokens
            y += [t if learned and k <= last else IGNORE for k, t in enumerate(tokens)]
        long = max_length is not None and len(x) > max_length
        if long and whole:
            out.split += 1
            parts = [(x[k : k + max_length], y[k : k + max_length]) for k in range(0, len(x), max_length)]  # type: ignore[operator,arg-type]
        else:
            out.cut += long
            parts = [(x[:max_length], y[:max_length])]
        kept = [{"input_ids": a, "labels": [IGNORE, *b[1:]]} for a, b in parts if any(t != IGNORE for t in b[1:])]
        out.dropped += not kept
        out.items += kept
    return out


def _bos(tokenizer: Any) -> list[int]:
    """[bos] where the tokenizer begins plain text with one (a chat template writes its own)."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos] else []


def _ends(tokenizer: Any) -> list[int]:
    """Tokens that end a turn in chat templates beside the tokenizer's own end-of-sequence token."""
    known = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>", "<|endoftext|>")
    vocabulary = tokenizer.get_added_vocab()
    return [vocabulary[t] for t in known if t in vocabulary]


def pack(items: Sequence[Item], size: int) -> list[Item]:
    """Whole rows put together into rows of at most `size` tokens, best fit, longest first; position_ids restart at every
    row, which is how a model's mask keeps them apart. Deterministic."""
    order = sorted(range(len(items)), key=lambda i: -len(items[i]["input_ids"]))
    free: list[tuple[int, int]] = []  # (room, bin), sorted
    bins: list[list[int]] = []
    for i in order:
        n = len(items[i]["input_ids"])
        k = bisect.bisect_left(free, (n, -1))
        if k == len(free):
            bins.append([])
            room, b = size, len(bins) - 1
        else:
            room, b = free.pop(k)
        bins[b].append(i)
        bisect.insort(free, (room - n, b))
    out = []
    for members in bins:
        packed: Item = {"input_ids": [], "labels": [], "position_ids": []}
        for i in sorted(members):
            packed["input_ids"] += items[i]["input_ids"]
            packed["labels"] += items[i]["labels"]
            packed["position_ids"] += range(len(items[i]["input_ids"]))
        out.append(packed)
    return out
