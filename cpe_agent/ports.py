"""What do the loops need of the outside world?

Protocols only: the edges implement them for real, tests/fakes/ in memory, and one contract suite runs on both. All
methods raise `EdgeError` when the outside world refuses; nothing else is caught by the loops. Idempotent throughout:
adding what is there and deleting what is not are no errors (but for set elements, which nftables is strict about).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import Protocol

import msgspec

from cpe_agent.model.dataplane import Routes, Ruleset
from cpe_agent.model.observed import Charon, CharonEvent, Glance, KernelIpsec, KernelPolicy, KernelSa, Links, Reply
from cpe_agent.model.ops import FirewallOp, RouteOp, TunnelOp


class EdgeError(Exception):
    """The outside world refused: `target` (charon, nftables, netlink, ipsec, controller, store, prober, identity,
    control, metrics, kernel), `op`, and `cause` in words."""

    def __init__(self, target: str, op: str, cause: str) -> None:
        super().__init__(f"{target}: {op}: {cause}")
        self.target = target
        self.op = op
        self.cause = cause


class SignedDocument(msgspec.Struct, frozen=True):
    """A document as it travels: the exact bytes and the detached signature (raw Ed25519, 64 bytes) over them."""

    raw: bytes
    signature: bytes
    key_id: str


class TunnelPort(Protocol):
    """charon."""

    async def read(self) -> Charon:
        """What charon holds of ours now."""

    async def glance(self) -> Glance:
        """Only which connections of ours are loaded, and whether our key is: what charon tells nobody of when it
        changes, for a small part of what `read` costs."""

    async def apply(self, op: TunnelOp) -> None:
        """Do one operation; initiates return at once and are followed by events."""

    def events(self) -> AsyncGenerator[CharonEvent, None]:
        """Ups and downs of our IKE_SAs and CHILD_SAs, for ever; raises `EdgeError` when charon goes away."""


class FirewallPort(Protocol):
    """nftables, our table only."""

    async def read(self) -> Ruleset | None:
        """Our table in canonical form; None if there is none."""

    async def apply(self, ops: Sequence[FirewallOp]) -> None:
        """All of `ops` in one transaction: all or nothing."""

    async def counters(self) -> dict[str, tuple[int, int]]:
        """(packets, bytes) by counter name: "SET ELEMENT" for set elements, "drop REASON" for counted drops."""

    def changes(self) -> AsyncGenerator[None, None]:
        """Yields once when subscribed, then whenever somebody (we too) changed our table."""


class RoutePort(Protocol):
    """Routes, rules and addresses over netlink, ours only; and every link, as facts."""

    async def read(self) -> Routes:
        """What carries our protocol number."""

    async def strangers(self) -> tuple[str, ...]:
        """What others hold where it could undo our routing, in words. It is theirs: nobody touches it."""

    async def apply(self, ops: Sequence[RouteOp]) -> None:
        """In order. An operation that the kernel refuses raises after the others were tried."""

    async def links(self) -> Links:
        """Interfaces, their addresses, carriers and default gateways."""

    def changes(self) -> AsyncGenerator[frozenset[str], None]:
        """Yields when links, addresses, routes or rules changed (anybody's): the interfaces that have just lost their
        carrier or are gone. `links` then says what is there; it may say that one of these is back."""


class IpsecPort(Protocol):
    """The kernel's IPsec, everybody's (kernel backend only)."""

    async def read(self) -> KernelIpsec:
        """SAs of ESP in UDP, and policies."""

    async def delete(self, sas: Iterable[KernelSa], policies: Iterable[KernelPolicy]) -> None:
        """Delete what was read. What is gone already is no error."""

    def changes(self) -> AsyncGenerator[None, None]:
        """Yields once when subscribed, then whenever an SA or a policy changed (charon's too)."""


class ProbePort(Protocol):
    """ICMP echo from an address of ours."""

    def send(self, source: str, target: str, sequence: int, size: int = 0) -> bool:
        """Send one echo request now; `size`: bytes of the whole IP packet (0: as small as can be). False if the kernel
        would not take it."""

    async def replies(self) -> Sequence[Reply]:
        """Wait for replies; returns all that have come. rtt by kernel receive time."""


class ControllerPort(Protocol):
    """The controller, over one of our own addresses (or "" for the kernel's choice)."""

    async def document(self, local_address: str, etag: str | None) -> tuple[SignedDocument, str] | None:
        """The signed document and its ETag; None if `etag` is still current."""

    def changes(self, local_address: str) -> AsyncIterator[tuple[int, int] | None]:
        """(epoch, version) served now, then at each change; None for a heartbeat. Raises when it falls silent."""


class StorePort(Protocol):
    """What outlives a restart. Synchronous: small files, written, fsynced, renamed. A damaged file raises at load."""

    def load_document(self) -> SignedDocument | None: ...

    def save_document(self, document: SignedDocument) -> None: ...

    def load_order(self) -> tuple[int, int] | None:
        """The highest (epoch, version) ever accepted."""

    def save_order(self, order: tuple[int, int]) -> None: ...

    def load_clock_floor(self) -> float: ...

    def save_clock_floor(self, wall_s: float) -> None: ...

    def load_drained(self) -> bool:
        """Whether an operator has drained this hub and not undrained it."""

    def save_drained(self, drained: bool) -> None: ...
