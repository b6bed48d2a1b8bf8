"""Documents of a hospital with a wired and a cellular uplink, and of its hub; signed as the controller signs."""

from __future__ import annotations

import base64
import datetime as dt
from dataclasses import dataclass, field
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cpe_agent.model.document import (
    SIGNATURE_CONTEXT,
    Document,
    Endpoint,
    Lan,
    Pair,
    Peer,
    Policy,
    Probing,
    SigningKey,
    Trust,
    Uplink,
    encode,
)
from cpe_agent.ports import SignedDocument

SITE = "hospital-1"
IDENTITY = "hospital-1.net.cpe"
FAILBACK_S = 10
INTERVAL_MS = 100
MISSES = 3
KEY_ID = "key-1"

_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = base64.b64encode(_KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


@dataclass(frozen=True)
class Hub:
    """As its branches see it."""

    name: str
    address: str
    number: int
    lans: tuple[str, ...]

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("wan", self.address, f"10.255.{self.number}.1", f"10.255.{self.number}.2")

    @property
    def peer(self) -> Peer:
        site_address = f"10.255.{self.number}.3"
        identity = f"{self.name}.net.cpe"
        return Peer(identity, True, site_address, self.lans, endpoints=(self.endpoint,))


CENTRE = Hub("centre", "198.51.100.10", 1, ("10.10.0.0/24", "10.50.0.0/24"))
CLOUD = Hub("cloud", "198.51.100.20", 2, ("10.20.0.0/24", "10.50.0.0/24"))

PAIRS = (
    Pair("centre-http", "10.101.0.0/24", "10.10.0.0/24", "local", ("centre",)),
    Pair("cloud-http", "10.101.0.0/24", "10.20.0.0/24", "local", ("cloud",)),
    Pair("shared", "10.101.0.0/24", "10.50.0.0/24", "local", ("centre", "cloud")),
)

_PROBE = Probing(INTERVAL_MS, INTERVAL_MS, MISSES)
_ISSUED = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def branch(version: int = 1, pairs: tuple[Pair, ...] = PAIRS, **changes: Any) -> Document:
    """The hospital's. `changes` replace fields."""
    document = Document(
        schema=1,
        network="net",
        site=SITE,
        role="branch",
        epoch=1,
        version=version,
        issued_at=_ISSUED,
        expires_at=dt.datetime(2099, 1, 1, tzinfo=dt.UTC),
        site_address="10.255.101.1",
        lans=(Lan("lan0", "10.101.0.0/24", "lan0"),),
        uplinks={
            "wired": Uplink("wired", 1, "10.255.101.2", probe=_PROBE),
            "lte": Uplink("cellular", 2, "10.255.101.3", probe=_PROBE),
        },
        peers={hub.name: hub.peer for hub in (CENTRE, CLOUD)},
        pairs=pairs,
        trust=Trust((SigningKey(KEY_ID, PUBLIC),)),
        policy=Policy(failback_s=FAILBACK_S),
    )
    return msgspec.structs.replace(document, **changes)


def hub(version: int = 1, **changes: Any) -> Document:
    """The centre's, which answers the hospital."""
    document = branch(
        version,
        site="centre",
        role="hub",
        site_address="10.255.1.3",
        endpoints=(CENTRE.endpoint,),
        lans=(Lan("lan0", "10.10.0.0/24", "lan0"),),
        uplinks={"wan": Uplink("wired", 1, "10.255.1.4", probe=_PROBE)},
        peers={
            SITE: Peer(
                IDENTITY,
                False,
                "10.255.101.1",
                ("10.101.0.0/24",),
                path_addresses=("10.255.101.2", "10.255.101.3"),
            )
        },
        pairs=(Pair("centre-http", "10.10.0.0/24", "10.101.0.0/24", "remote", (SITE,)),),
    )
    return msgspec.structs.replace(document, **changes)


@dataclass(frozen=True)
class Post:
    """Documents as they travel."""

    key: Ed25519PrivateKey = field(default=_KEY)
    key_id: str = KEY_ID

    def sign(self, raw: bytes) -> SignedDocument:
        return SignedDocument(raw, self.key.sign(SIGNATURE_CONTEXT + raw), self.key_id)

    def send(self, document: Document) -> SignedDocument:
        return self.sign(encode(document))


POST = Post()
STRANGER = Post(Ed25519PrivateKey.from_private_bytes(bytes(32)))

_SECOND = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
SECOND = Post(_SECOND, "key-2")
SECOND_KEY = SigningKey(
    "key-2", base64.b64encode(_SECOND.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
)
