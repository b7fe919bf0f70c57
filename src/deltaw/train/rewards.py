"""What a completion is worth: verifiable rewards by name, and the user's own.

A reward is a function in TRL's form, f(prompts, completions, completion_ids, **columns) -> one number (or None: no opinion) for
each completion; columns are those of the data, one entry for each completion: `answer`, and `row`, the number of the question.

    @deltaw.train.reward
    def short(completions, **_):
        return [1.0 / (1 + len(text(c))) for c in completions]

Then `rewards: {task: 1.0, short: 0.1}` in the recipe; a function of an importable module also as "module:function".
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attach import Adapted, disabled
from ..attach import prompts as prompts_end
from ..errors import SpecError
from ..spec import Registry
from .gym import Task
from .shaping import grouped, stable_ranks, unlikeliness

Function = Callable[..., list[float | None]]
REWARDS: Registry[tuple[Function, bool]] = Registry("reward")


def reward(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register a reward under the function's name."""
    REWARDS.add(function.__name__, (function, False))
    return function


def made(function: Callable[[Run], Function]) -> Callable[[Run], Function]:
    """Register what makes a reward for one run."""
    REWARDS.add(function.__name__, (function, True))
    return function


def text(completion: Any) -> str:
    """What the model has said: a string, or the last message of a conversation."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


@dataclass
class Run:
    """What a reward may ask about its run."""

    adapted: Adapted
    tokenizer: Any
    task: Task | None
    batch_size: int
    temperature: float = 1.0

    def rows(
        self, prompts: Sequence[Any], completion_ids: Sequence[list[int]]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(ids, mask of real tokens, mask of the completion's) for `batch_size` completions at a time, padded on the right."""
        device = self.adapted.model.get_input_embeddings().weight.device
        asked = prompt_ids(self.tokenizer, prompts)
        for k in range(0, len(asked), self.batch_size):
            part = list(zip(asked[k : k + self.batch_size], completion_ids[k : k + self.batch_size]))
            ids = torch.zeros(len(part), max(len(p) + len(c) for p, c in part), dtype=torch.long, device=device)
            real, said = torch.zeros_like(ids), torch.zeros_like(ids)
            for i, (p, c) in enumerate(part):
                ids[i, : len(p) + len(c)] = torch.tensor([*p, *c])
                real[i, : len(p) + len(c)], said[i, len(p) : len(p) + len(c)] = 1, 1
            yield ids, real, said

    @contextlib.contextmanager
    def quiet(self) -> Iterator[Any]:
        """The model in evaluation mode, without gradients."""
        model = self.adapted.model
        was = model.training
        model.eval()
        try:
            with torch.no_grad():
                yield model
        finally:
            model.train(was)

    def mean_logp(self, prompts: Sequence[Any], completion_ids: Sequence[list[int]]) -> Tensor:
        """(N,): the mean log-probability of each completion's tokens under the policy as it is now."""
        out = []
        with self.quiet() as model:
            for ids, real, said in self.rows(prompts, completion_ids):
                first = max(int(said.argmax(1).min()), 1)  # logits are made from here on
                keep = ids.shape[1] - first + 1
                with prompts_end(model, said.argmax(1)):
                    y = model(input_ids=ids, attention_mask=real, use_cache=False, logits_to_keep=keep)
                logits = y.logits[:, :-1].float()
                logp = (logits / self.temperature).log_softmax(-1).gather(2, ids[:, first:, None])[..., 0]
                mask = said[:, first:]
                out.append((logp * mask).sum(1) / mask.sum(1).clamp(min=1))
        return torch.cat(out)

    def base_states(
        self, prompts: Sequence[Any], completion_ids: Sequence[list[int]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(last hidden states of the base alone, mask of the completion's tokens) for `batch_size` completions at a time."""
        with self.quiet() as model, disabled(model):
            for ids, real, said in self.rows(prompts, completion_ids):
                yield model.get_decoder()(input_ids=ids, attention_mask=real, use_cache=False).last_hidden_state, said


def prompt_ids(tokenizer: Any, prompts: Sequence[Any]) -> list[list[int]]:
    """As TRL's trainer tokenises them."""
    if isinstance(prompts[0], str):
        return tokenizer(text=list(prompts))["input_ids"]  # type: ignore[no-any-return]
    found = tokenizer.apply_chat_template(list(prompts), add_generation_prompt=True, tokenize=True, return_dict=True)
    return found["input_ids"]  # type: ignore[no-any-return]


# ---- the ones that are there


@reward
def exact(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """1 where the completion is the answer, up to white space at its ends."""
    return [float(text(c).strip() == a.strip()) for c, a in zip(completions, answer)]


@made
def task(run: Run) -> Function:
    """The score of reasoning-gym's task."""
    if run.task is None:
        raise SpecError(
            "the reward 'task' is that of grpo.task, and this recipe has none; 'exact' compares with the data's answers"
        )
    found = run.task

    def task(completions: Sequence[Any], row: Sequence[int], **_: Any) -> list[float | None]:
        return [found.score(text(c), i) for c, i in zip(completions, row)]

    return task


@made
def stable_rank(run: Run) -> Function:
    """|H|_F² / |H|_2² of the base's last hidden states over the completion's tokens (SR-GRPO): no verifier, and nothing that the
    policy could change. Standardised within the group like every reward."""

    def stable_rank(prompts: Sequence[Any], completion_ids: Sequence[list[int]], **_: Any) -> list[float | None]:
        return [float(x) for H, said in run.base_states(prompts, completion_ids) for x in stable_ranks(H, said)]

    return stable_rank


def find(name: str, run: Run) -> Function:
    """A reward by its name, or "module:function"."""
    if name not in REWARDS and ":" in name:
        module, _, word = name.partition(":")
        try:
            return getattr(importlib.import_module(module), word)  # type: ignore[no-any-return]
        except (ImportError, AttributeError) as error:
            raise SpecError(f"reward '{name}': {error}") from error
    function, makes = REWARDS[name]
    return function(run) if makes else function  # type: ignore[arg-type,return-value]


class Unlikely:
    """Rewards of the same completions times one factor for each: that of `shaping.unlikeliness`, from one more pass of the policy.

    Groups have to lie whole in each process's batch.
    """

    def __init__(self, run: Run, size: int, beta: float):
        self.run, self.size, self.beta = run, size, beta
        self.last: tuple[Any, list[float]] = (None, [])

    def factors(self, prompts: Sequence[Any], completion_ids: Sequence[list[int]]) -> list[float]:
        if self.last[0] is not completion_ids:  # several rewards are asked about the same completions
            groups = [prompts[k : k + self.size] for k in range(0, len(prompts), self.size)]
            if any(p != g[0] for g in groups for p in g):
                raise SpecError("unlikeliness: the completions of one question are not side by side in this process")
            logp = self.run.mean_logp(prompts, completion_ids).double()
            grouped(logp, self.size)
            self.last = (completion_ids, unlikeliness(torch.ones_like(logp), logp, self.size, self.beta).tolist())
        return self.last[1]

    def __call__(self, function: Function) -> Function:
        def shaped(
            prompts: Sequence[Any], completion_ids: Sequence[list[int]], log_metric: Any = None, **kw: Any
        ) -> list[float | None]:
            plain = function(prompts=prompts, completion_ids=completion_ids, log_metric=log_metric, **kw)
            given = [x for x in plain if x is not None]
            if log_metric is not None and given:
                log_metric(f"rewards/{shaped.__name__}/unshaped", sum(given) / len(given))
            pairs = zip(plain, self.factors(prompts, completion_ids))
            return [None if x is None else x * f for x, f in pairs]

        shaped.__name__ = function.__name__
        return shaped
