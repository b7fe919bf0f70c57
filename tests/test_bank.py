"""The bank against deltaw.rows on attached adapters, and what it refuses."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import deltaw
from deltaw import Bank, Plan, segments
from deltaw.bank import mixture
from deltaw.bank.arena import Arena
from deltaw.bank.read import Reader
from deltaw.errors import DeltawError, NotLinear, NotMergeable, ShapeError, SpecError, StateMismatch, TargetError
from deltaw.methods import (
    ABBA,
    HRA,
    IA3,
    Asym,
    DoRA,
    Drop,
    GraLoRA,
    LoHa,
    LoRA,
    LoRAXS,
    ReFT,
    RoAd,
    RsLoRA,
    VeRA,
)
from deltaw.testing.tiny import Tiny, coded, settle

F64 = torch.float64


class Net(nn.Module):
    """An embedding, linear layers of three shapes, a tied-free head; flat=True calls them with tokens flattened."""

    def __init__(self, flat: bool = False):
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.q, self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 24, bias=False), nn.Linear(24, 16)
        self.head, self.flat = nn.Linear(16, 30), flat

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        u = h.flatten(0, 1) if self.flat else h
        u = u + torch.tanh(self.q(u))
        u = u + self.down(torch.tanh(self.up(u)))
        return self.head(u).view(*ids.shape, -1)


def net(dtype: torch.dtype = F64, flat: bool = False) -> Net:
    return settle(Net(flat), dtype)  # type: ignore[no-any-return]


def stir(adapted, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for t in adapted.trainable().values():
            t.copy_(0.3 * torch.randn(t.shape, generator=generator))
    return adapted


PLANS = {
    "a": Plan(LoRA(r=3, alpha=5)),
    "b": Plan(RsLoRA(r=8), targets=["q", "down"]),
    "c": Plan(LoRA(r=1), targets=["embed", "head", "up"], tie=False),
    "d": Plan(LoRA(r=4), overrides={"q": {"r": 12}, "up": {"r": 2}}),
    "e": Plan(VeRA(r=4), targets=["up", "down"]),
}
IDS = torch.arange(84).reshape(7, 12) * 11 % 30


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Directories of all PLANS, written from one model."""
    root, model = tmp_path_factory.mktemp("adapters"), net()
    for k, (name, plan) in enumerate(PLANS.items()):
        adapted = stir(deltaw.attach(model, plan, name), k)
        adapted.save(root / name)
        adapted.detach()
    return root


def filled(adapters, dtype=F64, flat=False, **kw) -> tuple[Net, Bank]:
    model = net(dtype, flat)
    bank = Bank(model, **kw)
    for name in PLANS:
        bank.add(name, adapters / name, any_base=dtype == torch.float16)
    return model, bank


def attached(adapters, dtype=F64, flat=False) -> Net:
    model = net(dtype, flat)
    for name in PLANS:
        deltaw.load(model, adapters / name, name)
    return model


MIXES = [
    ["a", "b", "c", "d", "e", None, "a"],
    ["a", "a", "a", "b", "b", "b", "c"],
    [None, "d", None, "d", "d", None, None],
    ["c", "c", "c", "c", "c", "c", "c"],
    ["e", "d", "a", "a", "a", "a", "a"],
    [None] * 7,
]


@pytest.mark.parametrize("way", ["as it comes", "dense", "runs", "buckets", "one bucket"])
@pytest.mark.parametrize("flat", [False, True], ids=["batch", "flat"])
@torch.no_grad()
def test_rows_equal_attached_rows(adapters, flat, way, monkeypatch):
    """Every way of grouping the products, made the cheapest in turn."""
    want_from = attached(adapters, flat=flat)
    model, bank = filled(adapters, flat=flat)
    if way != "as it comes":
        kind = "buckets" if "bucket" in way else way
        monkeypatch.setattr(mixture.Group, "prices", lambda group, k: {kind: 0.0})
        monkeypatch.setattr(mixture, "call", lambda dtype: 10**12 if way == "one bucket" else 0)
    for names in MIXES:
        for ids in (IDS, IDS[:, :1]):  # a prompt, a token
            with deltaw.rows(want_from, names):
                want = want_from(ids)
            with bank.rows(names):
                got = model(ids)
                torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)
                assert torch.equal(model(ids), got)
            with bank.rows(names):  # a mixture seen before
                assert torch.equal(model(ids), got)


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-2), (torch.float16, 1e-2)])
@torch.no_grad()
def test_narrow_dtypes(adapters, dtype, tol):
    want_from = attached(adapters)
    model, bank = filled(adapters, dtype)
    assert bank.report()["dtype"] == str(dtype).removeprefix("torch.")
    for names in MIXES:
        with deltaw.rows(want_from, names), bank.rows(names):
            want = want_from(IDS)
            got = model(IDS)
            assert got.dtype == dtype
            torch.testing.assert_close(got.double(), want, atol=tol * float(want.abs().max()), rtol=tol)


@torch.no_grad()
def test_one_adapter_for_the_whole_batch(adapters):
    want_from = attached(adapters)
    model, bank = filled(adapters)
    base = net()(IDS)
    for name in (*PLANS, None, "b"):
        bank.activate(name)
        deltaw.activate(want_from, [] if name is None else name)
        torch.testing.assert_close(model(IDS), want_from(IDS), atol=1e-10, rtol=1e-10)
    with bank.rows([None] * 7):
        assert torch.equal(model(IDS), base)
        bank.activate("a")
        assert torch.equal(model(IDS), base)  # takes effect on leaving
    assert not torch.equal(model(IDS), base) and bank.report()["active"] == "a"
    with bank.rows(["b"] * 7):
        with bank.rows(["c"] * 7):
            deltaw.activate(want_from, "c")
            torch.testing.assert_close(model(IDS), want_from(IDS), atol=1e-10, rtol=1e-10)
        deltaw.activate(want_from, "b")
        torch.testing.assert_close(model(IDS), want_from(IDS), atol=1e-10, rtol=1e-10)
    bank.activate(None)
    assert torch.equal(model(IDS), base)


@pytest.mark.parametrize("names", [["a"] * 7, MIXES[0], MIXES[2]])
def test_gradients_reach_the_input_and_the_base_but_not_the_bank(adapters, names):
    want_from, (model, bank) = attached(adapters), filled(adapters)
    x = torch.randn(7, 5, 16, dtype=F64)
    grads = []
    for root, context in ((want_from, deltaw.rows(want_from, names)), (model, bank.rows(names))):
        own = x.clone().requires_grad_()
        with context:
            y = root.q(own).square() + root.down(torch.tanh(root.up(own)))
            y.square().sum().backward()
        grads.append(own.grad)
    torch.testing.assert_close(grads[1], grads[0], atol=1e-10, rtol=1e-10)
    assert model.q.weight.requires_grad and model.q.weight.grad is not None
    assert list(model.state_dict()) == list(net().state_dict())


def test_closing_restores_the_model(adapters):
    model = net()
    model.q.__dict__["forward"] = mine = lambda x: nn.functional.linear(x, model.q.weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    base = model(IDS)
    bank = Bank(model)
    for name in PLANS:
        bank.add(name, adapters / name, any_base=True)
    bank.activate("d")
    assert not torch.equal(model(IDS), base)
    bank.close()
    assert torch.equal(model(IDS), base) and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.q.__dict__["forward"] is mine
    assert not any("forward" in m.__dict__ for n, m in model.named_modules() if n != "q")
    assert not any(k.startswith("_deltaw") for k in model.__dict__) and not model._forward_pre_hooks
    with pytest.raises(SpecError, match="closed"):
        bank.activate("d")
    bank.close()
    with pytest.raises(SpecError, match="closed"):
        bank.add("a", adapters / "a")
    Bank(model).close()


# ---- reading


METHODS = {
    "lora": (LoRA(r=2, alpha=3), True), "rslora": (RsLoRA(r=5), True), "dropped": (Drop(LoRA(r=2), p=0.5), True),
    "asym": (Asym(r=2), False), "vera": (VeRA(r=4), False), "loha": (LoHa(r=2), False), "abba": (ABBA(r1=2, r2=2), False),
    "gralora": (GraLoRA(r=4, k=2), False), "lora_xs": (LoRAXS(r=3), False), "hra": (HRA(r=2), False),
}  # fmt: skip


@pytest.mark.parametrize("native", [False, True], ids=["peft", "native"])
@pytest.mark.parametrize("key", METHODS)
def test_every_method_with_exact_factors(tmp_path, key, native):
    method, short = METHODS[key]
    model = net()
    adapted = stir(deltaw.attach(model, Plan(method, targets=["q", "up", "down"])))
    with torch.no_grad():
        model.eval()
        want = model(IDS)
        adapted.save(tmp_path / "it", peft=not native)
        fresh = net()
        bank = Bank(fresh)
        assert (bank._reader.read(tmp_path / "it", False, True) is not None) == short
        bank.add("it", tmp_path / "it")
        bank.add("handle", adapted)
        bank.add("converted", adapted.to_lora())
        for name in bank.names:
            bank.activate(name)
            torch.testing.assert_close(fresh(IDS), want, atol=1e-9, rtol=1e-9)
        with bank.rows(["it", None, "handle", "converted", None, "it", "it"]):
            got = fresh(IDS)
        torch.testing.assert_close(got[[0, 2, 3, 5, 6]], want[[0, 2, 3, 5, 6]], atol=1e-9, rtol=1e-9)
        assert not any(m._modules.get("deltaw") for m in fresh.modules())
        assert all(p.requires_grad for p in fresh.parameters())


@pytest.mark.parametrize("method", [DoRA(LoRA(r=2)), IA3(), RoAd(group_size=16)], ids=["dora", "ia3", "road"])
def test_methods_without_factors_are_refused_with_the_reason(tmp_path, method):
    adapted = stir(deltaw.attach(net(), Plan(method, targets=["q"])))
    adapted.save(tmp_path / "it")
    bank = Bank(net())
    for source in (tmp_path / "it", adapted):
        with pytest.raises(NotLinear, match=rf"'it' cannot be in a bank.*q: {method.key}") as caught:
            bank.add("it", source)
        assert "merge it" in str(caught.value)
    assert len(bank) == 0 and "forward" not in bank.model.q.__dict__


def test_what_is_no_matrix_of_a_linear_layer_is_refused(tmp_path):
    bank = Bank(settle(Tiny(), F64))
    stream = deltaw.attach(settle(Tiny(), F64), ReFT(r=2))
    with pytest.raises(NotMergeable, match="hidden states"):
        bank.add("stream", stream)
    whole = deltaw.attach(net(), Plan(LoRA(r=2), targets=["q"], train_modules=["head"]))
    whole.save(tmp_path / "whole")
    other = Bank(net())
    for source in (whole, tmp_path / "whole"):
        with pytest.raises(NotMergeable, match="whole modules.*head"):
            other.add("whole", source)
    conv = nn.Sequential(nn.Conv1d(4, 8, 3), nn.Flatten())
    made = deltaw.attach(copy.deepcopy(conv), Plan(LoRA(r=2), targets=["0"]))
    with pytest.raises(NotMergeable, match="this is a conv"):
        Bank(conv).add("conv", made)
    assert len(bank) == len(other) == 0


def test_a_cut_conversion_is_taken(tmp_path):
    model = net()
    adapted = stir(deltaw.attach(model, Plan(DoRA(LoRA(r=2)), targets=["q"])))
    bank = Bank(net())
    bank.add("cut", adapted.to_lora(rank=16))
    bank.activate("cut")
    torch.testing.assert_close(bank.model(IDS), model(IDS), atol=1e-9, rtol=1e-9)


def test_tied_ends(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(30, 16), nn.Linear(16, 30, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(torch.tanh(self.embed(ids)))

    model = settle(Two(), F64)
    adapted = stir(deltaw.attach(model, Plan(LoRA(r=2), targets=["embed", "head"])))
    want = model(IDS)
    for k, peft in enumerate((True, False)):
        adapted.save(tmp_path / str(k), peft=peft)
    bank = Bank(settle(Two(), F64))
    for k in range(2):
        bank.add(str(k), tmp_path / str(k))
        bank.activate(str(k))
        torch.testing.assert_close(bank.model(IDS), want, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_quantised_layers(adapters):
    want_from, model = coded(net()), coded(net())
    adapted = stir(deltaw.attach(want_from, Plan(LoRA(r=2), targets=["q", "down"])))
    bank = Bank(model)
    bank.add("a", adapted)
    bank.activate("a")
    torch.testing.assert_close(model(IDS), want_from(IDS), atol=1e-10, rtol=1e-10)
    with bank.rows(["a", None] * 3 + ["a"]), deltaw.rows(want_from, ["default", None] * 3 + ["default"]):
        torch.testing.assert_close(model(IDS), want_from(IDS), atol=1e-10, rtol=1e-10)


def rewritten(source, target, change, config=None):
    """A copy of a PEFT directory with other tensors."""
    target.mkdir()
    tensors = load_file(source / "adapter_model.safetensors")
    save_file(change(tensors), target / "adapter_model.safetensors")
    text = json.loads((source / "adapter_config.json").read_text()) | (config or {})
    (target / "adapter_config.json").write_text(json.dumps(text))
    return target


def nan(tensors):
    tensors[sorted(tensors)[1]].view(-1)[1] = float("nan")
    return tensors


def without(tensors):
    del tensors[sorted(tensors)[0]]
    return tensors


BAD = {
    "NaN": (nan, None, StateMismatch, "NaN"),
    "missing": (without, None, StateMismatch, "missing"),
    "extra": (lambda t: {**t, "base_model.model.q.lora_C.weight": torch.zeros(2)}, None, StateMismatch, "nothing"),
    "shape": (lambda t: {k: v[..., :-1].contiguous() for k, v in t.items()}, None, StateMismatch, "shape"),
    "site": (lambda t: t, {"target_modules": ["nope"]}, TargetError, "nope"),
    "rank": (lambda t: t, {"r": 5}, StateMismatch, "shape"),
    "formula": (lambda t: t, {"lora_bias": True}, StateMismatch, "lora_bias"),
}


@pytest.mark.parametrize("what", BAD)
def test_strict_and_atomic(adapters, tmp_path, what):
    change, config, error, word = BAD[what]
    bad = rewritten(adapters / "a", tmp_path / "bad", change, config)
    model, bank = net(), None
    bank = Bank(model)
    bank.add("good", adapters / "a")
    bank.activate("good")
    want, before = model(IDS), bank.report()
    with pytest.raises(error, match=word):
        bank.add("bad", bad)
    with pytest.raises(DeltawError) as full:
        deltaw.load(net(), bad)
    assert isinstance(full.value, error)
    assert {k: v for k, v in bank.report().items() if "free" not in k and k != "bytes"} == {
        k: v for k, v in before.items() if "free" not in k and k != "bytes"
    }
    assert torch.equal(model(IDS), want) and bank.names == ["good"]


def test_damaged_files(adapters, tmp_path):
    bank = Bank(net())
    for name in ("empty", "cut"):
        rewritten(adapters / "a", tmp_path / name, lambda t: t)
        file = tmp_path / name / "adapter_model.safetensors"
        file.write_bytes(b"" if name == "empty" else file.read_bytes()[:-8])
        with pytest.raises(StateMismatch, match="damaged|truncated"):
            bank.add(name, tmp_path / name)
    with pytest.raises(StateMismatch, match="no directory"):
        bank.add("none", tmp_path / "none")
    (tmp_path / "bare").mkdir()
    with pytest.raises(StateMismatch, match="neither"):
        bank.add("bare", tmp_path / "bare")
    assert len(bank) == 0


def test_verify_compares_the_checksum(adapters, tmp_path):
    import shutil

    shutil.copytree(adapters / "a", tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(bytes(whole))
    bank = Bank(net())
    bank.add("unchecked", tmp_path / "a")
    with pytest.raises(StateMismatch, match="is not the file"):
        bank.add("checked", tmp_path / "a", verify=True)
    bank.add("intact", adapters / "a", verify=True)
    assert bank.names == ["unchecked", "intact"]


def test_another_base_is_refused(adapters):
    model = net()
    with torch.no_grad():
        model.q.weight.add_(1.0)
    bank = Bank(model)
    with pytest.raises(StateMismatch, match="another base"):
        bank.add("a", adapters / "a")
    handle = deltaw.attach(net(), LoRA(r=2))
    with pytest.raises(StateMismatch, match="another base"):
        bank.add("handle", handle)
    bank.add("a", adapters / "a", any_base=True)
    bank.add("handle", handle, any_base=True)
    assert bank.names == ["a", "handle"]


def test_a_float16_bank_refuses_what_it_cannot_hold(adapters, tmp_path):
    big = rewritten(adapters / "a", tmp_path / "big", lambda t: {k: torch.full_like(v, 1e6) for k, v in t.items()})
    bank = Bank(net(torch.float32), dtype=torch.float16)
    with pytest.raises(StateMismatch, match="wider dtype"):
        bank.add("big", big)
    large = rewritten(adapters / "a", tmp_path / "large", lambda t: {k: torch.full_like(v, 3e4) for k, v in t.items()})
    bank.add("large", large)  # sums overflow, values do not
    assert bank.names == ["large"]


def test_a_configuration_is_worked_out_once(adapters, monkeypatch):
    bank = Bank(net())
    bank.add("0", adapters / "d")
    monkeypatch.setattr(Reader, "_layout", lambda *a: pytest.fail("read again"))
    for k in range(1, 5):
        bank.add(str(k), adapters / "d")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bank.add("5", adapters / "d")


# ---- slots


def test_pages_are_used_again(adapters):
    model, bank = filled(adapters, page=4)
    start = bank.report()
    assert start["adapters"] == len(bank) == 5 and start["sites"] == 5 and start["pages_used"] > 0
    for _ in range(5):
        for name in ("d", "a", "b"):
            bank.remove(name)
        for name in ("b", "d", "a"):
            bank.add(name, adapters / name)
    after = bank.report()
    assert (after["bytes"], after["pages_used"]) == (start["bytes"], start["pages_used"])
    want_from = attached(adapters)
    with torch.no_grad():
        for names in MIXES:
            with bank.rows(names), deltaw.rows(want_from, names):
                torch.testing.assert_close(model(IDS), want_from(IDS), atol=1e-10, rtol=1e-10)
    for name in bank.names:
        bank.remove(name)
    assert bank.report()["pages_used"] == 0 and bank.report()["bytes_mixtures"] == 0


def test_arena_in_pieces():
    arena = Arena(3, 2, 4, F64, torch.device("cpu"))
    taken = {}
    generator = torch.Generator().manual_seed(0)
    for step in range(300):
        if taken and torch.rand((), generator=generator) < 0.45:
            key = sorted(taken)[int(torch.randint(len(taken), (), generator=generator))]
            runs = taken.pop(key)
            for chunk, first, count in runs:
                B, A = arena.flat(chunk, first, count)
                assert (B == key).all() and (A == key).all()
            arena.give(runs)
        else:
            wanted = [int(k) for k in torch.randint(1, 6, (3,), generator=generator)]
            taken[step] = [(c, f, w) for (c, f), w in zip(arena.take(wanted), wanted)]
            for chunk, first, count in taken[step]:
                for t in arena.flat(chunk, first, count):
                    t.fill_(step)
        used = sum(w for runs in taken.values() for _, _, w in runs)
        assert arena.pages - arena.left == used
    assert arena.pages < 6 * max(used, 60)
    for runs in taken.values():
        arena.give(runs)
    assert arena.left == arena.pages and len(arena.free) == len(arena.chunks)


def test_few_mixtures_are_kept(adapters):
    model, bank = filled(adapters, mixtures=1)
    with torch.no_grad():
        with bank.rows(MIXES[0]):
            model(IDS)
        one = bank.report()["bytes_mixtures"]
        with bank.rows(["a", "b", "c", "e", "d", "a", None]):  # the same adapters as often, in another order
            model(IDS)
        assert bank.report()["bytes_mixtures"] == one > 0
        with bank.rows(["a", "b"] * 3 + [None]):
            model(IDS)
        assert 0 < bank.report()["bytes_mixtures"] < one


def test_ranges_are_the_cheapest():
    def price(sizes, cuts, unit, overhead):
        return sum(overhead + unit * (hi - lo) * sizes[lo] for lo, hi in cuts)

    from itertools import combinations

    generator = torch.Generator().manual_seed(0)
    for unit, overhead in ((1, 0), (1, 5), (2, 9), (1, 10**6)):
        for _ in range(10):
            sizes = sorted((int(k) for k in torch.randint(1, 20, (6,), generator=generator)), reverse=True)
            got = segments.ranges(sizes, unit, overhead)
            assert [lo for lo, _ in got] == [0, *(hi for _, hi in got[:-1])] and got[-1][1] == 6
            every = [[0, *c, 6] for k in range(6) for c in combinations(range(1, 6), k)]
            best = min(price(sizes, list(zip(e, e[1:])), unit, overhead) for e in every)
            assert price(sizes, got, unit, overhead) == best
    assert segments.ranges([], 1, 1) == []


# ---- misuse


def test_names_and_rows_are_checked(adapters):
    model, bank = filled(adapters)
    with pytest.raises(SpecError, match="already has an adapter 'a'"):
        bank.add("a", adapters / "a")
    with pytest.raises(SpecError, match="not empty"):
        bank.add("", adapters / "a")
    with pytest.raises(TargetError, match="no adapter 'aa'"):
        bank.activate("aa")
    with pytest.raises(TargetError), bank.rows(["a", "z"]):
        pass
    with pytest.raises(SpecError, match="empty"), bank.rows([]):
        pass
    for names in (["a", "b", None], ["a"] * 3):
        with pytest.raises(ShapeError, match="7 rows here; bank.rows was told of 3"), bank.rows(names):
            model(IDS)
    with bank.rows(["a", "b"]), pytest.raises(SpecError, match="serves rows"):
        bank.remove("b")
    bank.activate("b")
    bank.remove("b")
    assert bank.report()["active"] is None and torch.equal(model(IDS), net()(IDS))
    with pytest.raises(SpecError):
        Bank(net(), dtype=torch.int8)


def test_bank_and_attach_refuse_each_other(adapters):
    model, bank = filled(adapters)
    with pytest.raises(SpecError, match=r"bank.close\(\)"):
        deltaw.attach(model, LoRA(r=2))
    with pytest.raises(SpecError, match="already carries"):
        Bank(model)
    bank.close()
    adapted = deltaw.attach(model, LoRA(r=2))
    with pytest.raises(SpecError, match="already carries"):
        Bank(model)
    adapted.detach()
    empty = Bank(model)
    adapted = deltaw.attach(model, LoRA(r=2))
    with pytest.raises(SpecError, match="beside its bank"):
        empty.add("a", adapters / "a")
    adapted.detach()
    empty.add("a", adapters / "a")


def test_a_wrapped_forward_is_left_alone(adapters):
    model, bank = net(), None
    bank = Bank(model)
    bank.add("a", adapters / "a")
    spot = model.q.__dict__["forward"]
    model.q.__dict__["forward"] = wrapper = lambda x: spot(x)
    bank.add("b", adapters / "b")  # straight from the file
    with pytest.raises(SpecError, match="wrapped"):
        bank.add("e", adapters / "e")  # has to be attached for a moment
    want = model(IDS)
    assert model.q.__dict__["forward"] is wrapper and bank.names == ["a", "b"]
    bank.close()
    assert model.q.__dict__["forward"] is wrapper and torch.equal(model(IDS), want)
    assert torch.equal(want, net()(IDS))


def test_picked_tokens_are_refused(adapters):
    class Picked(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(16, 16)

        def forward(self, x):
            return self.one(x.flatten(0, 1)[:4])

    handle = stir(deltaw.attach(settle(Picked(), F64), Plan(LoRA(r=2), targets=["one"])))
    bank = Bank(settle(Picked(), F64))
    bank.add("a", handle)
    with pytest.raises(ShapeError, match="picked"), bank.rows(["a", None]):
        bank.model(torch.randn(2, 6, 16, dtype=F64))


def test_a_copy_has_a_bank_of_its_own(adapters):
    model, bank = filled(adapters)
    bank.activate("d")
    want = model(IDS)
    other = copy.deepcopy(model)
    bank.activate(None)
    assert torch.equal(other(IDS), want) and not torch.equal(model(IDS), want)


# ---- a language model


def test_generation_with_a_cache(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False, eos_token_id=None, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    llama = transformers.LlamaForCausalLM(config).eval().double()
    models = [copy.deepcopy(llama), copy.deepcopy(llama)]
    bank = Bank(models[1])
    for k, name in enumerate("abc"):
        adapted = stir(deltaw.attach(models[0], Plan(LoRA(r=2 + k)), name), k)
        adapted.save(tmp_path / name)
        bank.add(name, tmp_path / name)
    ids = torch.arange(1, 31).reshape(5, 6)
    names = ["c", "a", None, "b", "a"]
    for kw in ({}, {"num_beams": 2}):
        ask = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids), **kw}
        with deltaw.rows(models[0], names):
            want = models[0].generate(ids, **ask)
        with bank.rows(names):
            got = models[1].generate(ids, **ask)
        assert torch.equal(got, want) and len({tuple(r) for r in got[:, 6:].tolist()}) > 1
