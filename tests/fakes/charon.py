"""A charon in memory: a `TunnelPort` whose peers answer as they are told, or as another `FakeCharon` would.

It does what the real one was seen to do: an initiation of what is there already changes nothing, one that nobody
answers ends after a while without an event, nothing is refused for being gone, names outlive no restart.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

import msgspec
import trio

from cpe_agent.model.dataplane import Child, Connection
from cpe_agent.model.observed import YOUNG_S, Charon, CharonEvent, ChildSa, EventKind, Glance, IkeSa, LoadedChild
from cpe_agent.model.ops import (
    Initiate,
    LoadConnection,
    LoadCredentials,
    TerminateChild,
    TerminateIke,
    TunnelOp,
    UnloadConnection,
)
from cpe_agent.ports import EdgeError

# When charon gives a silent peer up (its retransmission cycle), and how long a call to a hung charon takes.
GIVE_UP_S = 9.9
CALL_LIMIT_S = 10.0

_spis = itertools.count(1)


class Answer(Enum):
    """What becomes of an initiation."""

    ACCEPT = "accept"
    REFUSE = "refuse"
    SILENT = "silent"


@dataclass
class _Sa:
    """An IKE_SA. `spi` and the keys of `children` are the same at both ends."""

    connection: Connection
    unique_id: int
    spi: int
    initiator: bool
    established: bool = False
    ending: bool = False
    creating: bool = False
    waiting_since: float | None = None  # for a peer that is silent
    children: dict[int, ChildSa] = field(default_factory=dict)
    configs: dict[int, Child] = field(default_factory=dict)  # what each child was initiated with
    installed_at: dict[int, float] = field(default_factory=dict)


class FakeCharon:
    """`answers` by connection stem; others are accepted, by `peer` if there is one. `applied`: all operations."""

    def __init__(self, peer: FakeCharon | None = None) -> None:
        self.peer = peer
        self.answers: dict[str, Answer] = {}
        self.kept_busy: set[int] = set()  # IKE_SAs, by unique id, in which some other exchange is under way
        self.forgotten: set[int] = set()  # and those that the peer has lost: nothing in them is answered
        self.applied: list[TunnelOp] = []
        self.hung = False
        self.running = True
        self._twin: FakeCharon | None = None
        if peer is not None:
            peer._twin = self
        self._listeners: set[trio.MemorySendChannel[CharonEvent]] = set()
        self._forget()

    def kill(self) -> None:
        """kill -9: everything in memory is gone, the other end is not told."""
        self.running = False
        self._forget()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def start(self) -> None:
        self.running = True

    def drop(self, unique_id: int) -> None:
        """The peer ends an IKE_SA."""
        self._remove(unique_id)

    def ike_sas(self) -> tuple[IkeSa, ...]:
        """What it holds now, for a test that looks on."""
        return tuple(self._ike_sa(sa) for sa in self._sas.values())

    def count_bytes(self, unique_id: int, bytes_in: int, bytes_out: int) -> None:
        """Let a CHILD_SA have carried so much."""
        for sa in self._sas.values():
            for spi, child in sa.children.items():
                if child.unique_id == unique_id:
                    sa.children[spi] = _child_sa(child, child.unique_id, bytes_in, bytes_out)

    async def read(self) -> Charon:
        await self._reach("read")
        self._give_up()
        connections = {
            name: tuple(LoadedChild(child.name, child.local_ts, child.remote_ts) for child in connection.children)
            for name, connection in self._connections.items()
        }
        return Charon(connections, tuple(self._ike_sa(sa) for sa in self._sas.values()), self._credentials)

    async def glance(self) -> Glance:
        await self._reach("glance")
        return Glance(frozenset(self._connections), self._credentials)

    def forget_credentials(self) -> None:
        """Somebody has cleared them; charon tells nobody."""
        self._credentials = False

    def load(self, connection: Connection) -> None:
        """Somebody has loaded it; charon tells nobody."""
        self._connections[connection.name] = connection

    def unload(self, name: str) -> None:
        """Somebody has unloaded it; charon tells nobody."""
        del self._connections[name]

    async def apply(self, op: TunnelOp) -> None:
        await self._reach(type(op).__name__)
        self.applied.append(op)
        self._give_up()
        match op:
            case LoadCredentials():
                self._credentials = True
            case LoadConnection(connection):
                self._connections[connection.name] = connection
            case UnloadConnection(name):
                self._connections.pop(name, None)
            case Initiate(connection=name, child=child_name):
                self._initiate(name, child_name)
            case TerminateChild(unique_id):
                self._terminate_child(unique_id)
            case TerminateIke(unique_id, force):
                self._terminate_ike(unique_id, force)

    @asynccontextmanager
    async def subscription(self) -> AsyncIterator[AsyncIterator[CharonEvent]]:
        await self._reach("events")
        send, receive = trio.open_memory_channel[CharonEvent](math.inf)
        self._listeners.add(send)
        try:
            async with aclosing(_until_closed(receive)) as events:
                yield events
        finally:
            self._listeners.discard(send)
            send.close()
            receive.close()

    async def events(self) -> AsyncGenerator[CharonEvent, None]:
        async with self.subscription() as events:
            async for event in events:
                yield event

    def _forget(self) -> None:
        self._connections: dict[str, Connection] = {}
        self._sas: dict[int, _Sa] = {}
        self._credentials = False
        self._ike_ids = itertools.count(1)
        self._child_ids = itertools.count(1)

    async def _reach(self, op: str) -> None:
        await trio.lowlevel.checkpoint()
        if self.hung:
            await trio.sleep(CALL_LIMIT_S)
            raise EdgeError("charon", op, f"no answer within {CALL_LIMIT_S:g} s")
        if not self.running:
            raise EdgeError("charon", op, "No such file or directory")

    def _initiate(self, name: str, child_name: str) -> None:
        connection = self._connections.get(name)
        config = next((c for c in connection.children if c.name == child_name), None) if connection else None
        if connection is None or config is None:
            raise EdgeError("charon", "initiate", f"CHILD_SA config '{child_name}' not found")
        sa = next((sa for sa in reversed(self._sas.values()) if sa.connection.ike == connection.ike), None)
        if sa is None:
            sa = _Sa(connection, next(self._ike_ids), next(_spis), initiator=True)
            self._sas[sa.unique_id] = sa
        elif config in sa.configs.values():
            return  # a double is judged by what was asked for, not by what was agreed
        answer = Answer.SILENT if self._silent(sa) else self._answer(connection.stem)
        if not self._credentials:
            answer = Answer.REFUSE
        if answer is Answer.SILENT:
            sa.creating = sa.established
            sa.waiting_since = trio.current_time() if sa.waiting_since is None else sa.waiting_since
            return
        accepted = answer is Answer.ACCEPT
        if accepted and self.peer is not None:
            self._negotiate(self.peer, sa, config)
        elif accepted:
            self._establish(sa)
            spi = next(_spis)
            sa.configs[spi] = config
            self._install(sa, spi, config.name, config.local_ts, config.remote_ts)
        elif not sa.established:
            self._remove(sa.unique_id)

    def _negotiate(self, peer: FakeCharon, sa: _Sa, config: Child) -> None:
        """As two charons do: the answering one looks for a connection by identities and for a child by selectors."""
        ike = sa.connection.ike
        theirs = next((other for other in peer._sas.values() if other.spi == sa.spi), None)
        if theirs is None:
            match = [
                c
                for c in peer._connections.values()
                if (c.ike.local_id, c.ike.remote_id) == (ike.remote_id, ike.local_id) and c.ike.proposal == ike.proposal
            ]
            if not match or not peer._credentials:
                self._remove(sa.unique_id)
                return
            theirs = _Sa(match[0], next(peer._ike_ids), sa.spi, initiator=False)
            peer._sas[theirs.unique_id] = theirs
            peer._establish(theirs)
        self._establish(sa)
        # A live IKE_SA answers with what is loaded now under its connection's name.
        loaded = peer._connections.get(theirs.connection.name, theirs.connection)
        for child in loaded.children:
            here = _narrowed(config.local_ts, child.remote_ts)
            there = _narrowed(config.remote_ts, child.local_ts)
            if here and there:
                spi = next(_spis)
                sa.configs[spi] = config
                peer._install(theirs, spi, child.name, there, here)
                self._install(sa, spi, config.name, here, there)
                return

    def _terminate_child(self, unique_id: int) -> None:
        for sa in self._sas.values():
            for spi, child in sa.children.items():
                if child.unique_id == unique_id:
                    if self._silent(sa):
                        sa.children[spi] = _child_sa(child, unique_id, state="DELETING")
                        sa.waiting_since = trio.current_time() if sa.waiting_since is None else sa.waiting_since
                        return
                    self._uninstall(sa, spi)
                    self._tell_other_end(sa.spi, spi)
                    return

    def _terminate_ike(self, unique_id: int, force: bool) -> None:
        sa = self._sas.get(unique_id)
        if sa is None:
            return
        silent = self._silent(sa)
        if silent and not force:
            sa.ending = True
            sa.waiting_since = trio.current_time() if sa.waiting_since is None else sa.waiting_since
            return
        self._remove(unique_id)
        if not silent:
            self._tell_other_end(sa.spi, None)

    def _tell_other_end(self, ike_spi: int, child_spi: int | None) -> None:
        for other in (self.peer, self._twin):
            theirs = next((sa for sa in other._sas.values() if sa.spi == ike_spi), None) if other else None
            if other is None or theirs is None:
                continue
            if child_spi is None:
                other._remove(theirs.unique_id)
            else:
                other._uninstall(theirs, child_spi)

    def _answer(self, stem: str) -> Answer:
        if self.peer is not None and not self.peer.running:
            return Answer.SILENT
        return self.answers.get(stem, Answer.ACCEPT)

    def _silent(self, sa: _Sa) -> bool:
        return sa.unique_id in self.forgotten or self._answer(sa.connection.stem) is Answer.SILENT

    def _establish(self, sa: _Sa) -> None:
        sa.waiting_since = None
        if not sa.established:
            sa.established = True
            self._emit(EventKind.IKE_UP, sa)

    def _install(self, sa: _Sa, spi: int, name: str, local_ts: tuple[str, ...], remote_ts: tuple[str, ...]) -> None:
        # charon sorts what is installed.
        child = ChildSa(name, next(self._child_ids), "INSTALLED", tuple(sorted(local_ts)), tuple(sorted(remote_ts)))
        sa.children[spi] = child
        sa.installed_at[spi] = trio.current_time()
        self._emit(EventKind.CHILD_UP, sa, name)

    def _uninstall(self, sa: _Sa, spi: int) -> None:
        sa.configs.pop(spi, None)
        child = sa.children.pop(spi, None)
        if child is not None:
            self._emit(EventKind.CHILD_DOWN, sa, child.name)

    def _remove(self, unique_id: int) -> None:
        sa = self._sas.pop(unique_id)
        self._emit(EventKind.IKE_DOWN, sa)
        for spi in list(sa.children):
            self._uninstall(sa, spi)

    def _give_up(self) -> None:
        for sa in list(self._sas.values()):
            if sa.waiting_since is None or trio.current_time() - sa.waiting_since < GIVE_UP_S:
                continue
            if sa.established:
                self._remove(sa.unique_id)
            else:
                del self._sas[sa.unique_id]  # without an event

    def _ike_sa(self, sa: _Sa) -> IkeSa:
        ike = sa.connection.ike
        return IkeSa(
            connection=sa.connection.name,
            unique_id=sa.unique_id,
            state="DELETING" if sa.ending else "ESTABLISHED" if sa.established else "CONNECTING",
            initiator=sa.initiator,
            remote_id=ike.remote_id,
            remote_host=ike.remote_addrs[0] if ike.remote_addrs else "",
            busy=sa.waiting_since is not None or sa.unique_id in self.kept_busy,
            creating=sa.creating,
            children=tuple(
                msgspec.structs.replace(child, young=trio.current_time() - sa.installed_at[spi] < YOUNG_S)
                for spi, child in sa.children.items()
            ),
        )

    def _emit(self, kind: EventKind, sa: _Sa, child: str = "") -> None:
        for listener in self._listeners:
            listener.send_nowait(CharonEvent(kind, sa.connection.name, sa.unique_id, child))


async def _until_closed(receive: trio.MemoryReceiveChannel[CharonEvent]) -> AsyncGenerator[CharonEvent, None]:
    async for event in receive:
        yield event
    raise EdgeError("charon", "events", "charon closed the connection")


def _child_sa(child: ChildSa, unique_id: int, bytes_in: int = 0, bytes_out: int = 0, state: str = "") -> ChildSa:
    return ChildSa(child.name, unique_id, state or child.state, child.local_ts, child.remote_ts, bytes_in, bytes_out)


def _narrowed(asked: tuple[str, ...], allowed: tuple[str, ...]) -> tuple[str, ...]:
    """The asked selectors that lie inside an allowed one."""
    found = []
    for selector in asked:
        subnet, bracket, tail = selector.partition("[")
        inside = ipaddress.ip_network(subnet)
        for wide in allowed:
            wide_subnet, _, wide_tail = wide.partition("[")
            outside = ipaddress.ip_network(wide_subnet)
            if (
                inside.version == outside.version
                and inside.subnet_of(outside)  # type: ignore[arg-type]
                and wide_tail in ("", tail)
            ):
                found.append(f"{subnet}{bracket}{tail}")
                break
    return tuple(found)
