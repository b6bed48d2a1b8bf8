"""Makes a token of the running controller one that has expired.

Stand-alone (`python -m tests.scenarios.expiring SECRET`), because the store must be opened inside the lab: no token
lives less than an hour.
"""

from __future__ import annotations

import datetime as dt
import sys

import msgspec

from cpe_controller import setup, tokens
from tests.lab.lab import CONTROLLER_STATE


def main(secret: str) -> None:
    key = tokens.key_of(secret)
    with setup.opened(CONTROLLER_STATE) as (store, _):
        entry = store.get(key)
        assert entry is not None, "the controller knows no such token"
        past = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=1)
        expired = msgspec.structs.replace(tokens.read(entry), expires_at=past)
        assert store.cas([tokens.write(key, expired, entry.revision)]) is not None


if __name__ == "__main__":
    main(sys.argv[1])
