"""Which nftables chain hides branches behind this hub?

Pure. Where a data centre cannot learn routes to branches, `hub_nat` makes what came out of a tunnel leave into a LAN
with the hub's own address there. Only new flows are given one, and only flows that the forward chain has admitted get
here, so it lets nothing through that was not listed. Replies are translated back before the forward chain sees them,
and are judged by the branch's addresses like any other reply.

Servers cannot start flows to a branch that they do not see; a document with `hub_nat` permits them all the same, and a
server that has a route uses it. Flows that ran before `hub_nat` was switched keep their addresses until they end.
"""

from __future__ import annotations

from cpe_agent.model.dataplane import Backend, NftChain

POSTROUTING = "type nat hook postrouting priority srcnat; policy accept;"


def nat_chains(hub_nat: bool, backend: Backend) -> list[NftChain]:
    """The chain, if it is asked for. Needs the set `lans`."""
    if not hub_nat:
        return []
    return [NftChain("postrouting", POSTROUTING, (f"{backend.came_through} oifname @lans masquerade",))]
