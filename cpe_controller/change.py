"""What would applying this network change?

In: a `Network`, the store, and what operators said of single sites. Out: a `Change`, the documents of the sites whose
content changes, not signed yet; `signed` signs them, here or on a machine that has the key and nothing else. Putting it
in force is publish.py's.
"""

from __future__ import annotations

import datetime as dt
import json
import zlib

import msgspec

from cpe_agent.model import document
from cpe_controller.addresses import allocate
from cpe_controller.compile import NO_ORDERS, Orders, Stamp, compile_network, stamped
from cpe_controller.network import Network
from cpe_controller.signing import Signer
from cpe_controller.store import Store

NETWORK = "network"
ADDRESSES = "addresses/"
DOCUMENTS = "documents/"


class Published(msgspec.Struct, frozen=True):
    """A site's document as it is served. `raw` is empty once the site has left the network; its version goes on."""

    epoch: int
    version: int
    issued_at: dt.datetime
    key_id: str
    signature: str
    raw: bytes

    def stored(self) -> bytes:
        """Compressed: the document of a hub of 10,000 branches must fit into one value."""
        return zlib.compress(msgspec.msgpack.encode(self))

    @classmethod
    def read(cls, value: bytes) -> Published:
        return msgspec.msgpack.decode(zlib.decompress(value), type=cls)


class Draft(msgspec.Struct, frozen=True):
    """A site's next document. `raw` is empty for a site that leaves; `after` is the store's revision of what it
    replaces (0: nothing). `signature` is "" until it is signed."""

    version: int
    after: int
    raw: bytes = b""
    signature: str = ""


class Change(msgspec.Struct, frozen=True):
    """All that an apply would write. As JSON it travels to the machine that signs, and back."""

    network: str
    text: str
    epoch: int
    made_at: dt.datetime
    key_id: str
    network_after: int
    addresses: dict[str, str | None]
    addresses_after: dict[str, int]
    canaries: tuple[str, ...]
    confirm_s: int
    drafts: dict[str, Draft]
    unchanged: tuple[str, ...]
    # Only what was said of single sites, on top of what each is offered: not a network of its own.
    partial: bool = False


class ChangeError(Exception):
    """A change that cannot be put in force as it is; the text says why and what to do."""


def plan(
    store: Store,
    network: Network,
    text: str,
    *,
    key_id: str,
    trust: document.Trust,
    epoch: int,
    now: dt.datetime,
    orders: Orders = NO_ORDERS,
) -> Change:
    """`key_id` is of the key that will sign. Raises NetworkError, StoreError."""
    before = store.get(NETWORK)
    stored_addresses = {entry.key.removeprefix(ADDRESSES): entry for entry in store.list(ADDRESSES).entries}
    stored_documents = {entry.key.removeprefix(DOCUMENTS): entry for entry in store.list(DOCUMENTS).entries}
    current = {site: Published.read(entry.value or b"") for site, entry in stored_documents.items()}
    before_addresses = {site: json.loads(entry.value or b"") for site, entry in stored_addresses.items()}

    addresses = allocate(network, before_addresses)
    stamps = {site.name: _next(current.get(site.name), epoch, now) for site in network.sites}
    compiled = compile_network(network, addresses, trust, stamps, orders)
    changed = {
        site: wanted for site, wanted in compiled.items() if _differs(wanted, current.get(site), epoch, key_id, now)
    }
    gone = [site for site, published in current.items() if site not in compiled and published.raw]

    drafts = {site: (stamps[site].version, document.encode(wanted)) for site, wanted in changed.items()}
    drafts |= {site: (current[site].version + 1, b"") for site in gone}
    moved: dict[str, str | None] = {site: json.dumps(own) for site, own in addresses.items()}
    moved |= {site: None for site in stored_addresses if site not in addresses}
    moved = {site: own for site, own in moved.items() if own is None or addresses[site] != before_addresses.get(site)}
    return Change(
        network=network.name,
        text=text,
        epoch=epoch,
        made_at=now,
        key_id=key_id,
        network_after=before.revision if before else 0,
        addresses=moved,
        addresses_after={site: stored_addresses[site].revision for site in moved if site in stored_addresses},
        canaries=network.canaries,
        confirm_s=network.policy.confirm_s,
        drafts={
            site: Draft(version, stored_documents[site].revision if site in stored_documents else 0, raw)
            for site, (version, raw) in drafts.items()
        },
        unchanged=tuple(site for site in compiled if site not in changed),
    )


def signed(change: Change, signer: Signer) -> Change:
    """Raises ChangeError if its documents are to be by another key."""
    if signer.public.id != change.key_id:
        raise ChangeError(
            f"the controller expects the signature of key {change.key_id}; this one is {signer.public.id}"
        )
    drafts = {
        site: msgspec.structs.replace(draft, signature=signer.sign(draft.raw)) if draft.raw else draft
        for site, draft in change.drafts.items()
    }
    return msgspec.structs.replace(change, drafts=drafts)


def in_force(store: Store, site: str) -> Published | None:
    """What the site is served now; None if it has no document."""
    entry = store.get(DOCUMENTS + site)
    published = Published.read(entry.value or b"") if entry is not None else None
    return published if published is not None and published.raw else None


def _next(current: Published | None, epoch: int, now: dt.datetime) -> Stamp:
    return Stamp(epoch, current.version + 1 if current else 1, now.replace(microsecond=0))


def _differs(wanted: document.Document, current: Published | None, epoch: int, key_id: str, now: dt.datetime) -> bool:
    """Whether the site needs a new version: other content, another epoch or key, or half of its lifetime is over."""
    if current is None or current.epoch != epoch or current.key_id != key_id:
        return True
    if now - current.issued_at > (wanted.expires_at - wanted.issued_at) / 2:
        return True
    same = stamped(wanted, Stamp(current.epoch, current.version, current.issued_at))
    # It is about the step from one version to the next: by itself it makes no new version.
    alike = [msgspec.structs.replace(same, allow_mass_removal=allowed) for allowed in (False, True)]
    return current.raw not in map(document.encode, alike)
