"""PEFT 0.21.2 as the judge of the files of rotations, norms and biases, in both directions, on tiny random models."""

from __future__ import annotations

import json

import pytest
import test_peft_files as files
import torch

import deltaw
from deltaw import Plan
from deltaw.errors import StateMismatch
from deltaw.methods import BEFT, BOFT, OFT, AdaLoRA, BitFit, DoRA, Drop, Gate, LNTuning, LoRA
from deltaw.testing.oracles.boft import kernel

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
C, QV = files.C, files.QV


@pytest.fixture(autouse=True)
def butterflies(monkeypatch):
    """PEFT's CUDA kernel as plain torch: without one PEFT trains a single butterfly factor."""
    from peft.tuners.boft import layer

    monkeypatch.setattr(layer, "_FBD_CUDA", kernel())


OURS = [
    ("llama", OFT(block_size=8), {}),
    ("llama", OFT(block_size=16, terms=0), {}),
    ("llama", OFT(block_size=4, terms=7, share=True), {"targets": QV}),
    ("llama", OFT(block_size=8, eps=0.4), {"targets": QV, "train_modules": ["lm_head"]}),
    ("llama", BOFT(), {}),
    ("llama", BOFT(block_size=4, factors=3), {"targets": QV}),
    ("llama", LNTuning(), {}),
    ("llama", LNTuning(), {"targets": ["input_layernorm"], "layers": [1, 2], "train_modules": ["lm_head"]}),
    ("bert", LNTuning(), {"train_modules": ["classifier"]}),
    ("bert", BEFT(), {"targets": ["value"]}),
    ("llama", AdaLoRA(r=3), {}),
    ("gpt2", Drop(AdaLoRA(r=3, alpha=6), p=0.2), {"targets": files.ATT}),
    ("llama", BEFT(), {"targets": ["v_proj"]}),
]


@pytest.mark.parametrize("which, method, plan", OURS)
def test_ours_in_peft(which, method, plan, tmp_path):
    files.test_ours_in_peft(which, method, plan, tmp_path)


BIASES = [
    ("bert", BitFit(LoRA(r=2)), {"targets": ["query", "dense"], "train_modules": ["classifier"]}),
    ("bert", Drop(BitFit(DoRA(LoRA(r=2))), p=0.1), {"targets": ["query"]}),
    ("gpt2", BitFit(LoRA(r=2)), {"targets": files.ATT}),
    ("llama", BitFit(LoRA(r=2)), {"targets": QV}),
]  # fmt: skip


@pytest.mark.parametrize("which, method, plan", BIASES)
def test_biases_beside_a_lora(which, method, plan, tmp_path):
    """bias="lora_only", both ways. (PEFT writes these into the base, so it takes one such adapter a model.)"""
    model = files.MODELS[which]()
    adapted = deltaw.attach(model, Plan(method, **plan))
    files.shake(adapted.trainable().values())
    want = files.out(model)
    adapted.save(tmp_path / "a")
    assert json.load(open(tmp_path / "a" / "adapter_config.json"))["bias"] == "lora_only"
    judge = peft.PeftModel.from_pretrained(files.MODELS[which](), tmp_path / "a").eval()
    assert (files.out(judge) - want).abs().max() <= 1e-5
    judge.save_pretrained(tmp_path / "b")
    for folder in "ab":
        again = files.MODELS[which]()
        back = deltaw.load(again, tmp_path / folder)
        assert back.plan.method == method or folder == "b"
        assert (files.out(again) - want).abs().max() <= 1e-5
        assert len(back.state()) == len(adapted.state())


THEIRS = [
    ("llama", C("OFTConfig", target_modules=QV, oft_block_size=8, use_cayley_neumann=False)),
    ("llama", C("OFTConfig", target_modules="all-linear", oft_block_size=15, num_cayley_neumann_terms=3)),
    ("llama", C("OFTConfig", target_modules="all-linear", r=4, oft_block_size=0, coft=True, eps=0.5)),
    ("llama", C("OFTConfig", target_modules=QV, oft_block_size=100, block_share=True, module_dropout=0.3)),
    ("llama", C("BOFTConfig", target_modules=QV, boft_block_size=8, boft_n_butterfly_factor=2, boft_dropout=0.2)),
    ("llama", C("BOFTConfig", target_modules="all-linear", boft_block_size=0, boft_block_num=4)),
    ("llama", C("LNTuningConfig", target_modules=["norm", "input_layernorm"])),
    ("llama", C("LNTuningConfig", target_modules=r".*layers\.\d+\..*norm", modules_to_save=["lm_head"])),
    ("bert", C("LNTuningConfig", target_modules=["LayerNorm"], exclude_modules=["embeddings.LayerNorm"], task_type="SEQ_CLS")),
    ("bert", C("BeftConfig", target_modules=["value"], task_type="SEQ_CLS")),
    ("llama", C("RoadConfig", target_modules=QV, group_size=8)),
    ("bert", C("LoraConfig", target_modules=["query", "value"], bias="lora_only", lora_dropout=0.1)),
    ("llama", C("AdaLoraConfig", target_modules=QV, init_r=3, target_r=2, total_step=10, lora_dropout=0.1)),
    ("llama", C("RoadConfig", target_modules=QV, group_size=16, variant="road_4")),
]


@pytest.mark.parametrize("which, config", THEIRS, ids=[f"{w}{k}" for k, (w, _) in enumerate(THEIRS)])
def test_theirs_in_deltaw(which, config, tmp_path):
    """As there, but block sizes that differ from site to site go back to a native file: PEFT has one number for all."""
    torch.manual_seed(2)
    theirs = peft.get_peft_model(files.MODELS[which](), config()).eval()
    files.shake(p for p in theirs.parameters() if p.requires_grad)
    want = files.out(theirs)
    assert (want - files.out(files.MODELS[which]())).abs().max() > 1e-4
    theirs.save_pretrained(tmp_path / "a")
    model = files.MODELS[which]()
    adapted = deltaw.load(model, tmp_path / "a")
    assert (files.out(model) - want).abs().max() <= 1e-5
    adapted.save(tmp_path / "b")
    again = files.MODELS[which]()
    deltaw.load(again, tmp_path / "b")
    assert torch.equal(files.out(again), files.out(model))
    if (tmp_path / "b" / "adapter_config.json").exists():
        judge = peft.PeftModel.from_pretrained(files.MODELS[which](), tmp_path / "b").eval()
        assert (files.out(judge) - want).abs().max() <= 1e-5
    else:
        assert "block_size" in json.load(open(tmp_path / "b" / "deltaw.json"))["peft"]["reason"]


def test_peft_without_its_kernel_stores_one_factor(tmp_path, monkeypatch):
    from peft.tuners.boft import layer

    monkeypatch.setattr(layer, "get_fbd_cuda", lambda: None)
    theirs = peft.get_peft_model(files.llama(), peft.BOFTConfig(target_modules=QV, boft_n_butterfly_factor=2)).eval()
    files.shake(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path)
    model = files.llama()
    assert deltaw.load(model, tmp_path).plan.method == BOFT(factors=1)
    assert (files.out(model) - files.out(theirs)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "config, words",
    [(C("OFTConfig", target_modules=QV, oft_block_size=8, num_cayley_neumann_terms=2), "num_cayley_neumann_terms = 2"),
     (C("OFTConfig", target_modules=QV, oft_block_size=8, bias="oft_only"), "bias = 'oft_only'"),
     (C("BOFTConfig", target_modules=QV, bias="all"), "bias = 'all'"),
     (C("LoraConfig", target_modules=QV, bias="all"), "bias = 'all'"),
     (C("OFTConfig", target_modules=["embed_tokens"], oft_block_size=8), "embedding")],
)  # fmt: skip
def test_what_differs_in_peft_is_refused(config, words, tmp_path):
    peft.get_peft_model(files.llama(), config()).save_pretrained(tmp_path)
    with pytest.raises(StateMismatch, match=words):
        deltaw.load(files.llama(), tmp_path)


@pytest.mark.parametrize("which, method, plan, words", [
    ("conv", OFT(block_size=9), {"targets": ["conv"]}, "conv"),
    ("gpt2", BOFT(block_size=8), {"targets": files.ATT}, "conv1d_hf"),
    ("llama", OFT(block_size=8), {"overrides": {"q_proj": {"block_size": 4}}}, "one value of oft_block_size"),
    ("llama", Drop(OFT(block_size=8)), {}, "dropout"),
    ("llama", Gate(LoRA(r=2)), {}, "no method 'gate'"),
    ("bert", BitFit(), {}, "only beside a LoRA"),
    ("bert", BitFit(AdaLoRA(r=2)), {}, "adalora"),
])  # fmt: skip
def test_what_peft_cannot_hold_is_native_with_the_reason(which, method, plan, words, tmp_path):
    model = files.MODELS[which]()
    adapted = deltaw.attach(model, Plan(method, **plan))
    files.shake(adapted.trainable().values())
    adapted.save(tmp_path)
    assert words in json.load(open(tmp_path / "deltaw.json"))["peft"]["reason"]
    again = files.MODELS[which]()
    deltaw.load(again, tmp_path)
    assert torch.equal(files.out(again), files.out(model))
