"""Sparse methods in PEFT's files, PEFT 0.21.2 as the judge: written by one, read by the other, equal outputs."""

from __future__ import annotations

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from safetensors.torch import load_file, save_file

import deltaw
from deltaw import Plan
from deltaw.errors import StateMismatch
from deltaw.methods import SHiRA, Supertuning, TrainableTokens

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.arange(24).reshape(2, 12)
QV, TIED = ["q_proj", "v_proj"], ["embed_tokens", "lm_head"]


def llama(tied=False):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def out(model):
    with torch.no_grad():
        return model(IDS).logits


def shake(tensors):
    torch.manual_seed(1)
    for t in tensors:
        t.data.add_(torch.randn_like(t) * 0.1)


@pytest.mark.parametrize("method, targets, tied", [
    (SHiRA(r=2, mask="struct", first=3), QV, False), (SHiRA(r=2, mask="grad"), QV, False),
    (Supertuning(sparsity=0.9), QV, False), (Supertuning(sparsity=0.95, select_top=False, r=2, alpha=3.0), QV, False),
    (TrainableTokens(ids=(9, 3, 5)), ["embed_tokens"], False), (TrainableTokens(ids=(9, 3, 5)), TIED, True),
])  # fmt: skip
def test_ours_in_peft_and_back(method, targets, tied, tmp_path):
    model = llama(tied)
    adapted = deltaw.attach(model, Plan(method, targets=targets))
    shake(adapted.trainable().values())
    want = out(model)
    assert (want - out(llama(tied))).abs().max() > 1e-3
    adapted.save(tmp_path / "a")
    assert (tmp_path / "a" / "adapter_config.json").is_file(), json.load(open(tmp_path / "a" / "deltaw.json"))["peft"]
    again = llama(tied)
    loaded = deltaw.load(again, tmp_path / "a").state()
    assert all(torch.equal(loaded[k], t) for k, t in adapted.state().items()) and torch.equal(out(again), want)
    judge = peft.PeftModel.from_pretrained(llama(tied), tmp_path / "a").eval()
    assert (out(judge) - want).abs().max() <= 1e-5
    result = judge.load_adapter(tmp_path / "a", "again")
    assert not result.unexpected_keys
    # PEFT ties a head once more for a second adapter, and then misses that in its own files as well
    assert not [k for k in result.missing_keys if ".again" in k and "lm_head.base_layer" not in k]
    judge.save_pretrained(tmp_path / "b", selected_adapters=["default"])
    ours, theirs = (load_file(tmp_path / d / "adapter_model.safetensors") for d in "ab")
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items() if "base_layer" not in k}
    back = llama(tied)
    deltaw.load(back, tmp_path / "b")
    assert (out(back) - want).abs().max() <= 1e-5


@pytest.mark.parametrize("config, tied", [
    (lambda: peft.SupertuningConfig(target_modules=QV, sparsity=0.9, select_top=False), False),
    (lambda: peft.SupertuningConfig(target_modules=QV, sparsity=0.9, r=3), False),
    (lambda: peft.SupertuningConfig(target_modules=QV, sparsity=0.9, save_precomputed_indices=False), False),
    (lambda: peft.ShiraConfig(target_modules=QV, r=2, random_seed=5), False),
    (lambda: peft.TrainableTokensConfig(token_indices=[9, 3, 5]), False),
    (lambda: peft.TrainableTokensConfig(token_indices=[9, 3, 5], target_modules=["embed_tokens"]), True),
])  # fmt: skip
def test_theirs_here_and_back(config, tied, tmp_path):
    theirs = peft.get_peft_model(llama(tied), config()).eval()
    shake(p for p in theirs.parameters() if p.requires_grad)
    want = out(theirs)
    theirs.save_pretrained(tmp_path / "a")
    model = llama(tied)
    adapted = deltaw.load(model, tmp_path / "a")
    assert (out(model) - want).abs().max() <= 1e-5 < (out(llama(tied)) - want).abs().max()
    adapted.save(tmp_path / "b")
    judge = peft.PeftModel.from_pretrained(llama(tied), tmp_path / "b").eval()
    assert (out(judge) - want).abs().max() <= 1e-5


def edited(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_what_peft_has_and_we_do_not_is_refused_by_name(tmp_path):
    theirs = peft.get_peft_model(llama(), peft.SupertuningConfig(target_modules=QV, sparsity=0.9, r=2))
    theirs.save_pretrained(tmp_path / "a")
    edited(tmp_path / "a", lora_dropout=0.3)
    with pytest.raises(StateMismatch, match="lora_dropout = 0.3"):
        deltaw.load(llama(), tmp_path / "a")
    theirs = peft.get_peft_model(llama(), peft.TrainableTokensConfig(token_indices=[1], target_modules=["lm_head"]))
    theirs.save_pretrained(tmp_path / "b")
    with pytest.raises(StateMismatch, match="lm_head: PEFT's TRAINABLE_TOKENS does not adapt a linear"):
        deltaw.load(llama(), tmp_path / "b")


def test_one_end_of_a_tied_weight_is_not_written_as_peft(tmp_path):
    adapted = deltaw.attach(llama(True), Plan(TrainableTokens(ids=(1,)), targets=["embed_tokens"]))
    adapted.save(tmp_path / "a")
    assert "lm_head, which shares its weight" in json.load(open(tmp_path / "a" / "deltaw.json"))["peft"]["reason"]


def test_ends_that_peft_trained_apart_are_refused(tmp_path):
    theirs = peft.get_peft_model(llama(True), peft.TrainableTokensConfig(token_indices=[9, 3], target_modules=TIED))
    shake(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path / "a")
    with pytest.raises(StateMismatch, match="share their weight here; the file has other rows for each"):
        deltaw.load(llama(True), tmp_path / "a")


def test_rows_of_another_count_are_refused(tmp_path):
    deltaw.attach(llama(), Plan(TrainableTokens(ids=(1, 2)), targets=["embed_tokens"])).save(tmp_path / "a")
    (tmp_path / "a" / "deltaw.json").unlink()
    file = tmp_path / "a" / "adapter_model.safetensors"
    save_file({k: v[:1].clone() for k, v in load_file(file).items()}, file)
    with pytest.raises(StateMismatch, match="trainable_tokens_delta': expected shape"):
        deltaw.load(llama(), tmp_path / "a")
