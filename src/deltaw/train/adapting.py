"""What every trainer of an adapter is on top of transformers': the plan's optimiser, checkpoints of the adapter only, a clock,
metrics, the sentinel. A mixin in front of Trainer (supervised) or of TRL's GRPOTrainer."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback

from ..attach import Adapted
from ..errors import SpecError, StateMismatch
from ..rules import asked_of
from . import checkpoint
from .host import has_accelerator, rss
from .progress import Progress
from .recipe import TrainPart
from .sentinel import Sentinel, describe


def settings(t: TrainPart, out: Path, evaluate: bool = False) -> dict[str, Any]:
    """The arguments that transformers' and TRL's trainers share."""
    return {
        "output_dir": str(out),
        "per_device_train_batch_size": t.batch_size,
        "gradient_accumulation_steps": t.grad_accum,
        "num_train_epochs": t.epochs,
        "max_steps": t.steps or -1,
        "learning_rate": t.lr,
        "lr_scheduler_type": t.schedule,
        "warmup_steps": t.warmup,  # below 1: a share
        "max_grad_norm": t.max_grad_norm,
        "logging_strategy": "steps",
        "logging_steps": t.log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a loss that is not finite must be seen
        "save_strategy": "steps" if t.save_every else "no",
        "save_steps": t.save_every or 1,
        "eval_strategy": "steps" if t.eval_every and evaluate else "no",
        "eval_steps": t.eval_every or None,
        "seed": t.seed,
        "report_to": t.report_to or "none",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": has_accelerator(),
        "use_cpu": not has_accelerator(),
        "push_to_hub": False,
    }


class Adapting:
    """See the module. `start` before the trainer's own __init__, `ready` after it."""

    adapted: Adapted
    args: Any
    state: Any
    accelerator: Any
    optimizer: Any
    lr_scheduler: Any
    control: Any

    def start(self, adapted: Adapted, t: TrainPart, progress: Progress, digest: str) -> None:
        """digest: tells whether a resumed run sees the same data."""
        self.adapted, self.t, self.progress, self.digest = adapted, t, progress, digest
        self.stop = False  # set by an interrupt
        self.whole: int | None = None
        self.seconds = 0.0
        self.began: float | None = None
        self.since = (0.0, 0)  # seconds and tokens at the last log
        self.cache = getattr(adapted.model.config, "use_cache", None)

    def ready(self) -> None:
        if self.accelerator.distributed_type.value in (
            "FSDP",
            "DEEPSPEED",
        ):  # no process has the whole adapter
            raise SpecError("training under FSDP or DeepSpeed is not supported yet: start the run with DDP (torchrun)")
        if self.cache is not None:  # the Trainer switches the model's own setting off, for generation too
            self.adapted.model.config.use_cache = self.cache
        self.remove_callback(PrinterCallback)  # type: ignore[attr-defined]
        self.watch = Watch(self)
        self.add_callback(self.watch)  # type: ignore[attr-defined]

    def tokens(self) -> Tensor:
        """Tokens seen so far, by all processes."""
        raise NotImplementedError

    def take(self, tokens: Tensor) -> None:
        """Go on counting from a checkpoint's number."""

    def close(self) -> None:
        """After training: give the model back as it came, adapter apart."""

    def set_initial_training_values(self, *args: Any, **kw: Any) -> Any:
        found = super().set_initial_training_values(*args, **kw)  # type: ignore[misc]
        self.whole = int(found[-1])  # steps of the whole run, which rules with a schedule ask for
        return found

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            kw = {} if self.t.weight_decay is None else {"weight_decay": self.t.weight_decay}
            self.optimizer = self.adapted.optimizer(self.t.lr, steps=self.whole, **kw)
        return self.optimizer  # type: ignore[no-any-return]

    def _trained(self) -> list[Tensor]:
        """What the optimiser moves: gradients are clipped without a walk over the base's parameters."""
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    def _clip_grad_norm(self, model: Any) -> Any:
        return self.accelerator.clip_grad_norm_(self._trained(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is None:  # nothing is clipped, and the norm is logged all the same
            grad_norm = torch.nn.utils.get_total_norm([p.grad for p in self._trained()])
        return grad_norm

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the Trainer would walk over all parameters for it after every micro-batch."""
        return 0

    def _run_epoch(self, *args: Any, **kw: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # resumed when done: the Trainer would make one more step
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kw)  # type: ignore[misc]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_runtime" in logs:  # the Trainer's own summary: ours is in run.json
            return
        tokens = int(self.tokens())
        seconds = self.clock()
        if "loss" in logs:
            spent, done = seconds - self.since[0], tokens - self.since[1]
            logs["tokens_per_second"] = round(done / spent, 1) if spent > 0 else 0.0
            self.since = (seconds, tokens)
        logs.update(tokens=tokens, seconds=round(seconds, 3), rss_bytes=rss())
        super().log(logs, start_time)  # type: ignore[misc]

    def clock(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.seconds + (time.perf_counter() - self.began if self.began is not None else 0.0)

    # ---- checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        out = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        new = out / f".{name}.part"
        main, here = self.args.should_save, self.accelerator
        if main:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            self.adapted.save(new / checkpoint.ADAPTER)
            self.state.save_to_json(str(new / "trainer_state.json"))
        tokens = self.tokens()
        if main:
            state = {
                "step": self.state.global_step,
                "world": here.num_processes,
                "data": self.digest,
                "tokens": tokens,
                "seconds": self.clock(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.lr_scheduler.state_dict(),
            }
            checkpoint.write(new, state)
        here.wait_for_everyone()
        checkpoint.write(new / f"random-{here.process_index}", checkpoint.random_state())
        here.wait_for_everyone()
        if main:
            checkpoint.commit(new, out / name, self.t.keep)
        here.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The adapter is loaded where the model is made (see `run`)."""

    def _load_optimizer_and_scheduler(self, folder: str | None) -> None:
        if folder is None:
            return
        state = checkpoint.read(Path(folder))
        if state["data"] != self.digest:
            raise StateMismatch(f"{folder}: the training data (or max_length, packing) differ from the run to resume")
        if state["world"] != self.accelerator.num_processes:
            raise StateMismatch(
                f"{folder} was written by {state['world']} processes, this run has {self.accelerator.num_processes}: "
                "the batches would differ"
            )
        mine, saved = self.optimizer.state_dict(), state["optimizer"]
        if _names(mine) != _names(saved):
            raise StateMismatch(f"{folder}: the optimiser's parameters differ from this run's (another update rule?)")
        self.optimizer.load_state_dict(saved)
        self.lr_scheduler.load_state_dict(state["schedule"])
        self.take(state["tokens"])
        self.seconds = state["seconds"]
        self.since = (self.seconds, int(state["tokens"]))

    def _load_rng_state(self, folder: str | None) -> None:
        if folder is not None:
            checkpoint.set_random_state(checkpoint.read(Path(folder) / f"random-{self.accelerator.process_index}"))


def _names(state: dict[str, Any]) -> list[Any]:
    return [g.get("param_names", len(g["params"])) for g in state["param_groups"]]


SHOWN = 12  # lines about rules that are shown while a run goes on


class Watch(TrainerCallback):
    """Trainer events -> metrics.jsonl, the sentinel, the progress display."""

    def __init__(self, engine: Any):
        self.engine, self.sentinel = engine, Sentinel({}, 0)
        self.lines: list[dict[str, Any]] = []
        self.found: dict[str, list[str]] | None = None
        self.lost = False  # the loss has been not finite
        self.told = len(engine.adapted.events)  # of the adapter's events
        self.file = Path(engine.args.output_dir) / "metrics.jsonl"

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.sentinel = Sentinel(self.engine.adapted.trainable(), self.engine.t.watch_steps)  # type: ignore[arg-type]
        if state.is_world_process_zero:
            done = state.global_step
            if done and self.file.is_file():  # drop what the killed run wrote after its checkpoint
                whole = [line for line in self.file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
                old = (json.loads(line) for line in whole)
                self.lines = [r for r in old if r.get("step", 0) <= done]
            self.file.write_text("".join(json.dumps(finite(r)) + "\n" for r in self.lines), encoding="utf-8")
            self.engine.progress.begin(state.max_steps, done)
        self.engine.began = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.sentinel.watching:
            self.sentinel.gradients()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.sentinel.watching and (found := self.sentinel.step()) is not None:
            self.findings(found, state)
        self.events(state)
        if state.is_world_process_zero:
            self.engine.progress.step(state.global_step)
        if self.engine.stop:  # an interrupt: one more checkpoint, then out
            control.should_save = control.should_training_stop = True
        if state.global_step >= state.max_steps:  # the steps since the last multiple of log_every
            control.should_log = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.sentinel.watching and self.sentinel.left < self.engine.t.watch_steps:  # a run shorter than the watch
            self.findings(self.sentinel.report(), state)
        self.allocated(state)

    def events(self, state: Any) -> None:
        """What rules did since the last step: all of it into the file, the first few lines before the reader's eyes."""
        adapted = self.engine.adapted
        for event in adapted.events[self.told :]:
            self.record({"rule": event["what"], "site": event["site"], "step": event["step"]}, state)
            self.told += 1
            if state.is_world_process_zero and self.told <= SHOWN:
                more = "" if self.told < SHOWN else " (further ones are in metrics.jsonl)"
                self.engine.progress.note(f"step {event['step']}: {event['what']}{more}")

    def allocated(self, state: Any) -> None:
        """At the end: what became of the ranks, and a warning where a rule that allocates them did nothing in the whole run."""
        rules = [r for r in asked_of(self.engine.adapted) if r.allocates]
        if not rules or not state.is_world_process_zero:
            return
        ranks = list(self.engine.adapted.ranks().values())
        idle = [
            r.key
            for r in rules
            if not any("rule" in line and line["rule"].startswith(f"{r.key}:") for line in self.lines)
        ]
        if idle:
            text = f"'{idle[0]}' allocates ranks, and changed none in {state.global_step} steps: the run is shorter than its schedule, or its target no less than what there is"
            self.record({"warning": text, "step": state.global_step}, state)
            self.engine.progress.note(text, warning=True)
        if ranks:
            self.engine.progress.note(
                f"ranks: {sum(ranks)} terms live at {len(ranks)} sites, {min(ranks)} to {max(ranks)} a site"
            )

    def findings(self, found: dict[str, list[str]], state: Any) -> None:
        self.found = found
        for text in describe(found, min(self.engine.t.watch_steps, state.global_step)):
            self.record({"warning": text, "step": state.global_step, **found}, state)
            if state.is_world_process_zero:
                self.engine.progress.note(text, warning=True)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        line = {"step": state.global_step, **(logs or {})}
        if "learning_rate" in line:
            line["lr"] = line.pop("learning_rate")
        self.record(line, state)
        if state.is_world_process_zero:
            self.engine.progress.metrics(line)
        if not math.isfinite(line.get("loss", 0.0)) and not self.lost:
            self.lost = True
            text = f"the loss is not finite at step {state.global_step}: try a lower train.lr"
            self.record({"warning": text, "step": state.global_step}, state)
            if state.is_world_process_zero:
                self.engine.progress.note(text, warning=True)

    def record(self, line: dict[str, Any], state: Any) -> None:
        if state.is_world_process_zero:
            self.lines.append(line)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite(line)) + "\n")


def finite(value: Any) -> Any:
    """JSON has no NaN: a value that is not finite becomes null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
