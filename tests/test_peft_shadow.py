"""PEFT 0.21.2 as the judge of Shadow over a whole language model: outputs, gradients, dropout, checkpoints, files both ways."""

from __future__ import annotations

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

import deltaw
from deltaw import Plan
from deltaw.errors import NotMergeable, SpecError, StateMismatch
from deltaw.interop.peft.shadow import AROUND
from deltaw.methods import LoRA, Shadow

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

IDS = torch.arange(3, 25).reshape(2, 11)
MASK = torch.ones_like(IDS).index_fill(1, torch.arange(3), 0) | torch.tensor([[0], [1]])  # row 0 is padded on the left
METHOD = Shadow(r=3, alpha=0.5, dropout=0.3, layers=2, width=5)
FIELDS = {"r": 3, "shadow_alpha": 0.5, "shadow_dropout": 0.3, "shadow_num_hidden_layers": 2, "update_hidden_size": 5}
FAMILIES = ["Llama", "Qwen3", "Gemma2"]


def language_model(family="Llama"):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, initializer_range=0.2, pad_token_id=0, use_cache=False,
    )  # fmt: skip
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def shaken(model):
    torch.manual_seed(1)
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(torch.randn_like(p) * 0.2)
    return model


def ours(family="Llama", method=METHOD):
    model = language_model(family)
    adapted = deltaw.attach(model, method)
    shaken(model)
    return model, adapted


def judge_of(path, family="Llama"):
    return peft.PeftModel.from_pretrained(language_model(family), path, is_trainable=True).eval()


def gap(a, b, **kw):
    real = kw.get("attention_mask", torch.ones_like(IDS)).bool()
    return (a(input_ids=IDS, **kw).logits - b(input_ids=IDS, **kw).logits)[real].abs().max().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_those_of_peft(family, tmp_path):
    method = METHOD if family == "Llama" else Shadow(r=3, alpha=0.5, dropout=0.0)
    model, adapted = ours(family, method)
    adapted.save(tmp_path / "a")
    assert (tmp_path / "a" / "adapter_config.json").is_file(), json.load(open(tmp_path / "a" / "deltaw.json"))["peft"]
    judge = judge_of(tmp_path / "a", family)
    assert gap(model, judge) < 1e-4 and gap(model, judge, attention_mask=MASK) < 1e-4
    assert gap(model, language_model(family)) > 1e-2


def test_gradients_and_dropout_are_those_of_peft(tmp_path):
    model, adapted = ours()
    adapted.save(tmp_path / "a")
    judge = judge_of(tmp_path / "a")
    w = torch.linspace(-1, 1, 64)
    outputs = []
    for m in (model.train(), judge.train()):
        torch.manual_seed(3)
        y = m(input_ids=IDS).logits
        (y * w).sum().backward()
        outputs.append(y.detach())
    assert (outputs[0] - outputs[1]).abs().max() < 1e-4
    theirs = {k: p.grad for k, p in judge.named_parameters() if p.grad is not None}
    seen = 0
    for key, p in adapted.trainable().items():
        site, _, word = key[: len("model.layers.0")], None, key[len("model.layers.0.") :]
        name = f"base_model.model.{site}.{AROUND[word]}" if word in AROUND else (
            "base_model.shadow_backbone.default." + (word if word.startswith("norm") else "layers." + word[len("net.") :]))  # fmt: skip
        assert (p.grad - theirs[name]).abs().max() <= 2e-4 * theirs[name].abs().max(), key
        seen += 1
    assert seen == len(theirs)  # PEFT's T and G of the last block have none


def test_gradients_through_checkpoints(tmp_path):
    model, adapted = ours()
    found = []
    for way in (None, False, True):  # transformers has them inside of the blocks' forward, where both are right
        if way is not None:
            model.gradient_checkpointing_enable({"use_reentrant": way})
        torch.manual_seed(3)
        model.train()(input_ids=IDS, labels=IDS).loss.backward()
        found.append({k: p.grad.clone() for k, p in adapted.trainable().items()})
        model.zero_grad()
    for other in found[1:]:
        assert all(torch.allclose(g, found[0][k], atol=1e-6) for k, g in other.items())


def test_files_of_peft_are_read(tmp_path):
    config = peft.ShadowConfig(task_type="CAUSAL_LM", modules_to_save=["lm_head"], **FIELDS)
    trained = shaken(peft.get_peft_model(language_model(), config).eval())
    trained.save_pretrained(tmp_path / "b")
    model = language_model()
    back = deltaw.load(model, tmp_path / "b")
    assert back.plan.method == METHOD and gap(model, trained) < 1e-4
    back.save(tmp_path / "c")
    assert gap(judge_of(tmp_path / "c"), trained) < 1e-4
    again = language_model()
    loaded = deltaw.load(again, tmp_path / "c")
    assert all(torch.equal(v, back.state()[k]) for k, v in loaded.state().items())

    for field, value in {"shadow_hidden_size": 16, "share_embeddings": False, "shadow_intermediate_size": 9}.items():
        path = tmp_path / "b" / "adapter_config.json"
        text = path.read_text()
        path.write_text(json.dumps(json.loads(text) | {field: value}))
        with pytest.raises(StateMismatch, match=field):
            deltaw.load(language_model(), tmp_path / "b")
        path.write_text(text)


def test_where_it_cannot_be(tmp_path):
    model, adapted = ours()
    with pytest.raises(SpecError, match="use_cache=False"):
        model.generate(IDS, max_new_tokens=4, use_cache=True)
    assert model.generate(IDS, max_new_tokens=4, use_cache=False, do_sample=False).shape[1] == IDS.shape[1] + 4
    with pytest.raises(NotMergeable):
        adapted.merge()
    adapted.detach()
    deltaw.attach(model, Plan(METHOD, layers=[1, 2]))
    with pytest.raises(SpecError, match="first block"):
        model(IDS)
    gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, use_cache=False)).eval()
    shaken_gpt = deltaw.attach(gpt, Shadow(r=2, dropout=0.0))
    assert gpt(IDS).logits.isfinite().all()  # it works there; only PEFT's network would also add its positions
    shaken_gpt.save(tmp_path / "g")
    assert not (tmp_path / "g" / "adapter_config.json").exists()


def test_beside_a_lora_the_network_stays_its_own():
    """A LoRA inside the blocks changes what the blocks do, and not the network that is made like one of them."""
    model, adapted = ours(method=Shadow(r=3, alpha=0.5, dropout=0.0))
    deltaw.attach(model, Plan(LoRA(r=2), targets=["q_proj"]), "lora")
    shaken(model)
    with deltaw.activate(model, ["default", "lora"]):
        both = model(IDS).logits.detach()
    plain = language_model()
    lora = next(a for a in deltaw.adapters(model) if a.name == "lora")
    for name, (B, A) in lora.to_lora().factors.items():
        plain.get_submodule(name).weight.data += B @ A
    other = deltaw.attach(plain, Shadow(r=3, alpha=0.5, dropout=0.0))
    with torch.no_grad():
        for key, t in other.state().items():
            t.copy_(adapted.state()[key])
    assert (plain(IDS).logits - both).abs().max() < 1e-4
