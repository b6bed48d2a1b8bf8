"""What did each site last say of itself, and when?

In memory while the controller serves, because 2,000 sites report at once after an apply; written to the store every
second, for whoever asks without us, and for the controller's next start. `Reports.flush` also says which sites have
taken their document since, which belongs into the audit log.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import msgspec

from cpe_controller import audit
from cpe_controller.store import MAX_WRITES, Store, Write

STATUS = "status/"
# What a stream or a fetch says is only that the site lives: the store hears of it so often at most.
CONTACT_S = 30.0

_Number = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class Taken(msgspec.Struct, frozen=True):
    """The document that the site obeys."""

    epoch: _Number
    version: _Number
    at: float | str | None = None

    @property
    def order(self) -> tuple[int, int]:
        return (self.epoch, self.version)


class Rejected(msgspec.Struct, frozen=True):
    """The document that it refused, or (`reverted`) tried and took back."""

    epoch: _Number
    version: _Number
    reason: str = ""
    reverted: bool = False

    @property
    def order(self) -> tuple[int, int]:
        return (self.epoch, self.version)


class Said(msgspec.Struct, frozen=True):
    """A condition; `since` as the agent writes it."""

    type: str
    subject: str = ""
    reason: str = ""
    severity: str = "degraded"
    since: float | str | None = None


class Path(msgspec.Struct, frozen=True):
    """`path` is uplink.peer.endpoint."""

    path: str
    state: str

    @property
    def peer(self) -> str:
        return self.path.partition(".")[2].partition(".")[0]


class Report(msgspec.Struct, frozen=True):
    """The body of POST /v1/status. What a newer agent says beside it is left unread."""

    instance: str = ""
    boot_id: str = ""
    agent_version: str = ""
    schemas: tuple[_Number, ...] = (1,)
    applied: Taken | None = None
    confirmed: bool = False
    rejected: Rejected | None = None
    conditions: tuple[Said, ...] = ()
    paths: tuple[Path, ...] = ()
    serving: bool | None = None

    def refuses(self) -> tuple[int, int] | None:
        """The document that is not to be offered to it again."""
        if self.rejected is None or (self.applied is not None and self.applied.order == self.rejected.order):
            return None
        return self.rejected.order

    def peers_up(self) -> frozenset[str]:
        """To whom at least one path is up."""
        return frozenset(path.peer for path in self.paths if path.state == "up")


class Contact(msgspec.Struct, frozen=True):
    """When the site was last heard of, its last report and when that came, until when its certificate is good, and the
    newest document that it has confirmed and when it said so. Times are wall time in seconds."""

    at: float
    report: Report | None = None
    reported_at: float = 0.0
    certificate_until: float | None = None
    took: tuple[int, int] | None = None
    took_at: float = 0.0


def read(value: bytes) -> Contact:
    return msgspec.json.decode(value, type=Contact)


def stored(store: Store) -> dict[str, Contact]:
    return {entry.key.removeprefix(STATUS): read(entry.value or b"") for entry in store.list(STATUS).entries}


class Reports:
    """One writer: the serving process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._contacts = stored(store)
        self._written = {site: contact.at for site, contact in self._contacts.items()}
        self._changed: set[str] = set()
        self._taken: dict[str, tuple[int, int]] = {}

    def everybodys(self) -> dict[str, Contact]:
        return dict(self._contacts)

    def of(self, site: str) -> Contact | None:
        return self._contacts.get(site)

    def refused(self, site: str) -> tuple[int, int] | None:
        contact = self._contacts.get(site)
        return contact.report.refuses() if contact is not None and contact.report is not None else None

    def seen(self, site: str, now: float, certificate_until: float | None) -> None:
        before = self._contacts.get(site, Contact(now))
        self._contacts[site] = msgspec.structs.replace(before, at=now, certificate_until=certificate_until)
        if now - self._written.get(site, 0.0) > CONTACT_S:
            self._changed.add(site)

    def said(self, site: str, report: Report, now: float) -> None:
        before = self._contacts.get(site, Contact(now))
        took, took_at = before.took, before.took_at
        if report.applied is not None and report.confirmed and took != report.applied.order:
            took, took_at = report.applied.order, now
            self._taken[site] = took
        self._contacts[site] = msgspec.structs.replace(
            before, at=now, report=report, reported_at=now, took=took, took_at=took_at
        )
        self._changed.add(site)

    def flush(self, now: dt.datetime) -> None:
        """Raises StoreError; what was not written then is written the next time."""
        sites = sorted(self._changed)
        for start in range(0, len(sites), MAX_WRITES):
            batch = sites[start : start + MAX_WRITES]
            self._store.cas([Write(STATUS + site, msgspec.json.encode(self._contacts[site])) for site in batch])
            self._changed.difference_update(batch)
            self._written |= {site: now.timestamp() for site in batch}
        if self._taken:
            about = {site: f"{epoch}.{version}" for site, (epoch, version) in sorted(self._taken.items())}
            audit.append(self._store, now, "controller", "taken", about)
            self._taken = {}
