"""A service manager in memory."""

from __future__ import annotations

from collections.abc import Sequence

from cpe_agent.ports import EdgeError


class FakeService:
    """Keeps every message. `deaf`: it takes none."""

    def __init__(self, watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s
        self.heard: list[tuple[str, ...]] = []
        self.deaf = False

    def tell(self, lines: Sequence[str]) -> None:
        if self.deaf:
            raise EdgeError("systemd", "notify", "Connection refused")
        self.heard.append(tuple(lines))
