"""What charon may hold of a branch's tunnels, made by hand for tests of core."""

from __future__ import annotations

import msgspec

from cpe_agent.core.compile import compile_dataplane
from cpe_agent.model.dataplane import PROBE_CHILD, Child, Connection, Path
from cpe_agent.model.observed import Charon, ChildSa, IkeSa, LoadedChild
from tests.core.documents import BRANCH, LINKS, branch

PLAN = compile_dataplane(branch(), LINKS, BRANCH)[0]
CONNECTIONS = {connection.stem: connection for connection in PLAN.tunnels.connections}
WIRED = CONNECTIONS["wired.centre.a"]
LTE = CONNECTIONS["lte.centre.a"]
ON_WIRED, ON_LTE = (Path(uplink, "centre", "a") for uplink in ("wired", "lte"))
CENTRE, SHARED = "traffic-centre", "traffic-centre+cloud"


def sa_of(
    connection: Connection, unique_id: int, *children: str, state: str = "ESTABLISHED", busy: bool = False
) -> IkeSa:
    """An IKE_SA that holds these children of its connection; the n-th has unique id 100 x the IKE_SA's + n."""
    configs = {child.name: child for child in connection.children}
    held = [installed(configs[name], 100 * unique_id + n) for n, name in enumerate(children)]
    return IkeSa(connection.name, unique_id, state, True, busy=busy, children=tuple(held))


def installed(config: Child, unique_id: int) -> ChildSa:
    return ChildSa(config.name, unique_id, "INSTALLED", config.local_ts, config.remote_ts)


def young(sa: IkeSa) -> IkeSa:
    return msgspec.structs.replace(sa, children=tuple(msgspec.structs.replace(c, young=True) for c in sa.children))


def loaded(*sas: IkeSa, connections: tuple[Connection, ...] = (WIRED, LTE)) -> Charon:
    names = {
        c.name: tuple(LoadedChild(child.name, child.local_ts, child.remote_ts) for child in c.children)
        for c in connections
    }
    return Charon(names, sas, True)


def with_other_settings(connection: Connection) -> Connection:
    return msgspec.structs.replace(connection, ike=msgspec.structs.replace(connection.ike, reauth_s=1))


GOOD_WIRED = sa_of(WIRED, 1, PROBE_CHILD, CENTRE)
GOOD_LTE = sa_of(LTE, 2, PROBE_CHILD)
