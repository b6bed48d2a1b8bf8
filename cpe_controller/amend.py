"""What changes where operators said something of single sites, and nothing else may change?

While a rollout is not through, sites are offered documents of two networks. To shut one site out, or to drain one, each
document is then taken as it is and amended. In: the store, and the orders. Out: a `Change`. That a site is there again
cannot be amended: its peers' documents do not say any more how to reach it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection

import msgspec

from cpe_agent.model.document import Document, encode
from cpe_agent.model.document_check import decode
from cpe_controller.change import DOCUMENTS, NETWORK, Change, Draft, Published
from cpe_controller.compile import Orders, Stamp, stamped, still_served
from cpe_controller.network import Network, identity
from cpe_controller.store import Store


def amended(document: Document, orders: Orders, drained: Collection[str]) -> Document:
    """`drained` are all hubs that are to be drained, whoever said so."""
    peers = {
        name: msgspec.structs.replace(peer, identity=identity(name, document.network, orders.generations.get(name, 1)))
        for name, peer in document.peers.items()
        if name not in orders.revoked
    }
    return msgspec.structs.replace(
        document,
        peers=peers,
        pairs=tuple(still_served(document.pairs, orders.revoked)),
        drain=document.role == "hub" and document.site in drained,
        allow_mass_removal=orders.allow_mass_removal,
    )


def plan(store: Store, network: Network, orders: Orders, *, key_id: str, epoch: int, now: dt.datetime) -> Change:
    """`network` is the one that was applied last. Raises StoreError."""
    drained = {hub.name for hub in network.hubs if hub.drain} | orders.drained
    text = store.get(NETWORK)
    drafts: dict[str, Draft] = {}
    unchanged: list[str] = []
    for entry in store.list(DOCUMENTS).entries:
        site, published = entry.key.removeprefix(DOCUMENTS), Published.read(entry.value or b"")
        if not published.raw:
            continue
        if site in orders.revoked:
            drafts[site] = Draft(published.version + 1, entry.revision)
            continue
        before = decode(published.raw)
        after = amended(before, orders, drained)
        if msgspec.structs.replace(after, allow_mass_removal=before.allow_mass_removal) == before:
            unchanged.append(site)
            continue
        stamp = Stamp(epoch, published.version + 1, now.replace(microsecond=0))
        drafts[site] = Draft(stamp.version, entry.revision, encode(stamped(after, stamp)))
    return Change(
        network=network.name,
        text=(text.value or b"").decode() if text else "",
        epoch=epoch,
        made_at=now,
        key_id=key_id,
        network_after=text.revision if text else 0,
        addresses={},
        addresses_after={},
        canaries=(),
        confirm_s=network.policy.confirm_s,
        drafts=drafts,
        unchanged=tuple(unchanged),
        partial=True,
    )
