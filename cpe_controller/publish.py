"""How does a change get in force?

In: a signed `Change`, and who it is for. Out: documents in the store, at once or wave by wave, and an `Applied` that
names the sites. A document is replaced whole, so that a site has either its old or its new one whatever happens in
between; an apply that was cut short is completed by the next.

The order of writes is what makes that so. First, in one transaction: the network, its place in the history, and the
rollout, which ends whatever rollout there was. Then the documents, to their place or to where they wait for their wave.
Last, the rollout starts.
"""

from __future__ import annotations

import datetime as dt
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from cpe_agent.model import document
from cpe_agent.model.document_check import decode
from cpe_controller.change import (
    ADDRESSES,
    DOCUMENTS,
    NETWORK,
    Change,
    ChangeError,
    Published,
    in_force,
    plan,
    signed,
)
from cpe_controller.network import Network
from cpe_controller.reports import Contact
from cpe_controller.rollout import REPORT_S, Phase, Rollout, Wave, waves
from cpe_controller.signing import Signer, verify
from cpe_controller.store import MAX_WRITES, Store, Write

__all__ = ["DOCUMENTS", "NETWORK", "Applied", "ApplyConflict", "Published", "commit", "in_force", "publish"]

WAITING = "waiting/"
ROLLOUT = "rollout"
HISTORY = "history/"
HISTORY_MAX = 50


class ApplyConflict(Exception):
    """Somebody else applied a network at the same time, and theirs is in force."""


@dataclass(frozen=True)
class Applied:
    """Site -> version of what was published, the sites that keep what they have, and those that left; and the waves in
    which the published ones get it (none: they have it)."""

    published: Mapping[str, int]
    unchanged: tuple[str, ...]
    withdrawn: tuple[str, ...]
    waves: tuple[Wave, ...] = ()


class Past(msgspec.Struct, frozen=True):
    """A network that was applied: its text, when and by whom, by which deed, and how many sites' documents changed
    (-1: not known, of an older version)."""

    text: bytes
    at: dt.datetime
    by: str
    what: str = ""
    sites: int = -1


def publish(
    store: Store, network: Network, text: str, *, signer: Signer, trust: document.Trust, epoch: int, now: dt.datetime
) -> Applied:
    """Plan, sign and commit, to all sites at once. `text` is the network.yaml that `network` came from. Raises
    NetworkError, ApplyConflict, StoreError."""
    change = plan(store, network, text, key_id=signer.public.id, trust=trust, epoch=epoch, now=now)
    return commit(store, signed(change, signer), (signer.public,))


def commit(
    store: Store,
    change: Change,
    keys: Sequence[document.SigningKey],
    by: str = "",
    contacts: Mapping[str, Contact] | None = None,
    what: str = "apply",
) -> Applied:
    """`contacts` are what sites said last: then it goes out in waves; None: to all sites at once. `by` and `what`
    (which deed it was) are for the history.

    Raises ChangeError if a signature is not by one of `keys`, ApplyConflict, StoreError.
    """
    _verify(change, keys)
    rollout = None if contacts is None else _rollout(store, change, contacts)
    later = {site for wave in rollout.waves for site in wave.sites} if rollout else set()
    writes = [
        Write(ADDRESSES + site, None if own is None else own.encode(), change.addresses_after.get(site, 0))
        for site, own in change.addresses.items()
    ]
    for site, draft in change.drafts.items():
        key_id, issued_at = change.key_id if draft.raw else "", change.made_at.replace(microsecond=0)
        value = Published(change.epoch, draft.version, issued_at, key_id, draft.signature, draft.raw).stored()
        writes.append(Write(WAITING + site, value) if site in later else Write(DOCUMENTS + site, value, draft.after))
    stale = (
        ()
        if change.partial
        else [entry.key for entry in store.list(WAITING).entries if entry.key.removeprefix(WAITING) not in later]
    )
    writes += [Write(key, None) for key in stale]
    first = [Write(NETWORK, change.text.encode(), change.network_after)]
    if not change.partial:
        first += _past(store, change, by, what)
        first.append(Write(ROLLOUT, None if rollout is None else msgspec.json.encode(rollout)))
    last = None if rollout is None else msgspec.structs.replace(rollout, phase=Phase.RUNNING)
    _write_all(store, first, writes, [] if last is None else [Write(ROLLOUT, msgspec.json.encode(last))])
    return Applied(
        published={site: draft.version for site, draft in change.drafts.items() if draft.raw},
        unchanged=change.unchanged,
        withdrawn=tuple(site for site, draft in change.drafts.items() if not draft.raw),
        waves=rollout.waves if rollout else (),
    )


def history(store: Store) -> dict[int, Past]:
    """What was applied, by number, the oldest first."""
    return {
        int(entry.key.removeprefix(HISTORY)): msgspec.msgpack.decode(zlib.decompress(entry.value or b""), type=Past)
        for entry in store.list(HISTORY).entries
    }


def _rollout(store: Store, change: Change, contacts: Mapping[str, Contact]) -> Rollout | None:
    """None if there is nobody to be careful with: a site's first document needs no wave, nor does one that no box has
    ever asked for."""
    had = {site for site in change.drafts if site in contacts and in_force(store, site) is not None}
    role = {site: decode(draft.raw).role for site, draft in change.drafts.items() if site in had and draft.raw}
    hubs = [site for site in role if role[site] == "hub"]
    now = change.made_at.timestamp()
    found = waves(hubs, [site for site in role if site not in hubs], change.canaries, contacts, now)
    # Those that leave go with the last: until then a network that is taken back has lost nobody.
    gone = tuple(site for site, draft in change.drafts.items() if site in had and not draft.raw)
    if not found:
        return None
    if gone:
        found = (*found, Wave("rest", gone))
    targets = {site: (change.epoch, change.drafts[site].version) for wave in found for site in wave.sites}
    return Rollout(targets, found, change.confirm_s + REPORT_S, now, unawaited=gone)


def _past(store: Store, change: Change, by: str, what: str) -> list[Write]:
    entries = store.list(HISTORY).entries
    number = int(entries[-1].key.removeprefix(HISTORY)) + 1 if entries else 1
    new = Past(change.text.encode(), change.made_at, by, what, len(change.drafts))
    past = zlib.compress(msgspec.msgpack.encode(new))
    forgotten = entries[: max(0, len(entries) + 1 - HISTORY_MAX)]
    return [Write(f"{HISTORY}{number:08}", past, 0), *(Write(entry.key, None) for entry in forgotten)]


def _verify(change: Change, keys: Sequence[document.SigningKey]) -> None:
    key = next((key for key in keys if key.id == change.key_id), None)
    if key is None:
        raise ChangeError(f"it is for key {change.key_id}, which is not (or no longer) the controller's; plan it anew")
    for site, draft in change.drafts.items():
        if draft.raw and not verify(key, draft.raw, draft.signature):
            how = "is not signed: run `cpe-controller sign` on it" if not draft.signature else "has a wrong signature"
            raise ChangeError(f"the document of {site} {how}")


def _write_all(store: Store, first: list[Write], writes: list[Write], last: list[Write]) -> None:
    """In as many transactions as it takes. Each holds only while the network is ours: of two applies, one ends here."""
    room = MAX_WRITES - len(first) - len(last)
    if len(writes) <= room:
        # What fits into one transaction is never seen half done.
        done = {write.key: write for write in (*first, *writes, *last)}
        if store.cas(list(done.values())) is None:
            raise ApplyConflict(_CONFLICT)
        return
    revision = store.cas([*first, *writes[:room]])
    batches = [writes[start : start + MAX_WRITES - 1] for start in range(room, len(writes), MAX_WRITES - 1)]
    for batch in [*batches, *([last] if last else [])]:
        if revision is None or store.cas(batch, {NETWORK: revision}) is None:
            raise ApplyConflict(_CONFLICT)
    if revision is None:
        raise ApplyConflict(_CONFLICT)


_CONFLICT = "another apply ran at the same time; look at what is in force and apply again"
