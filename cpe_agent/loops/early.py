"""Is nothing lost of what the other end sends on a traffic child before charon has installed it here?

Told of every operation, event and look at charon, by the tunnels' loop. From before an initiation until the child
shows, the port keeps what comes for its uplink's address; then charon is given what carries the child's SPI once more
(edge.early says why). The first move and the forced one profit as the planned one does.
"""

from __future__ import annotations

import msgspec
import trio

from cpe_agent.log import get_logger
from cpe_agent.model.dataplane import PROBE_CHILD, Tunnels
from cpe_agent.model.observed import Charon, CharonEvent, EventKind
from cpe_agent.model.ops import Initiate, TunnelOp
from cpe_agent.ports import EarlyPort, EdgeError

log = get_logger()

# A set-up that has not come to an end by now is tried again later; what came meanwhile is too old for anybody.
PATIENCE_S = 2.0


class _SetUp(msgspec.Struct, frozen=True):
    """A child that is being set up: our address, the children of that name that are there already, how long to wait."""

    address: str
    known: frozenset[int]
    until: float


class EarlyPackets:
    """The set-ups under way, by (connection, child)."""

    def __init__(self, port: EarlyPort) -> None:
        self._port = port
        self._under_way: dict[tuple[str, str], _SetUp] = {}

    def before(self, op: TunnelOp, wanted: Tunnels, observed: Charon) -> None:
        """`op` is about to be applied."""
        if not isinstance(op, Initiate) or op.child == PROBE_CHILD or (op.connection, op.child) in self._under_way:
            return
        connection = next((found for found in wanted.connections if found.name == op.connection), None)
        if connection is None or not connection.ike.local_addrs:
            return
        address = connection.ike.local_addrs[0]
        known = frozenset(unique_id for unique_id, _ in _installed(observed, op.connection, op.child))
        try:
            self._port.watch(address)
        except EdgeError as error:
            # The move takes place all the same, with the few packets lost that this is for.
            log.warning("task_retried", target=error.target, op=error.op, cause=error.cause)
            return
        self._under_way[op.connection, op.child] = _SetUp(address, known, trio.current_time() + PATIENCE_S)

    def heard(self, event: CharonEvent) -> None:
        """charon said something. Nothing is quicker, and charon takes no packet that is more than 128 behind."""
        if event.kind is EventKind.CHILD_UP and event.spi_in and (event.connection, event.child) in self._under_way:
            self._end(event.connection, event.child, event.spi_in)

    def after(self, observed: Charon) -> None:
        """charon was looked at: what an event has not told shows there, or the set-up came to nothing."""
        now = trio.current_time()
        for (connection, child), set_up in list(self._under_way.items()):
            new = {i: spi for i, spi in _installed(observed, connection, child) if i not in set_up.known}
            if new or now >= set_up.until:
                self._end(connection, child, new[max(new)] if new else 0)

    def _end(self, connection: str, child: str, spi: int) -> None:
        address = self._under_way.pop((connection, child)).address
        count = self._port.hand_over(address, spi)
        if count:
            log.debug("packets_handed_over", address=address, count=count)


def _installed(observed: Charon, connection: str, child: str) -> list[tuple[int, int]]:
    return [
        (found.unique_id, found.spi_in)
        for sa in observed.ike_sas
        if sa.connection == connection
        for found in sa.children
        if found.name == child and found.installed
    ]
