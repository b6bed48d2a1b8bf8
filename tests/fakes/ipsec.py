"""An `IpsecPort` in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

import msgspec
import trio

from cpe_agent.model.observed import KernelIpsec, KernelPolicy, KernelSa


class FakeIpsec:
    """`set` is whatever somebody does to the kernel's IPsec; it wakes `changes()`, as `delete` does."""

    def __init__(self, held: KernelIpsec | None = None) -> None:
        self.held = held or KernelIpsec()
        self._changes = 0
        self._changed = trio.Event()

    def set(self, held: KernelIpsec) -> None:
        self.held = held
        self._changes += 1
        self._changed.set()
        self._changed = trio.Event()

    async def read(self) -> KernelIpsec:
        await trio.lowlevel.checkpoint()
        return self.held

    async def delete(self, sas: Iterable[KernelSa], policies: Iterable[KernelPolicy]) -> None:
        await trio.lowlevel.checkpoint()
        kept = {"sas": self.held.sas - set(sas), "policies": self.held.policies - set(policies)}
        self.set(msgspec.structs.replace(self.held, **kept))

    async def changes(self) -> AsyncGenerator[None, None]:
        seen = self._changes
        await trio.lowlevel.checkpoint()
        yield
        while True:
            while self._changes == seen:
                await self._changed.wait()
            seen = self._changes
            yield
