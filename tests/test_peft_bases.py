"""PEFT 0.21.2 as the judge of files of methods with frozen bases: trained in one, read in the other, equal outputs."""

from __future__ import annotations

import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import deltaw
from deltaw import Plan
from deltaw.errors import StateMismatch
from deltaw.methods import OSF, PSOFT, AdaMSS, Drop, FRoD, PVeRA, RandLoRA, TinyLoRA, UniLoRA, VBLoRA

peft = pytest.importorskip("peft")
conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
pytestmark = pytest.mark.filterwarnings("ignore")


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        self.self_attn.q_proj, self.self_attn.v_proj = nn.Linear(16, 16), nn.Linear(16, 8, bias=False)
        self.mlp.up, self.mlp.down = nn.Linear(8, 24), nn.Linear(24, 16)

    def forward(self, x):
        return x + self.mlp.down(torch.tanh(self.mlp.up(self.self_attn.v_proj(torch.tanh(self.self_attn.q_proj(x))))))


class Stack(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.layers = nn.ModuleList([Layer() for _ in range(3)])
        self.out = last

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.out(x)


def model():
    torch.manual_seed(0)
    net = Stack(conv1d(8, 16)).eval()
    nn.init.normal_(net.out.weight, std=0.3)
    return net


X = torch.linspace(-1, 1, 5 * 16).sin().reshape(5, 16) * 2


def out(net):
    with torch.no_grad():
        return net(X)


def close(a, b):
    assert (a - b).abs().max() <= 1e-5 * max(1.0, float(b.abs().max()))


def shake(tensors):
    torch.manual_seed(1)
    for t in tensors:
        t.data.add_(torch.randn_like(t) * 0.1)


SOME = ["q_proj", "v_proj", "down"]
ALL = [*SOME, "up", "out"]
OURS = [
    (PSOFT(r=4), ALL[:-1]), (Drop(PSOFT(r=3)), SOME), (TinyLoRA(u=5), ALL), (TinyLoRA(r=3, u=5, scope="model"), SOME),
    (PVeRA(r=4), ALL), (Drop(PVeRA(r=4)), SOME), (RandLoRA(r=3, alpha=9), ALL), (RandLoRA(r=4, alpha=6), SOME),
    (FRoD(rate=0.05), SOME), (FRoD(rate=0.05), ["layers.0.self_attn.v_proj", "layers.1.self_attn.v_proj"]),
    (OSF(), SOME), (OSF(top=3), SOME), (UniLoRA(r=3, d=40), ALL), (VBLoRA(h=12, b=8), ALL), (Drop(VBLoRA(h=12, b=4)), SOME),
]  # fmt: skip


@pytest.mark.parametrize("method, targets", OURS, ids=[f"{m.key}{k}" for k, (m, _) in enumerate(OURS)])
def test_ours_in_peft(method, targets, tmp_path):
    net = model()
    adapted = deltaw.attach(net, Plan(method, targets=targets))
    shake(adapted.trainable().values())
    want = out(net)
    assert (want - out(model())).abs().max() > 1e-3
    adapted.save(tmp_path / "a")
    assert (tmp_path / "a" / "adapter_config.json").is_file(), json.load(open(tmp_path / "a" / "deltaw.json"))["peft"]
    again = model()
    loaded = deltaw.load(again, tmp_path / "a")
    assert all(torch.equal(v, adapted.state()[k]) for k, v in loaded.state().items())
    assert torch.equal(out(again), want)
    judge = peft.PeftModel.from_pretrained(model(), tmp_path / "a").eval()
    close(out(judge), want)
    judge.save_pretrained(tmp_path / "b")
    back = model()
    deltaw.load(back, tmp_path / "b")
    close(out(back), want)
    ours, theirs = (set(load_file(tmp_path / d / "adapter_model.safetensors")) for d in "ab")
    assert ours <= theirs and all(".randlora_" in k for k in theirs - ours)


def C(name, targets=SOME, **kw):
    return pytest.param(lambda: getattr(peft, name)(target_modules=list(targets), **kw), id=f"{name}-{'-'.join(kw)}")


THEIRS = [
    C("PsoftConfig", ALL[:-1], r=5, psoft_alpha=3), C("PsoftConfig", r=4, psoft_dropout=0.1),
    C("TinyLoraConfig", ALL, u=5), C("TinyLoraConfig", u=4, r=3, weight_tying=1.0),
    C("TinyLoraConfig", u=4, save_projection=False, projection_seed=3),
    C("PveraConfig", ALL, r=4), C("PveraConfig", r=4, save_projection=False, projection_prng_key=5, generator_seed=1),
    C("RandLoraConfig", ALL, r=3), C("RandLoraConfig", r=5, sparse=True),
    C("FrodConfig", sparse_rate=0.05, progressbar=False), C("FrodConfig", ALL[:-1], frod_dropout=0.1, progressbar=False),
    C("OSFConfig"), C("OSFConfig", effective_rank=3),
    C("UniLoraConfig", ALL, theta_d_length=50), C("UniLoraConfig", theta_d_length=3000, save_indices=True),
    C("VBLoRAConfig", ALL, num_vectors=9, vector_length=8), C("VBLoRAConfig", num_vectors=9, vector_length=4, topk=3),
    C("VBLoRAConfig", num_vectors=9, vector_length=4, topk=3, save_only_topk_weights=True),
]  # fmt: skip


@pytest.mark.parametrize("config", THEIRS)
def test_theirs_in_deltaw(config, tmp_path):
    torch.manual_seed(2)
    theirs = peft.get_peft_model(model(), config()).eval()
    shake(p for p in theirs.parameters() if p.requires_grad)
    want = out(theirs)
    assert (want - out(model())).abs().max() > 1e-4
    theirs.save_pretrained(tmp_path / "a")
    net = model()
    adapted = deltaw.load(net, tmp_path / "a")
    close(out(net), want)
    adapted.save(tmp_path / "b")
    judge = peft.PeftModel.from_pretrained(model(), tmp_path / "b").eval()
    close(out(judge), want)
    again = model()
    deltaw.load(again, tmp_path / "b")
    assert torch.equal(out(again), out(net))


REFUSED = [
    C("PsoftConfig", r=4, psoft_orth=False), C("PsoftConfig", r=4, psoft_mag_a=False), C("PsoftConfig", r=4, psoft_mag_b=False),
    C("PsoftConfig", r=4, use_cayley_neumann=True), C("PsoftConfig", r=4, ab_svd_init="pissa_init"),
    C("PsoftConfig", r=4, psoft_svd="lowrank"), C("TinyLoraConfig", weight_tying=0.5), C("PveraConfig", r=4, sample_at_inference=True),
    C("RandLoraConfig", r=4, save_projection=False), C("FrodConfig", save_projection=False, progressbar=False),
    C("OSFConfig", rank_pattern={"q_proj": 2}), C("OSFConfig", effective_rank=0.5), C("UniLoraConfig", bias="all"),
]  # fmt: skip


@pytest.mark.parametrize("config", REFUSED)
def test_other_mathematics_is_refused_by_name(config, request, tmp_path):
    peft.get_peft_model(model(), config()).save_pretrained(tmp_path)
    net, word = model(), request.node.callspec.id.rpartition("-")[2]
    word = "save_projection" if "save_projection" in request.node.callspec.id else word
    with pytest.raises(StateMismatch, match=word):
        deltaw.load(net, tmp_path)
    assert torch.equal(out(net), out(model()))


def test_frod_is_not_written_where_peft_would_pair_other_bases(tmp_path):
    """PEFT computes U from the base and a V of its own, then takes V from the file."""
    adapted = deltaw.attach(model(), Plan(FRoD(), targets=["q_proj"]))
    with torch.no_grad():
        adapted.state()["self_attn_q_proj-16.V"].copy_(torch.eye(16))
    adapted.save(tmp_path)
    card = json.load(open(tmp_path / "deltaw.json"))
    assert not card["peft"]["written"] and "self_attn_q_proj" in card["peft"]["reason"]


def test_tinylora_in_groups_and_unilora_in_two_ranks_are_native_only(tmp_path):
    for k, (method, change, word) in enumerate(
        [(TinyLoRA(), {"scope": "first"}, "groups"), (UniLoRA(), {"r": 2}, "one theta")]
    ):
        overrides = {"layers.0.*": change, **({"layers.[12].*": {"scope": "rest"}} if k == 0 else {})}
        deltaw.attach(model(), Plan(method, targets=SOME, overrides=overrides)).save(tmp_path / str(k))
        assert word in json.load(open(tmp_path / str(k) / "deltaw.json"))["peft"]["reason"]
        deltaw.load(model(), tmp_path / str(k))


def test_randlora_with_two_bases_in_one_file(tmp_path):
    peft.get_peft_model(model(), peft.RandLoraConfig(target_modules=SOME, r=4)).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(k for k in tensors if k.endswith("q_proj.randlora_B"))
    save_file({**tensors, key: tensors[key] + 1}, path)
    with pytest.raises(StateMismatch, match="another basis"):
        deltaw.load(model(), tmp_path)


# ---- AdaMSS, whose groups PEFT finds with scikit-learn


@pytest.mark.parametrize("rank", [1, 3])
def test_adamss_of_peft(rank, tmp_path):
    pytest.importorskip("sklearn")
    config = peft.AdamssConfig(target_modules=SOME, r=7, num_subspaces=4, subspace_rank=rank)
    torch.manual_seed(2)
    theirs = peft.get_peft_model(model(), config).eval()
    shake(p for p in theirs.parameters() if p.requires_grad)
    want = out(theirs)
    assert (want - out(model())).abs().max() > 1e-3
    theirs.save_pretrained(tmp_path / "a")
    net = model()
    adapted = deltaw.load(net, tmp_path / "a")
    close(out(net), want)
    shake(adapted.trainable().values())
    want = out(net)
    adapted.save(tmp_path / "b")
    close(out(peft.PeftModel.from_pretrained(model(), tmp_path / "b").eval()), want)
    again = model()
    deltaw.load(again, tmp_path / "b")
    assert torch.equal(out(again), want)


def test_adamss_with_groups_of_its_own_is_native_only(tmp_path):
    net = model()
    adapted = deltaw.attach(net, Plan(AdaMSS(R=7, K=4), targets=SOME))
    shake(adapted.trainable().values())
    adapted.save(tmp_path)
    card = json.load(open(tmp_path / "deltaw.json"))
    assert not card["peft"]["written"] and "scikit-learn" in card["peft"]["reason"]
    again = model()
    deltaw.load(again, tmp_path)
    assert torch.equal(out(again), out(net))


def test_adamss_files_without_scikit_learn_are_refused(tmp_path, monkeypatch):
    save_file({"base_model.model.layers.0.self_attn.q_proj.adamss_newB": torch.zeros(7, 17)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "ADAMSS", "target_modules": ["layers.0.self_attn.q_proj"], "r": 7, "num_subspaces": 2})
    )
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(StateMismatch, match="scikit-learn"):
        deltaw.load(model(), tmp_path)
