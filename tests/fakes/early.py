"""Packets that come early, in memory: an `EarlyPort` that notes what it was asked for."""

from __future__ import annotations


class FakeEarly:
    """`watched`: addresses now, one for each set-up. `handed_over`: (address, SPI) in turn."""

    def __init__(self) -> None:
        self.watched: list[str] = []
        self.handed_over: list[tuple[str, int]] = []

    def watch(self, address: str) -> None:
        self.watched.append(address)

    def hand_over(self, address: str, spi: int) -> int:
        if address not in self.watched:
            return 0
        self.watched.remove(address)
        self.handed_over.append((address, spi))
        return 1 if spi else 0
