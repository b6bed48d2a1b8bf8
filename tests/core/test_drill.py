"""What may be drilled, what do the figures say, and what do altered records give away?"""

from __future__ import annotations

import math

import msgspec
import pytest

from cpe_agent.core import drill
from cpe_agent.core.drill import Outage, Refused
from cpe_agent.core.health import State, Track
from cpe_agent.model.dataplane import Bundle, Path
from cpe_agent.model.drill import DrillRecord

WIRED_CENTRE, LTE_CENTRE = Path("wired", "centre", "a"), Path("lte", "centre", "a")
WIRED_CLOUD, LTE_CLOUD = Path("wired", "cloud", "a"), Path("lte", "cloud", "a")
CENTRE = Bundle("centre", "traffic-centre", (WIRED_CENTRE, LTE_CENTRE), ())
SHARED = Bundle("shared", "traffic-shared", (WIRED_CENTRE, LTE_CENTRE, WIRED_CLOUD, LTE_CLOUD), ())
ACTIVE = {"centre": WIRED_CENTRE, "shared": WIRED_CENTRE}


def _tracks(*down: Path, unready: str = "") -> dict[Path, Track]:
    found = {}
    for path in SHARED.paths:
        state = State.DOWN if path in down else State.UP
        track = Track(3, state=state, ready=path.peer != unready, ike=1, since=-math.inf, stable_since=-math.inf)
        found[path] = track
    return found


def _plan(kind: drill.Kind, name: str, tracks: dict[Path, Track], **failing: frozenset[str]) -> Outage:
    return drill.plan(kind, name, (CENTRE, SHARED), tracks, ACTIVE, failing)


def test_that_an_uplink_takes_its_paths_and_bundles_with_it() -> None:
    assert _plan("uplink", "wired", _tracks()) == Outage(
        frozenset({WIRED_CENTRE, WIRED_CLOUD}), ("centre", "shared"), ()
    )


def test_that_what_only_this_hub_serves_stays() -> None:
    assert _plan("hub", "centre", _tracks()) == Outage(frozenset({WIRED_CENTRE, LTE_CENTRE}), ("shared",), ("centre",))


@pytest.mark.parametrize(
    ("kind", "name", "tracks", "failing", "words"),
    [
        ("uplink", "dsl", _tracks(), {}, "there is no uplink 'dsl' with a path; there is lte, wired"),
        ("hub", "dsl", _tracks(), {}, "there is no hub 'dsl' with a path; there is centre, cloud"),
        ("uplink", "lte", _tracks(), {}, "no traffic is on uplink lte that could move"),
        ("uplink", "wired", _tracks(LTE_CENTRE), {}, "bundle centre has no healthy alternative (lte.centre.a)"),
        ("hub", "centre", _tracks(unready="cloud"), {}, "bundle shared has no healthy alternative"),
        ("hub", "centre", _tracks(), {"shared": frozenset({"cloud"})}, "bundle shared has no healthy alternative"),
        ("hub", "centre", _tracks(WIRED_CLOUD, LTE_CLOUD), {}, "(wired.cloud.a, lte.cloud.a)"),
    ],
)
def test_that_it_is_refused(
    kind: drill.Kind, name: str, tracks: dict[Path, Track], failing: dict[str, frozenset[str]], words: str
) -> None:
    with pytest.raises(Refused) as refused:
        _plan(kind, name, tracks, **failing)
    assert words in str(refused.value)


def test_that_one_dead_path_does_not_speak_against_its_hub() -> None:
    tracks = _tracks(LTE_CLOUD)
    tracks[LTE_CLOUD] = msgspec.structs.replace(tracks[LTE_CLOUD], ready=False)
    assert _plan("hub", "centre", tracks).moving == ("shared",)


def test_that_a_hub_that_says_no_on_one_path_is_no_alternative() -> None:
    tracks = _tracks()
    tracks[LTE_CLOUD] = msgspec.structs.replace(tracks[LTE_CLOUD], ready=False, unready_rounds=3)
    with pytest.raises(Refused, match="bundle shared has no healthy alternative"):
        _plan("hub", "centre", tracks)


def test_that_a_bundle_that_nothing_carries_is_mended_first() -> None:
    with pytest.raises(Refused, match="bundle shared is not carried"):
        drill.plan("uplink", "wired", (CENTRE, SHARED), _tracks(), {**ACTIVE, "shared": None}, {})


def test_what_is_measured() -> None:
    sent = [number * 0.02 for number in range(100)]
    whole = drill.measured("b", "s", sent, dict.fromkeys(range(100), 0.0))
    assert (whole.sent, whole.lost, whole.outage_ms) == (100, 0, 0.0)
    holed = drill.measured("b", "s", sent, {number: 0.0 for number in range(100) if not 40 <= number < 50})
    assert (holed.lost, holed.outage_ms) == (10, 200.0)
    silent = drill.measured("b", "s", sent, {})
    assert silent.lost == 100 and silent.outage_ms == pytest.approx(1960.0)
    assert drill.measured("b", "s", [], {}).outage_ms == 0.0


def _lines(count: int) -> list[bytes]:
    lines: list[bytes] = []
    for _ in range(count):
        number, previous = drill.following(lines)
        record = DrillRecord(number, previous, 1.0, "2026-01-01", "van-1", "uplink", "lte", "began", "1.7")
        lines.append(drill.line(record))
    return lines


def test_that_records_follow_from_one_another() -> None:
    lines = _lines(4)
    assert drill.check(lines) == "" and drill.check([]) == ""
    assert [record.number for record in drill.records(lines)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("altered", "words"),
    [
        (lambda lines: [lines[0].replace(b"lte", b"dsl"), *lines[1:]], "line 2 does not follow"),
        (lambda lines: [*lines[:1], *lines[2:]], "line 2 says that it is record 3"),
        (lambda lines: lines[1:], "line 1 says that it is record 2"),
        (lambda lines: [*lines[:2], b"{", *lines[2:]], "line 3 is no record"),
        (lambda lines: [*lines, lines[-1]], "line 5 says that it is record 4"),
    ],
)
def test_that_an_altered_record_is_noticed(altered: object, words: str) -> None:
    assert callable(altered)
    assert words in drill.check(altered(_lines(4)))


def test_that_the_digest_is_what_sha256sum_says_of_the_line_before() -> None:
    first, second = _lines(2)
    assert msgspec.json.decode(second)["previous"] == drill.digest(first)
    assert msgspec.json.decode(first)["previous"] == "0" * 64


def test_that_a_drill_that_never_ended_is_known() -> None:
    lines = _lines(1)
    begun = drill.unfinished(lines)
    assert begun is not None and begun.name == "lte"
    number, previous = drill.following(lines)
    ended = msgspec.structs.replace(begun, number=number, previous=previous, outcome="done")
    assert drill.unfinished([*lines, drill.line(ended)]) is None and drill.unfinished([]) is None
