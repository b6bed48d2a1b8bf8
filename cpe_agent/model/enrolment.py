"""What does a box know once it has been let in?

Frozen data: the token that lets it in, what it asks with, and what it is given. What is given is kept on the disk.
"""

from __future__ import annotations

import datetime as dt

import msgspec

from cpe_agent.model.document import SigningKey

TOKEN_PREFIX = "cpe1."


class Token(msgspec.Struct, frozen=True):
    """What an operator types: where to enrol (`urls`), the SHA-256 (hex) of the root's certificate, and the secret."""

    network: str = msgspec.field(name="n")
    site: str = msgspec.field(name="s")
    urls: tuple[str, ...] = msgspec.field(name="c")
    pin: str = msgspec.field(name="p")
    secret: str = msgspec.field(name="k")

    def __repr__(self) -> str:
        # The secret must not get into a log by way of somebody's repr().
        return f"Token(network={self.network!r}, site={self.site!r}, urls={self.urls!r})"


class Lying(msgspec.Struct, frozen=True):
    """A token that somebody has put somewhere: `text`, "" for none. `where`: whence it is, for people; without `text`,
    why there is none where one was promised, "" if none was."""

    text: str = ""
    where: str = ""

    def __repr__(self) -> str:
        return f"Lying(where={self.where!r})"


class EnrolmentRequest(msgspec.Struct, frozen=True):
    """`POST /v1/enroll`. `csr` is PEM; the names in it are nobody's concern."""

    network: str
    site: str
    secret: str
    csr: str
    agent_version: str
    instance: str


class Granted(msgspec.Struct, frozen=True):
    """The answer. `certificate`: PEM, ours first, then intermediate ones; `cas`: PEMs; `now`: the controller's time."""

    site: str
    network: str
    certificate: str
    cas: tuple[str, ...]
    signing_keys: tuple[SigningKey, ...]
    controllers: tuple[str, ...]
    now: dt.datetime


class Renewed(msgspec.Struct, frozen=True):
    """The answer of `POST /v1/certificate`."""

    certificate: str
    cas: tuple[str, ...]


class Enrolment(msgspec.Struct, frozen=True):
    """What is kept of it, besides key, certificate and authorities."""

    site: str
    network: str
    controllers: tuple[str, ...]
    signing_keys: tuple[SigningKey, ...]
