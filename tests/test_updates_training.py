"""Rules over matrices in training loops: recipes, transformers' Trainer, several processes, resume in the middle of a period."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from test_train_run import HERE, environment
from train_kit import jsonl, pairs, tiny_model, tiny_tokenizer

import deltaw
from deltaw.methods.update import UPDATES
from deltaw.methods.update.algebra import SubOptimizer
from deltaw.train import run

GALORE = {"key": "galore", "r": 4, "every": 3}


def recipe(tmp_path: Path, **train: Any) -> dict[str, Any]:
    tmp_path.mkdir(exist_ok=True)
    plan = {"method": "full", "targets": ["q_proj", "down_proj"], "update": GALORE}
    rows = jsonl(tmp_path / "rows.jsonl", pairs())
    return {"plan": plan, "data": {"path": rows}, "out": str(tmp_path / "run"),
            "train": {"steps": 8, "batch_size": 2, "lr": 1e-2, "log_every": 1, "save_every": 4, **train}}  # fmt: skip


def go(r: dict[str, Any], **kw: Any) -> dict[str, torch.Tensor]:
    return run(r, model=tiny_model(), tokenizer=tiny_tokenizer(), progress=False, **kw).adapted.state()


def test_a_recipe_trains_weights_and_resumes_inside_a_period(tmp_path):
    whole = go(recipe(tmp_path))
    r = recipe(tmp_path)
    (tmp_path / "run" / "checkpoint-8").rename(tmp_path / "later")  # killed after the checkpoint of step 4 of a period of 3
    again = go(r, resume=True)
    assert all(torch.equal(whole[k], again[k]) for k in whole) and whole
    first = tiny_model().state_dict()
    assert not any(torch.equal(whole[k], first[k]) for k in whole if k.endswith("weight"))


def test_accumulation_in_a_recipe_is_one_batch(tmp_path):
    one = go(recipe(tmp_path / "a", batch_size=4, save_every=0, sort_by_length=False))
    four = go(recipe(tmp_path / "b", batch_size=1, grad_accum=4, save_every=0, sort_by_length=False))
    for k in one:
        torch.testing.assert_close(four[k], one[k], rtol=1e-3, atol=1e-5)


def test_the_trainer_of_transformers_takes_it(tmp_path):
    from transformers import Trainer, TrainingArguments

    model, rows = tiny_model(), [{"input_ids": torch.arange(k, k + 12), "labels": torch.arange(k, k + 12)} for k in range(24)]
    before = {k: t.clone() for k, t in model.state_dict().items()}
    optimizer = deltaw.optimizer(model, GALORE, 1e-2)
    args = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=6, max_grad_norm=1.0,
        report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True, logging_steps=1, warmup_steps=2,
    )  # fmt: skip
    trainer = Trainer(model=model, args=args, train_dataset=rows, optimizers=(optimizer, None))
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0] and all(not torch.equal(t, before[k]) for k, t in model.state_dict().items())


def test_embeddings_heads_and_vectors_are_moved_by_adamw():
    model = tiny_model(tie_word_embeddings=False)
    made = deltaw.optimizer(model, GALORE)
    assert isinstance(made, SubOptimizer)
    plain = {u.name for u in made.units if type(u.rule).__name__ == "Plain"}
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= plain
    assert not any("proj" in name for name in plain) and len(plain) < len(made.units)


def test_frozen_models_and_unknown_rules_are_refused():
    import pytest

    model = tiny_model()
    with pytest.raises(deltaw.errors.SpecError, match="galore"):
        deltaw.optimizer(model, "galor")
    deltaw.attach(model, "lora")
    with pytest.raises(deltaw.errors.SpecError, match="requires a gradient"):
        deltaw.optimizer(model, "galore")


PROCESSES = """
import sys; sys.path.insert(0, {here!r})
import torch, torch.distributed as dist
torch.set_num_threads(1)
import deltaw
from train_kit import tiny_model
dist.init_process_group("gloo")
rank = dist.get_rank()
model = tiny_model()
opt = deltaw.optimizer(model, {galore!r}, 1e-2)
with opt.in_backward(2):
    for step in range(5):
        for part in range(2):
            ids = torch.arange(12)[None] + 4 * step + 2 * part + rank
            (model(input_ids=ids, labels=ids).loss / 2).backward()
        opt.step()
assert all(p.grad is None for p in model.parameters())
torch.save(model.state_dict(), {out!r} + str(rank))
dist.destroy_process_group()
"""


def test_two_processes_that_step_inside_backward_are_one(tmp_path):
    (tmp_path / "go.py").write_text(PROCESSES.format(here=str(HERE), galore=GALORE, out=str(tmp_path / "w")))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d",
              "--rdzv_endpoint=localhost:0", str(tmp_path / "go.py")]  # fmt: skip
    done = subprocess.run(launch, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    zero, one = (torch.load(tmp_path / f"w{rank}", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(zero[k], one[k]) for k in zero)
    model = tiny_model()
    opt = deltaw.optimizer(model, GALORE, 1e-2)
    for step in range(5):
        ids = torch.cat([torch.arange(12)[None] + 4 * step + k for k in range(4)])
        opt.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        opt.step()
    for k, t in model.state_dict().items():
        torch.testing.assert_close(zero[k], t, rtol=1e-3, atol=1e-4)


def test_a_clip_inside_backward_is_each_matrix_own():
    model = torch.nn.Linear(6, 4)
    opt: Any = UPDATES["galore"](r=2).optimizer(dict(model.named_parameters()), 1.0)
    seen: list[float] = []
    real = opt._step
    opt._step = lambda unit, where: (seen.append(float(next(iter(unit.p.values())).grad.norm())), real(unit, where))
    with opt.in_backward(max_norm=0.5):
        (1e3 * model(torch.ones(3, 6)).square().sum()).backward()
    assert seen and all(abs(n - 0.5) < 1e-3 for n in seen)
