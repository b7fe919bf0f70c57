"""Native files: what is written, that it comes back bit for bit, and everything that must not be read."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import deltaw
from deltaw import Plan
from deltaw.errors import DeltawError, SpecError, StateMismatch, TargetError
from deltaw.files import disk, fingerprint, read
from deltaw.methods import ABBA, LoRA, LoRAXS, ReFT, SHiRA, VeRA

pytestmark = pytest.mark.filterwarnings("ignore:deltaw.json")


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    """A token model with a head tied to its embedding."""

    def __init__(self, d=12, tied=True):
        super().__init__()
        self.embed = nn.Embedding(30, d)
        self.layers = nn.ModuleList([Block(d) for _ in range(3)])
        self.head = nn.Linear(d, 30, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.layers:
            x = block(x)
        return self.head(x)


def net(seed=0, dtype=torch.float32, **kw):
    torch.manual_seed(seed)
    return Net(**kw).to(dtype).eval()


IDS = torch.arange(20).reshape(2, 10)


def out(model):
    with torch.no_grad():
        return model(IDS)


def shake(adapted):
    torch.manual_seed(1)
    for t in adapted.trainable().values():
        t.data.add_(torch.randn_like(t) * 0.1)
    return adapted


def saved(path, method=None, **plan):
    shake(deltaw.attach(net(), Plan(method or LoRA(r=2), **plan))).save(path)
    return path


PLANS = [
    Plan(LoRA(r=2), init="pissa"),
    Plan(LoRA(r=3, alpha=2.0), init="olora", targets=["embed", "head", "up"]),
    Plan(VeRA(r=4)),
    Plan(ABBA(r1=3, r2=2)),
    Plan(LoRAXS(r=3)),
    Plan(SHiRA(r=2)),
    Plan(ReFT(r=3), targets="all-blocks"),
    Plan(LoRA(r=2), targets=["up"], layers=[0, 2], train_modules=["1.down"], token_rows={"embed": [4, 2]}, seed=3),
    Plan(LoRA(r=2), overrides={"0.up": {"r": 4}, "1.up": ABBA(r1=2, r2=2), "2.up": None}),
]


@pytest.mark.parametrize("peft", [True, False])
@pytest.mark.parametrize("plan", PLANS, ids=[str(k) for k in range(len(PLANS))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=["f32", "bf16", "f64"])
def test_round_trip_is_bit_for_bit(plan, peft, dtype, tmp_path):
    model = net(dtype=dtype)
    adapted = shake(deltaw.attach(model, plan))
    adapted.save(tmp_path / "a", peft=peft)
    again = net(dtype=dtype)
    loaded = deltaw.load(again, tmp_path / "a", name="other")
    state = adapted.state()
    assert state.keys() == loaded.state().keys()
    for k, v in loaded.state().items():
        assert v.dtype == state[k].dtype and torch.equal(v, state[k]), k
    assert loaded.trainable().keys() == adapted.trainable().keys()
    assert torch.equal(out(again), out(model))
    loaded.save(tmp_path / "b", peft=peft)
    same_bytes(tmp_path / "a", tmp_path / "b")


def same_bytes(a, b):
    assert sorted(os.listdir(a)) == sorted(os.listdir(b))
    for name in os.listdir(a):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


SCRIPT = """
import sys; sys.path.insert(0, sys.argv[2])
from test_files import *
shake(deltaw.attach(net(), PLANS[2])).save(sys.argv[1], peft=False)
"""


def test_same_bytes_in_another_process(tmp_path):
    shake(deltaw.attach(net(), PLANS[2])).save(tmp_path / "a", peft=False)
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "b"), os.path.dirname(__file__)], check=True)
    same_bytes(tmp_path / "a", tmp_path / "b")


def test_frozen_seeded_tensors_are_a_checksum(tmp_path):
    adapted = shake(deltaw.attach(net(), VeRA(r=4)))
    adapted.save(tmp_path / "a", peft=False)
    card = json.load(open(tmp_path / "a" / "deltaw.json"))
    assert set(card["seeded"]) == {"model.A", "model.B"}
    assert not {"model.A", "model.B"} & set(load_file(tmp_path / "a" / "adapter_model.safetensors"))
    adapted.save(tmp_path / "b", peft=False, seeds=False)
    assert {"model.A", "model.B"} <= set(load_file(tmp_path / "b" / "adapter_model.safetensors"))
    for d in "ab":
        assert torch.equal(deltaw.load(net(), tmp_path / d).state()["model.A"], adapted.state()["model.A"])
    adapted.pool().get("model.A").data.add_(1)  # no longer what the seed gives: has to be stored
    adapted.save(tmp_path / "c", peft=False)
    assert set(json.load(open(tmp_path / "c" / "deltaw.json"))["seeded"]) == {"model.B"}
    assert torch.equal(deltaw.load(net(), tmp_path / "c").state()["model.A"], adapted.state()["model.A"])
    edit(tmp_path / "a", seeded={**card["seeded"], "model.A": {"sha256": "0" * 64}})
    refused(tmp_path / "a", StateMismatch, "model.A", "checksum", "seeds=False")
    edit(tmp_path / "a", seeded=card["seeded"], generator=99)
    refused(tmp_path / "a", StateMismatch, "99")
    edit(tmp_path / "a", seeded={"model.Z": {"sha256": ""}}, generator=card["generator"])
    refused(tmp_path / "a", StateMismatch, "model.Z")


# ---- the fingerprint


def test_fingerprint_ignores_dtype_adapters_and_heads():
    model = net()
    plain = fingerprint(model)
    assert set(plain) == {"structure", "content"}
    assert fingerprint(net(dtype=torch.bfloat16)) == plain
    assert fingerprint(net(dtype=torch.float64)) == plain
    adapted = deltaw.attach(model, Plan(LoRA(r=2), train_modules=["1.down"]))
    assert fingerprint(model) == plain
    other = net()
    other.layers[1].down = nn.Linear(24, 7)
    assert fingerprint(other, ["1.down"]) == adapted.fingerprint()
    assert fingerprint(other)["structure"] != plain["structure"]


def test_fingerprint_sees_other_values_and_shapes():
    plain = fingerprint(net())
    other = fingerprint(net(seed=1))
    assert other["structure"] == plain["structure"] and other["content"] != plain["content"]
    assert fingerprint(net(d=8))["structure"] != plain["structure"]
    with torch.device("meta"):
        assert fingerprint(Net()) == {"structure": plain["structure"], "content": ""}


def test_half_precision_of_the_same_checkpoint_is_the_same_base(tmp_path):
    saved(tmp_path)
    deltaw.load(net(dtype=torch.float16), tmp_path)
    changed = net(dtype=torch.float16)
    changed.layers[0].up.weight.data.mul_(1.05)
    refused(tmp_path, StateMismatch, "another base", model=changed)


# ---- writing is all or nothing


class Boom(Exception):
    pass


def boom(path):
    path.write_bytes(b"half")
    raise Boom


def test_a_failed_write_leaves_nothing_or_what_was_there(tmp_path):
    files = {"x": lambda p: p.write_bytes(b"new"), "y": boom}
    with pytest.raises(Boom):
        disk.commit(tmp_path / "deep" / "a", files)
    assert os.listdir(tmp_path / "deep") == []
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_bytes(b"old")
    with pytest.raises(Boom):
        disk.commit(tmp_path / "b", files, stale=["x"])
    assert {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()} == {"x": b"old"}


def test_an_interrupted_replacement_is_noticed(tmp_path):
    saved(tmp_path / "a")
    saved(tmp_path / "b", LoRA(r=2), seed=5)
    os.replace(tmp_path / "b" / "adapter_model.safetensors", tmp_path / "a" / "adapter_model.safetensors")
    refused(tmp_path / "a", StateMismatch, "not the file", "adapter_model.safetensors")


def test_existing_directory_keeps_strangers_and_a_file_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "README.md").write_text("mine")
    saved(tmp_path / "a")
    saved(tmp_path / "a", ABBA(r1=2, r2=2))
    assert (tmp_path / "a" / "README.md").read_text() == "mine"
    assert sorted(os.listdir(tmp_path / "a")) == ["README.md", "adapter_model.safetensors", "deltaw.json"]
    deltaw.load(net(), tmp_path / "a")
    (tmp_path / "f").write_text("")
    with pytest.raises(SpecError, match="directory"):
        saved(tmp_path / "f")


# ---- what must not be read


def edit(directory, **fields):
    """Change fields of deltaw.json (None removes one)."""
    path = directory / "deltaw.json"
    card = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({k: v for k, v in card.items() if v is not None}))
    return directory


def reseal(directory, tensors):
    """Write other tensors with a matching checksum, as a forger would."""
    save_file(tensors, directory / "adapter_model.safetensors")
    card = json.loads((directory / "deltaw.json").read_text())
    card["files"]["adapter_model.safetensors"] = disk.file_hash(directory / "adapter_model.safetensors")
    return edit(directory, files=card["files"])


def refused(directory, kind, *words, model=None, **kw):
    """The error names what is wrong, and the model is untouched."""
    model = net() if model is None else model
    want, keys = out(model), list(model.state_dict())
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(kind) as caught:
        deltaw.load(model, directory, **kw)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert keys == list(model.state_dict()) and torch.equal(out(model), want)
    assert flags == [p.requires_grad for p in model.parameters()]
    assert "_deltaw" not in model.__dict__ and all("forward" not in m.__dict__ for m in model.modules())


def test_no_adapter_there(tmp_path):
    refused(tmp_path / "no", StateMismatch, "no directory")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "notes.txt").write_text("")
    refused(tmp_path / "e", StateMismatch, "deltaw.json", "notes.txt")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": NaN', "\xff\xfe", "[" * 100000])
def test_damaged_json(tmp_path, text):
    saved(tmp_path)
    (tmp_path / "deltaw.json").write_text(text, encoding="latin-1")
    refused(tmp_path, StateMismatch, "deltaw.json")


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1, -1000])
def test_truncated_tensors(tmp_path, keep):
    saved(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    refused(tmp_path, StateMismatch, "adapter_model.safetensors")
    (tmp_path / "deltaw.json").unlink()  # PEFT's reading of the same directory
    refused(tmp_path, StateMismatch, "adapter_model.safetensors")


def test_a_flipped_bit(tmp_path):
    saved(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    refused(tmp_path, StateMismatch, "not the file")


def test_missing_extra_and_misshapen_tensors(tmp_path):
    saved(tmp_path, peft := ABBA(r1=2, r2=2))
    assert peft.key == "abba"
    good = load_file(tmp_path / "adapter_model.safetensors")
    name = "layers.0.up.A1"
    refused(reseal(tmp_path, {k: v for k, v in good.items() if k != name}), StateMismatch, name, "missing", "(2, 12)")
    for extra in ("layers.0.up.Q", "../../etc", "/abs/path", "layers.9.up.A1", "embed.weight", "layers.0.up.weight"):
        refused(reseal(tmp_path, {**good, extra: torch.zeros(1)}), StateMismatch, extra, "belong to nothing")
    refused(reseal(tmp_path, {**good, name: torch.zeros(2, 13)}), StateMismatch, name, "(2, 12)", "(2, 13)")
    refused(reseal(tmp_path, {**good, name: torch.zeros(2, 12).long()}), StateMismatch, name, "int64")
    for bad in (float("nan"), float("inf")):
        refused(reseal(tmp_path, {**good, name: torch.full((2, 12), bad)}), StateMismatch, name, "NaN or infinite")
    deltaw.load(net(), reseal(tmp_path, good))


def test_another_base_and_any_base(tmp_path):
    saved(tmp_path)
    refused(tmp_path, StateMismatch, "another base", "other values", "any_base", model=net(seed=4))
    deltaw.load(net(seed=4), tmp_path, any_base=True)
    refused(tmp_path, StateMismatch, "other names or shapes", model=net(d=8))
    refused(tmp_path, StateMismatch, "shape", model=net(d=8), any_base=True)


def test_unknown_versions_and_fields(tmp_path):
    saved(tmp_path)
    refused(edit(tmp_path, schema=2), StateMismatch, "schema 1", "2")
    refused(edit(tmp_path, schema=1, format="other"), StateMismatch, "format")
    plan = json.loads((tmp_path / "deltaw.json").read_text())["plan"]
    edit(tmp_path, format="deltaw")
    refused(edit(tmp_path, plan={**plan, "sprinkles": 1}), StateMismatch, "sprinkles")
    refused(edit(tmp_path, plan={**plan, "method": {"key": "lora", "rr": 1}}), StateMismatch, "rr")
    refused(edit(tmp_path, plan={**plan, "method": {"key": "no_such"}}), StateMismatch, "no_such")
    for broken in (
        None,
        [],
        {"method": None},
        {**plan, "targets": 5},
        {**plan, "layers": "x"},
        {**plan, "token_rows": []},
    ):
        refused(edit(tmp_path, plan=broken), DeltawError)
    edit(tmp_path, plan=plan, remark="kept")
    with pytest.warns(UserWarning, match="remark"):
        adapted = deltaw.load(net(), tmp_path)
    adapted.save(tmp_path / "b")
    assert json.load(open(tmp_path / "b" / "deltaw.json"))["remark"] == "kept"
    assert read(tmp_path / "b").unknown == ["remark"]


JUNK = [
    None,
    -1,
    3.5,
    "x",
    "(",
    [],
    ["("],
    [1],
    {},
    {"(": 1},
    [[]],
    True,
    "../x",
    10**30,
    [{"name": 1}],
    [{"name": "x"}],
]


@pytest.mark.parametrize("method", [VeRA(r=2), LoRA(r=2)])
def test_junk_in_any_field_is_a_typed_error_or_harmless(tmp_path, method):
    saved(tmp_path, method, train_modules=["1.down"])
    deltaw.load(net(), tmp_path).save(tmp_path, peft=False)
    path = tmp_path / "deltaw.json"
    good = json.loads(path.read_text())
    model = net()
    spots = [(None, k) for k in good] + [(w, k) for w in ("plan", "base", "files", "seeded") for k in good[w]]
    for word, field in spots:
        for value in JUNK:
            card = {**good, field: value} if word is None else {**good, word: {**good[word], field: value}}
            path.write_text(json.dumps(card))
            try:
                deltaw.load(model, tmp_path).detach()
            except DeltawError:
                pass
            assert "_deltaw" not in model.__dict__, (word, field, value)


def test_random_damage_of_the_tensors_is_a_typed_error_or_harmless(tmp_path):
    saved(tmp_path)
    (tmp_path / "deltaw.json").unlink()
    path = tmp_path / "adapter_model.safetensors"
    good = path.read_bytes()
    draw = random.Random(0)
    for _ in range(150):
        data = bytearray(good)
        for _ in range(draw.choice([1, 1, 5])):
            data[draw.randrange(min(len(data), 2500))] = draw.randrange(256)
        path.write_bytes(data[: draw.choice([len(data), draw.randrange(len(data))])])
        try:
            deltaw.load(net(), tmp_path)
        except DeltawError:
            pass


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "layers.0.up.weight", "forward", "layers[0]", "."])
def test_names_that_leave_the_module_tree(tmp_path, name):
    saved(tmp_path)
    card = json.loads((tmp_path / "deltaw.json").read_text())
    refused(edit(tmp_path, plan={**card["plan"], "targets": [name]}), TargetError, name)
    refused(edit(tmp_path, plan={**card["plan"], "train_modules": [name]}), TargetError, name)
    refused(edit(tmp_path, plan={**card["plan"], "token_rows": {name: [1]}}), TargetError, name)
    edit(tmp_path, plan=card["plan"])
    first = card["sites"][0]
    refused(edit(tmp_path, sites=[{**first, "name": name}, *card["sites"][1:]]), TargetError, name)
    refused(edit(tmp_path, sites=card["sites"], files={name: "0" * 64}), StateMismatch, "files")


def test_sites_that_are_not_the_same(tmp_path):
    saved(tmp_path)
    rows = json.loads((tmp_path / "deltaw.json").read_text())["sites"]
    for change in ({"kind": "conv"}, {"shape": [1, 2]}, {"method": {"key": "lora", "r": 9, "alpha": 1.0}}):
        refused(
            edit(tmp_path, sites=[{**rows[0], **change}, *rows[1:]]), StateMismatch, rows[0]["name"], next(iter(change))
        )
    refused(edit(tmp_path, sites=rows[1:]), StateMismatch, rows[0]["name"])
    refused(edit(tmp_path, sites="x"), StateMismatch, "sites")
    refused(edit(tmp_path, sites=None), StateMismatch, "sites")


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a.b"])
def test_adapter_names(tmp_path, name):
    refused(saved(tmp_path), SpecError, "name", name=name)


def test_quantised_or_not_is_the_same_site(tmp_path):
    """`kind` linear and opaque are one layer in two storages."""
    saved(tmp_path)
    rows = json.loads((tmp_path / "deltaw.json").read_text())["sites"]
    deltaw.load(net(), edit(tmp_path, sites=[{**r, "kind": "opaque"} for r in rows]))


def test_a_quantised_base_is_recognised_both_ways(tmp_path):
    bnb = pytest.importorskip("bitsandbytes")

    def quantised(seed=0):
        model = net(seed, d=64)
        for block in model.layers:
            q = bnb.nn.Linear4bit(64, 128, compute_dtype=torch.float32, quant_type="nf4")
            q.weight, q.bias = (
                bnb.nn.Params4bit(block.up.weight.data, requires_grad=False, quant_type="nf4"),
                block.up.bias,
            )
            block.up = q.to("cpu")
        return model

    assert fingerprint(quantised())["structure"] == fingerprint(net(d=64))["structure"]
    shake(deltaw.attach(net(d=64), LoRA(r=2))).save(tmp_path / "a")
    loaded = deltaw.load(quantised(), tmp_path / "a")
    loaded.save(tmp_path / "b")
    assert deltaw.load(net(d=64), tmp_path / "b").state().keys() == loaded.state().keys()
    refused(tmp_path / "a", StateMismatch, "another base", model=quantised(1))


# ---- merged models


@pytest.mark.parametrize("limit", [1, 3000, 2**30])
@pytest.mark.parametrize("targets", ["all-linear", ["embed", "head"], ["head"]])
def test_merged_model_as_shards(tmp_path, limit, targets):
    model = net()
    adapted = shake(deltaw.attach(model, Plan(LoRA(r=2), targets=targets, train_modules=["1.down"])))
    merged = adapted.merge()
    merged.save(tmp_path / "m", limit)
    index = json.load(open(tmp_path / "m" / "model.safetensors.index.json"))
    shards = {f for f in os.listdir(tmp_path / "m") if f.endswith(".safetensors")}
    assert shards == set(index["weight_map"].values())
    assert len(shards) == (1 if limit == 2**30 else len(index["weight_map"]) if limit == 1 else len(shards))
    state = {k: v for s in shards for k, v in load_file(tmp_path / "m" / s).items()}
    assert set(state) == set(index["weight_map"]) == set(net().state_dict())
    fresh = net(seed=9, tied=False)
    fresh.load_state_dict(state)
    assert (out(fresh) - out(model)).abs().max() < 1e-5
    certificate = json.load(open(tmp_path / "m" / "merge_certificate.json"))
    assert certificate["base"] == adapted.fingerprint()
    merged.save(tmp_path / "n", limit)
    same_bytes(tmp_path / "m", tmp_path / "n")
    merged.save(tmp_path / "m", 2**30)  # fewer shards: the old ones go
    assert len([f for f in os.listdir(tmp_path / "m") if f.endswith(".safetensors")]) == 1


@pytest.mark.parametrize(
    "tied, targets",
    [(True, ["up_proj"]), (True, ["embed_tokens"]), (True, ["embed_tokens", "lm_head"]), (False, ["lm_head"])],
)
def test_merged_transformers_model(tmp_path, tied, targets):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    adapted = shake(deltaw.attach(model, Plan(LoRA(r=2), targets=targets)))
    want = model(IDS).logits
    adapted.merge().save(tmp_path / "m", 4000)
    new = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert (new(IDS).logits - want).abs().max() < 1e-5
    broken = tied and targets == ["embed_tokens"]
    assert new.config.tie_word_embeddings == (tied and not broken)
    assert model.config.tie_word_embeddings == tied


def test_merge_keeps_the_dtype_and_one_bad_limit(tmp_path):
    adapted = shake(deltaw.attach(net(dtype=torch.bfloat16), LoRA(r=2)))
    merged = adapted.merge()
    merged.save(tmp_path / "m")
    index = json.load(open(tmp_path / "m" / "model.safetensors.index.json"))
    state = {k: v for s in set(index["weight_map"].values()) for k, v in load_file(tmp_path / "m" / s).items()}
    assert {v.dtype for v in state.values()} == {torch.bfloat16}
    with pytest.raises(SpecError, match="max_shard_bytes"):
        merged.save(tmp_path / "z", 0)
