"""Every law and every closed form on every rule between steps, over the registry."""

from __future__ import annotations

import pytest
import torch

from deltaw.methods.rules import Rule, rule
from deltaw.plan import Plan
from deltaw.spec import RULES
from deltaw.testing import axes, check_axis, closed, rules
from deltaw.testing.report import timed

KEYS = [key for key in RULES if RULES[key].__module__.startswith("deltaw.")]  # other tests register rules of their own


@pytest.mark.parametrize("law", list(rules.LAWS))
@pytest.mark.parametrize("key", KEYS)
def test_law(key, law):
    for plan in rules.plans_of(key):
        result = timed(law, plan, "", lambda plan=plan: rules.LAWS[law](plan))
        assert result.outcome == "passed", result.detail


@pytest.mark.parametrize("key", [k for k in KEYS if closed.closed("rules", k)])
def test_closed_form(key):
    assert closed.closed("rules", key).check()


def test_a_rule_without_a_closed_form_is_lawful_by_its_laws(monkeypatch):
    monkeypatch.setattr(axes, "closed", lambda axis, key: None)
    report = check_axis("rules", "avf")
    assert report.status == "lawful" and [r.law for r in report.results] == list(rules.LAWS) and report.ok


@pytest.mark.parametrize("axis", axes.AXES)
def test_every_entry_of_an_axis_has_an_oracle(axis):
    """What is new may come without one; then it is named here, and `deltaw check` says lawful."""
    ours = [k for k in axes.AXES[axis] if axes.AXES[axis][k].__module__.startswith("deltaw.")]
    assert [k for k in ours if not axes.oracles_of(axis, k)] == []


class Faulty(Rule):
    """Breaks one law."""

    fault: str = ""

    def start(self, view):
        view.calls = 0
        if self.fault == "counts passes":
            view.site.module.register_forward_hook(lambda *_: setattr(view, "calls", view.calls + 1))
        return {}

    def after(self, view):
        if self.fault == "forgets":
            view.calls += 1
        if self.fault == "writes to the base":
            view.site.module.weight.mul_(1.01)
        if self.fault == "keeps a number":
            view.s["count"] = view.step
        share = float(torch.rand(())) if self.fault == "throws dice" else 1.0 / (1 + view.calls)
        if self.fault != "does nothing":
            view.set("B", view.p.B * (0.9 * share))


@pytest.fixture(scope="module")
def faulty():
    yield rule(paper="(a test)")(Faulty)
    del RULES.table[Faulty.key]


@pytest.mark.parametrize(
    "fault, law",
    [
        ("does nothing", "acts"),
        ("forgets", "resumed_is_uninterrupted"),
        ("counts passes", "accumulation_is_one_batch"),
        ("counts passes", "evaluations_do_not_count"),
        ("throws dice", "random_numbers_are_its_own"),
        ("writes to the base", "base_is_untouched"),
        ("keeps a number", "memory_is_tensors"),
    ],
)
def test_each_law_sees_what_breaks_it(faulty, fault, law):
    outcomes = {}
    for word in ("", fault):
        plan = Plan("lora", rules=faulty(word))
        outcomes[word] = timed(law, plan, "", lambda plan=plan: rules.LAWS[law](plan)).outcome
    assert outcomes == {"": "passed", fault: "failed"}
