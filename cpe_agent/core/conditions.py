"""What is wrong with this site, in words that say what to do?

Pure: from facts to conditions, newest knowledge only. Who shows them remembers since when they hold.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping

from cpe_agent.core.health import State, Track
from cpe_agent.model.condition import Condition, ServiceReport, Severity
from cpe_agent.model.confirmation import Rejection
from cpe_agent.model.dataplane import Bundle, Path
from cpe_agent.model.document import Document

REASONS = {"probes": "its probes are not answered", "ike": "its IKE_SA is gone", "link": "its uplink is down"}


def conditions(
    *,
    document: Document | None,
    bundles: Iterable[Bundle],
    tracks: Mapping[Path, Track],
    active: Mapping[str, Path | None],
    now: float,
    obstacles: Iterable[Condition],
    target_errors: Mapping[str, str],
    controller_error: str,
    rejected: str,
    services: Iterable[ServiceReport] = (),
) -> tuple[Condition, ...]:
    """All conditions that hold. `now` is wall time; `obstacles` come from compiling."""
    found = list(obstacles)
    if document is None:
        reason = "this site has no document yet: it forwards nothing until the controller has given it one"
        found.append(Condition("NoDocument", "", reason, Severity.DOWN))
    elif now > document.expires_at.timestamp():
        blocked = document.on_expiry == "block"
        closed = ", and as it asks for that all pairs are closed" if blocked else ""
        reason = f"expired on {document.expires_at:%Y-%m-%d}{closed}; "
        reason += "bring the controller back or apply the network again"
        found.append(Condition("DocumentExpired", "", reason, Severity.DOWN if blocked else Severity.DEGRADED))
    if rejected:
        found.append(Condition("DocumentRejected", "", f"the controller's document is refused: {rejected}"))
    if controller_error:
        found.append(Condition("ControllerUnreachable", "", controller_error))
    for target, error in target_errors.items():
        if error:
            found.append(Condition("TargetFailed", target, error))
    found += [_path(path, track) for path, track in tracks.items() if track.state is not State.UP]
    found += [
        Condition("PeerNotReady", str(path), "the hub answers probes but is not willing to serve")
        for path, track in tracks.items()
        if track.state is State.UP and not track.ready
    ]
    found += _dead_hubs(tracks)
    found += [_silent(service) for service in services if service.state == "silent" and service.peer]
    for bundle in bundles:
        path = active.get(bundle.name)
        track = tracks.get(path) if path else None
        if track is None or track.state is State.DOWN:
            reason = f"no path carries it; tried {', '.join(map(str, bundle.paths)) or 'none: no uplink is usable'}"
            found.append(Condition("BundleDown", bundle.name, reason, Severity.DOWN))
    return tuple(sorted(found, key=lambda condition: (condition.type, condition.subject)))


def standing(pending: bool, missing: str, reverted: Rejection | None) -> tuple[Condition, ...]:
    """How firmly the document in force stands. That one is on trial is no fault: it takes seconds, as a rule."""
    found = []
    if pending:
        reason = f"not confirmed yet: {missing}" if missing else "in force, and confirmed in a few seconds"
        found.append(Condition("DocumentPending", "", reason, Severity.DEGRADED if missing else Severity.OK))
    if reverted is not None:
        version = f"version {reverted.epoch}.{reverted.version}"
        if reverted.acquitted:
            reason = f"{version} was given up: {reverted.reason}; without it that is no better, so it is tried again "
            reason += "when the controller is heard"
        else:
            reason = f"{version} was given up for good: {reverted.reason}; mend the network and apply it again"
        found.append(Condition("DocumentReverted", "", reason))
    return tuple(found)


def clock(floor: float | None, now: float) -> tuple[Condition, ...]:
    """`floor`: the moment that has certainly passed, if the system's clock says less."""
    if floor is None:
        return ()
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    said, passed = (epoch + dt.timedelta(seconds=moment) for moment in (now, floor))
    reason = f"this router's clock says {said:%Y-%m-%d}, but {passed:%Y-%m-%d} has passed"
    mend = "set it (a time server, or `cpe-agent boot` as root); charon may refuse certificates"
    return (Condition("ClockUntrusted", "", f"{reason}: {mend}"),)


def _dead_hubs(tracks: Mapping[Path, Track]) -> list[Condition]:
    """Peers that no uplink reaches while another peer is reached over the same ones: the fault is there, not here."""
    up = {path.uplink for path, track in tracks.items() if track.state is State.UP}
    found = []
    for peer in sorted({path.peer for path in tracks}):
        theirs = {path: track for path, track in tracks.items() if path.peer == peer}
        uplinks = sorted({path.uplink for path in theirs} & up)
        if uplinks and all(track.state is State.DOWN for track in theirs.values()):
            reason = f"no path to it is up, while others are up over {', '.join(uplinks)}: look at {peer}, not here"
            found.append(Condition("PeerDown", peer, reason))
    return found


def _silent(service: ServiceReport) -> Condition:
    reason = f"{service.server} does not answer behind {service.peer}, whose path is up: look at that server"
    return Condition("ServerSilent", service.pair, f"{reason}, and at {service.peer}'s LAN")


def _path(path: Path, track: Track) -> Condition:
    if track.state is State.UNKNOWN:
        reason = "not up yet: " + ("waiting for its first probes" if track.ike else f"dialling {path.peer}")
    else:
        reason = REASONS.get(track.reason, "is down")
    return Condition("PathDown", str(path), reason)
