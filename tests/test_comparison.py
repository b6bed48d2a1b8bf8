"""Do the commands that compare for themselves take the disk as the daemon does?"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from cpe_agent.comparison import stored_document
from cpe_agent.edge.store import FileStore
from cpe_agent.model.document import Document
from cpe_agent.settings import Settings, parse_settings
from tests.loops.documents import KEY_ID, PAIRS, POST, PUBLIC, SITE, branch

ISSUED, EXPIRED = dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.datetime(2026, 1, 2, tzinfo=dt.UTC)


def _settings(state_dir: Path) -> Settings:
    text = f"""
        site: {SITE}
        controllers: [https://controller.example]
        signing_keys: {{{KEY_ID}: {PUBLIC}}}
        state_dir: {state_dir}
    """
    return parse_settings(Path("agent.yaml"), text.encode())


def _stored(tmp_path: Path, document: Document) -> Document:
    FileStore(tmp_path).save_document(POST.send(document))
    return stored_document(_settings(tmp_path))


def test_a_document_in_time_is_taken_whole(tmp_path: Path) -> None:
    assert _stored(tmp_path, branch(on_expiry="block")).pairs == PAIRS


@pytest.mark.parametrize(("on_expiry", "pairs"), [("keep", PAIRS), ("block", ())])
def test_one_whose_time_has_run_out_is_as_closed_as_it_asks(tmp_path: Path, on_expiry: str, pairs: object) -> None:
    """Else `boot` would open what the daemon has closed, and `verify` find the daemon at fault."""
    document = branch(on_expiry=on_expiry, issued_at=ISSUED, expires_at=EXPIRED)
    FileStore(tmp_path).save_clock_floor(EXPIRED.timestamp() - 3600)
    assert _stored(tmp_path, document).pairs == pairs
