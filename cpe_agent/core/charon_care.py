"""Is charon of no use, so that only root can mend it by starting it anew? Or is somebody else in its place?

Pure. In: what is seen of charon every few seconds (`CharonSigns`), whether its tunnel device is missing, and the time.
Out: whether to wish for a restart now, and conditions in words.

Theory of operation. systemd starts a charon again that has ended, at once. What it does not see is one that runs and
is of no use: it hangs, has lost its device, or has come up without UDP 4500. A restart ends every tunnel, so it is
wished for only when nothing has been well for `PATIENCE_S`, and rarely: each wish that came to nothing makes the next
one wait twice as long. Where another IKE daemon is in the way a restart would mend nothing: none is wished for while it
is there.

| another daemon | charon answers | its device | UDP 4500 | then                                                 |
|----------------|----------------|------------|----------|------------------------------------------------------|
| yes            | any            | any        | any      | CharonConflict                                       |
| no             | no             | any        | any      | after PATIENCE_S: CharonFailed, a wish               |
| no             | yes            | missing    | any      | the same (the device is TunnelDeviceMissing besides) |
| no             | yes            | there      | nobody's | the same                                             |
| no             | yes            | there      | taken    | well; after WELL_S all wishes are forgotten          |
"""

from __future__ import annotations

import math

import msgspec

from cpe_agent.model.condition import Condition, Severity
from cpe_agent.model.observed import CharonSigns

# systemd's own restart of a charon that has ended, and the time that charon takes to start, on a small router.
PATIENCE_S = 15.0
# From wish to wish. Root's unit grants five in 300 s and none after that: the first five come within 15 minutes.
FIRST_WAIT_S, LONGEST_WAIT_S = 60.0, 900.0
WELL_S = 600.0


class Care(msgspec.Struct, frozen=True):
    """`trouble`: what is wrong, in words ("" for nothing), and `since` when that, or being well, has lasted. `wishes`:
    how many were made, the last one at `wished_at`. `strangers`: as seen last."""

    trouble: str = ""
    since: float = -math.inf
    wishes: int = 0
    wished_at: float = -math.inf
    strangers: tuple[str, ...] = ()


def step(care: Care, signs: CharonSigns, device_missing: str, now: float) -> tuple[Care, bool]:
    """And whether to wish now. `device_missing`: the name of the tunnel device that should be there and is not, or
    ""."""
    trouble = "" if signs.strangers else _trouble(signs, device_missing)
    # Of several troubles in a row the first began it.
    since = care.since if bool(trouble) == bool(care.trouble) else now
    care = msgspec.structs.replace(care, trouble=trouble, since=since, strangers=signs.strangers)
    if not trouble:
        if now - since >= WELL_S:
            care = msgspec.structs.replace(care, wishes=0, wished_at=-math.inf)
        return care, False
    wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(care.wishes - 1, 10)) if care.wishes else 0.0
    if now - since < PATIENCE_S or now - care.wished_at < wait:
        return care, False
    return msgspec.structs.replace(care, wishes=care.wishes + 1, wished_at=now), True


def conditions(care: Care, now: float) -> tuple[Condition, ...]:
    """What an operator has to know."""
    if care.strangers:
        found = " and ".join(care.strangers)
        reason = (
            f"another IKE daemon runs on this router ({found}) and may hold UDP 4500, which the agent's charon needs"
        )
        mend = f"end it for good: `systemctl disable --now {_units(care.strangers)}`"
        return (Condition("CharonConflict", "", f"{reason}: {mend}"),)
    if not care.trouble or now - care.since < PATIENCE_S:
        return ()
    asked = "once" if care.wishes == 1 else f"{care.wishes} times"
    reason = f"{care.trouble}; its restart was asked for {asked}" if care.wishes else care.trouble
    return (Condition("CharonFailed", "", f"{reason}: `journalctl -u cpe-charon.service` says why", Severity.DOWN),)


def _trouble(signs: CharonSigns, device_missing: str) -> str:
    if not signs.answers:
        return "the agent's charon does not answer"
    if device_missing:
        return f"the agent's charon has lost {device_missing}"
    if not signs.listens:
        return "the agent's charon runs without UDP 4500"
    return ""


# What gives a daemon away -> the unit that starts it, in Debian.
_UNITS = {"charon.vici": "strongswan.service", "charon.ctl": "strongswan-starter.service", "pluto.ctl": "ipsec.service"}


def _units(strangers: tuple[str, ...]) -> str:
    found = {unit for mark, unit in _UNITS.items() if any(mark in stranger for stranger in strangers)}
    return " ".join(sorted(found or {"strongswan.service"}))
