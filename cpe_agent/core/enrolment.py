"""How does a token read, and what is to be done when it lets nobody in?

Pure. `parse_token`: text -> `Token` or `TokenError`. Each way in which enrolment fails has a condition of its own, that
says what to do, and its own pace of trying again: what only a person can mend is tried rarely, what mends itself often.

| kind              | condition              | tried again |
|-------------------|------------------------|-------------|
| no token          | NotEnrolled            | as soon as there is one |
| token unreadable  | TokenUnreadable        | as soon as there is another |
| token used        | TokenUsed              | every 5 minutes, or as soon as there is another |
| token expired     | TokenExpired           | likewise |
| token unknown     | TokenUnknown           | likewise: it is another controller's, or mistyped |
| token replaced    | TokenReplaced          | likewise |
| site revoked      | SiteRevoked            | likewise: a replacement gives out another token |
| refused otherwise | EnrolmentRefused       | every minute |
| no DNS            | NameUnknown            | from 2 s, more rarely up to a minute |
| captive portal    | CaptivePortal          | likewise: somebody logs in, or moves on |
| clock wrong       | ClockWrong             | likewise: a time server may set it |
| unreachable, busy | ControllerUnreachable  | likewise, and when the controller says |
"""

from __future__ import annotations

import base64
import binascii
import re
from enum import Enum

import msgspec

from cpe_agent.model.condition import Condition, Severity
from cpe_agent.model.document import NAME
from cpe_agent.model.enrolment import TOKEN_PREFIX, Token

# Ten addresses have less than half of that.
TOKEN_MAX_CHARS = 4096
SECRET = re.compile(r"[A-Za-z0-9_-]{16,128}\Z")
PIN = re.compile(r"[0-9a-f]{64}\Z")
URL = re.compile(r"https://[!-~]{1,250}\Z")

# The subject of all conditions here.
ENROLMENT = "enrolment"

RETRY_FIRST_S = 2.0
RETRY_MAX_S = 60.0
RETRY_BY_HAND_S = 300.0
RETRY_REFUSED_S = 60.0
RETRY_AFTER_MAX_S = 600.0

_decoder = msgspec.json.Decoder(Token)


class TokenError(Exception):
    """Text that is no token; says why, without quoting the secret."""


class Kind(Enum):
    NO_TOKEN = "NotEnrolled"
    UNREADABLE = "TokenUnreadable"
    USED = "TokenUsed"
    EXPIRED = "TokenExpired"
    UNKNOWN = "TokenUnknown"
    REPLACED = "TokenReplaced"
    REVOKED = "SiteRevoked"
    REFUSED = "EnrolmentRefused"
    NO_DNS = "NameUnknown"
    CAPTIVE = "CaptivePortal"
    CLOCK = "ClockWrong"
    UNREACHABLE = "ControllerUnreachable"


BY_CODE = {
    "token_used": Kind.USED,
    "token_expired": Kind.EXPIRED,
    "token_unknown": Kind.UNKNOWN,
    "token_replaced": Kind.REPLACED,
    "revoked": Kind.REVOKED,
    "busy": Kind.UNREACHABLE,
}
BY_HAND = frozenset({Kind.USED, Kind.EXPIRED, Kind.UNKNOWN, Kind.REPLACED, Kind.REVOKED, Kind.UNREADABLE})

_DAMAGED = "the token is damaged or was mistyped"
_COPY = f"copy the whole of it, from {TOKEN_PREFIX} to the end"

_NEW = "make a new one with `cpe-controller token SITE`"
_MENDS = {
    Kind.NO_TOKEN: "run `cpe-agent enroll TOKEN`, or write the token into agent.yaml or a stick's file cpe-token",
    Kind.UNREADABLE: "`cpe-agent enroll TOKEN` takes another",
    # An enrolled site gets no second token but by a replacement.
    Kind.USED: "`cpe-controller replace SITE` makes one for this box and shuts the other out",
    Kind.EXPIRED: _NEW,
    Kind.UNKNOWN: f"it is of another controller, or mistyped; {_NEW}",
    Kind.REPLACED: f"a newer token was made for this site; use that, or {_NEW}",
    Kind.REVOKED: "`cpe-controller replace SITE` makes a token that lets this box in",
    Kind.REFUSED: "the controller's log has more",
    Kind.NO_DNS: "give this uplink a DNS server that answers, or make the token with addresses instead of names",
    Kind.CAPTIVE: "log in to the network's own page first, or use an uplink without one",
    Kind.CLOCK: "set the clock (timedatectl set-time), or let a time server do so",
    Kind.UNREACHABLE: "is the uplink up, and the controller running?",
}


# Of a controller that did answer.
_PATIENCE = "it is tried again by itself"


class Failure(msgspec.Struct, frozen=True):
    """Why this box is not let in. `retry_after_s`: the controller asked for patience. `site`: whose token it was."""

    kind: Kind
    words: str
    retry_after_s: float = 0.0
    site: str = ""


def parse_token(text: str) -> Token:
    """`text` (white space round it is ignored) as a token. Raises TokenError."""
    stripped = "".join(text.split())
    if not stripped.startswith(TOKEN_PREFIX) or len(stripped) > TOKEN_MAX_CHARS:
        raise TokenError(f"a token begins with {TOKEN_PREFIX} and has at most {TOKEN_MAX_CHARS} characters")
    encoded = stripped.removeprefix(TOKEN_PREFIX)
    try:
        token = _decoder.decode(base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError):
        raise TokenError(f"{_DAMAGED}: {_COPY}") from None
    # One wrong character may leave all the rest in shape: what is wrong then is the typing, not the token's maker.
    if not NAME.match(token.site) or not NAME.match(token.network):
        raise TokenError(f"{_DAMAGED} (it names no site of a network): {_COPY}")
    if not PIN.match(token.pin) or not SECRET.match(token.secret):
        raise TokenError(f"{_DAMAGED} (it has no fingerprint of a root, or no secret): {_COPY}")
    if not token.urls or not all(URL.match(url) for url in token.urls):
        raise TokenError(f"{_DAMAGED} (it has no https address of a controller): {_COPY}")
    return token


def condition(failure: Failure) -> Condition:
    """What `status` shows: what happened, and what to do."""
    words = failure.words.rstrip(".")
    mend = _MENDS[failure.kind]
    if failure.kind is Kind.UNREACHABLE and failure.retry_after_s:
        mend = _PATIENCE
    elif failure.site:
        mend = mend.replace("SITE", failure.site)
    return Condition(failure.kind.value, ENROLMENT, f"{words}; {mend}", Severity.DOWN)


def wait_s(failure: Failure, attempt: int) -> float:
    """How long until the next try, if nothing changes meanwhile; `attempt` is the number of failures in a row."""
    if failure.kind in BY_HAND:
        usual = RETRY_BY_HAND_S
    elif failure.kind is Kind.REFUSED:
        usual = RETRY_REFUSED_S
    else:
        usual = min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** min(max(attempt, 1) - 1, 10))
    return max(usual, min(failure.retry_after_s, RETRY_AFTER_MAX_S))
