"""PEFT 0.21.2 as the judge of prompts, prefixes, LLaMA-Adapter and aLoRA: outputs, gradients, generation, files both ways."""

from __future__ import annotations

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

import deltaw
from deltaw import Plan
from deltaw.errors import StateMismatch
from deltaw.methods import CPT, MPT, AdaptionPrompt, ALoRA, Cartridge, Drop, PrefixTuning, PromptTuning, PTuning

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

IDS = torch.arange(3, 25).reshape(2, 11)
MASK = torch.ones_like(IDS).index_fill(1, torch.arange(3), 0) | torch.tensor([[0], [1]])  # row 0 is padded on the left
QKV = ["q_proj", "k_proj", "v_proj"]
CONTEXT = {"ids": (5, 6, 7, 8), "types": (1, 2, 3, 4)}


def llama(kv=2):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=kv, initializer_range=0.2, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def shake(tensors):
    torch.manual_seed(1)
    for t in tensors:
        t.data.add_(torch.randn_like(t) * 0.3)


def theirs_of(model, **kw):
    """Logits of the real tokens, from PEFT's model, which gives those of soft tokens as well."""
    if isinstance(model, peft.PeftModel) and model.active_peft_config.peft_type == "MULTITASK_PROMPT_TUNING":
        kw["task_ids"] = torch.tensor([1, 1])
    return model(input_ids=IDS, **kw).logits[:, -IDS.shape[1] :]


def ours_of(model, **kw):
    with deltaw.tasks(model, [1]):
        return model(input_ids=IDS, **kw).logits


CASES = [
    (PromptTuning(v=4), {}, "PromptTuningConfig", {"num_virtual_tokens": 4}),
    (PTuning(v=4, h=6), {}, "PromptEncoderConfig", {"num_virtual_tokens": 4, "encoder_hidden_size": 6}),
    (PrefixTuning(v=4, h=0), {}, "PrefixTuningConfig", {"num_virtual_tokens": 4}),
    (PrefixTuning(v=4, h=5), {}, "PrefixTuningConfig", {"num_virtual_tokens": 4, "prefix_projection": True, "encoder_hidden_size": 5}),
    (Cartridge(v=4), {}, "CartridgeConfig", {"num_virtual_tokens": 4}),
    (Cartridge(v=4, f=0), {}, "CartridgeConfig", {"num_virtual_tokens": 4, "num_frozen_tokens": 0}),
    (MPT(v=4, tasks=2, rho=2), {}, "MultitaskPromptTuningConfig", {"num_virtual_tokens": 4, "num_tasks": 2, "num_ranks": 2}),
    (CPT(**CONTEXT, eps=50.0, eps_format=50.0), {}, "CPTConfig",
     {"cpt_token_ids": [5, 6, 7, 8], "cpt_tokens_type_mask": [1, 2, 3, 4], "opt_projection_epsilon": 50.0, "opt_projection_format_epsilon": 50.0}),
    (AdaptionPrompt(v=4), {"layers": [1, 2]}, "AdaptionPromptConfig", {"adapter_len": 4, "adapter_layers": 2}),
    (ALoRA(r=3, alpha=5.0, invocation=(8, 9)), {"targets": QKV}, "LoraConfig",
     {"r": 3, "lora_alpha": 5, "target_modules": QKV, "alora_invocation_tokens": [8, 9]}),
]  # fmt: skip
NAMES = [f"{m.key}-{k}" for k, (m, *_) in enumerate(CASES)]


def pairs(method, adapted, judge):
    """(ours, theirs) tensor by tensor, trained ones in the same layout."""
    own, state = {k.rpartition(".")[2]: v for k, v in adapted.state().items()}, adapted.state()
    key = method.key
    if key == "adaption_prompt":
        base = judge.base_model.model.model.layers
        return [(state[f"model.layers.{i}.self_attn.{o}"], getattr(base[i].self_attn, t)) for i in (1, 2)
                for o, t in (("P", "adaption_prompt"), ("g", "adaption_gate"))]  # fmt: skip
    if key == "alora":
        return [(state[f"model.layers.{i}.self_attn.{w}.{o}"],
                 getattr(getattr(judge.base_model.model.model.layers[i].self_attn, w), f"lora_{o}")["default"].weight)
                for i in range(3) for w in QKV for o in "AB"]  # fmt: skip
    e = judge.prompt_encoder["default"]
    if key == "p_tuning":
        head = e.mlp_head
        return [(own["H"], e.embedding.weight)] + [
            (own[f"{w}{k}"], t) for k, i in (("1", 0), ("2", 2), ("3", 4)) for w, t in (("W", head[i].weight), ("b", head[i].bias))
        ]
    if key == "prefix_tuning" and method.h:
        t = e.transform
        return [(own["E"], e.embedding.weight), (own["W1"], t[0].weight), (own["b1"], t[0].bias), (own["W2"], t[2].weight), (own["b2"], t[2].bias)]
    if key == "cartridge":
        return [(own["Z"], e.trainable_embedding)] + ([(own["Z0"], e.frozen_embedding)] if method.f else [])
    if key == "mpt":
        return [(own["P"], e.embedding.weight), (own["u"], e.prefix_task_cols), (own["w"], e.prefix_task_rows)]
    if key == "cpt":
        return [(own["D"], e.delta_embedding.weight)]
    return [(own["P" if key == "prompt_tuning" else "E"], e.embedding.weight)]


@pytest.mark.parametrize("method, plan, config, fields", CASES, ids=NAMES)
def test_outputs_gradients_and_generation_are_those_of_peft(method, plan, config, fields):
    kv = 4 if getattr(method, "h", 0) else 2  # PEFT's network in front of a prefix is as wide as the keys, ours as the model
    model, judge = llama(kv), peft.get_peft_model(llama(kv), getattr(peft, config)(task_type="CAUSAL_LM", **fields)).eval()
    adapted = deltaw.attach(model, Plan(method, **plan))
    shake(adapted.trainable().values())
    both = pairs(method, adapted, judge)
    with torch.no_grad():
        for ours, theirs in both:
            theirs.copy_(ours.reshape(theirs.shape))
    for kw in ({}, {"attention_mask": MASK}):
        y, z = ours_of(model, **kw), theirs_of(judge, **kw)
        real = MASK.bool() if kw else torch.ones_like(IDS).bool()
        assert (y - z)[real].abs().max() < 2e-4, kw
    assert (ours_of(model) - theirs_of(llama(kv))).abs().max() > 1e-2
    w = torch.linspace(-1, 1, 64)
    (ours_of(model) * w).sum().backward()
    (theirs_of(judge) * w).sum().backward()
    for ours, theirs in both:
        if ours.requires_grad:
            assert (ours.grad - theirs.grad.reshape(ours.shape)).abs().max() <= 1e-4 * theirs.grad.abs().max()
    if method.key == "mpt":
        return  # PEFT's generate loses the task ids
    options = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**options), judge.generate(**options))


@pytest.mark.parametrize("method, plan, config, fields", CASES, ids=NAMES)
def test_files_both_ways(method, plan, config, fields, tmp_path):
    model = llama()
    adapted = deltaw.attach(model, Plan(method, **plan))
    shake(adapted.trainable().values())
    want = ours_of(model).detach()
    adapted.save(tmp_path / "a")
    assert (tmp_path / "a" / "adapter_config.json").is_file(), json.load(open(tmp_path / "a" / "deltaw.json"))["peft"]
    again = llama()
    loaded = deltaw.load(again, tmp_path / "a")
    assert all(torch.equal(v, adapted.state()[k]) for k, v in loaded.state().items())
    assert torch.equal(ours_of(again), want)
    judge = peft.PeftModel.from_pretrained(llama(), tmp_path / "a").eval()
    assert (theirs_of(judge) - want).abs().max() < 1e-4

    trained = peft.get_peft_model(llama(), getattr(peft, config)(task_type="CAUSAL_LM", **fields)).eval()
    shake(p for p in trained.parameters() if p.requires_grad)
    want = theirs_of(trained).detach()
    trained.save_pretrained(tmp_path / "b")
    ours = llama()
    back = deltaw.load(ours, tmp_path / "b")
    assert (ours_of(ours) - want).abs().max() < 1e-4
    back.save(tmp_path / "c")
    judge = peft.PeftModel.from_pretrained(llama(), tmp_path / "c").eval()
    assert (theirs_of(judge) - want).abs().max() < 1e-4


def test_what_peft_means_otherwise_is_refused(tmp_path):
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    base = transformers.LlamaForSequenceClassification(llama().config)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "a")
    with pytest.raises(StateMismatch, match="SEQ_CLS"):
        deltaw.load(llama(), tmp_path / "a")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=QKV, alora_invocation_tokens=[8], use_rslora=True)
    peft.get_peft_model(llama(), config).save_pretrained(tmp_path / "b")
    with pytest.raises(StateMismatch, match="use_rslora"):
        deltaw.load(llama(), tmp_path / "b")


def test_an_alora_with_dropout_is_read(tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=QKV, alora_invocation_tokens=[8], lora_dropout=0.5)
    trained = peft.get_peft_model(llama(), config).eval()
    shake(p for p in trained.parameters() if p.requires_grad)
    trained.save_pretrained(tmp_path / "a")
    model = llama()
    adapted = deltaw.load(model, tmp_path / "a")
    assert isinstance(adapted.plan.method, Drop) and isinstance(adapted.plan.method.inner, ALoRA)
    assert (ours_of(model) - theirs_of(trained)).abs().max() < 1e-4
    before = ours_of(model).detach()
    y = ours_of(model.train())
    assert not torch.equal(y[0, 6:], before[0, 6:]) and torch.equal(y[0, :5], before[0, :5])
