"""Every law and every closed form on every initialisation, over the registry."""

from __future__ import annotations

import pytest

from deltaw.methods.init import INITS
from deltaw.testing import closed, inits
from deltaw.testing.report import timed

INSTANCES = [pytest.param(init, id=f"{key}-{k}") for key in INITS for k, init in enumerate(inits.inits_of(key))]


@pytest.mark.parametrize("law", list(inits.LAWS))
@pytest.mark.parametrize("init", INSTANCES)
def test_law(init, law):
    result = timed(law, init, "", lambda: inits.LAWS[law](init))
    assert result.outcome != "failed", result.detail


@pytest.mark.parametrize("init", [i for i in INSTANCES if closed.closed("init", i.values[0].key)])
def test_closed_form(init):
    result = timed("closed", init, "", lambda: inits.compare_closed(init))
    assert result.outcome == "passed", result.detail
