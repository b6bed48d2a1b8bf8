"""Do the servers behind the hubs answer, and behind which hub should a bundle be because of that?

Pure. `step(state, facts, now) -> Step`: who is to be asked now, which bundles are tried elsewhere, which hubs a bundle
should leave. Answers come by `answered`, silence by `unanswered`. Theory of operation:

A server is asked every `ROUND_S`, through the bundle's own tunnel. After a miss it is asked again every `QUICK_S`;
after `MISSES` in a row it is silent, until one answer. Nobody is asked while the bundle has no path that is up: what
fails then is the path. Per bundle:

| phase   | when                                                     | then                                            |
|---------|----------------------------------------------------------|-------------------------------------------------|
| watch   | all its servers silent, another willing hub, trial due   | trial on that hub's best path                   |
| watch   | a hub in `failing`, its retry due                        | trial on that hub's best path                   |
| trial   | the trial's CHILD_SA is installed                        | ask all its servers, quickly                    |
| trial   | one answers, tried because the present hub's are silent  | `failing` += present hub: steering moves there  |
| trial   | one answers, tried because that hub is in `failing`      | `failing` -= that hub: steering may move back   |
| trial   | `MISSES` rounds without an answer, or `TRIAL_S` over     | the trial ends; the next waits twice as long    |
| trial   | its path is not usable any more, or became the active    | the trial ends, nothing learnt                  |
| any     | a server answers behind a hub in `failing`               | `failing` -= that hub                           |

A trial moves no traffic: its selectors are the asking address and the servers, and the more specific tunnel wins. While
it lasts, answers speak of the trial's hub. Waits double from `TRIAL_FIRST_S` up to `TRIAL_MAX_S`, so servers that are
dead everywhere cost a handful of packets an hour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

from cpe_agent.model.dataplane import Path, Service

ROUND_S = 10.0
QUICK_S = 1.0
MISSES = 3
# How long an answer may take: a server that needs longer is not one that people could work with.
ANSWER_S = 2.0
# One round trip of IKE, then MISSES questions and their patience, doubled.
TRIAL_S = 15.0
TRIAL_FIRST_S = 15.0
TRIAL_MAX_S = 3600.0


class Server(msgspec.Struct, frozen=True):
    """One probed server. `silent` None: not known yet. `next_at`: when to ask again; `asked`: the answer is awaited."""

    misses: int = 0
    silent: bool | None = None
    next_at: float = 0.0
    asked: bool = False


class Trial(msgspec.Struct, frozen=True):
    """`path`: where the servers are tried; `leaving`: the hub that carries the bundle. `for_return`: the hub tried is
    in `failing`. `begun`: its tunnel is there."""

    path: Path
    leaving: str
    until: float
    for_return: bool
    begun: bool = False


class Standing(msgspec.Struct, frozen=True):
    """A bundle. `waits`: per hub, how often in a row a trial there came to nothing; `not_before`: when the next may
    be."""

    failing: frozenset[str] = frozenset()
    trial: Trial | None = None
    waits: Mapping[str, int] = {}
    not_before: Mapping[str, float] = {}


class State(msgspec.Struct, frozen=True):
    servers: Mapping[Service, Server] = {}
    bundles: Mapping[str, Standing] = {}


class Facts(msgspec.Struct, frozen=True):
    """`active`: by bundle, the path that is up and carries it (else it is left out). `usable`: by bundle, its usable
    paths, best first. `tried`: bundles whose trial CHILD_SA is installed, and where."""

    services: tuple[Service, ...]
    active: Mapping[str, Path]
    usable: Mapping[str, tuple[Path, ...]]
    tried: Mapping[str, Path] = {}


class Ask(msgspec.Struct, frozen=True):
    """A question to a server, and the path that it goes by: what comes back speaks of that path's hub, no other."""

    service: Service
    path: Path


class Step(msgspec.Struct, frozen=True):
    state: State
    ask: tuple[Ask, ...]
    wake_at: float


def step(state: State, facts: Facts, now: float) -> Step:
    """Who is to be asked now, and when to look again."""
    servers = {service: state.servers.get(service, Server(next_at=now)) for service in facts.services}
    bundles: dict[str, Standing] = {}
    ask: list[Ask] = []
    wake_at = math.inf
    for bundle in dict.fromkeys(service.bundle for service in facts.services):
        own = [service for service in facts.services if service.bundle == bundle]
        standing = _follow(state.bundles.get(bundle, Standing()), bundle, facts, now)
        standing, began = _begin(standing, bundle, servers, own, facts, now)
        trial = standing.trial
        if trial is not None and not trial.begun and facts.tried.get(bundle) == trial.path:
            # From here on answers speak of the other hub: everything is asked anew.
            standing = msgspec.structs.replace(standing, trial=msgspec.structs.replace(trial, begun=True))
            servers |= {service: Server(silent=servers[service].silent, next_at=now) for service in own}
        elif state.bundles.get(bundle, Standing()).trial is not None and trial is None:
            servers |= {service: Server(silent=servers[service].silent, next_at=now) for service in own}
        bundles[bundle] = standing
        wake_at = min(wake_at, _wake(standing, bundle, servers, own, facts, now))
        via = _way(standing, bundle, facts)
        if via is None or began:
            continue
        for service in own:
            server = servers[service]
            if server.asked:
                continue
            if server.next_at <= now:
                ask.append(Ask(service, via))
                servers[service] = msgspec.structs.replace(server, asked=True)
            else:
                wake_at = min(wake_at, server.next_at)
    return Step(State(servers, bundles), tuple(ask), wake_at)


def answered(state: State, ask: Ask, now: float) -> State:
    """The server answered."""
    standing = state.bundles.get(ask.service.bundle, Standing())
    trial = standing.trial
    servers = dict(state.servers)
    if trial is None:
        standing = msgspec.structs.replace(standing, failing=standing.failing - {ask.path.peer})
        servers[ask.service] = Server(0, False, now + ROUND_S)
    elif not trial.begun or ask.path != trial.path:
        return state
    else:
        standing = _proved(standing, trial, now)
        for other in [o for o in servers if o.bundle == ask.service.bundle]:
            servers[other] = Server(0, servers[other].silent if trial.for_return else None, now + QUICK_S)
    return State(servers, {**state.bundles, ask.service.bundle: standing})


def unanswered(state: State, ask: Ask, now: float) -> State:
    """No answer within `ANSWER_S`."""
    standing = state.bundles.get(ask.service.bundle, Standing())
    trial = standing.trial
    if trial is not None and (not trial.begun or ask.path != trial.path):
        return state
    server = state.servers.get(ask.service, Server())
    misses = server.misses + 1
    over = misses >= MISSES
    # A trial says nothing of the server behind the present hub.
    silent = server.silent if trial is not None or not over else True
    servers = dict(state.servers)
    servers[ask.service] = Server(misses, silent, now + (ROUND_S if over else QUICK_S))
    own = [other for other in servers if other.bundle == ask.service.bundle]
    if trial is not None and all(servers[other].misses >= MISSES for other in own):
        standing = _in_vain(standing, trial, now)
        servers |= {other: Server(MISSES if servers[other].silent else 0, servers[other].silent, now) for other in own}
    return State(servers, {**state.bundles, ask.service.bundle: standing})


def failing(state: State) -> dict[str, frozenset[str]]:
    """What steering is told."""
    return {name: standing.failing for name, standing in state.bundles.items() if standing.failing}


def trials(state: State) -> dict[str, Path]:
    return {name: standing.trial.path for name, standing in state.bundles.items() if standing.trial}


def _way(standing: Standing, bundle: str, facts: Facts) -> Path | None:
    """By which path a question would go now; None while that is not certain, or there is none."""
    if standing.trial is not None:
        return standing.trial.path if standing.trial.begun else None
    # A trial's tunnel that is still there takes the questions.
    return None if bundle in facts.tried else facts.active.get(bundle)


def _follow(standing: Standing, bundle: str, facts: Facts, now: float) -> Standing:
    """A trial that cannot go on ends."""
    trial = standing.trial
    if trial is None:
        return standing
    active = facts.active.get(bundle)
    if trial.path not in facts.usable.get(bundle, ()) or active is None or active.peer == trial.path.peer:
        return msgspec.structs.replace(standing, trial=None)
    return _in_vain(standing, trial, now) if now >= trial.until else standing


def _begin(
    standing: Standing,
    bundle: str,
    servers: Mapping[Service, Server],
    own: Iterable[Service],
    facts: Facts,
    now: float,
) -> tuple[Standing, bool]:
    active = facts.active.get(bundle)
    if standing.trial is not None or active is None:
        return standing, False
    dead_here = all(servers[service].silent for service in own)
    for path in facts.usable.get(bundle, ()):
        returning = path.peer in standing.failing
        if path.peer == active.peer or not (dead_here or returning):
            continue
        if now >= standing.not_before.get(path.peer, -math.inf):
            trial = Trial(path, active.peer, now + TRIAL_S, returning)
            return msgspec.structs.replace(standing, trial=trial), True
    return standing, False


def _proved(standing: Standing, trial: Trial, now: float) -> Standing:
    """A server answers on the trial's path."""
    hub = trial.path.peer
    if trial.for_return:
        return Standing(standing.failing - {hub}, None, standing.waits, standing.not_before)
    # The hub that is left is asked again in time: later each time that it had to be left.
    count = standing.waits.get(trial.leaving, 0)
    waits = {name: n for name, n in standing.waits.items() if name != hub} | {trial.leaving: count + 1}
    not_before = {**standing.not_before, trial.leaving: now + _wait(count)}
    return Standing((standing.failing - {hub}) | {trial.leaving}, None, waits, not_before)


def _in_vain(standing: Standing, trial: Trial, now: float) -> Standing:
    hub = trial.path.peer
    count = standing.waits.get(hub, 0)
    waits = {**standing.waits, hub: count + 1}
    return Standing(standing.failing, None, waits, {**standing.not_before, hub: now + _wait(count)})


def _wait(count: int) -> float:
    return float(min(TRIAL_MAX_S, TRIAL_FIRST_S * 2 ** min(count, 12)))


def _wake(
    standing: Standing,
    bundle: str,
    servers: Mapping[Service, Server],
    own: Iterable[Service],
    facts: Facts,
    now: float,
) -> float:
    if standing.trial is not None:
        return standing.trial.until
    if not (standing.failing or all(servers[service].silent for service in own)):
        return math.inf
    return min((at for at in standing.not_before.values() if at > now), default=math.inf)
