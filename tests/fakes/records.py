"""Records in memory: a `RecordPort`."""

from __future__ import annotations

from cpe_agent.ports import EdgeError


class FakeRecords:
    """`full`: nothing can be written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.full = False

    def lines(self) -> tuple[bytes, ...]:
        return tuple(self.written)

    def append(self, line: bytes) -> None:
        if self.full:
            raise EdgeError("store", "save", "drills.jsonl cannot be written: No space left on device")
        self.written.append(line)
