"""What changes in the store when this network is applied?

Three steps, so that the second may be done on a machine of its own. `plan`: a `Network` and the store to a `Change`,
the documents of the sites whose content changes, not signed yet. `signed`: the same with a signature for each.
`commit`: into the store, if nobody else has applied anything since, and out comes an `Applied` that names the sites. A
document is replaced whole, so that a site has either its old or its new one whatever happens in between; an apply that
was cut short is completed by the next.
"""

from __future__ import annotations

import datetime as dt
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from cpe_agent.model import document
from cpe_controller.addresses import allocate
from cpe_controller.compile import NO_ORDERS, Orders, Stamp, compile_network, stamped
from cpe_controller.network import Network
from cpe_controller.signing import Signer, verify
from cpe_controller.store import MAX_WRITES, Store, Write

NETWORK = "network"
ADDRESSES = "addresses/"
DOCUMENTS = "documents/"


class ApplyConflict(Exception):
    """Somebody else applied a network at the same time, and theirs is in force."""


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
    drafts: dict[str, Draft]
    unchanged: tuple[str, ...]


class ChangeError(Exception):
    """A change that cannot be put in force as it is; the text says why and what to do."""


@dataclass(frozen=True)
class Applied:
    """Site -> version of what was published, the sites that keep what they have, and those that left."""

    published: Mapping[str, int]
    unchanged: tuple[str, ...]
    withdrawn: tuple[str, ...]


def publish(
    store: Store, network: Network, text: str, *, signer: Signer, trust: document.Trust, epoch: int, now: dt.datetime
) -> Applied:
    """All three steps. `text` is the network.yaml that `network` came from. Raises NetworkError, ApplyConflict,
    StoreError."""
    change = plan(store, network, text, key_id=signer.public.id, trust=trust, epoch=epoch, now=now)
    return commit(store, signed(change, signer), (signer.public,))


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


def commit(store: Store, change: Change, keys: Sequence[document.SigningKey]) -> Applied:
    """Raises ChangeError if a signature is not by one of `keys`, ApplyConflict, StoreError."""
    _verify(change, keys)
    issued_at = change.made_at.replace(microsecond=0)
    writes = [
        Write(ADDRESSES + site, None if own is None else own.encode(), change.addresses_after.get(site, 0))
        for site, own in change.addresses.items()
    ]
    for site, draft in change.drafts.items():
        key_id = change.key_id if draft.raw else ""
        new = Published(change.epoch, draft.version, issued_at, key_id, draft.signature, draft.raw)
        writes.append(Write(DOCUMENTS + site, new.stored(), draft.after))
    _write_all(store, Write(NETWORK, change.text.encode(), change.network_after), writes)
    return Applied(
        published={site: draft.version for site, draft in change.drafts.items() if draft.raw},
        unchanged=change.unchanged,
        withdrawn=tuple(site for site, draft in change.drafts.items() if not draft.raw),
    )


def in_force(store: Store, site: str) -> Published | None:
    """What the site is served now; None if it has no document."""
    entry = store.get(DOCUMENTS + site)
    published = Published.read(entry.value or b"") if entry is not None else None
    return published if published is not None and published.raw else None


def _verify(change: Change, keys: Sequence[document.SigningKey]) -> None:
    key = next((key for key in keys if key.id == change.key_id), None)
    if key is None:
        raise ChangeError(f"it is for key {change.key_id}, which is not (or no longer) the controller's; plan it anew")
    for site, draft in change.drafts.items():
        if draft.raw and not verify(key, draft.raw, draft.signature):
            how = "is not signed: run `cpe-controller sign` on it" if not draft.signature else "has a wrong signature"
            raise ChangeError(f"the document of {site} {how}")


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


def _write_all(store: Store, network: Write, writes: list[Write]) -> None:
    """In as many transactions as it takes. Each holds only while `network` is ours: of two applies, one ends here."""
    revision = store.cas([network, *writes[: MAX_WRITES - 1]])
    for start in range(MAX_WRITES - 1, len(writes), MAX_WRITES - 1):
        if revision is None:
            break
        if store.cas(writes[start : start + MAX_WRITES - 1], {NETWORK: revision}) is None:
            revision = None
    if revision is None:
        raise ApplyConflict("another apply ran at the same time; look at what is in force and apply again")
