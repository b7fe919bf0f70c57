"""Every structure inside every wrapper: the laws hold, also over an opaque base, or it is refused with the reason."""

from __future__ import annotations

import pytest

from deltaw import testing
from deltaw.errors import SpecError
from deltaw.methods import BitFit, DoRA, Drop, Gate
from deltaw.spec import METHODS
from deltaw.testing import oracles
from deltaw.testing.laws import Case

WRAPPERS = {"dora": DoRA, "drop": lambda m: Drop(m, p=0.25), "gate": Gate, "bitfit": BitFit}
INNER = {f"{k}-{i}": m for k in METHODS if METHODS[k].axis == "structure" for i, m in enumerate(oracles.instances(METHODS[k]))}
PAIRS = [(w, k) for w in WRAPPERS for k in INNER]
LAWS = (
    "forward_is_affine_of_dense", "linear_and_transposed", "count_is_the_formula", "dtype_passes_through",
    "gradients_reach_what_is_trained", "fused_is_the_walk", "merges_as_certified", "saves_and_loads_bitwise",
    "two_adapters_add", "base_stays_opaque",
)  # fmt: skip


def refusal(method) -> str | None:
    """Why the wrapper does not take it: found out before the model is touched."""
    case = Case(method)
    model = case.tiny()
    keys = list(model.state_dict())
    try:
        case.attach(model)
    except SpecError as error:
        assert list(model.state_dict()) == keys
        return str(error)
    return None



@pytest.mark.parametrize("word, key", PAIRS, ids=[f"{w}-{k}" for w, k in PAIRS])
def test_every_structure_in_every_wrapper(word, key):
    inner = INNER[key]
    method = WRAPPERS[word](inner)
    why = refusal(method)
    if inner.sites != "weight":
        assert why and "change of a weight" in why
    elif word == "dora" and key.split("-")[0] in ("ia3", "boft") and why:
        assert "cancels the row scaling" in why
    else:
        assert why is None, why
        for law in LAWS:
            for dtype in testing.LAWS[law].dtypes:
                result = testing.run_law(method, law, dtype)
                assert result.outcome != "failed", f"{law}, {result.dtype}: {result.detail}"
