"""A run in one file: the schema of a recipe, overrides from a command line, errors that name the nearest keys."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from ..codecs import NAMES
from ..errors import SpecError, nearest, need
from ..plan import Plan

pydantic = need("pydantic", extra="train")
yaml = need("yaml", extra="train")
BaseModel, Field = pydantic.BaseModel, pydantic.Field

FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class Section(BaseModel):  # type: ignore[misc,valid-type]
    model_config = pydantic.ConfigDict(extra="forbid", protected_namespaces=())


class DataPart(Section):
    """What to learn from. `chat`: wrap prompts in the tokenizer's chat template (default: where it has one)."""

    path: str | None = None
    format: Literal["auto", "messages", "prompt_completion", "alpaca", "text"] = "auto"
    split: str = "train"
    limit: int | None = Field(None, ge=1)
    eval_path: str | None = None
    eval_share: float = Field(0.0, ge=0.0, lt=1.0)
    system: str | None = None
    chat: bool | None = None
    chat_template: str | None = None


class TrainPart(Section):
    """How to learn. `warmup`: a share of the steps below 1, a number of steps otherwise. `steps` wins over `epochs`.
    `probe_batches`: how many of the first batches an init that looks at the data is shown before training.
    `quantise`: the codes in which the base's linear layers are kept (nf4, nf3, int8, ...): training, eval and chat run over them."""

    epochs: float = Field(1.0, gt=0)
    steps: int | None = Field(None, ge=1)
    batch_size: int = Field(8, ge=1)
    grad_accum: int = Field(1, ge=1)
    lr: float = Field(2e-4, gt=0)
    weight_decay: float | None = Field(None, ge=0)
    schedule: str = "linear"
    warmup: float = Field(0.05, ge=0)
    max_length: int | None = Field(1024, ge=2)
    packing: bool = False
    sort_by_length: bool = True
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    attention: str | None = None
    quantise: str | None = None
    seed: int = 0
    grad_checkpointing: bool = False
    max_grad_norm: float = Field(1.0, ge=0)
    save_every: int = Field(200, ge=0)
    keep: int = Field(1, ge=1)
    eval_every: int = Field(0, ge=0)
    log_every: int = Field(10, ge=1)
    watch_steps: int = Field(5, ge=0)
    probe_batches: int = Field(32, ge=1)
    tune_allocator: bool = True
    report_to: list[str] = []

    @pydantic.field_validator("quantise")  # type: ignore[untyped-decorator]
    @classmethod
    def _codec(cls, value: str | None) -> str | None:
        if value is not None and value not in NAMES:
            raise ValueError(f"no codec '{value}'{nearest(value, NAMES)} (known: {', '.join(NAMES)})")
        return value

    @pydantic.field_validator("schedule")  # type: ignore[untyped-decorator]
    @classmethod
    def _known(cls, value: str) -> str:
        from transformers import SchedulerType

        names = [s.value for s in SchedulerType]
        if value not in names:
            raise ValueError(f"no schedule '{value}'{nearest(value, names)} (known: {', '.join(names)})")
        return value


class GRPOPart(Section):
    """Learning from rewards instead of answers; a recipe with this section trains by GRPO.

    task: a task of reasoning-gym, its name or {name, its own settings}; or leave it out and name data.path. questions: how many
    of the task. generations: completions for each question, which share one baseline. beta: of the KL term to the
    base. iterations: steps on the same completions. rewards: {name: weight}, by default `task` or `exact`.
    unlikeliness: of right answers the likelier ones get less (0.25 in its paper).
    """

    task: dict[str, Any] | None = None
    questions: int = Field(500, ge=1)
    generations: int = Field(8, ge=2)
    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    beta: float = Field(0.0, ge=0)
    epsilon: float = Field(0.2, gt=0)
    iterations: int = Field(1, ge=1)
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    level: Literal["token", "sequence"] = "token"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    rewards: dict[str, float] | None = None
    unlikeliness: float = Field(0.0, ge=0, lt=1)

    @pydantic.field_validator("task", mode="before")  # type: ignore[untyped-decorator]
    @classmethod
    def _task(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, Mapping) and not isinstance(value.get("name"), str):
            raise ValueError("a task needs at least {name: TASK}")
        return value

    @pydantic.field_validator("rewards", mode="before")  # type: ignore[untyped-decorator]
    @classmethod
    def _rewards(cls, value: Any) -> Any:
        value = [value] if isinstance(value, str) else value
        return dict.fromkeys(value, 1.0) if isinstance(value, (list, tuple)) else value

    def rewards_or(self, task: bool) -> dict[str, float]:
        return self.rewards or {"task" if task else "exact": 1.0}


class Recipe(Section):
    """model, data, plan, train, grpo, out. `plan` is a Plan as plain data, or just a method's key.

    model: a directory in the Hugging Face layout, a GGUF file, or "package:NAME" for a model inside an installed
    Python package. Errors: SpecError, naming every bad key with its nearest neighbours.
    """

    model: str | None = None
    data: DataPart = Field(default_factory=DataPart)
    plan: dict[str, Any] = Field(default_factory=lambda: Plan("lora").to_dict())
    train: TrainPart = Field(default_factory=TrainPart)
    grpo: GRPOPart | None = None
    out: str = "runs/run"

    @pydantic.field_validator("plan", mode="before")  # type: ignore[untyped-decorator]
    @classmethod
    def _plan(cls, value: Any) -> dict[str, Any]:
        if isinstance(value, Plan):
            return value.to_dict()
        if isinstance(value, str):
            value = {"method": value}
        if not isinstance(value, Mapping) or "method" not in value:
            raise SpecError("a plan needs at least {method: KEY}")
        return Plan.from_dict(dict(value)).to_dict()

    # ---- from and to files

    @classmethod
    def of(cls, source: Recipe | Mapping[str, Any] | str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
        """A recipe from a recipe, a dict or a YAML file, with "dotted.key=value" overrides on top."""
        if isinstance(source, Recipe):
            data = source.model_dump()
        elif isinstance(source, Mapping):
            data = {k: v.model_dump() if isinstance(v, BaseModel) else v for k, v in source.items()}
        else:
            data = read_yaml(source)
        for text in overrides:
            _override(data, text)
        try:
            return cls.model_validate(data)  # type: ignore[no-any-return]
        except pydantic.ValidationError as error:
            raise SpecError(_explain(error)) from None

    def the_plan(self) -> Plan:
        return Plan.from_dict(self.plan)

    def save(self, path: str | os.PathLike[str]) -> None:
        """The resolved recipe as YAML: running it again is this run."""
        text = yaml.safe_dump(plain(self.model_dump()), sort_keys=False, allow_unicode=True)
        Path(path).write_text(text, encoding="utf-8")


def plain(value: Any) -> Any:
    """Without tuples and with text as keys, as YAML and JSON give it back."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


class Loader(yaml.SafeLoader):  # type: ignore[misc,name-defined]
    """YAML 1.1 with two repairs: 1e-3 is a number, and a key given twice is an error instead of the last one winning."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise SpecError(f"the key '{key.value}' is given twice (line {key.start_mark.line + 1})")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise SpecError(f"cannot read the recipe {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path} is no YAML: {error}") from None
    if not isinstance(data, dict):
        raise SpecError(f"{path}: a recipe is a mapping of keys; found {type(data).__name__}")
    return data


def _override(data: dict[str, Any], text: str) -> None:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise SpecError(f"an override is written dotted.key=value; found {text!r}")
    *path, last = name.strip().split(".")
    at = data
    for depth, word in enumerate(path):
        inner = at.get(word)
        if isinstance(inner, str) and path[: depth + 1] in (
            ["plan", "method"],
            ["plan", "init"],
            ["plan", "ranks"],
            ["plan", "update"],
            ["plan", "rules"],
        ):
            inner = {"key": inner}
        elif isinstance(inner, str) and word == "plan" and depth == 0:
            inner = {"method": inner}
        elif isinstance(inner, str) and path[: depth + 1] == ["grpo", "task"]:
            inner = {"name": inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            several = "; a list is given whole: [{key: ..., field: value}, ...]" if isinstance(inner, list) else ""
            raise SpecError(f"override '{name}': '{'.'.join(path[: depth + 1])}' is {inner!r}, not a section{several}")
        at[word] = dict(inner)
        at = at[word]
    try:
        at[last] = yaml.load(value, Loader)
    except yaml.YAMLError:
        at[last] = value


def keys(model: Any = Recipe, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema, for messages and completion."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in (field.annotation, *get_args(field.annotation)):  # a section, or one that may be left out
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from keys(inner, f"{prefix}{name}.")


def _explain(error: Any) -> str:
    lines = []
    known = list(keys())
    for e in error.errors():
        name = ".".join(str(part) for part in e["loc"])
        if e["type"] == "extra_forbidden":
            word = name.rsplit(".", 1)[-1]
            same = [k for k in known if k.rsplit(".", 1)[-1] == word]
            lines.append(f"no key '{name}'" + (f"; nearest: {', '.join(same)}" if same else nearest(name, known)))
        elif isinstance(cause := e.get("ctx", {}).get("error"), Exception):
            lines.append(f"{name}: {cause}")
        else:
            lines.append(f"{name}: {e['msg']}; found {e['input']!r}")
    return "recipe: " + "\n        ".join(lines)
