"""PEFT 0.21.2 as the judge of Poly: tasks row by row, draws in training, one task as weights, generation, files both ways."""

from __future__ import annotations

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

import deltaw
from deltaw import Plan
from deltaw.errors import NotMergeable, ShapeError, SpecError, StateMismatch
from deltaw.methods import LoRA, Poly
from deltaw.testing.tiny import Tiny, settle, values

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

IDS = torch.arange(3, 27).reshape(3, 8)
QV = ["q_proj", "v_proj"]
METHOD = Poly(r=3, tasks=4, skills=3, splits=2)
FIELDS = {"r": 3, "n_tasks": 4, "n_skills": 3, "n_splits": 2, "target_modules": QV, "task_type": "CAUSAL_LM"}
TASKS = [2, 0, 3]


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def shaken(model):
    torch.manual_seed(1)
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(torch.randn_like(p) * 0.3)
    return model


def theirs(path=None, **more):
    if path is not None:
        return peft.PeftModel.from_pretrained(llama(), path, is_trainable=True).eval()
    return shaken(peft.get_peft_model(llama(), peft.PolyConfig(**{**FIELDS, **more})).eval())


def pair(tmp_path):
    """(our model, our adapter, PEFT's model) with the same tensors."""
    model = llama()
    adapted = deltaw.attach(model, Plan(METHOD, targets=QV))
    shaken(model)
    adapted.save(tmp_path / "a")
    return model, adapted, theirs(tmp_path / "a")


def of_theirs(judge, tasks=TASKS):
    return judge(input_ids=IDS, task_ids=torch.tensor(tasks)).logits


def test_every_row_has_its_task_and_training_draws_what_peft_draws(tmp_path):
    model, adapted, judge = pair(tmp_path)
    with deltaw.tasks(model, TASKS):
        assert (model(IDS).logits - of_theirs(judge)).abs().max() < 1e-4
        assert (model(IDS).logits - of_theirs(judge, [2, 0, 1])).abs()[2].max() > 1e-2
        model.train(), judge.train()
        torch.manual_seed(5)
        y = model(IDS).logits
        torch.manual_seed(5)
        z = of_theirs(judge)
        assert (y - z).abs().max() < 1e-4
        torch.manual_seed(6)
        assert (model(IDS).logits - z).abs().max() > 1e-2
    w = torch.linspace(-1, 1, 64)
    (y * w).sum().backward()
    (z * w).sum().backward()
    layer = judge.base_model.model.model.layers[0].self_attn.q_proj
    state = adapted.trainable()
    for ours, t in (("A", layer.poly_lora_A["default"].grad.mT), ("B", layer.poly_lora_B["default"].grad.mT),
                    ("Z", layer.poly_router["default"].module_logits.grad)):  # fmt: skip
        assert (state[f"model.layers.0.self_attn.q_proj.{ours}"].grad - t).abs().max() <= 1e-4 * t.abs().max()
    assert not state["model.layers.0.self_attn.q_proj.Z"].grad[1].any()  # task 1 is in no row


def test_generation_keeps_the_tasks(tmp_path):
    model, _, judge = pair(tmp_path)
    options = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "max_new_tokens": 6, "num_beams": 2, "do_sample": False}
    with deltaw.tasks(model, TASKS):
        ours = model.generate(**options)
    twice = torch.tensor(TASKS).repeat_interleave(2)  # PEFT has to be told of beams
    assert torch.equal(ours, judge.generate(**options, task_ids=twice))


def test_one_task_is_a_lora(tmp_path):
    model, adapted, _ = pair(tmp_path)
    with deltaw.tasks(model, 2):
        y = model(IDS).logits.detach()
        merged, lora = adapted.merge(), adapted.to_lora()
    assert lora.rank == 3 and not any(lora.error.values())
    assert (merged.model()(IDS).logits - y).abs().max() < 1e-4
    assert (model(IDS).logits - y).abs().max() > 1e-2  # without a word it is task 0 again
    with deltaw.tasks(model, TASKS), pytest.raises(NotMergeable):
        adapted.merge()


def test_one_skill_is_a_lora_of_scale_one_over_r():
    torch.manual_seed(2)
    lin = torch.nn.Sequential(torch.nn.Linear(6, 10)).double()
    x, y = torch.randn(4, 6, dtype=torch.float64), []
    for method in (Poly(r=2, skills=1), LoRA(r=2, alpha=1.0)):
        adapted = deltaw.attach(lin, Plan(method, targets=["0"]))
        torch.manual_seed(3)
        for name, p in adapted.trainable().items():
            if not name.endswith("Z"):
                p.data = torch.randn(p.numel(), dtype=p.dtype).reshape(p.shape)
        y.append([lin(x), lin.train()(x)])
        adapted.detach()
    assert all(torch.allclose(a, b, rtol=1e-11) for a, b in zip(*y))
    assert not torch.allclose(y[0][0], lin(x))


def test_rows_of_several_adapters_keep_their_tasks(tmp_path):
    model = llama()
    deltaw.attach(model, Plan(METHOD, targets=QV), "a")
    deltaw.attach(model, Plan(METHOD, targets=QV, seed=1), "b")
    shaken(model)
    want = []
    for k, (name, task) in enumerate(zip("aba", TASKS)):
        with deltaw.activate(model, name), deltaw.tasks(model, task):
            want.append(model(IDS[k : k + 1]).logits)
    with deltaw.rows(model, ["a", "b", "a"]), deltaw.tasks(model, TASKS):
        assert (model(IDS).logits - torch.cat(want)).abs().max() < 1e-4


def test_sizes_and_numbers_of_tasks_are_checked():
    model = llama()
    with pytest.raises(ShapeError, match="splits = 3 must divide"):
        deltaw.attach(model, Plan(Poly(splits=3), targets=QV))
    with pytest.raises(SpecError, match="skills"):
        deltaw.attach(model, Plan(Poly(skills=0), targets=QV))
    deltaw.attach(model, Plan(METHOD, targets=QV))
    for wrong in ([4], [-1, 0], [0.5]):
        with pytest.raises(SpecError, match="adapters know 4"):
            deltaw.tasks(model, wrong)
    with deltaw.tasks(model, [0, 1]), pytest.raises(SpecError, match="told of 2 rows"):
        model(IDS)


def test_files_both_ways(tmp_path):
    model, adapted, judge = pair(tmp_path)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["peft_type"] == "POLY" and config["n_splits"] == 2
    again = llama()
    loaded = deltaw.load(again, tmp_path / "a")
    assert all(torch.equal(v, adapted.state()[k]) for k, v in loaded.state().items())

    trained = theirs(modules_to_save=["lm_head"])
    want = of_theirs(trained).detach()
    trained.save_pretrained(tmp_path / "b")
    ours = llama()
    back = deltaw.load(ours, tmp_path / "b")
    with deltaw.tasks(ours, TASKS):
        assert (ours(IDS).logits - want).abs().max() < 1e-4
    back.save(tmp_path / "c")
    assert (of_theirs(theirs(tmp_path / "c")) - want).abs().max() < 1e-4

    path = tmp_path / "b" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"poly_type": "per_token"}))
    with pytest.raises(StateMismatch, match="poly_type"):
        deltaw.load(llama(), tmp_path / "b")


def test_tasks_in_half_precision_and_compiled():
    model, x = settle(Tiny(), torch.float32), values(3, 5, 16, name="x", dtype=torch.float32)
    deltaw.attach(model, METHOD)
    shaken(model)
    torch._dynamo.reset()  # what other tests have compiled counts against the same functions' limit of versions
    with deltaw.tasks(model, TASKS):
        y = model(x)
        fast = torch.compile(model, fullgraph=True, backend="eager")
        assert torch.allclose(fast(x), y, atol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x)
        assert (half - y).abs().max() < 0.08 * y.abs().max()
        torch.manual_seed(0)
        y = model.train()(x)
        torch.manual_seed(0)
        assert torch.allclose(torch.compile(model, fullgraph=True, backend="eager")(x), y, atol=1e-6)
