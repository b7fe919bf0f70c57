"""Rows from files, recognised by their columns, and the conversation or text that each of them is."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SpecError, need

Row = Mapping[str, Any]
Message = dict[str, str]

COLUMNS = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
ALPACA = (
    "Below is an instruction that describes a task{more}. Write a response that appropriately completes the request."
)


@dataclass
class Example:
    """One row, understood. Either messages, of which the assistant's from `first` on are learned, or prompt and
    completion as plain text (an empty prompt: all of it is learned)."""

    messages: list[Message] = field(default_factory=list)
    first: int = 0
    prompt: str = ""
    completion: str = ""

    @property
    def question(self) -> list[Message] | str:
        """What a model is given to answer: everything before the last assistant turn, or the prompt."""
        if not self.messages:
            return self.prompt
        last = max(i for i, m in enumerate(self.messages) if m["role"] == "assistant")
        return self.messages[:last]

    @property
    def answer(self) -> str:
        if not self.messages:
            return self.completion
        return [m["content"] for m in self.messages if m["role"] == "assistant"][-1]


def read_rows(path: str | Path, split: str = "train", limit: int | None = None) -> list[dict[str, Any]]:
    """The rows of a .jsonl/.json, .csv/.tsv or .parquet file, or of a directory written by `datasets.save_to_disk`.

    Errors: SpecError with the file and line for what cannot be read, and for an empty file.
    """
    path = Path(path).expanduser()
    kind = path.suffix.lower()
    if path.is_dir():
        rows = _from_datasets(path, split)
    elif not path.is_file():
        raise SpecError(f"data: no file or directory '{path}'")
    elif kind in (".jsonl", ".ndjson"):
        rows = _from_lines(path)
    elif kind == ".json":
        rows = _from_json(path)
    elif kind in (".csv", ".tsv"):
        csv.field_size_limit(2**31 - 1)
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ","))
    elif kind == ".parquet":
        rows = need("pyarrow.parquet", extra="train").read_table(path).to_pylist()
    else:
        raise SpecError(
            f"data: {path}: expected .jsonl, .json, .csv, .tsv, .parquet or a datasets directory; found '{kind}'"
        )
    if not rows:
        raise SpecError(f"data: {path} has no rows")
    return rows[:limit]


def _from_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise SpecError(f"data: {path}, line {number}: no JSON ({error.msg} at column {error.colno})") from None
            if not isinstance(row, dict):
                raise SpecError(f"data: {path}, line {number}: expected an object; found {type(row).__name__}")
            rows.append(row)
    return rows


def _from_json(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise SpecError(
            f"data: {path}: no JSON ({error.msg} at line {error.lineno}); one object a line is .jsonl"
        ) from None
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise SpecError(f"data: {path}: expected a list of objects")
    return rows


def _from_datasets(path: Path, split: str) -> list[dict[str, Any]]:
    datasets = need("datasets", extra="train")
    try:
        found = datasets.load_from_disk(str(path))
    except FileNotFoundError:
        raise SpecError(f"data: {path} is no directory written by datasets.save_to_disk") from None
    if isinstance(found, dict):
        if split not in found:
            raise SpecError(f"data: {path} has no split '{split}'; it has {', '.join(found)}")
        found = found[split]
    return found.to_list()  # type: ignore[no-any-return]


def detect(rows: Sequence[Row], where: str = "data") -> str:
    """The format the columns fit; SpecError naming the columns found."""
    found = set(rows[0])
    for name, columns in COLUMNS.items():
        if found.issuperset(columns):
            return name
    wanted = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in COLUMNS.items())
    raise SpecError(
        f"{where}: the columns {', '.join(sorted(map(str, found)))} fit no format. Known formats need {wanted}"
    )


def examples(
    rows: Sequence[Row],
    format: str = "auto",
    *,
    chat: bool = True,
    system: str | None = None,
    where: str = "data",
) -> tuple[list[Example], str]:
    """(examples, format). chat: make a conversation of prompt/completion and alpaca rows, under `system` if given."""
    if not rows:
        raise SpecError(f"{where}: no rows")
    if format == "auto":
        format = detect(rows, where)
    if format not in COLUMNS:
        raise SpecError(f"{where}: no format '{format}' (known: {', '.join(COLUMNS)})")
    read = {"messages": _conversation, "prompt_completion": _pair, "alpaca": _alpaca, "text": _text}[format]
    out = []
    for i, row in enumerate(rows):
        place = f"{where}, row {i + 1}"
        missing = [c for c in COLUMNS[format] if row.get(c) is None]
        if missing:
            raise SpecError(f"{place}: '{missing[0]}' is missing (format {format}); it has {', '.join(map(str, row))}")
        out.append(read(row, chat, system, place))
    return out, format


def _conversation(row: Row, chat: bool, system: str | None, place: str) -> Example:
    messages = row["messages"]
    if isinstance(messages, str):  # a csv can only hold them as JSON
        try:
            messages = json.loads(messages)
        except json.JSONDecodeError:
            raise SpecError(f"{place}: 'messages' is a string that is no JSON") from None
    return Example(_system(_messages(messages, place), system))


def _messages(messages: Any, place: str) -> list[Message]:
    ok = isinstance(messages, (list, tuple)) and all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages
    )
    if not ok:
        raise SpecError(
            f"{place}: messages are a list of {{role, content}} with text in both; found {str(messages)[:80]!r}"
        )
    if not any(m["role"] == "assistant" for m in messages):
        raise SpecError(
            f"{place}: no assistant turn to learn from; roles: {', '.join(m['role'] for m in messages) or 'none'}"
        )
    return [dict(m) for m in messages]


def _system(messages: list[Message], system: str | None) -> list[Message]:
    if system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def _turns(prompt: str, completion: str, system: str | None) -> Example:
    pair = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return Example(_system(pair, system))


def _pair(row: Row, chat: bool, system: str | None, place: str) -> Example:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):  # conversational pairs: learn the completion's turns
        messages = _system(_messages([*prompt, *completion], place), system)
        return Example(messages, first=len(messages) - len(completion))
    if not isinstance(prompt, str) or not isinstance(completion, str):
        raise SpecError(f"{place}: prompt and completion are both text or both lists of messages")
    return _turns(prompt, completion, system) if chat else Example(prompt=prompt, completion=completion)


def _alpaca(row: Row, chat: bool, system: str | None, place: str) -> Example:
    task, more, answer = (str(row.get(k) or "") for k in ("instruction", "input", "output"))
    if chat:
        return _turns(f"{task}\n\n{more}" if more else task, answer, system)
    head = ALPACA.format(more=", paired with an input that provides further context" if more else "")
    parts = [head, f"### Instruction:\n{task}", *([f"### Input:\n{more}"] if more else []), "### Response:\n"]
    return Example(prompt="\n\n".join(parts), completion=answer)


def _text(row: Row, chat: bool, system: str | None, place: str) -> Example:
    return Example(completion=str(row["text"]))
