"""What lets a new box in, once?

A token is what an operator types, scans or puts on a stick: where the controller is, by which root it is known, and a
secret. The store has the secret's hash only. In: a token's record and what a box asks with it. Out: go on, the same
answer again, or `Refused`.

    record             same key again     other key        new key
    open, in time      -                  -                issue, once
    open, too late     -                  -                token_expired
    used               the same answer    token_used       token_used
    replaced           token_replaced, whatever the key

A used token answers its own box for as long as the box has the site's place, so that a lost answer can be asked for
again.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import secrets
from collections.abc import Sequence

import msgspec

from cpe_controller.answers import Refused
from cpe_controller.standing import Standing
from cpe_controller.store import Entry, Store, Write

TOKENS = "tokens/"
PREFIX = "cpe1."
SECRET_BYTES = 20
# Long enough to send a box to the other end of the country.
LIFETIME = dt.timedelta(days=7)


class Token(msgspec.Struct, frozen=True):
    """What the text says: network, site, addresses to enrol at, the root's fingerprint, the secret."""

    network: str = msgspec.field(name="n")
    site: str = msgspec.field(name="s")
    controllers: tuple[str, ...] = msgspec.field(name="c")
    pin: str = msgspec.field(name="p")
    secret: str = msgspec.field(name="k")

    def text(self) -> str:
        return PREFIX + _base64url(msgspec.json.encode(self))


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the store has of a token. `key` is the hash of the key that used it, `chain` what that box got."""

    site: str
    generation: int
    expires_at: dt.datetime
    key: str = ""
    chain: str = ""
    replaced: bool = False


def new(network: str, site: str, controllers: Sequence[str], pin: str) -> Token:
    return Token(network, site, tuple(controllers), pin, _base64url(secrets.token_bytes(SECRET_BYTES)))


def key_of(secret: str) -> str:
    """Where the store has the record of the token with this secret. Padding and spaces do not count."""
    return TOKENS + hashlib.sha256(secret.strip().rstrip("=").encode()).hexdigest()


def read(entry: Entry) -> Record:
    return msgspec.json.decode(entry.value or b"", type=Record)


def write(key: str, record: Record, expect: int) -> Write:
    return Write(key, msgspec.json.encode(record), expect)


def of_site(store: Store, site: str) -> list[tuple[Entry, Record]]:
    found = [(entry, read(entry)) for entry in store.list(TOKENS).entries]
    return [(entry, record) for entry, record in found if record.site == site]


def judge(record: Record | None, standing: Standing, site: str, key: str, now: dt.datetime) -> str:
    """The chain that this key got before, or "" to issue one. Raises Refused."""
    if record is None:
        raise Refused("token_unknown", "this controller never gave out this token: have one made for this site here")
    if record.site != site:
        raise Refused("token_unknown", f"this token is for {record.site}, not for {site}: use the one made for {site}")
    if standing.revoked:
        raise Refused("revoked", f"{site} is revoked: have it replaced (cpe-controller replace {site})")
    if record.replaced or record.generation < standing.generation:
        raise Refused("token_replaced", f"a newer token for {site} took this one's place: use that")
    if record.key:
        if record.key != key:
            raise Refused("token_used", f"another box has used this token: look which, then replace {site}")
        return record.chain
    if now >= record.expires_at:
        raise Refused(
            "token_expired", f"this token ended {record.expires_at:%Y-%m-%d %H:%M} UTC: have a new one made for {site}"
        )
    return ""


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
