"""Rank, alpha and learning rate for a model, a method and, if there is some, data: with what each number rests on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn

from ..attach import attach
from ..errors import SpecError
from ..methods.rates import Setting, suggest_lr
from ..plan import Plan, preview
from ..spec import Method, change, from_config, layers_of, scale_of

ALPHA = 32.0  # for methods with s = alpha / r
ANCHOR = Setting(
    n=4096, r=64, s=16 / 64
)  # LoRA, AdamW: 2e-4 for LLaMA 7B and 13B (QLoRA, arXiv:2305.14314, appendix B)
ANCHOR_LR = 2e-4
FULL, FULL_LR = Setting(n=4096, start="full"), 2e-5  # all of LLaMA 7B (Alpaca)
BITS = 2.0  # that a trained number can hold (arXiv:2404.05405, of whole models)
RANKS = (4, 8, 16, 32, 64, 128)
LADDER = 4.0  # between two rates of the probe
LEAST = 2 * 4  # rows for a probe: some to learn from, some to score


@dataclass(frozen=True)
class Advice:
    """method: its configuration with the chosen rank and alpha; None where it has none. evidence: [{"what", "value", "because"}].
    probe: [{"lr", "loss"}] after the probe's steps, `before` the loss without them."""

    method: dict[str, Any]
    rank: int | None
    alpha: float | None
    lr: float
    evidence: list[dict[str, Any]] = field(default_factory=list)
    probe: list[dict[str, float]] = field(default_factory=list)
    before: float | None = None

    def to_dict(self) -> dict[str, Any]:
        probe = [{**row, "loss": row["loss"] if math.isfinite(row["loss"]) else None} for row in self.probe]
        return {**asdict(self), "probe": probe, "overrides": self.overrides}

    @property
    def overrides(self) -> list[str]:
        """The advice as words for `deltaw train`."""
        out = [f"plan.method={self.method['key']}"]
        out += [f"plan.method.{k}={v:g}" for k, v in (("r", self.rank), ("alpha", self.alpha)) if v is not None]
        return [*out, f"train.lr={self.lr:.2g}"]


@dataclass(frozen=True)
class Data:
    """Tokenised rows: what a probe trains on and what it is scored on, and how many tokens the whole has to say."""

    train: list[Any]
    held: list[Any]
    labels: int
    pad: int


def advise(
    model: nn.Module,
    method: Method | str | dict[str, Any] = "lora",
    *,
    rank: int | None = None,
    alpha: float | None = None,
    targets: Any = "all-linear",
    data: Data | None = None,
    steps: int = 10,
    batch: int = 4,
    seed: int = 0,
    tell: Callable[[str], None] = lambda line: None,
) -> Advice:
    """Recommend rank, alpha and AdamW's rate. The model is left as it was, bit for bit.

    Rank: as given; else the smallest power of two whose trained numbers, at two bits each, hold what the data says (labels x loss);
    16 without data. Alpha: as given, else 32 at every rank, so that rates hold for all of them. Rate: carried from a published one
    by the law in width, rank and scale (`deltaw.suggest_lr`), then, with data, the best of a ladder of probe runs around it, which
    is extended as long as its end is best. Trap: a probe of few steps likes rates that a long run does not: take it as an upper bound.
    """
    chosen = from_config(method)
    plan = Plan(chosen, targets=targets, seed=seed)
    sites = [a.site for a in plan.resolve(model)]
    widths = [_inputs(site) for site in sites]
    n = int(statistics.median(widths))
    evidence: list[dict[str, Any]] = []

    def says(what: str, value: Any, because: str) -> None:
        evidence.append({"what": what, "value": value, "because": because})
        tell(f"{what}: {value} ({because})")

    says("width", n, f"the median input size of {len(sites)} sites")
    names = {f.name for m in layers_of(chosen) for f in fields(m)}  # type: ignore[arg-type]
    before = None
    if data is not None:
        before = score(model, data, batch)
        says("loss before training", round(before, 4), f"on {len(data.held)} rows that the probe does not learn from")
    if "alpha" in names:
        given, alpha = alpha is not None, ALPHA if alpha is None else alpha
        chosen = change(chosen, {"alpha": float(alpha)})
        over_r = "r" in names and math.isclose(
            scale_of(change(chosen, {"r": 4})), scale_of(change(chosen, {"r": 16})) * 4
        )
        says(
            "alpha",
            alpha,
            "as given"
            if given
            else "fixed: with s = alpha / r the best rate is then the same at every rank"
            if over_r
            else "usual",
        )
    elif alpha is not None:
        raise SpecError(f"{chosen.key} has no alpha")
    if "r" in names:
        rank = _rank(model, plan, chosen, rank, data, before, min(min(site.shape) for site in sites), says)
        chosen = change(chosen, {"r": rank})
    elif rank is not None:
        raise SpecError(f"{chosen.key} has no rank r")
    plan = replace(plan, method=chosen)
    lr = _carried(chosen, n, rank, says)
    probe: list[dict[str, float]] = []
    if data is not None and before is not None:
        probe = ladder(model, plan, data, lr, steps, batch, seed, tell)
        top = min(probe, key=lambda row: row["loss"])
        if top["loss"] < before:
            lr = top["lr"]
            says(
                "rate",
                f"{lr:.2g}",
                f"the best of {len(probe)} rates after {steps} steps of {batch}: loss {top['loss']:.4f}; an upper bound for long runs",
            )
        else:
            says("rate", f"{lr:.2g}", f"the carried one: no rate of the probe lowered the loss in {steps} steps")
    config = {"key": chosen.key} | {f.name: getattr(chosen, f.name) for f in fields(chosen) if f.name in ("r", "alpha")}  # type: ignore[arg-type]
    return Advice(config, rank, alpha, lr, evidence, probe, before)


def _inputs(site: Any) -> int:
    """n of a site; of a whole module the input size of its largest matrix."""
    if site.kind != "module":
        return int(site.shape[1])
    matrices = [p for p in site.module.parameters() if p.dim() > 1]
    return int(max(matrices, key=lambda p: p.numel()).shape[-1]) if matrices else 1


def _rank(
    model: nn.Module,
    plan: Plan,
    method: Method,
    rank: int | None,
    data: Data | None,
    before: float | None,
    most: int,
    says: Any,
) -> int:
    if rank is not None:
        says("rank", rank, "as given")
        return rank
    if data is None or before is None:
        says("rank", min(16, most), "usual; no data to size it by")
        return min(16, most)
    bits = data.labels * before / math.log(2)
    room = [r for r in RANKS if r <= most] or [most]
    sizes = {r: preview(model, replace(plan, method=change(method, {"r": r}))).trainable for r in room}
    rank = next((r for r in room if BITS * sizes[r] >= bits), room[-1])
    says(
        "rank",
        rank,
        f"{data.labels:,} labels of {before / math.log(2):.2f} bits are {bits:,.0f} bits; {sizes[rank]:,} trained numbers hold {BITS * sizes[rank]:,.0f}",
    )
    return rank


def _carried(method: Method, n: int, rank: int | None, says: Any) -> float:
    """A published rate, carried to this width, rank and scale."""
    inner = list(layers_of(method))[-1]
    found = set(inner.params(n, n)) if inner.sites == "weight" else set[str]()
    if {"A", "B"} <= found and rank is not None:
        s = scale_of(method)
        lr = suggest_lr(ANCHOR_LR, ANCHOR, Setting(n, rank, s))
        says(
            "carried rate",
            f"{lr:.2g}",
            f"{ANCHOR_LR:g} at width {ANCHOR.n}, r {ANCHOR.r}, s {ANCHOR.s:g} (QLoRA), times sqrt(s r n) there over {s * rank * n:,.0f} here",
        )
    elif inner.sites == "module":  # all of the weights there
        lr = suggest_lr(FULL_LR, FULL, Setting(n, start="full"))
        says("carried rate", f"{lr:.2g}", f"{FULL_LR:g} at width {FULL.n} for all of the weights, times {FULL.n} / {n}")
    else:
        lr = 1e-3
        says(
            "carried rate",
            f"{lr:g}",
            f"a usual one: no law in width and rank is known for {method.key}; only a probe can tell",
        )
    return lr


# ---- the probe


def prepared(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, max_length: int = 256, where: str = "data", held: int = 32
) -> Data:
    """Rows as `deltaw train` takes them (messages, prompt/completion, alpaca, text), a quarter of them, at most `held`, kept to score."""
    from ..train.data import examples
    from ..train.encode import encode
    from ..train.generation import pad_id

    found, _ = examples(list(rows), "auto", chat=bool(getattr(tokenizer, "chat_template", None)), where=where)
    encoded = encode(found, tokenizer, max_length)
    if len(encoded.items) < LEAST:
        raise SpecError(
            f"{where}: a probe needs at least {LEAST} rows with something to learn; found {len(encoded.items)}"
        )
    order = torch.randperm(len(encoded.items), generator=torch.Generator().manual_seed(0)).tolist()
    cut = min(held, len(order) // 4)
    items = [encoded.items[i] for i in order]
    return Data(items[cut:], items[:cut], encoded.labels, pad_id(tokenizer))


def score(model: nn.Module, data: Data, batch: int) -> float:
    """Mean loss over the labels of the rows that the probe does not learn from."""
    from ..train.encode import Encoded
    from ..train.engine import held_out

    total, count = held_out(
        model, Encoded(data.held, len(data.held)), batch, data.pad, next(model.parameters()).device
    ).tolist()
    return float(total / count)


def ladder(
    model: nn.Module, plan: Plan, data: Data, lr: float, steps: int, batch: int, seed: int, tell: Callable[[str], None]
) -> list[dict[str, float]]:
    """Probe runs at lr / 4, lr and 4 lr, and on at whichever end is best, twice at most."""
    found: dict[int, float] = {}

    def run(k: int) -> None:
        rate = lr * LADDER**k
        found[k] = _probe(model, plan, data, rate, steps, batch, seed)
        tell(f"probe: rate {rate:.2g}, loss {found[k]:.4f} after {steps} steps")

    for k in (-1, 0, 1):
        run(k)
    for _ in range(2):
        best = min(found, key=lambda k: found[k])
        if best not in (min(found), max(found)):
            break
        run(best + (1 if best == max(found) else -1))
    return [{"lr": lr * LADDER**k, "loss": found[k]} for k in sorted(found)]


def _probe(model: nn.Module, plan: Plan, data: Data, lr: float, steps: int, batch: int, seed: int) -> float:
    from ..train.loss import label_loss

    wanted, was = [p.requires_grad for p in model.parameters()], model.training
    adapted = attach(model, plan, name="advice")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            optimizer, source = adapted.optimizer(lr, steps=steps), _batches(data, batch, seed)
            model.train()
            for step in range(steps):
                for group in optimizer.param_groups:  # a warm-up of a fifth
                    group["lr"] = lr * min(1.0, (step + 1) / max(1, steps // 5))
                total, count = label_loss(
                    model, {k: v.to(next(model.parameters()).device) for k, v in next(source).items()}
                )
                optimizer.zero_grad()
                (total / count).backward()
                nn.utils.clip_grad_norm_(adapted.trainable().values(), 1.0)
                optimizer.step()
        value = score(model, data, batch)
        return value if math.isfinite(value) else math.inf
    finally:
        adapted.detach()
        model.train(was)
        for p, w in zip(model.parameters(), wanted):
            p.requires_grad_(w)


def _batches(data: Data, batch: int, seed: int) -> Iterator[Any]:
    from ..train.batches import Collate

    random, collate = torch.Generator().manual_seed(seed), Collate(data.pad)
    while True:
        order = torch.randperm(len(data.train), generator=random).tolist()
        for k in range(0, len(order), batch):
            yield collate([data.train[i] for i in order[k : k + batch]])
