"""How does a router come up closed? What runs before its network does, once, as root.

In: the settings and the stored document. Done, in this order: the system clock is lifted to the floor (charon knows no
floor, and a certificate that is not valid yet would keep every path down); charon's own configuration is written; both
locks are loaded, rules and then routes, from the last good document; and only when both are in does the router forward.
Without a document it gets a table that lets nothing through, and does not forward. Out: what was done, in words.

What needs devices that are not there yet (a way into a tunnel, a gateway) is left to the agent, which comes later.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import trio

from cpe_agent import BUILT_AT, comparison
from cpe_agent.core import firewall, routes
from cpe_agent.core.compile import Site, compile_dataplane
from cpe_agent.core.wanted_ruleset import ruleset
from cpe_agent.edge import ipsec
from cpe_agent.edge.netlink import Netlink
from cpe_agent.edge.nftables import NftablesFirewall
from cpe_agent.edge.store import FileStore
from cpe_agent.model.dataplane import Backend, Routes, Ruleset
from cpe_agent.model.document import Document
from cpe_agent.ports import EdgeError
from cpe_agent.settings import Settings

CHARON_CONF = "strongswan.conf"


class Booted(msgspec.Struct, frozen=True):
    """What was done. `document`: its (epoch, version), None without one and `reason` says why. `forwarding`: whether
    packets may pass now. `clock_lifted_s`: by how much the system clock was wrong at least."""

    document: tuple[int, int] | None
    reason: str
    forwarding: bool
    clock_lifted_s: float


def boot(settings: Settings, charon_group: str | None) -> Booted:
    """Close the router, then let it forward what its document lists. Raises `EdgeError`: then it does not forward."""
    backend = ipsec.resolve(settings.backend)
    document: Document | None = None
    reason = ""
    try:
        settings = comparison.settled(settings)
        document = comparison.stored_document(settings)
    except comparison.NoDocument as error:
        reason = str(error)
    lifted_s = _lift_clock(settings, document)
    _write_charon_conf(settings, backend, charon_group)
    forwarding = trio.run(_close, document, settings.site, backend)
    return Booted(document.order if document else None, reason, forwarding, lifted_s)


async def _close(document: Document | None, site: str, backend: Backend) -> bool:
    """Load both locks; then, with a document, forward. Does the router forward?"""
    nft, netlink = NftablesFirewall(), Netlink()
    rules: Ruleset = ruleset(None, backend)
    wanted: Routes | None = None
    if document is not None:
        # A hub's ready addresses stay silent until its agent has looked at its LANs.
        dataplane, _ = compile_dataplane(document, await netlink.links(), Site(site, backend), ready=False)
        rules, wanted = dataplane.ruleset, _without_devices(dataplane.routes)
    # A table that is there is the agent's, which knows better than a document alone.
    if await nft.read() is None:
        await nft.apply(firewall.diff(rules, None)[0])
    if wanted is None:
        return False
    await _add(netlink, msgspec.structs.replace(wanted, forwarding=frozenset()))
    await _add(netlink, wanted)
    return bool(wanted.forwarding)


async def _add(netlink: Netlink, wanted: Routes) -> None:
    """What is missing; nothing that is there is taken away."""
    held = await netlink.read()
    both = {name: getattr(wanted, name) | getattr(held, name) for name in Routes.__struct_fields__}
    await netlink.apply(routes.diff(Routes(**both), held))


def _without_devices(wanted: Routes) -> Routes:
    """What can be there before any link is: rules, unreachable routes, addresses on lo."""
    return msgspec.structs.replace(wanted, routes=frozenset(r for r in wanted.routes if not r.device))


def _lift_clock(settings: Settings, document: Document | None) -> float:
    """Seconds by which the system clock was set forward; 0.0 if it was not behind what has certainly passed."""
    try:
        floor_s = FileStore(settings.state_dir).load_clock_floor()
    except EdgeError:
        floor_s = 0.0
    floor_s = max(BUILT_AT, floor_s, document.issued_at.timestamp() if document else 0.0)
    behind_s = floor_s - time.time()
    if behind_s <= 0:
        return 0.0
    try:
        time.clock_settime(time.CLOCK_REALTIME, floor_s)
    except PermissionError:
        return 0.0
    return behind_s


def _write_charon_conf(settings: Settings, backend: Backend, group: str | None) -> None:
    path = settings.run_dir / CHARON_CONF
    text = ipsec.strongswan_conf(backend, settings.vici_socket, group=group)
    beside = Path(f"{path}.new")
    try:
        settings.run_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        beside.write_text(text)
        os.replace(beside, path)
    except OSError as error:
        raise EdgeError("charon", "configure", f"{path} cannot be written: {error.strerror}") from None
