"""How is a connection written for charon?

In: a `Connection` of the plan and the backend. Out: the section that VICI's load-conn takes, in charon's words. Pure.
"""

from __future__ import annotations

from cpe_agent.edge.vici import Outgoing
from cpe_agent.model.dataplane import Backend, Child, Connection

IKE_PORT = 4500
# An SA that could not be replaced in time (the hub was away) still carries traffic: grace before charon ends it.
GRACE_MIN_S = 60


def connection_message(connection: Connection, backend: Backend) -> dict[str, Outgoing]:
    """The section that load-conn takes. charon refuses options that it does not know."""
    ike = connection.ike
    longest_s = max(ike.rekey_s, ike.reauth_s)
    message: dict[str, Outgoing] = {
        "version": 2,
        "local_addrs": ike.local_addrs or ("%any",),
        "remote_addrs": ike.remote_addrs or ("%any",),
        # One port for everything; without local_port charon would send from 500, without the non-ESP marker.
        "local_port": IKE_PORT,
        "encap": True,
        # A path is pinned to its uplink: it is replaced, never moved.
        "mobike": False,
        # One IKE_SA per path, all between the same two identities.
        "unique": "never",
        "proposals": [ike.proposal],
        "dpd_delay": _seconds(ike.dpd_s),
        "rekey_time": _seconds(ike.rekey_s),
        "reauth_time": _seconds(ike.reauth_s),
        "over_time": _seconds(_grace_s(longest_s)),
        "rand_time": _seconds(_spread_s(ike.rekey_s, ike.reauth_s)),
        # A dial that fails ends; core.tunnels knows when to try again.
        "keyingtries": 1,
        "send_cert": "always",
        "local": {"auth": "pubkey", "id": _identity(ike.local_id)},
        "remote": {"auth": "pubkey", "id": _identity(ike.remote_id)},
        "children": {child.name: _child(child, connection, backend) for child in connection.children},
    }
    if connection.path is not None:
        # What answers takes whatever port a carrier's NAT has chosen.
        message["remote_port"] = ike.remote_port
    return message


def _child(child: Child, connection: Connection, backend: Backend) -> dict[str, Outgoing]:
    ike = connection.ike
    message: dict[str, Outgoing] = {
        "mode": "tunnel",
        "local_ts": child.local_ts,
        "remote_ts": child.remote_ts,
        "esp_proposals": [ike.esp_proposal],
        "rekey_time": _seconds(ike.rekey_s),
        "life_time": _seconds(ike.rekey_s + _grace_s(ike.rekey_s)),
        "rand_time": _seconds(ike.rekey_s // 10),
        # The agent alone starts and ends tunnels.
        "start_action": "none",
        "close_action": "none",
        "dpd_action": "clear",
    }
    if child.unique_marks and backend is Backend.KERNEL:
        # The old and the new SA are both accepted during a move.
        message |= {"mark_in": "%unique", "set_mark_in": "%same"}
    return message


def _spread_s(rekey_s: int, reauth_s: int) -> int:
    """By how much chance shortens both. If it were more than all of one, charon would do that again and again."""
    return min((life_s // part for life_s, part in ((rekey_s, 2), (reauth_s, 10)) if life_s), default=0)


def _grace_s(lifetime_s: int) -> int:
    return max(GRACE_MIN_S, lifetime_s // 10) if lifetime_s else 0


def _seconds(number: int) -> str:
    return f"{number}s"


def _identity(name: str) -> str:
    # Else a name of hexadecimal digits or one that looks like an address would be taken for something else.
    return f"fqdn:{name}"
