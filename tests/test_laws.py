"""Every law and every oracle on every method, over the registry; and that a broken method is found out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import deltaw
from deltaw import testing
from deltaw.methods import LoRA
from deltaw.spec import METHODS, Method, Param, zeros
from deltaw.testing import oracles
from deltaw.testing.laws import LAWS

INSTANCES = [(key, k, m) for key in METHODS for k, m in enumerate(oracles.instances(METHODS[key]))]
IDS = [f"{key}-{k}" for key, k, _ in INSTANCES]


@pytest.mark.parametrize("law", list(LAWS))
@pytest.mark.parametrize("key, number, method", INSTANCES, ids=IDS)
def test_law(key, number, method, law):
    for dtype in LAWS[law].dtypes:
        result = testing.run_law(method, law, dtype)
        assert result.outcome != "failed", f"{result.dtype}: {result.detail}"
        if result.outcome == "not applicable":
            assert len(result.detail) > 10, "a law may only be waived with its reason"


@pytest.mark.parametrize(
    "method, which",
    [pytest.param(m, w, id=f"{key}-{k}-{w}") for key, k, m in INSTANCES for w in oracles.declared(key)],
)
def test_oracle(method, which):
    result = testing.run_oracle(method, which)
    assert result.outcome == "passed", result.detail


def test_every_oracle_belongs_to_a_method():
    oracles.check_keys()


def test_every_method_has_an_oracle():
    assert not [k for k in METHODS if not oracles.declared(k)]


def test_inapplicable_laws_are_few():
    """A linear method may not slip out of the laws: only what the types say is not linear may say 'not applicable'."""
    for key, _, method in INSTANCES:
        mergeable = deltaw.catalogue.facts_of(method, (24, 16))["mergeable"]
        results = [
            testing.run_law(method, law, torch.float64) for law in ("forward_is_affine_of_dense", "factors_are_dense")
        ]
        for r in results:
            assert r.outcome == "passed" or not mergeable or method.sites != "weight", (key, r.detail)


# ---- the laws have teeth: methods with one fault each, and the law that must find it


def broken(**changes):
    """A LoRA with some of its functions replaced, as an unregistered class of the same fields."""
    cls = type("Broken", (LoRA,), {"__module__": LoRA.__module__, "__qualname__": "Broken", **changes})
    return cls(r=4)


def fails(method: Method, law: str, dtype=torch.float64) -> str:
    result = testing.run_law(method, law, dtype)
    assert result.outcome == "failed", f"{law} did not notice: {result}"
    return result.detail


def same_rows(start, shape):
    return start.uniform((1, *shape[1:]), 0.25).expand(shape)


def test_a_symmetric_start_is_found():
    def params(self, m, n):
        return {"A": Param((self.r, n), same_rows), "B": Param((m, self.r), zeros)}

    assert "rank 1" in fails(broken(params=params), "learns_with_its_whole_rank")


def test_a_start_that_is_no_identity_is_found():
    def params(self, m, n):
        return {"A": Param((self.r, n), same_rows), "B": Param((m, self.r), same_rows)}

    fails(broken(params=params), "starts_as_declared")


def test_a_dead_tensor_is_found():
    def params(self, m, n):
        return {**LoRA.params(self, m, n), "C": Param((n,), zeros)}

    def weight(self, W, p):
        return LoRA.weight(self, W, p) + 0.0 * deltaw.ops.chain(p.B, p.A, p.C)

    assert "C" in fails(broken(params=params, weight=weight), "gradients_reach_what_is_trained")


def test_two_trained_zeros_are_found():
    def params(self, m, n):
        return {"A": Param((self.r, n), zeros), "B": Param((m, self.r), zeros)}

    fails(broken(params=params), "every_step_moves_what_is_trained")


def test_a_wrong_dense_is_found():
    class Lying(deltaw.ops.Dense):
        def dense(self):
            return 2.0 * self.w

    def weight(self, W, p):
        return W + deltaw.ops.chain(p.B, Lying(p.A))

    fails(broken(weight=weight), "forward_is_affine_of_dense")


def test_a_wrong_dense_is_found_by_merging_where_there_are_no_factors():
    class Lying(deltaw.ops.Op):
        def __init__(self, op):
            self.op, self.shape, self.rmv = op, op.shape, op.rmv

        like = property(lambda self: self.op.like)

        def __call__(self, x):
            return self.op(x)

        def dense(self):
            return 2.0 * self.op.dense()

    def weight(self, W, p):
        return W + Lying(deltaw.ops.chain(p.B, p.A))

    fails(broken(weight=weight), "forward_is_affine_of_dense")
    fails(broken(weight=weight), "merges_as_certified")


def test_an_undeclared_dense_is_found(monkeypatch):
    def weight(self, W, p):
        return LoRA.weight(self, W, p) + 0.0 * deltaw.ops.Dense(W.dense())

    from deltaw.testing.laws import numerics

    monkeypatch.setattr(numerics, "facts_of", lambda *a: {"needs_dense_base": False})
    assert "dense()" in fails(broken(weight=weight), "base_stays_opaque", torch.float32)


def test_a_start_from_the_global_generator_is_found():
    def params(self, m, n):
        return {"A": Param((self.r, n), lambda s, shape: torch.rand(shape)), "B": Param((m, self.r), zeros)}

    fails(broken(params=params), "same_seed_same_bits", torch.float32)


def test_a_wrong_formula_fails_its_oracle():
    result = testing.run_oracle(broken(scale=property(lambda self: 1.01 * self.alpha / self.r)), "closed")
    assert result.outcome == "failed" and "output" in result.detail


def test_an_activation_cast_is_found():
    def layer(self, L, p):
        class Cast(deltaw.ops.Map):
            def __call__(s, x):
                return LoRA.layer(self, L, p)(x).float()

        return Cast()

    fails(broken(layer=layer), "dtype_passes_through", torch.bfloat16)


# ---- check() and the catalogue


def test_check_reports():
    report = testing.check("lora", laws=["starts_as_declared", "count_is_the_formula"])
    assert report.ok and report.status == "verified" and report.oracles == ["closed", "peft"]
    assert {r.dtype for r in report.results} == {"float64", "float32", "bfloat16"}
    assert "lora: verified" in str(report) and report.to_dict()["status"] == "verified"


def test_check_of_a_broken_method_fails():
    report = testing.check(replace(broken(scale=3.0)), laws=["two_adapters_add"])
    assert report.status == "failed" and report.failures


def test_catalogue_is_complete_and_stable():
    rows = deltaw.catalogue.catalogue()
    assert [r["key"] for r in rows] == sorted(METHODS) and rows == deltaw.catalogue.catalogue()
    by = {r["key"]: r for r in rows}
    assert by["lora"]["exact_lora_rank"] == 8 and by["lora"]["formula"] == "8 m + 8 n"
    assert by["abba"]["exact_lora_rank"] == 256 and not by["abba"]["needs_dense_base"]
    assert by["hira"]["needs_dense_base"] and not by["dora"]["needs_dense_base"] and by["dora"]["exact_lora_rank"] is None
    assert not by["xlora"]["mergeable"] and not by["reft"]["identity_at_start"]
    assert deltaw.catalogue.markdown(rows).count("\n") == len(rows) + 2
