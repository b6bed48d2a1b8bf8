"""Is a CHILD_SA through which nothing comes back found, made anew, and then left alone?"""

from __future__ import annotations

from itertools import pairwise

import msgspec

from cpe_agent.core import silence
from cpe_agent.core.health import State, Track
from cpe_agent.core.silence import REMADE_MAX, SILENT_BYTES, SILENT_S, TOLD_S, Ears, Silence
from cpe_agent.model.condition import Severity
from cpe_agent.model.dataplane import Bundle, Path
from cpe_agent.model.observed import Charon, ChildSa, IkeSa

HERE, THERE = Path("wired", "centre", "a"), Path("lte", "centre", "a")
BUNDLE = Bundle("web", "traffic-web", (HERE, THERE), ("web",))
UP = Track(3, State.UP, ike=1, ready=True)
LOOK_S = 10.0


def child(unique_id: int, bytes_in: int, bytes_out: int) -> ChildSa:
    return ChildSa("traffic-web", unique_id, "INSTALLED", (), (), bytes_in, bytes_out)


def look(ears: Ears, held: ChildSa, now: float, path: Path = HERE, track: Track = UP) -> Silence:
    charon = Charon({}, (IkeSa(f"cpe-{path}-00000000", 1, "ESTABLISHED", True, children=(held,)),), True)
    return silence.step(ears, (BUNDLE,), {"web": path}, charon, {path: track}, now)


def looks(outs: list[tuple[int, int]], ears: Ears | None = None, unique_id: int = 1, start: float = 0.0) -> Silence:
    """(bytes in, bytes out) at one look after the other."""
    found = Silence(dict(ears or {}), frozenset(), ())
    for number, (bytes_in, bytes_out) in enumerate(outs):
        found = look(found.ears, child(unique_id, bytes_in, bytes_out), start + number * LOOK_S)
    return found


def test_it_is_made_anew_after_a_while_of_silence() -> None:
    sent = [(5000, 1000 * n) for n in range(3)]
    assert looks(sent).remake == frozenset()
    found = looks([*sent, (5000, 3000)])
    assert found.remake == {1}
    assert [(c.type, c.subject, c.severity) for c in found.conditions] == [("BundleSilent", "web", Severity.DEGRADED)]
    again = look(found.ears, child(1, 5000, 4000), 40.0)
    assert again.remake == {1}, "it is busy, and still to be ended"


def test_one_byte_in_is_enough() -> None:
    assert looks([(0, 0), (0, 2000), (1, 4000), (1, 6000), (1, 6000)]).remake == frozenset()


def test_who_sends_little_or_nothing_is_not_silent() -> None:
    assert looks([(0, 0)] * 20).remake == frozenset()
    assert looks([(0, min(n * 90, SILENT_BYTES - 1)) for n in range(20)]).remake == frozenset()


def test_a_path_that_is_down_or_another_one_starts_anew() -> None:
    found = looks([(0, 1000 * n) for n in range(3)])
    down = look(found.ears, child(1, 0, 9000), 30.0, track=msgspec.structs.replace(UP, state=State.DOWN))
    assert down.remake == frozenset()
    assert look(down.ears, child(1, 0, 10_000), 40.0).remake == frozenset()
    assert look(found.ears, child(7, 0, 9000), 30.0, path=THERE).remake == frozenset()


def test_that_it_helped_is_told_for_a_while_and_then_forgotten() -> None:
    found = looks([(5000, 1000 * n) for n in range(4)])
    found = look(found.ears, child(2, 0, 0), 40.0)
    assert [c.severity for c in found.conditions] == [Severity.DEGRADED]
    for looked_at in (50.0, 30.0 + TOLD_S - 1):
        found = look(found.ears, child(2, round(looked_at), 1000), looked_at)
        assert [c.severity for c in found.conditions] == [Severity.OK]
        assert "all is well again" in found.conditions[0].reason
    assert look(found.ears, child(2, 5000, 1000), 30.0 + TOLD_S).conditions == ()
    assert look(found.ears, child(2, 50, 1000), 300.0).conditions == (), "nobody has said a word since"


def test_one_way_traffic_is_disturbed_ever_more_rarely_and_becomes_a_remark() -> None:
    ears: Ears = {}
    remade, unique_id, sent = [], 1, 0
    for number in range(1080):  # three hours
        sent += 2000
        found = look(ears, child(unique_id, 0, sent), number * LOOK_S)
        ears = found.ears
        if found.remake:
            remade.append(number * LOOK_S)
            unique_id, sent = unique_id + 1, 0
        if len(remade) > REMADE_MAX:
            assert [c.severity for c in found.conditions] == [Severity.OK]
    waits = [later - earlier for earlier, later in pairwise(remade)]
    assert waits == sorted(waits) and waits[0] >= 2 * SILENT_S and len(remade) <= 9
    assert look(ears, child(unique_id, 1, sent), 11_000.0).conditions == (), "somebody answers"
