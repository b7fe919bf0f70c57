"""Every law and every closed form on every update rule, over the registry."""

from __future__ import annotations

import pytest

from deltaw.methods.update import UPDATES
from deltaw.testing import closed, updates
from deltaw.testing.report import timed

INSTANCES = [pytest.param(rule, id=f"{key}-{k}") for key in UPDATES for k, rule in enumerate(updates.rules_of(key))]


@pytest.mark.parametrize("law", list(updates.LAWS))
@pytest.mark.parametrize("rule", INSTANCES)
def test_law(rule, law):
    result = timed(law, rule, "", lambda: updates.LAWS[law](rule))
    assert result.outcome != "failed", result.detail


@pytest.mark.parametrize("rule", [i for i in INSTANCES if closed.closed("update", i.values[0].key)])
def test_closed_form(rule):
    result = timed("closed", rule, "", lambda: updates.compare_closed(rule))
    assert result.outcome == "passed", result.detail
