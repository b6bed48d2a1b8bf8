"""What do the loops need of the outside world?

Protocols only: the edges implement them for real, tests/fakes/ in memory, and one contract suite runs on both. All
methods raise `EdgeError` when the outside world refuses; nothing else is caught by the loops. Idempotent throughout:
adding what is there and deleting what is not are no errors (but for set elements, which nftables is strict about).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from cpe_agent.model.confirmation import Before, Rejection
from cpe_agent.model.dataplane import Routes, Ruleset
from cpe_agent.model.enrolment import Enrolment, EnrolmentRequest, Granted, Renewed
from cpe_agent.model.observed import (
    Charon,
    CharonEvent,
    CharonSigns,
    Glance,
    KernelIpsec,
    KernelPolicy,
    KernelSa,
    LinkCounters,
    Links,
    Reply,
)
from cpe_agent.model.ops import FirewallOp, RouteOp, TunnelOp
from cpe_agent.model.site_report import SiteReport
from cpe_agent.model.usage import Usage


class EdgeError(Exception):
    """The outside world refused: `target` (charon, nftables, netlink, ipsec, controller, store, prober, identity,
    control, metrics, kernel, systemd, clock), `op`, and `cause` in words."""

    def __init__(self, target: str, op: str, cause: str) -> None:
        super().__init__(f"{target}: {op}: {cause}")
        self.target = target
        self.op = op
        self.cause = cause


class EnrolmentError(EdgeError):
    """This box was not let in. `code`: the controller's own word (token_used ...), or unreachable, no_dns, captive,
    clock, refused. `retry_after_s`: the controller asked for patience."""

    def __init__(self, code: str, cause: str, retry_after_s: float = 0.0) -> None:
        super().__init__("controller", "enroll", cause)
        self.code = code
        self.retry_after_s = retry_after_s


class SignedDocument(msgspec.Struct, frozen=True):
    """A document as it travels: the exact bytes and the detached signature (raw Ed25519, 64 bytes) over them."""

    raw: bytes
    signature: bytes
    key_id: str


class Change(msgspec.Struct, frozen=True):
    """What the controller says in its stream: the (epoch, version) that it serves (None: what it said last, it only
    lives), and whether it wants to hear how the site fares now."""

    order: tuple[int, int] | None = None
    report: bool = False


class Pending(msgspec.Struct, frozen=True):
    """A document that is in force but not confirmed, how often it was tried, and how the site fared before it."""

    signed: SignedDocument
    attempts: int
    before: Before


class Signers(msgspec.Struct, frozen=True):
    """Key id -> base64 key. `roots`: the settings' own when this was saved; under others it counts for nothing. `made`:
    those that signed the documents in the store; `trusted`: those that may sign the next one."""

    roots: dict[str, str]
    made: dict[str, str]
    trusted: dict[str, str]


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

    async def counters(self) -> LinkCounters:
        """Bytes that every interface has received and sent."""

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


class ConnectPort(Protocol):
    """TCP from an address of ours."""

    async def connects(self, source: str, server: str, port: int, within_s: float) -> bool:
        """Is a connection accepted in time? Never raises."""


class RecordPort(Protocol):
    """Lines that are only ever appended to."""

    def lines(self) -> tuple[bytes, ...]:
        """All of them, without their ends."""

    def append(self, line: bytes) -> None:
        """Written and on the disk when this returns."""


class CharonCarePort(Protocol):
    """charon as a process, which is root's."""

    async def signs(self) -> CharonSigns:
        """Of which use it is. Never raises: one that does not answer within seconds does not answer."""

    def wish(self) -> None:
        """Ask root's unit to start it anew. Raises `EdgeError` if the wish cannot be put down."""


class TimeServersPort(Protocol):
    """The settings of whatever sets this router's clock."""

    def use(self, settings: str) -> bool:
        """These from now on, a whole file of them. Was there anything new in them? Raises `EdgeError`."""


class ServicePort(Protocol):
    """The service manager that has started the agent; there may be none. Synchronous, and never waits."""

    watchdog_s: float | None
    """For so long it waits for a sign of life; None: it does not."""

    def tell(self, lines: Sequence[str]) -> None:
        """Tell it all of `lines` ("NAME=value"). Raises `EdgeError`."""


class EarlyPort(Protocol):
    """ESP that comes before its CHILD_SA is installed."""

    def watch(self, address: str) -> None:
        """Keep what comes for this address of ours, from now on: once for each set-up that is about to begin."""

    def hand_over(self, address: str, spi: int) -> int:
        """Give charon again what came for this SPI (0: nothing), and end one watch. Returns how many packets."""


class ControllerPort(Protocol):
    """The controller, over one of our own addresses (or "" for the kernel's choice)."""

    async def document(self, local_address: str, etag: str | None) -> tuple[SignedDocument, str] | None:
        """The signed document and its ETag; None if `etag` is still current."""

    def changes(self, local_address: str) -> AsyncIterator[Change]:
        """What is served now, then whenever it changes, or the controller wants a report, or to show that it lives.
        Raises when it falls silent."""

    async def poll(self, local_address: str, after: tuple[int, int] | None) -> Change:
        """The same, one at a time: answered at once when what is served is not `after`, else after some seconds."""

    async def report(self, local_address: str, report: SiteReport) -> None:
        """Tell the controller how this site fares."""

    async def renew(self, local_address: str, csr_pem: str) -> Renewed:
        """A certificate for the next key of this site."""

    def use(self, base_urls: Sequence[str]) -> None:
        """These are the controller's addresses from now on; those of the settings stay as the last resort."""

    def trust(self, cas: Sequence[str]) -> None:
        """Only these authorities (PEM) vouch for the controller from now on; none: those of the settings."""


class EnrolmentPort(Protocol):
    """The controller, towards a box that has no certificate yet. Raises EnrolmentError."""

    async def root(self, url: str, pin: str) -> str:
        """The root (PEM) whose certificate has this SHA-256 (hex), from whoever answers."""

    async def enroll(self, url: str, root_pem: str, request: EnrolmentRequest) -> Granted:
        """Ask to be let in, of a server that proves itself by this root."""


class CredentialsPort(Protocol):
    """Key, certificate and authorities of an enrolled box. Synchronous. Raises EdgeError."""

    @property
    def present(self) -> bool:
        """Are they there?"""

    def next_csr(self) -> str:
        """A request (PEM) for the next key, which is made once and kept until `replace`."""

    def replace(self, chain_pem: str, cas_pem: str) -> None:
        """The certificate for the next key has come."""


class StorePort(Protocol):
    """What outlives a restart. Synchronous: small files, written, fsynced, renamed. A damaged file raises at load."""

    def load_document(self) -> SignedDocument | None:
        """The last good document: the newest that was confirmed."""

    def save_document(self, document: SignedDocument) -> None: ...

    def load_previous(self) -> SignedDocument | None:
        """The good one before that."""

    def save_previous(self, document: SignedDocument | None) -> None: ...

    def load_pending(self) -> Pending | None:
        """The document in force that was not confirmed yet."""

    def save_pending(self, pending: Pending | None) -> None: ...

    def load_rejections(self) -> tuple[Rejection, ...]:
        """Documents that were given up for good, oldest first."""

    def save_rejections(self, rejections: Sequence[Rejection]) -> None: ...

    def load_signers(self) -> Signers | None: ...

    def save_signers(self, signers: Signers) -> None: ...

    def load_order(self) -> tuple[int, int] | None:
        """The highest (epoch, version) ever accepted."""

    def save_order(self, order: tuple[int, int]) -> None: ...

    def load_clock_floor(self) -> float: ...

    def save_clock_floor(self, wall_s: float) -> None: ...

    def load_enrolment(self) -> Enrolment | None: ...

    def save_enrolment(self, enrolment: Enrolment) -> None: ...

    def load_instance(self) -> str:
        """The name that this box has given itself at its first start; "" before that."""

    def save_instance(self, instance: str) -> None: ...

    def load_addresses(self) -> Mapping[str, tuple[str, ...]]:
        """Host name of a controller -> the addresses that the DNS gave for it last."""

    def save_addresses(self, addresses: Mapping[str, tuple[str, ...]]) -> None: ...

    def load_drained(self) -> bool:
        """Whether an operator has drained this hub and not undrained it."""

    def save_drained(self, drained: bool) -> None: ...

    def load_usages(self) -> dict[str, Usage]:
        """What was counted of each uplink, by name; empty if nothing ever was."""

    def save_usages(self, usages: dict[str, Usage]) -> None: ...
