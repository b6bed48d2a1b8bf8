"""Is what has become true found to be so, however late it is asked for?"""

from __future__ import annotations

import time

import pytest

from tests.lab.container import LabError, wait_until


def test_that_it_is_asked_once_more_when_the_time_is_over() -> None:
    """As on a machine that stands still just after the first answer."""
    asked: list[int] = []

    def check() -> bool:
        asked.append(1)
        if len(asked) == 1:
            time.sleep(0.05)
        return len(asked) > 1

    wait_until("it is there", check, 0.01)


def test_that_what_never_is_has_its_time() -> None:
    began_s = time.monotonic()
    with pytest.raises(LabError, match=r"it is there: not within 0\.1 s"):
        wait_until("it is there", lambda: False, 0.1)
    assert time.monotonic() - began_s >= 0.1
