"""Reinforcement learning with verifiable rewards: TRL's GRPOTrainer (extra `rl`) on an adapter of ours.

The policy is the model with its adapter, the reference of the KL term the same model with the adapter switched off: no second copy.
Optimiser, rules, checkpoints, resume, metrics and the saved adapter are those of a supervised run. Source: GRPO, Shao et al. 2024
(arXiv:2402.03300), in TRL's implementation. Trap: completions are sampled in training mode, so dropout in an adapter is on
while they are made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attach import Adapted, disabled
from ..errors import SpecError, need
from .adapting import Adapting, settings
from .data import examples, read_rows
from .encode import set_template
from .gym import Task
from .progress import Progress
from .recipe import Recipe
from .rewards import Run, Unlikely, find

trl = need("trl", extra="rl")
datasets = need("datasets", extra="train")
from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402
from trl.trainer.utils import RepeatSampler  # noqa: E402


class Groups(RepeatSampler):  # type: ignore[misc]
    """TRL's order, as a function of seed and epoch only: resuming in a later epoch meets the same questions."""

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed((self.seed * 1_000_003 + epoch) % 2**63)


class Reference:
    """The base alone, called like a model of its own."""

    def __init__(self, adapted: Adapted):
        self.model = adapted.model

    def __call__(self, **inputs: Any) -> Any:
        was = self.model.training
        self.model.eval()
        try:
            with disabled(self.model):
                return self.model(**inputs)
        finally:
            self.model.train(was)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """TRL asks transformers about checkpointing under a name that is going away, at every step."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        yield


class Policy(Adapting, GRPOTrainer):  # type: ignore[misc]
    """`adapted` is attached to the model; the rest is in the recipe's sections `grpo` and `train`."""

    def __init__(self, adapted: Adapted, r: Recipe, out: Path, tokenizer: Any, progress: Progress):
        g, model = r.grpo, adapted.model
        assert g is not None
        refuse(adapted, r)
        rows, task, digest = questions(r, tokenizer)
        self.start(adapted, r.train, progress, digest)
        self.left = {  # what TRL leaves on a model, as it was
            "forward": model.__dict__.get("forward"),
            "pads": [(c, c.pad_token_id) for c in (model.config.get_text_config(), model.generation_config)],
        }
        run = Run(adapted, tokenizer, task, r.train.batch_size, g.temperature)
        functions = [find(name, run) for name in g.rewards_or(task is not None)]
        if g.unlikeliness:
            functions = [*map(Unlikely(run, g.generations, g.unlikeliness), functions)]
        with hushed():
            arguments = trl.GRPOConfig(
                **settings(r.train, out),
                bf16=False,  # the base is loaded in the dtype it is trained in
                gradient_checkpointing=False,  # `run` switches it on, and off again
                num_generations=g.generations,
                max_completion_length=g.max_new_tokens,
                temperature=g.temperature,
                top_p=g.top_p,
                beta=0.0,  # with another one TRL would load the model a second time: see below
                epsilon=g.epsilon,
                num_iterations=g.iterations,
                loss_type=g.loss,
                importance_sampling_level=g.level,
                scale_rewards=g.scale_rewards,
                reward_weights=list(g.rewards_or(task is not None).values()),
            )
            super().__init__(
                model=model,
                reward_funcs=functions,
                args=arguments,
                train_dataset=datasets.Dataset.from_list(rows),
                processing_class=tokenizer,
            )
        if g.beta:
            self.beta = self.args.beta = g.beta
            self.ref_model = Reference(adapted)
        self.ready()

    def _get_train_sampler(self, dataset: Any = None) -> Groups:
        return Groups(
            self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            seed=self.args.seed,
        )

    def train(self, *args: Any, **kw: Any) -> Any:
        with hushed():
            return super().train(*args, **kw)

    def tokens(self) -> Tensor:
        return torch.tensor(int(self.state.num_input_tokens_seen))

    def close(self) -> None:
        """Give the model back as it came, adapter apart."""
        model = self.adapted.model
        if self.left["forward"] is None:
            model.__dict__.pop("forward", None)
        else:
            model.__dict__["forward"] = self.left["forward"]
        for config, pad in self.left["pads"]:
            config.pad_token_id = pad


def refuse(adapted: Adapted, r: Recipe) -> None:
    """What a recipe may not ask of this trainer."""
    g, head = r.grpo, adapted.model.get_output_embeddings()
    assert g is not None
    for a in adapted.assignments:
        if head is not None and getattr(a.site, "module", None) is head:
            raise SpecError(
                f"{a.site.name}: TRL multiplies with the head's own weight, so an adapter there would not be trained; exclude it"
            )
    mine = (
        r.train.batch_size * r.train.grad_accum
    )  # completions a step, of one process; one factor needs its whole group there
    world = 1 if g.unlikeliness else need("accelerate", extra="train").PartialState().num_processes
    if mine * world % g.generations:
        raise SpecError(
            f"grpo.generations={g.generations} must divide train.batch_size x train.grad_accum = "
            f"{r.train.batch_size} x {r.train.grad_accum}"
            + (f" x {world} processes" if world > 1 else "")
            + ": a step sees whole groups of completions"
        )
    if r.train.save_every % g.iterations:
        raise SpecError(
            f"train.save_every={r.train.save_every} must be a multiple of grpo.iterations={g.iterations}: a run is resumed with new completions"
        )
    for name, wrong in [
        ("data.eval_share", r.data.eval_share > 0), ("train.eval_every", r.train.eval_every > 0), ("train.packing", r.train.packing)
    ]:  # fmt: skip
        if wrong:
            raise SpecError(f"{name} is for supervised training and does nothing under grpo; leave it out")


def questions(r: Recipe, tokenizer: Any) -> tuple[list[dict[str, Any]], Task | None, str]:
    """(rows of "prompt", "answer", "row"; the task; a digest of them)."""
    g, d = r.grpo, r.data
    assert g is not None
    if (g.task is None) == (d.path is None):
        raise SpecError("recipe: grpo needs questions: either grpo.task, of reasoning-gym, or data.path")
    set_template(tokenizer, d.chat_template)
    chat = bool(getattr(tokenizer, "chat_template", None)) if d.chat is None else d.chat
    task = None
    if g.task is not None:
        config = dict(g.task)
        task = Task(config.pop("name"), config, seed=1 + 1_000_000 * r.train.seed, size=g.questions)
        found = [{"prompt": e["question"].strip(), "completion": e["answer"] or ""} for e in task.entries]
    else:
        assert d.path is not None
        found = read_rows(d.path, d.split, d.limit)
    known, _ = examples(
        found, "auto" if task else d.format, chat=chat, system=d.system, where=d.path or str(task and task.name)
    )
    if not all(e.question for e in known):
        raise SpecError(f"{d.path}: a row of format 'text' asks nothing that could be answered")
    rows = [{"prompt": e.question, "answer": e.answer, "row": i} for i, e in enumerate(known)]
    return rows, task, hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
