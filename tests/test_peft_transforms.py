"""PEFT 0.21.2 as the judge of the files of the transform and shard methods, both ways, on tiny random models."""

from __future__ import annotations

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import deltaw
from deltaw import Plan
from deltaw.errors import StateMismatch
from deltaw.methods import (
    C3A,
    DEFT,
    BDLoRA,
    BoneBat,
    DeLoRA,
    Drop,
    FourierFT,
    GLoRA,
    KaSA,
    Lily,
    LoRA,
    MiCA,
    MiSS,
    PaRa,
    PEANuT,
    WaveFT,
)

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
from peft.tuners.lora.config import BdLoraConfig, KasaConfig  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.arange(24).reshape(2, 12)


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    return transformers.GPT2LMHeadModel(config).eval()


class Odd(nn.Module):
    """Layers of odd sizes, with a bias."""

    def __init__(self):
        super().__init__()
        self.emb, self.up, self.down = nn.Embedding(24, 17), nn.Linear(17, 23), nn.Linear(23, 17, bias=False)

    def forward(self, ids):
        return self.down(torch.tanh(self.up(self.emb(ids))))


def odd():
    torch.manual_seed(0)
    return Odd().eval()


MODELS = {"llama": llama, "gpt2": gpt2, "odd": odd}


def out(model):
    """Row by row: what a row gives may not depend on the others, as in PEFT's Lily it does."""
    with torch.no_grad():
        found = [model(IDS[k : k + 1]) for k in range(len(IDS))]
    return torch.cat([getattr(y, "logits", y) for y in found])


def shake(tensors, size=0.1):
    torch.manual_seed(1)
    for t in tensors:
        t.data.add_(torch.randn_like(t) * size)


ATT = {"targets": ["c_attn", "attn.c_proj"]}
BOTH = {"targets": ["up", "down"]}
OURS = [
    ("llama", FourierFT(k=60), {"overrides": {"q_proj": {"k": 40}, "0.self_attn.k_proj": {"k": 20}}}),
    ("llama", FourierFT(k=60, s=100.0, seed=5, init="zeros"), {}),
    ("gpt2", FourierFT(k=60), ATT),
    ("odd", FourierFT(k=60), BOTH),
    ("llama", WaveFT(k=90), {"overrides": {"q_proj": {"k": 40}}}),
    ("gpt2", WaveFT(k=90, s=10.0, seed=5), ATT),
    ("odd", WaveFT(k=200), BOTH),
    ("llama", C3A(b=8), {"overrides": {"q_proj": {"b": 16}}}),
    ("llama", C3A(b=16, init="zeros"), {"train_modules": ["norm"]}),
    ("llama", Lily(r=4), {"targets": ["q_proj", "down_proj"]}),
    ("llama", Lily(r=4, stride_A=2, num_B=3, scaling=2.0), {}),
    ("llama", MiSS(r=8), {}),
    ("llama", Drop(MiSS(r=5, mini_r=4), p=0.2), {}),
    ("odd", MiSS(r=5), BOTH),
    ("llama", BoneBat(r=8), {}),
    ("llama", GLoRA(r=4), {}),
    ("odd", GLoRA(r=4, C="vector", D_E="vector"), BOTH),
    ("odd", GLoRA(A_B="vector", D_E="none"), BOTH),
    ("odd", GLoRA(r=2, A_B="constant", C="none"), BOTH),
    ("odd", GLoRA(r=2, A_B="none"), {"targets": ["up"]}),
    ("llama", PEANuT(r=4), {}),
    ("odd", PEANuT(r=3, depth=2, s=0.5), BOTH),
    ("llama", DeLoRA(r=4), {"overrides": {"q_proj": {"r": 2}, "0.self_attn.k_proj": {"strength": 3.0}}}),
    ("odd", Drop(DeLoRA(r=4, strength=2.5), p=0.3), BOTH),
    ("llama", DEFT(r=4), {}),
    ("llama", MiCA(r=4, alpha=6.0), {"overrides": {"q_proj": {"r": 2}}}),
    ("odd", Drop(MiCA(r=4), p=0.2), BOTH),
    ("llama", KaSA(r=4, alpha=6.0), {"overrides": {"q_proj": {"r": 2}}}),
    ("odd", KaSA(r=4), BOTH),
    ("llama", BDLoRA(r=4, nblocks=2), {"overrides": {"o_proj": {"side": "A"}, "down_proj": {"side": "A"}}}),
    ("llama", Drop(BDLoRA(r=4, nblocks=4, side="A"), p=0.1), {"targets": ["down_proj"]}),
    ("gpt2", DEFT(r=4, alpha=6.0, decomposition="qr"), ATT),
    ("odd", DEFT(r=4, alpha=2.0), BOTH),
    ("llama", PaRa(r=4), {}),
    ("gpt2", PaRa(r=4, decomposition="relu"), ATT),
]


@pytest.mark.parametrize("which, method, plan", OURS)
def test_ours_in_peft(which, method, plan, tmp_path):
    """No missing or unexpected key, equal output; PEFT's own copy of it comes back to us; native is bit for bit."""
    model = MODELS[which]()
    adapted = deltaw.attach(model, Plan(method, **plan))
    shake(adapted.trainable().values())
    want = out(model)
    assert (want - out(MODELS[which]())).abs().max() > 1e-3
    adapted.save(tmp_path / "a")
    assert (tmp_path / "a" / "adapter_config.json").is_file(), json.load(open(tmp_path / "a" / "deltaw.json"))["peft"]
    assert not (tmp_path / "a" / "deltaw.safetensors").exists()  # PEFT's form holds it to the last bit

    again = MODELS[which]()
    loaded = deltaw.load(again, tmp_path / "a")
    state = adapted.state()
    assert state.keys() == loaded.state().keys()
    assert all(torch.equal(v, state[k]) for k, v in loaded.state().items())
    assert torch.equal(out(again), want)

    judge = peft.PeftModel.from_pretrained(MODELS[which](), tmp_path / "a").eval()
    assert (out(judge) - want).abs().max() <= 1e-5 * max(1, want.abs().max())
    result = judge.load_adapter(tmp_path / "a", "again")
    assert not result.unexpected_keys
    assert not [k for k in result.missing_keys if ".again" in k]

    judge.save_pretrained(tmp_path / "b", selected_adapters=["default"])
    ours, theirs = (load_file(tmp_path / d / "adapter_model.safetensors") for d in "ab")
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    back = MODELS[which]()
    deltaw.load(back, tmp_path / "b")
    assert (out(back) - want).abs().max() <= 1e-5 * max(1, want.abs().max())


def C(name, **kw):
    return lambda: getattr(peft, name)(**kw)


QV = ["q_proj", "v_proj"]
THEIRS = [
    ("llama", C("FourierFTConfig", target_modules=QV, n_frequency=50, n_frequency_pattern={"v_proj": 30})),
    ("gpt2", C("FourierFTConfig", target_modules=["c_attn"], n_frequency=50, random_loc_seed=3, fan_in_fan_out=True)),
    ("odd", C("FourierFTConfig", target_modules=["up", "down"], n_frequency=50, init_weights=True)),
    ("llama", C("WaveFTConfig", target_modules=QV, n_frequency=50, n_frequency_pattern={"v_proj": 30})),
    ("gpt2", C("WaveFTConfig", target_modules=["c_attn"], n_frequency=50, scaling=10.0, random_loc_seed=3)),
    ("odd", C("WaveFTConfig", target_modules=["up", "down"], n_frequency=300, init_weights=False)),
    ("llama", C("C3AConfig", target_modules=QV, block_size=8, block_size_pattern={"v_proj": 16})),
    ("llama", C("C3AConfig", target_modules=QV, block_size=4, init_weights=True)),
    ("llama", C("MissConfig", target_modules=QV, r=8, miss_dropout=0.1)),
    ("odd", C("MissConfig", target_modules=["up", "down"], r=4, init_weights=False)),
    ("llama", C("MissConfig", target_modules=QV, r=6, init_weights="mini", mini_r=4)),
    ("llama", C("MissConfig", target_modules=QV, r=4, init_weights="bat")),
    ("odd", C("GloraConfig", target_modules=["up", "down"], r=3)),
    ("odd", C("GloraConfig", target_modules=["up", "down"], config_A_B="vector", config_C="vector", config_D_E="vector")),
    ("llama", C("GloraConfig", target_modules=QV, config_A_B="constant", config_C="none", config_D_E="none")),
    ("llama", C("PeanutConfig", target_modules=QV, r=4, depth=1, scaling=2.0)),
    ("odd", C("PeanutConfig", target_modules=["up", "down"], r=3)),
    ("llama", C("DeloraConfig", target_modules=QV, r=4, rank_pattern={"v_proj": 2}, lambda_pattern={"q_proj": 5})),
    ("odd", C("DeloraConfig", target_modules=["up", "down"], r=4, module_dropout=0.2, init_weights=False)),
    ("llama", C("DeftConfig", target_modules=QV, r=4)),
    ("llama", C("LoraConfig", target_modules=QV, r=4, init_lora_weights="mica", rank_pattern={"v_proj": 2})),
    ("llama", C("LoraConfig", target_modules=QV, r=4, lora_alpha=6, kasa_config=KasaConfig(beta=0.1))),
    ("llama", C("LoraConfig", target_modules=["q_proj", "o_proj"], r=4, lora_dropout=0.1, use_bdlora=BdLoraConfig(
        target_modules_bd_a=["o_proj"], target_modules_bd_b=["q_proj"], nblocks=2))),
    ("gpt2", C("DeftConfig", target_modules=["c_attn"], r=4, alpha=3, decomposition_method="qr", fan_in_fan_out=True)),
    ("odd", C("DeftConfig", target_modules=["up", "down"], r=4, init_weights=False, init_scale=0.1)),
    ("odd", C("DeftConfig", target_modules=["up", "down"], r=4, para=True)),
    ("llama", C("DeftConfig", target_modules=QV, r=4, para=True, decomposition_method="qr")),
    ("llama", C("LilyConfig", target_modules=QV, r=4, stride_A=2, num_B=3, scaling=0.5)),
]


@pytest.mark.parametrize("which, config", THEIRS, ids=[f"{w}{k}" for k, (w, _) in enumerate(THEIRS)])
def test_theirs_in_deltaw(which, config, tmp_path):
    """PEFT's files give the same output here; saved by us and read by PEFT again, still the same."""
    torch.manual_seed(2)
    theirs = peft.get_peft_model(MODELS[which](), config()).eval()
    shake((p for p in theirs.parameters() if p.requires_grad), 0.3)
    want = out(theirs)
    theirs.save_pretrained(tmp_path / "a")
    model = MODELS[which]()
    adapted = deltaw.load(model, tmp_path / "a")
    assert (out(model) - want).abs().max() <= 1e-5 * max(1, want.abs().max())
    assert (want - out(MODELS[which]())).abs().max() > 1e-4
    adapted.save(tmp_path / "b")
    again = MODELS[which]()
    deltaw.load(again, tmp_path / "b")
    assert torch.equal(out(again), out(model))
    judge = peft.PeftModel.from_pretrained(MODELS[which](), tmp_path / "b").eval()
    assert (out(judge) - want).abs().max() <= 1e-5 * max(1, want.abs().max())


REFUSED = [
    (C("FourierFTConfig", target_modules=QV, n_frequency=50, bias="all"), "bias"),
    (C("WaveFTConfig", target_modules=QV, n_frequency=50, wavelet_family="db2"), "wavelet_family"),
    (C("WaveFTConfig", target_modules=QV, n_frequency=50, use_idwt=False), "use_idwt"),
    (C("WaveFTConfig", target_modules=QV, n_frequency=50, proportional_parameters=True), "proportional_parameters"),
    (C("C3AConfig", target_modules=QV, block_size=8, bias="c3a_only"), "bias"),
    (C("MissConfig", target_modules=QV, r=8, bias="all"), "bias"),
    (C("GloraConfig", target_modules=QV, bias="all"), "bias"),
    (C("DeloraConfig", target_modules=QV, bias="all"), "bias"),
    (C("LoraConfig", target_modules=QV, kasa_config=KasaConfig(), use_rslora=True), "use_rslora"),
    (C("LoraConfig", target_modules=QV, use_bdlora=BdLoraConfig(target_modules_bd_a=["q_proj"], match_strict=False)), "v_proj"),
    (C("DeftConfig", target_modules=QV, bias="all"), "bias"),
    (C("DeftConfig", target_modules=QV, deft_dropout=0.1), "deft_dropout"),
    (C("PeanutConfig", target_modules=QV, r=4, act_fn="gelu"), "act_fn"),
    (C("MissConfig", target_modules=QV, r=8, init_weights="bat", miss_dropout=0.1), "miss_dropout"),
]


@pytest.mark.parametrize("config, word", REFUSED, ids=[f"{w}{k}" for k, (_, w) in enumerate(REFUSED)])
def test_options_that_change_the_mathematics_are_refused_by_name(config, word, tmp_path):
    peft.get_peft_model(llama(), config()).save_pretrained(tmp_path)
    with pytest.raises(StateMismatch, match=word):
        deltaw.load(llama(), tmp_path)


@pytest.mark.parametrize(
    "method, plan, words",
    [(Drop(BoneBat(r=8)), {}, "dropout"), (MiSS(r=8), {"overrides": {"q_proj": {"r": 4}}}, "one value of r"),
     (MiSS(r=8), {"overrides": {"q_proj": BoneBat(r=8)}}, "one value of init_weights"), (Drop(C3A(b=8)), {}, "dropout"),
     (KaSA(r=4), {"overrides": {"q_proj": LoRA(r=4)}}, "one value of kasa_config"),
     (LoRA(r=4), {"overrides": {"q_proj": KaSA(r=4)}}, "one value of kasa_config"),
     (BDLoRA(r=4, nblocks=2), {"overrides": {"0.self_attn.q_proj": {"side": "A"}}}, "cannot tell its side"), (MiCA(r=4), {"targets": ["embed_tokens"]}, "embedding"),
     (DeLoRA(r=4, twin=True), {}, "twin"), (Drop(DEFT(r=4)), {}, "dropout"),
     (MiSS(r=8), {"targets": ["embed_tokens"]}, "embedding")],
)  # fmt: skip
def test_what_peft_cannot_hold_is_native_with_the_reason(method, plan, words, tmp_path):
    model = llama()
    adapted = deltaw.attach(model, Plan(method, **plan))
    shake(adapted.trainable().values())
    adapted.save(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    assert words in json.load(open(tmp_path / "deltaw.json"))["peft"]["reason"]
    again = llama()
    deltaw.load(again, tmp_path)
    assert torch.equal(out(again), out(model))


def test_other_positions_than_peft_draws_are_saved_natively(tmp_path):
    model = llama()
    adapted = deltaw.attach(model, FourierFT(k=60))
    next(t for n, t in adapted.state().items() if n.endswith(".I")).add_(1).remainder_(256)
    adapted.save(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    assert "positions" in json.load(open(tmp_path / "deltaw.json"))["peft"]["reason"]
    again = llama()
    deltaw.load(again, tmp_path)
    assert torch.equal(out(again), out(model))


@pytest.mark.parametrize(
    "plan", [{"targets": ["up_proj", "gate_proj"], "exclude": ["0.mlp.up_proj"]}, {"layers": [1, 2]}], ids=["names", "layers"]
)
def test_lily_that_peft_would_tie_otherwise_is_saved_natively(plan, tmp_path):
    """With stride_A = 2 PEFT counts the adapted layers, we count the model's."""
    model = llama()
    adapted = deltaw.attach(model, Plan(Lily(r=4, stride_A=2), **plan))
    shake(adapted.trainable().values())
    adapted.save(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    assert "share" in json.load(open(tmp_path / "deltaw.json"))["peft"]["reason"]
    again = llama()
    deltaw.load(again, tmp_path)
    assert torch.equal(out(again), out(model))


def test_lily_with_copies_that_differ_is_refused(tmp_path):
    config = peft.LilyConfig(target_modules=QV, r=4, stride_A=2)
    peft.get_peft_model(llama(), config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.1.self_attn.q_proj.lily_A.weight"] += 1.0
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(StateMismatch, match=r"layers\.1\.self_attn\.q_proj\.lily_A.* differs"):
        deltaw.load(llama(), tmp_path)
