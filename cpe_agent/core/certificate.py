"""How old is this site's certificate, and is that worth a word?

Pure. It is renewed from half of its life; when three quarters have passed, that has failed for a long time.
"""

from __future__ import annotations

import datetime as dt

import msgspec

from cpe_agent.model.condition import Condition, Severity

RENEW_SHARE = 0.5
WARN_SHARE = 0.75


class Life(msgspec.Struct, frozen=True):
    """From when until when a certificate is valid; wall time."""

    not_before_s: float
    not_after_s: float


def renews_at_s(life: Life) -> float:
    """From this moment on a new one is asked for."""
    return life.not_before_s + RENEW_SHARE * (life.not_after_s - life.not_before_s)


def conditions(life: Life | None, now_s: float) -> tuple[Condition, ...]:
    """`CertificateExpiring` when it is not renewed although it should have been long ago."""
    if life is None or now_s < life.not_before_s + WARN_SHARE * (life.not_after_s - life.not_before_s):
        return ()
    until = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=life.not_after_s)
    mend = "is the controller reachable, and does it renew? (a new one by hand: `cpe-agent reset` and a new token)"
    if now_s >= life.not_after_s:
        reason = (
            f"this site's certificate expired on {until:%Y-%m-%d}: tunnels are refused when they are replaced; {mend}"
        )
        return (Condition("CertificateExpiring", "", reason, Severity.DOWN),)
    reason = f"this site's certificate is valid until {until:%Y-%m-%d} and has not been renewed; {mend}"
    return (Condition("CertificateExpiring", "", reason),)
