"""Every method of PEFT is here: judged by PEFT, and its files read and written; or the reason stands in this table."""

from __future__ import annotations

import pytest

from deltaw.catalogue import entry
from deltaw.interop.peft.dialect import DIALECTS
from deltaw.spec import METHODS

peft = pytest.importorskip("peft")
TYPES = [t.value for t in peft.PeftType]
WITHOUT: dict[str, str] = {}  # type -> why not


@pytest.mark.parametrize("kind", TYPES)
def test_a_type_of_peft_has_a_dialect_or_a_reason(kind):
    assert (kind in DIALECTS) != (kind in WITHOUT), f"{kind}: write interop/peft/{kind.lower()}.py (see CONTRIBUTING.md)"


def test_no_dialect_and_no_reason_is_left_over():
    assert set(DIALECTS) | set(WITHOUT) <= set(TYPES) and all(WITHOUT.values())


@pytest.mark.parametrize("kind", sorted(DIALECTS))
def test_a_dialect_is_of_methods_that_are_compared_with_peft(kind):
    """By the check of one layer, or, as the oracle says with IN_PEFT, by a test that needs a whole model."""
    for key in DIALECTS[kind].methods:
        assert key in METHODS and entry(METHODS[key])["in_peft"], f"{kind}: nothing compares {key} with PEFT"
