"""What several of these files ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.edge.controllers import Tls


@pytest.fixture
async def tls(tmp_path: Path) -> AsyncIterator[Tls]:
    async with trio.open_nursery() as nursery:
        tls = Tls(tmp_path, nursery)
        yield tls
        for client in tls.clients:
            await client.aclose()
        nursery.cancel_scope.cancel()
