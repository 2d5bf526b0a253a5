"""docs/intake.md says of every reason what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from cspine.core.answers import Reason
from cspine.ct.intake import RULES, IntakePolicy

PAGE = (Path(__file__).parents[2] / "docs" / "intake.md").read_text(encoding="utf-8")


def test_the_page_has_every_reason_with_its_choices_in_order_and_its_meaning() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    assert [name for name, *_ in rows] == [str(reason) for reason in Reason]
    for name, choices, meaning, correction in rows:
        rule = RULES[Reason(name)]
        assert choices == ", ".join(rule.actions)
        assert meaning == rule.means
        assert correction == rule.correction


def test_the_limits_on_the_page_are_the_defaults() -> None:
    policy = IntakePolicy()
    for name in set(IntakePolicy.model_fields) - {"actions"}:
        [value] = re.findall(rf"^    {name} = ([\d.]+)", PAGE, re.MULTILINE)
        assert float(value) == getattr(policy, name), name
