"""How does charon hold our tunnels, and what does it say about them?

In: `TunnelOp`s, our certificate, key and authorities. Out: charon's own account (`Charon`), and its
events. Nothing is decided here. charon's words are translated in both directions, so that what was loaded and what is
read compare with ==; only names that start with "cpe-" are ever looked at or touched.

What charon does, as measured with 5.9.8, and what follows:

- Credentials live in charon's memory and go when it restarts; certificates can be taken back only all at once. Ours are
  loaded as a whole after clearing, and never inside a connection: so a renewed certificate takes no new connection.
  Our charon trusts no authority but the document's.
- `initiate` with timeout -1 says yes to a child that is there already, and does nothing. It says yes to what then
  fails, too. A set-up that nobody answers ends without any event: look again in time.
- A termination that waits behind another exchange (DPD to a silent peer) changes no state, and asked for again it is
  queued again: an IKE_SA with such a task is told as DELETING or as busy.
- `terminate` and `unload-conn` refuse what is not there. Here that is no error.
- A listing of 5,000 connections takes 0.5 s, their names 5 ms: contents are read when a name or our own loading gives a
  reason to, and every now and then for all that nobody tells us.
- charon drops a selector that another one of the same child contains, keeps the order of a loaded child's and sorts an
  installed child's, and writes ports as names.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import cache
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cpe_agent.edge.connection import connection_message
from cpe_agent.edge.vici import Outgoing, Reply, ViciClient, ViciEvents, ViciRefused, section, text, texts
from cpe_agent.model.dataplane import CONNECTION_PREFIX, Backend
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

# Names and keys are compared at each read, contents at every this many: somebody else's change is seen within that.
READS_UNTIL_CONTENTS = 20
# Up to so many changed connections are listed one by one, more in one listing of all.
LIST_SINGLY = 8

# While one of these is under way in an IKE_SA, what is missing may be about to come, or what is there to go: there is
# one exchange at a time, and a deletion that waits behind another shows nowhere else. DPD and the like leave it idle.
_BUSY = frozenset(
    {
        "IKE_INIT", "IKE_NATD", "IKE_CERT_PRE", "IKE_AUTH", "IKE_CERT_POST", "IKE_CONFIG", "IKE_AUTH_LIFETIME",
        "IKE_ESTABLISH", "IKE_REKEY", "IKE_REAUTH", "IKE_REAUTH_COMPLETE", "IKE_VERIFY_PEER_CERT", "CHILD_CREATE",
        "CHILD_REKEY", "CHILD_DELETE",
    }
)  # fmt: skip
_EVENTS = ("ike-updown", "child-updown", "ike-rekey", "child-rekey")


class CharonTunnels:
    """A `TunnelPort` over one charon's VICI socket. Credentials are PEM: the certificate may be followed by
    intermediate ones; `cas_pem` holds any number. Raises EdgeError, also for credentials that cannot be read."""

    def __init__(
        self, vici_socket: Path, certificate_pem: bytes, key_pem: bytes, cas_pem: bytes, backend: Backend
    ) -> None:
        self._vici = ViciClient(vici_socket)
        # Traffic waits for what is started, and that is not to wait for a listing.
        self._starter = ViciClient(vici_socket)
        # What is remembered of a listing and what changes it must not overlap.
        self._turn = trio.Lock()
        self._backend = backend
        self.use_credentials(certificate_pem, key_pem, cas_pem)
        self._children: dict[str, tuple[LoadedChild, ...]] = {}
        # All connections as they were listed last, by charon's bytes: nearly all say the same the next time.
        self._listed: dict[bytes, Reply] = {}
        self._changed: set[str] = set()
        self._reads_left = 0

    def use_credentials(self, certificate_pem: bytes, key_pem: bytes, cas_pem: bytes) -> None:
        """These from now on: the next `read` finds that they are not loaded. SAs that live are left alone."""
        self._key_pem = key_pem
        certificates = _certificates(certificate_pem, "our certificate")
        self._own = tuple(c.public_bytes(Encoding.DER) for c in certificates)
        self._authorities = tuple(c.public_bytes(Encoding.DER) for c in _certificates(cas_pem, "authorities"))
        # charon names a key by the SHA-1 of the public key's bits, as a subject key identifier does.
        self._key_id = x509.SubjectKeyIdentifier.from_public_key(certificates[0].public_key()).digest.hex()
        self._certificates_seen = False

    async def read(self) -> Charon:
        """What charon holds of ours now. Raises EdgeError."""
        async with self._turn:
            if self._reads_left == 0:
                self._children = {}
                self._certificates_seen = False
                self._reads_left = READS_UNTIL_CONTENTS
            self._reads_left -= 1
            credentials_loaded = await self._credentials_loaded()
            connections = await self._connections()
            listed = await self._vici.collect("list-sas", {}, "list-sa")
        return Charon(
            connections, tuple(_ike_sa(name, sa) for entry in listed for name, sa in _ours(entry)), credentials_loaded
        )

    async def glance(self) -> Glance:
        """Which connections of ours there are, and whether our key is there. Raises EdgeError."""
        async with self._turn:
            return Glance(frozenset(await self._names()), await self._holds_key())

    async def apply(self, op: TunnelOp) -> None:
        """Do one operation. Raises EdgeError; what is there already, or gone already, is no error."""
        if isinstance(op, Initiate):
            await self._starter.request("initiate", {"ike": op.connection, "child": op.child, "timeout": -1})
            return
        async with self._turn:
            await self._change(op)

    @asynccontextmanager
    async def subscription(self) -> AsyncIterator[AsyncIterator[CharonEvent]]:
        """Ups, downs and replacements (told as an up of the new one) of what is ours, on a connection of its own.

        Inside the block charon has confirmed: what is read from here on and what is iterated leave no gap. Iterating
        raises EdgeError when charon goes.
        """
        async with self._vici.events(*_EVENTS) as events, aclosing(_translated(events)) as translated:
            yield translated

    async def events(self) -> AsyncGenerator[CharonEvent, None]:
        """The same for ever; registered before the first is waited for. `aclose` it to end the subscription."""
        async with self.subscription() as events:
            async for event in events:
                yield event

    def close(self) -> None:
        """Drop the connections; a later call connects again."""
        self._vici.close()
        self._starter.close()

    async def _change(self, op: TunnelOp) -> None:
        match op:
            case LoadCredentials():
                await self._load_credentials()
            case LoadConnection(connection):
                self._changed.add(connection.name)
                message = connection_message(connection, self._backend)
                await self._vici.request("load-conn", {connection.name: message})
            case UnloadConnection(name):
                self._changed.add(name)
                await self._end("unload-conn", {"name": name})
            case TerminateChild(unique_id):
                # By force a child hangs in DELETING and keeps its traffic: never.
                await self._end("terminate", {"child-id": unique_id, "force": False, "timeout": -1})
            case TerminateIke(unique_id, force):
                await self._end("terminate", {"ike-id": unique_id, "force": force, "timeout": -1})

    async def _credentials_loaded(self) -> bool:
        if not await self._holds_key():
            self._certificates_seen = False
        elif not self._certificates_seen:
            listed = await self._vici.collect("list-certs", {"type": "x509"}, "list-cert")
            self._certificates_seen = self._certificates_match(listed)
        return self._certificates_seen

    async def _holds_key(self) -> bool:
        return texts(await self._vici.request("get-keys"), "keys") == (self._key_id,)

    async def _names(self) -> set[str]:
        names = texts(await self._vici.request("get-conns"), "conns")
        return {name for name in names if name.startswith(CONNECTION_PREFIX)}

    def _certificates_match(self, listed: Iterable[Reply]) -> bool:
        """All of ours are there, and no root that the document no longer names (peers' own certificates are cached)."""
        found = {entry["data"]: text(entry, "flag") for entry in listed if isinstance(entry["data"], bytes)}
        stale = {data for data, flag in found.items() if flag == "CA" and _is_root(data)} - set(self._authorities)
        trusted = all(found.get(data) == "CA" for data in self._authorities)
        return trusted and not stale and all(data in found for data in self._own)

    async def _load_credentials(self) -> None:
        self._certificates_seen = False
        await self._vici.request("clear-creds")
        for data in self._authorities:
            await self._vici.request("load-cert", {"type": "x509", "flag": "CA", "data": data})
        for data in self._own:
            await self._vici.request("load-cert", {"type": "x509", "flag": "NONE", "data": data})
        await self._vici.request("load-key", {"type": "any", "data": self._key_pem})

    async def _connections(self) -> dict[str, tuple[LoadedChild, ...]]:
        wanted = await self._names()
        known = {name: self._children[name] for name in wanted & set(self._children) - self._changed}
        unknown = wanted - set(known)
        if len(unknown) > LIST_SINGLY:
            known = await self._list({}, self._listed)
        else:
            for name in sorted(unknown):
                known |= await self._list({"ike": name})
        self._children = known
        self._changed.clear()
        return dict(known)

    async def _list(
        self, which: Mapping[str, Outgoing], known: dict[bytes, Reply] | None = None
    ) -> dict[str, tuple[LoadedChild, ...]]:
        listed = await self._vici.collect("list-conns", which, "list-conn", known=known)
        return {name: _loaded_children(conn) for entry in listed for name, conn in _ours(entry)}

    async def _end(self, command: str, message: Mapping[str, Outgoing]) -> None:
        try:
            await self._vici.request(command, message)
        except ViciRefused as refused:
            if "not found" not in refused.cause and "no matching" not in refused.cause:
                raise


def canonical_selector(selector: str) -> str:
    """charon's print form with ports as numbers: "10.1.0.0/24[tcp/https]" is "10.1.0.0/24[tcp/443]"."""
    subnet, bracket, rest = selector.partition("[")
    protocol, slash, port = rest.removesuffix("]").partition("/")
    if not bracket or not slash or port[:1].isdigit():
        return selector
    return f"{subnet}[{protocol}/{_port_number(protocol, port)}]"


@cache
def _port_number(protocol: str, service: str) -> str:
    # charon found the name in the same database; what is no service there ("OPAQUE", a range) stays as it is.
    try:
        return str(socket.getservbyname(service, protocol))
    except OSError:
        return service


def _certificates(pem: bytes, what: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise EdgeError("charon", f"read {what}", str(error)) from error


def _is_root(data: bytes) -> bool:
    try:
        certificate = x509.load_der_x509_certificate(data)
    except ValueError:
        return False
    return certificate.subject == certificate.issuer


def _ours(entry: Reply) -> list[tuple[str, Reply]]:
    return [(name, section(entry, name)) for name in entry if name.startswith(CONNECTION_PREFIX)]


def _loaded_children(connection: Reply) -> tuple[LoadedChild, ...]:
    children = section(connection, "children")
    return tuple(
        LoadedChild(name, _selectors(child, "local-ts"), _selectors(child, "remote-ts"))
        for name, child in ((name, section(children, name)) for name in children)
    )


def _ike_sa(connection: str, sa: Reply) -> IkeSa:
    children = section(sa, "child-sas")
    tasks = (*texts(sa, "tasks-active"), *texts(sa, "tasks-queued"))
    return IkeSa(
        connection=connection,
        unique_id=_number(sa, "uniqueid"),
        # charon says so itself only once the message is out.
        state="DELETING" if "IKE_DELETE" in tasks else text(sa, "state"),
        initiator=text(sa, "initiator") == "yes",
        remote_id=text(sa, "remote-id"),
        remote_host=text(sa, "remote-host"),
        busy=any(task in _BUSY for task in tasks),
        creating="CHILD_CREATE" in tasks and text(sa, "state") == "ESTABLISHED",
        children=tuple(_child_sa(section(children, key)) for key in children),
    )


def _child_sa(child: Reply) -> ChildSa:
    return ChildSa(
        name=text(child, "name"),
        unique_id=_number(child, "uniqueid"),
        state=text(child, "state"),
        local_ts=_selectors(child, "local-ts"),
        remote_ts=_selectors(child, "remote-ts"),
        bytes_in=_number(child, "bytes-in"),
        bytes_out=_number(child, "bytes-out"),
        packets_in=_number(child, "packets-in"),
        packets_out=_number(child, "packets-out"),
        spi_in=_number(child, "spi-in", 16),
        spi_out=_number(child, "spi-out", 16),
        young="install-time" in child and _number(child, "install-time") < YOUNG_S,
    )


def _selectors(message: Reply, key: str) -> tuple[str, ...]:
    return tuple(canonical_selector(selector) for selector in texts(message, key))


def _number(message: Reply, key: str, base: int = 10) -> int:
    value = text(message, key, "0")
    try:
        return int(value, base)
    except ValueError as error:
        raise EdgeError("charon", f"read {key}", f"{value!r} is no number") from error


async def _translated(events: ViciEvents) -> AsyncGenerator[CharonEvent, None]:
    async for kind, message in events:
        for event in _events(kind, message):
            yield event


def _events(event: str, message: Reply) -> list[CharonEvent]:
    """One message may tell of several children. Down messages carry no `up`."""
    up = text(message, "up") == "yes" or event.endswith("rekey")
    found: list[CharonEvent] = []
    for name, sa in _ours({key: value for key, value in message.items() if key != "up"}):
        if event == "ike-rekey":
            found.append(CharonEvent(EventKind.IKE_UP, name, _number(section(sa, "new"), "uniqueid")))
        elif event == "ike-updown":
            kind = EventKind.IKE_UP if up else EventKind.IKE_DOWN
            found.append(CharonEvent(kind, name, _number(sa, "uniqueid")))
        else:
            kind = EventKind.CHILD_UP if up else EventKind.CHILD_DOWN
            children = section(sa, "child-sas")
            for key in children:
                child = section(children, key)
                child_name = text(child, "name") or text(section(child, "new"), "name")
                spi_in = _number(child, "spi-in", 16) if up else 0
                found.append(CharonEvent(kind, name, _number(sa, "uniqueid"), child_name, spi_in))
    return found
