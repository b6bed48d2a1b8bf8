"""How is everything taken away again, in order?

In: the settings. Done: forwarding goes off first, so that in no moment a packet passes that the document does not list;
then our tunnels, our routes, and last our table. What is others' stays. Out: what was done, in words. The daemon must
have been stopped: it would put everything back.
"""

from __future__ import annotations

import msgspec
import trio

from cpe_agent import comparison
from cpe_agent.core import routes, tunnels
from cpe_agent.edge import control, ipsec
from cpe_agent.edge.identity import load_identity
from cpe_agent.edge.netlink import Netlink
from cpe_agent.edge.nftables import NftablesFirewall
from cpe_agent.model.dataplane import Routes, Tunnels
from cpe_agent.model.observed import Charon
from cpe_agent.model.ops import DeleteTable, TerminateIke, TunnelOp
from cpe_agent.newcomer import CONTROL_SOCKET
from cpe_agent.ports import EdgeError
from cpe_agent.settings import Settings

# charon tells its peers that a tunnel ends, and waits for their answer no longer than this.
GOODBYE_S = 2.0
GOODBYE_LOOKS = 20


class TakenDown(msgspec.Struct, frozen=True):
    """How much was taken away, and what could not be."""

    ike_sas: int
    route_changes: int
    failures: tuple[str, ...]


def take_down(settings: Settings) -> TakenDown:
    """Take everything of ours away. Raises `EdgeError` while the daemon runs, and if forwarding cannot be switched off:
    then the locks stay."""
    with control.locked(settings.run_dir / CONTROL_SOCKET):
        return trio.run(_take_down, settings)


async def _take_down(settings: Settings) -> TakenDown:
    netlink = Netlink()
    held = await netlink.read()
    still = msgspec.structs.replace(held, forwarding=frozenset())
    await netlink.apply(routes.diff(still, held))
    failures: list[str] = []
    ended = 0
    try:
        # A new box has no tunnels, and no key to ask charon with.
        if not settings.enrols or settings.certificate.exists():
            ended = await _end_tunnels(settings)
    except EdgeError as error:
        # A charon that is gone has none.
        failures.append(f"tunnels: {error.cause}")
    changes = routes.diff(Routes(), await netlink.read())
    try:
        await netlink.apply(changes)
    except EdgeError as error:
        failures.append(f"routes: {error.cause}")
    await NftablesFirewall().apply((DeleteTable(),))
    return TakenDown(ended, len(changes), tuple(failures))


async def _end_tunnels(settings: Settings) -> int:
    """How many IKE_SAs were ended."""
    identity, backend = load_identity(settings.certificate, settings.key), ipsec.resolve(settings.backend)
    charon = comparison.charon_port(settings, identity, backend)
    try:
        held = await charon.read()
        ends: tuple[TunnelOp, ...] = tuple(TerminateIke(sa.unique_id, force=False) for sa in held.ike_sas)
        for op in (*ends, *tunnels.step(Tunnels(), Charon(held.connections), {}, 0.0).ops):
            await charon.apply(op)
        for _ in range(GOODBYE_LOOKS):
            held = await charon.read()
            if not held.ike_sas:
                break
            await trio.sleep(GOODBYE_S / GOODBYE_LOOKS)
        for sa in held.ike_sas:
            await charon.apply(TerminateIke(sa.unique_id, force=True))
        return len(ends)
    finally:
        charon.close()
