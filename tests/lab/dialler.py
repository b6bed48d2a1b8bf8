"""Dials for several branches from one charon. Stand-alone: runs in a namespace of the crowd.

In: charon's socket and the names of the branches, whose documents and credentials are in `crowd.CROWD`. What is wanted
is compiled from each document and merged; what to do is `core.tunnels.step`'s decision, look by look, as in the agent.
Only health is left out: every bundle stays on its best path. Out: dialler.json beside the socket (see crowd.progress).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import aclosing, suppress
from pathlib import Path as File

import msgspec
import trio
from cryptography import x509

from cpe_agent.core.compile import Site, compile_dataplane, with_active
from cpe_agent.core.tunnels import Attempts, step
from cpe_agent.edge.charon import CharonTunnels
from cpe_agent.edge.identity import load_identity
from cpe_agent.edge.vici import texts
from cpe_agent.loops.bell import Bell
from cpe_agent.model.dataplane import Backend, Connection, Path, Tunnels
from cpe_agent.model.document_check import decode
from cpe_agent.model.observed import Charon, Link, LinkAddress, Links
from cpe_agent.model.ops import Initiate
from cpe_agent.ports import EdgeError
from tests.lab.crowd import CROWD, Branch

LOOK_S = 1.0
TRUNK = "traffic"


class CrowdTunnels(CharonTunnels):
    """With a key for each branch."""

    def __init__(self, vici_socket: File, names: list[str]) -> None:
        homes = [CROWD / name for name in names]
        certificates = [(home / "certificate.pem").read_bytes() for home in homes]
        self._keys = [(home / "key.pem").read_bytes() for home in homes]
        self._key_ids = {_key_id(pem) for pem in certificates}
        authority = (homes[0] / "ca.pem").read_bytes()
        super().__init__(vici_socket, b"".join(certificates), self._keys[0], authority, Backend.USERLAND)

    async def _load_credentials(self) -> None:
        await super()._load_credentials()
        for key in self._keys[1:]:
            await self._vici.request("load-key", {"type": "any", "data": key})

    async def _holds_key(self) -> bool:
        return set(texts(await self._vici.request("get-keys"), "keys")) == self._key_ids


def _key_id(certificate_pem: bytes) -> str:
    key = x509.load_pem_x509_certificate(certificate_pem).public_key()
    return x509.SubjectKeyIdentifier.from_public_key(key).digest.hex()


def wanted(name: str) -> Tunnels:
    """What branch `name` wants of charon, under names that no other branch has."""
    branch = Branch(int(name.removeprefix("branch-")))
    home = CROWD / name
    document = decode((home / "document.json").read_bytes())
    found = {
        uplink: Link(uplink, True, (LinkAddress(str(a.ip), a.network.prefixlen),), (str(a.network[1]),))
        for uplink, a in branch.addresses.items()
    }
    found["lan0"] = Link("lan0", True, (LinkAddress(str(branch.lan[1]), 24),))
    found[Backend.USERLAND.device] = Link(Backend.USERLAND.device, True)
    identity = load_identity(home / "certificate.pem", home / "key.pem").name
    dataplane, obstacles = compile_dataplane(document, Links(found), Site(identity, Backend.USERLAND))
    assert not obstacles, obstacles
    best = {bundle.name: bundle.paths[0] for bundle in dataplane.bundles}
    tunnels = with_active(dataplane.tunnels, dataplane.bundles, best, frozenset())
    return Tunnels(
        tuple(_renamed(connection, name) for connection in tunnels.connections),
        {_path(path, name): frozenset(f"{c}-{name}" for c in children) for path, children in tunnels.active.items()},
    )


def _renamed(connection: Connection, name: str) -> Connection:
    assert connection.path is not None
    children = tuple(
        msgspec.structs.replace(child, name=f"{child.name}-{name}") if child.name.startswith(TRUNK) else child
        for child in connection.children
    )
    return msgspec.structs.replace(connection, stem=str(_path(connection.path, name)), children=children)


def _path(path: Path, name: str) -> Path:
    return msgspec.structs.replace(path, uplink=f"{name}-{path.uplink}")


async def dial(port: CharonTunnels, asked: Tunnels, file: File) -> None:
    """For ever."""
    bell = Bell()

    async def listen() -> None:
        while True:
            try:
                async with aclosing(port.events()) as events:
                    async for event in events:
                        bell.ring(event.connection)
            except EdgeError:
                await trio.sleep(LOOK_S)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        attempts: Attempts = {}
        initiated = most = 0
        while True:
            observed = await port.read()
            most = max(most, _most_under_way(observed))
            decided = step(asked, observed, attempts, trio.current_time())
            attempts = decided.attempts
            for op in decided.ops:
                initiated += isinstance(op, Initiate)
                # What is refused now is looked at again, as in the agent.
                with suppress(EdgeError):
                    await port.apply(op)
            told = {
                "paths": len(asked.connections),
                "up": sum(_is_up(connection, asked, observed) for connection in asked.connections),
                "initiated": initiated,
                "most_under_way": most,
            }
            file.with_suffix(".new").write_text(json.dumps(told))
            file.with_suffix(".new").rename(file)
            soon = trio.current_time() + LOOK_S
            await bell.wait(min(soon, decided.wake_at or soon))


def _most_under_way(observed: Charon) -> int:
    """IKE_SAs that are being set up on one path. Each connection is a path."""
    names = Counter(sa.connection for sa in observed.ike_sas if sa.state in ("CREATED", "CONNECTING"))
    return max(names.values(), default=0)


def _is_up(connection: Connection, asked: Tunnels, observed: Charon) -> bool:
    path = connection.path
    assert path is not None
    lacking = {"probe", *asked.active.get(path, ())}
    for sa in observed.ike_sas:
        if sa.connection == connection.name and sa.established:
            lacking -= {child.name for child in sa.children if child.installed}
    return not lacking


def main(vici_socket: str, *names: str) -> None:
    each = [wanted(name) for name in names]
    connections = tuple(sorted((c for one in each for c in one.connections), key=lambda c: c.stem))
    asked = Tunnels(connections, {path: children for one in each for path, children in one.active.items()})
    port = CrowdTunnels(File(vici_socket), list(names))
    trio.run(dial, port, asked, File(vici_socket).with_name("dialler.json"))


if __name__ == "__main__":
    main(*sys.argv[1:])
