"""transformers' Trainer for adapters: the plan's optimiser, loss on label rows, checkpoints of the adapter only.

Everything else (accumulation, clipping, schedules, DDP, loggers) is the Trainer's own.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from ..attach import Adapted
from .adapting import Adapting, settings
from .batches import Collate, Order, Rows
from .encode import Encoded
from .loss import label_loss
from .progress import Progress
from .recipe import TrainPart


class Engine(Adapting, Trainer):
    """See the module. `adapted` is attached to `model`; `train`/`held` are encoded rows."""

    model: Any
    args: Any
    optimizer: Any
    lr_scheduler: Any
    data_collator: Any

    def __init__(
        self,
        adapted: Adapted,
        t: TrainPart,
        out: Path,
        train: Encoded,
        held: Encoded | None,
        pad: int,
        progress: Progress,
    ):
        self.start(adapted, t, progress, train.digest())
        self.held = held
        self.order = Order([len(i["input_ids"]) for i in train.items], t.batch_size, t.seed, t.sort_by_length)
        super().__init__(
            model=adapted.model,
            args=TrainingArguments(**settings(t, out, held is not None)),
            data_collator=Collate(pad),
            train_dataset=Rows(train.items),
            eval_dataset=Rows(held.items) if held is not None else None,
        )
        self.seen = torch.zeros((), dtype=torch.int64, device=self.args.device)
        self.loss_is_scaled_for_ga = self.model_accepts_loss_kwargs = True  # `compute_loss` divides by a step's labels
        self.ready()

    def tokens(self) -> Tensor:
        return self.accelerator.reduce(self.seen.clone(), "sum")  # type: ignore[no-any-return]

    def take(self, tokens: Tensor) -> None:
        self.seen = tokens.to(self.seen) * int(self.accelerator.is_main_process)  # summed when logged

    # ---- what is trained, in what order, on what loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        return self.order

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Sum over labels / labels of the whole optimiser step (all micro-batches, all processes).

        Times the number of processes, because DDP averages gradients."""
        assert not return_outputs, "nothing here asks for the vocabulary"
        mask = inputs.get("attention_mask")
        self.seen += mask.sum() if mask is not None else inputs["input_ids"].numel()
        total, count = label_loss(self.accelerator.unwrap_model(model), inputs, model)
        return total * self.accelerator.num_processes / (count if num_items_in_batch is None else num_items_in_batch)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:  # token-weighted, where the Trainer averages batches
        assert self.held is not None
        began = time.perf_counter()
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        pad, device = self.data_collator.pad, self.args.device
        sums = held_out(self.model, self.held, 2 * self.t.batch_size, pad, device, rank, world)
        total, count = self.accelerator.reduce(sums, "sum").tolist()
        if self.began is not None:  # the clock is of training
            self.began += time.perf_counter() - began
        metrics = {
            "eval_loss": total / max(count, 1),
            "eval_perplexity": math.exp(min(total / max(count, 1), 700)),
        }
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


@torch.no_grad()
def held_out(
    model: Any, held: Encoded, batch_size: int, pad: int, device: Any, rank: int = 0, world: int = 1
) -> Tensor:
    """[sum of the loss, number of labels] over this process's share of the rows, in float64."""
    collate, was = Collate(pad), model.training
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    items = sorted(held.items, key=lambda i: len(i["input_ids"]))
    model.eval()
    try:
        for k in range(rank * batch_size, len(items), world * batch_size):
            batch = {name: v.to(device) for name, v in collate(items[k : k + batch_size]).items()}
            total, count = label_loss(model, batch)
            sums += torch.stack([total.double(), count.double()])
    finally:
        model.train(was)
    return sums
