"""When is a certificate renewed, and when is that worth a word?"""

from __future__ import annotations

import pytest

from cpe_agent.core.certificate import Life, conditions, renews_at_s
from cpe_agent.model.condition import Severity

DAY = 86_400.0
LIFE = Life(1000 * DAY, 1200 * DAY)


def test_half_of_its_life() -> None:
    assert renews_at_s(LIFE) == 1100 * DAY


@pytest.mark.parametrize(
    ("day", "severity"), [(1000, None), (1149, None), (1150, Severity.DEGRADED), (1200, Severity.DOWN)]
)
def test_what_should_have_been_renewed_long_ago_is_said(day: int, severity: Severity | None) -> None:
    found = conditions(LIFE, day * DAY)
    assert [c.severity for c in found] == ([] if severity is None else [severity])
    assert all(c.type == "CertificateExpiring" and "1973-04-15" in c.reason for c in found)


def test_nobody_knows_yet() -> None:
    assert conditions(None, 0.0) == ()
