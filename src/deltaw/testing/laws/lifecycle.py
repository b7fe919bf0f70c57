"""Laws of an adapter's life: attaching, saving, copying, merging, taking off; the base is never touched."""

from __future__ import annotations

import copy
import importlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import deltaw

from ...catalogue import facts_of
from ...errors import DeltawError, NotMergeable
from ...fused import walking
from ...ops import Affine
from ...plan import Plan
from ...spec import METHODS, Method, from_config, to_config
from ..tiny import WIDE, WIDTH
from .base import BF16, F32, F64, Case, NotApplicable, base_state, close, digest, gap, law, must, same


@law(F64, BF16)
def base_is_untouched(case: Case) -> None:
    """Attach, train a step, merge, detach: not a bit of the base, a key, a flag or a forward has changed at the end."""
    model, x = case.tiny(), case.x()
    model.blocks[0].sq.weight.requires_grad_(False)
    keys, flags = list(model.state_dict()), {n: p.requires_grad for n, p in model.named_parameters()}
    bits, y = digest(base_state(model)), model(x)
    kinds = {n: type(m) for n, m in model.named_modules()}

    def unchanged(when: str) -> None:
        must(digest(base_state(model)) == bits, f"{when} changed the base's weights")
        must([k for k in model.state_dict() if "deltaw" not in k] == keys, f"{when} renamed a key of the base")
        must(all(type(m) is kinds[n] for n, m in model.named_modules() if n in kinds), f"{when} replaced a module")

    adapted = case.attach(model)
    unchanged("attach")
    optimizer = adapted.optimizer(lr=1e-2, steps=100)
    model(x).square().sum().backward()
    optimizer.step()
    unchanged("a training step")
    with deltaw.disabled(model):
        same("the disabled model", model(x), y)
    try:
        adapted.merge(probe=x).model()
    except NotMergeable:
        pass
    unchanged("merge")
    adapted.detach()
    unchanged("detach")
    must(list(model.state_dict()) == keys, "detach left keys behind")
    must({n: p.requires_grad for n, p in model.named_parameters()} == flags, "detach did not restore requires_grad")
    must(not any("forward" in vars(m) for m in model.modules()), "detach left a forward behind")
    must(not any(vars(m).get("_deltaw") for m in model.modules()), "detach left its session behind")
    must(not model._forward_pre_hooks, "detach left a hook behind")
    same("the detached model", model(x), y)


@law(F64, F32)
def merges_as_certified(case: Case) -> str:
    """The merged model equals the adapted one, and the certificate says by how much it does not."""
    model, x = case.tiny(), case.x()
    adapted = case.attach(model)
    mergeable = facts_of(case.method, (WIDE, WIDTH))["mergeable"]
    if any(
        isinstance(L, Affine) and L.bias is not None and s.leaf().bias is None for s, L, _ in case.layers(adapted, x)
    ):
        try:  # a layer without a bias has no place for one: refused there, and looked at where there is one
            adapted.merge(probe=x)
        except NotMergeable:
            model = case.one()
            adapted = case.attach(model)
        else:
            must(False, "a bias was merged into a layer that has none")
    try:
        merged = adapted.merge(probe=x)
    except NotMergeable as refusal:
        must(not mergeable, f"the catalogue says mergeable; merge() says: {refusal}")
        raise NotApplicable(str(refusal)) from refusal
    must(mergeable, "the catalogue says not mergeable; merge() did it")
    want, new = model(x).detach(), merged.model()
    must(list(new.state_dict()) == [k for k in model.state_dict() if "deltaw" not in k], "keys of the merged model")
    close("merged model", new(x), want, case.tol)
    with walking():
        close("merged model, against the walk node by node", new(x), model(x).detach(), case.tol)
    c = merged.certificate
    must(c.max_error is not None and c.output_scale is not None, "a probe was given; the certificate has no error")
    assert c.max_error is not None and c.output_scale is not None
    must(
        c.max_error <= case.tol * c.output_scale, f"certificate: error {c.max_error:.2e} at scale {c.output_scale:.2e}"
    )
    must(abs(c.output_scale - float(want.abs().max())) < 1e-5 * c.output_scale, "certificate: wrong output scale")
    changed = sum(int((v != model.state_dict()[k]).sum()) for k, v in new.state_dict().items())
    must(c.weights_changed == changed, f"certificate: {c.weights_changed} weights changed; counted: {changed}")
    return f"error {c.max_error:.1e}, {changed} weights"


@law(F64, F32, BF16)
def saves_and_loads_bitwise(case: Case) -> None:
    """save, load into a fresh base: the same tensors and outputs bit for bit; saving again gives the same bytes."""
    model, x = case.tiny(), case.x()
    adapted = case.attach(model, seed=3)
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "one"), Path(folder, "two")
        adapted.save(first)
        fresh = case.tiny()
        again = deltaw.load(fresh, first)
        want, got = adapted.state(), again.state()
        must(list(want) == list(got), f"tensors {sorted(set(want) ^ set(got))} differ in name or order")
        for name, t in want.items():
            same(name, got[name], t)
            must(got[name].requires_grad == t.requires_grad, f"{name}: trained or frozen?")
        same("output", fresh(x), model(x))
        again.save(second)
        files = sorted(p.name for p in first.iterdir())
        must(files == sorted(p.name for p in second.iterdir()), "saving again gives other files")
        for name in files:
            must(Path(first, name).read_bytes() == Path(second, name).read_bytes(), f"saving again changes {name}")


@law()
def config_round_trip(case: Case) -> None:
    """Method and plan survive the way through JSON and give the same model; an unknown field is refused."""
    method = case.method
    back = from_config(json.loads(json.dumps(to_config(method))))
    must(back == method and type(back) is type(method), f"{back} came back for {method}")
    model = case.tiny()
    plan = case.plan(model, seed=5, overrides={"0.sq" if method.sites == "weight" else "blocks.0": method})
    if method.sites in ("module", "norm"):
        plan = case.plan(model, seed=5)
    data = json.loads(json.dumps(plan.to_dict()))
    again = Plan.from_dict(data)
    must(again == plan, "the plan came back changed")
    must(json.loads(json.dumps(again.to_dict())) == data, "the plan's dictionary came back changed")
    try:
        from_config({**to_config(method), "no_such_field": 1})
    except DeltawError:
        return
    must(False, "an unknown field was accepted")


@law(F32)
def pickles_and_copies(case: Case) -> None:
    """pickle and deepcopy give independent models with the same outputs."""
    model, x = case.tiny(), case.x()
    adapted = case.attach(model)
    y = model(x)
    for way, other in (("pickle", pickle.loads(pickle.dumps(model))), ("deepcopy", copy.deepcopy(model))):
        same(way, other(x), y)
        twin = next(iter(deltaw.adapters(other)))
        must(list(twin.state()) == list(adapted.state()), f"{way}: tensors differ in name")
        with torch.no_grad():
            for p in twin.trainable().values():
                p.mul_(1.5)
        same(f"the original after a change to its {way}", model(x), y)
        must(gap(other(x), y) > 0, f"{way}: a change of its tensors has no effect")
        twin.detach()
        same(f"the original after its {way} was detached", model(x), y)


@law()
def works_without_data(case: Case) -> None:
    """On the meta device attaching, counting and a forward work with shapes alone; so does a later move to a device."""
    model = case.tiny()
    want = {k: t.shape for k, t in case.attach(model, move=False).state().items()}
    hollow = case.tiny().to("meta")
    adapted = case.attach(hollow, move=False)
    must({k: t.shape for k, t in adapted.state().items()} == want, "other shapes than on a real device")
    must(all(t.device.type == "meta" for t in adapted.state().values()), "a tensor has data")
    x = case.x().to("meta")
    must(hollow(x).shape == x.shape, "forward")
    hollow.to_empty(device="cpu")
    must(all(t.device.type == "cpu" for t in adapted.state().values()), "to_empty left a tensor behind")


# ---- the same start in another process

_FRESH: dict[str, str] = {}


def start_digest(method: Method) -> str:
    """Digest of the untrained tensors of a method on the tiny model in float32."""
    case = Case(method, F32)
    return digest(case.attach(case.tiny(), move=False, seed=11).state())


def fresh_digests(methods: list[Method]) -> dict[str, str]:
    """`start_digest` of several methods in one new process with other global random state; remembered."""
    todo = {json.dumps(to_config(m)): type(m).__module__ for m in methods}
    todo = {k: v for k, v in todo.items() if k not in _FRESH}
    if todo:
        code = "from deltaw.testing.laws import lifecycle; lifecycle.answer_digests()"
        env = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(todo), env=env, capture_output=True, text=True, timeout=300
        )
        must(done.returncode == 0, f"the fresh process failed: {done.stderr[-800:]}")
        _FRESH.update(json.loads(done.stdout))
    return _FRESH


def answer_digests() -> None:
    """The other process: configurations on stdin, digests on stdout."""
    torch.manual_seed(987654321)
    out = {}
    for config, module in json.load(sys.stdin).items():
        try:
            importlib.import_module(module)
            out[config] = start_digest(from_config(json.loads(config)))
        except Exception as error:  # one broken method must not hide the others
            out[config] = f"{type(error).__name__}: {error}"
    sys.stdout.write(json.dumps(out))


@law(F32)
def same_seed_same_bits(case: Case) -> str | None:
    """The seed fixes the start: here, in a fresh process, whatever the global generator; another seed, other numbers."""
    here = start_digest(case.method)
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
    must(start_digest(case.method) == here, "a second attach gives other tensors")
    if type(case.method).__module__ == "__main__":
        return "defined in __main__: not compared with a fresh process"
    config = json.dumps(to_config(case.method))
    if config not in _FRESH:  # one process serves the whole registry: starting it is what costs
        from ..oracles import instances

        known = [m for key in METHODS for m in instances(METHODS[key]) if type(m).__module__.startswith("deltaw.")]
        fresh_digests([case.method, *known])
    must(_FRESH[config] == here, f"a fresh process gives other tensors: {_FRESH[config]}")
    return None
