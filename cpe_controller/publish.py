"""What changes in the store when this network is applied?

In: a `Network`, the store, a signer. Out: new signed documents in the store for the sites whose content changed, and an
`Applied` that names them. A document is replaced whole, so that a site has either its old or its new one whatever
happens in between; an apply that was cut short is completed by the next.
"""

from __future__ import annotations

import datetime as dt
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from cpe_agent.model import document
from cpe_controller.addresses import allocate
from cpe_controller.compile import Stamp, compile_network, stamped
from cpe_controller.network import Network
from cpe_controller.signing import Signer
from cpe_controller.store import MAX_WRITES, Entry, Store, Write

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


@dataclass(frozen=True)
class Applied:
    """Site -> version of what was published, the sites that keep what they have, and those that left."""

    published: Mapping[str, int]
    unchanged: tuple[str, ...]
    withdrawn: tuple[str, ...]


def publish(
    store: Store, network: Network, text: str, *, signer: Signer, trust: document.Trust, epoch: int, now: dt.datetime
) -> Applied:
    """`text` is the network.yaml that `network` came from. Raises NetworkError, ApplyConflict, StoreError."""
    before = store.get(NETWORK)
    stored_addresses = {entry.key.removeprefix(ADDRESSES): entry for entry in store.list(ADDRESSES).entries}
    stored_documents = {entry.key.removeprefix(DOCUMENTS): entry for entry in store.list(DOCUMENTS).entries}
    current = {site: Published.read(entry.value or b"") for site, entry in stored_documents.items()}

    addresses = allocate(network, {site: json.loads(entry.value or b"") for site, entry in stored_addresses.items()})
    stamps = {site.name: _next(current.get(site.name), epoch, now) for site in network.sites}
    compiled = compile_network(network, addresses, trust, stamps)
    changed = {
        site: wanted for site, wanted in compiled.items() if _differs(wanted, current.get(site), epoch, signer, now)
    }
    gone = [site for site, published in current.items() if site not in compiled and published.raw]

    writes = [_write(ADDRESSES, site, stored_addresses, json.dumps(kept).encode()) for site, kept in addresses.items()]
    writes += [_write(ADDRESSES, site, stored_addresses, None) for site in stored_addresses if site not in addresses]
    for site, wanted in changed.items():
        raw = document.encode(wanted)
        signed = _published(stamps[site], signer.public.id, signer.sign(raw), raw)
        writes.append(_write(DOCUMENTS, site, stored_documents, signed.stored()))
    for site in gone:
        left = _published(_next(current[site], epoch, now), "", "", b"")
        writes.append(_write(DOCUMENTS, site, stored_documents, left.stored()))
    _write_all(
        store, Write(NETWORK, text.encode(), before.revision if before else 0), _needed(writes, stored_addresses)
    )
    return Applied(
        published={site: wanted.version for site, wanted in changed.items()},
        unchanged=tuple(site for site in compiled if site not in changed),
        withdrawn=tuple(gone),
    )


def _next(current: Published | None, epoch: int, now: dt.datetime) -> Stamp:
    return Stamp(epoch, current.version + 1 if current else 1, now.replace(microsecond=0))


def _published(stamp: Stamp, key_id: str, signature: str, raw: bytes) -> Published:
    return Published(stamp.epoch, stamp.version, stamp.issued_at, key_id, signature, raw)


def _differs(
    wanted: document.Document, current: Published | None, epoch: int, signer: Signer, now: dt.datetime
) -> bool:
    """Whether the site needs a new version: other content, another epoch or key, or half of its lifetime is over."""
    if current is None or current.epoch != epoch or current.key_id != signer.public.id:
        return True
    if now - current.issued_at > (wanted.expires_at - wanted.issued_at) / 2:
        return True
    same = stamped(wanted, Stamp(current.epoch, current.version, current.issued_at))
    return document.encode(same) != current.raw


def _write(prefix: str, site: str, stored: Mapping[str, Entry], value: bytes | None) -> Write:
    return Write(prefix + site, value, stored[site].revision if site in stored else 0)


def _needed(writes: list[Write], stored_addresses: Mapping[str, Entry]) -> list[Write]:
    """Without those that would write what is there already."""
    there = {entry.key: entry.value for entry in stored_addresses.values()}
    return [write for write in writes if write.value is None or there.get(write.key) != write.value]


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
