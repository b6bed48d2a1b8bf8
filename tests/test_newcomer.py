"""Does a box know whether it was let in?"""

from __future__ import annotations

from pathlib import Path

import pytest

from cpe_agent.edge.credentials import KEY, LINK, Credentials
from cpe_agent.edge.store import ENROLMENT, FileStore
from cpe_agent.newcomer import _there
from cpe_agent.ports import EdgeError


def test_what_is_left_of_an_attempt_keeps_no_box_out(tmp_path: Path) -> None:
    (tmp_path / ENROLMENT).write_bytes(b"{")
    assert _there(FileStore(tmp_path), Credentials(tmp_path)) is None


def test_who_was_let_in_and_has_lost_by_whom_says_so(tmp_path: Path) -> None:
    (tmp_path / ENROLMENT).write_bytes(b"{")
    (tmp_path / LINK).mkdir()
    for name in (KEY, "certificate.pem", "ca.pem"):
        (tmp_path / LINK / name).write_text("PEM")
    with pytest.raises(EdgeError, match="damaged"):
        _there(FileStore(tmp_path), Credentials(tmp_path))
