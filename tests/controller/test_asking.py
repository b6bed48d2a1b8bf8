"""Whose report does a rollout wait for, and how are they asked for it? A table, then a real controller."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import msgspec
import pytest

from cpe_agent.model.document_check import decode
from cpe_controller import commands, control, setup
from cpe_controller.feed import ASK_EACH_S, ASK_MAX, Feed
from cpe_controller.reports import Contact, Report, Taken
from cpe_controller.reports import Path as PathSaid
from cpe_controller.rollout import NOTICED_S, Phase, Rollout, Wave, unheard
from tests.controller.conftest import serving

NOW = 1_000_000.0
NEW, OLD = (1, 2), (1, 1)
BRANCHES = ("hospital-1", "van-1")
ROLLOUT = Rollout(
    dict.fromkeys(("centre", "cloud", *BRANCHES), NEW),
    (Wave("canary", ("hospital-1",)), Wave("hub", ("centre",)), Wave("hub", ("cloud",)), Wave("rest", ("van-1",))),
    wait_s=210,
    started_at=NOW,
    phase=Phase.RUNNING,
    wave=1,
    out=1,
    since=NOW,
    witnesses=BRANCHES,
)
TEN = tuple(f"b{n}" for n in range(10))
LIMIT_S = 40.0


def _said(at: float, *, up: tuple[str, ...] = ("centre", "cloud"), took_at: float = 0.0) -> Contact:
    paths = tuple(PathSaid(f"lte.{hub}.wan", "up" if hub in up else "down") for hub in ("centre", "cloud"))
    took = NEW if took_at else OLD
    return Contact(at, Report(applied=Taken(*took), confirmed=True, paths=paths), at, took=took, took_at=took_at)


CONFIRMED = {"centre": _said(NOW + 5, took_at=NOW + 5)} | {site: _said(NOW) for site in BRANCHES}


@pytest.mark.parametrize(
    ("rollout", "heard", "after_s", "asked"),
    [
        # The hub has confirmed, and nobody has said a word since.
        ({}, {}, 5 + NOTICED_S, BRANCHES),
        # What they know now may be how it was before.
        ({}, {}, 4.9 + NOTICED_S, ()),
        # The hub has not confirmed: there is time for its branches.
        ({}, {"centre": _said(NOW + 5)}, 60, ()),
        # Who has spoken since is not asked again: back or not, it tells when that changes.
        ({}, {"van-1": _said(NOW + 6)}, 9, ("hospital-1",)),
        ({}, {"van-1": _said(NOW + 6, up=("cloud",))}, 9, ("hospital-1",)),
        ({}, {site: _said(NOW + 6) for site in BRANCHES}, 9, ()),
        # Nine in ten are enough.
        ({"witnesses": TEN}, {b: _said(NOW) for b in TEN[:1]} | {b: _said(NOW + 6) for b in TEN[1:]}, 9, ()),
        ({"witnesses": TEN}, {b: _said(NOW) for b in TEN[:2]} | {b: _said(NOW + 6) for b in TEN[2:]}, 9, TEN[:2]),
        # Nobody waits.
        ({"phase": Phase.PAUSED}, {}, 60, ()),
        ({"phase": Phase.HALTED}, {}, 60, ()),
        ({"wave": 0, "witnesses": ()}, {}, 60, ()),
        ({"wave": 4, "out": 0, "witnesses": ()}, {}, 60, ()),
        # The controller's clock was set back: it comes by itself.
        ({}, {}, -3600, ()),
    ],
)
def test_whose_report_is_missing(
    rollout: dict[str, Any], heard: dict[str, Contact], after_s: float, asked: tuple[str, ...]
) -> None:
    found = unheard(msgspec.structs.replace(ROLLOUT, **rollout), CONFIRMED | heard, NOW + after_s)
    assert found == asked


def test_nobody_is_pressed(state: Path) -> None:
    sites = [f"b{n}" for n in range(ASK_MAX + 50)]
    with setup.opened(state) as (store, _), ExitStack() as stack:
        feed = Feed(store)
        streams = {site: stack.enter_context(feed.stream(site)) for site in sites}

        def asked(*who: str, now: float) -> list[str]:
            feed.ask(who, now)
            found = [site for site, stream in streams.items() if stream.asked]
            for stream in streams.values():
                stream.asked = False
            return found

        assert asked("b0", "of whom nobody holds a stream", "b1", now=0) == ["b0", "b1"]
        assert asked("b0", "b1", "b2", now=ASK_EACH_S - 0.1) == ["b2"]
        assert asked("b0", "b1", "b2", now=ASK_EACH_S) == ["b0", "b1"]
        # All at once would be a rush: the others come at the next beats, also when the first do not answer.
        assert asked(*sites, now=100) == sites[:ASK_MAX]
        assert asked(*sites, now=101) == sites[ASK_MAX:]
        # Of several streams of one site nobody knows which one it still reads.
        again = stack.enter_context(feed.stream("b0"))
        feed.ask(["b0"], 200)
        assert again.asked and streams["b0"].asked


class OldLine(msgspec.Struct, frozen=True):
    """What an agent that was never told of `report` looks for in a line."""

    epoch: int | None = None
    version: int | None = None
    heartbeat: bool = False


class Held:
    """A stream that a site holds, and when each line of it asked for a report."""

    def __init__(self, client: httpx.Client) -> None:
        self.asked: list[tuple[float, str]] = []
        self._client = client
        self._thread = Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with suppress(httpx.HTTPError), self._client.stream("GET", "/v1/changes") as answer:
            for line in answer.iter_lines():
                if json.loads(line).get("report"):
                    self.asked.append((time.monotonic(), line))

    def wait_asked(self, times: int) -> float:
        """When it was for the last of so many times."""
        _until(lambda: len(self.asked) >= times)
        return self.asked[times - 1][0]

    def ended(self) -> None:
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()


def test_a_hubs_wave_ends_as_soon_as_its_branches_are_asked(state: Path, text: str) -> None:
    setup.apply(state, text)
    with ExitStack() as stack:
        with serving(state) as served:
            sites = {site: stack.enter_context(served.client(site)) for site in ("centre", "cloud", *BRANCHES)}
            for site, client in sites.items():
                _report(client, 1, paths=site in BRANCHES)
            _until(lambda: "4 well" in _told(state, commands.Status()))
            changed = text.replace("failback_s: 60", "failback_s: 61")
            control.ask(state / "control.sock", commands.Apply(changed, "x"))
            hospital, van = (Held(stack.enter_context(served.client(site))) for site in BRANCHES)
            for site in ("hospital-1", "centre"):
                _until(partial(_is_offered, sites[site], 2))
                _report(sites[site], 2, paths=site in BRANCHES)
            hospital.wait_asked(1)
            first = van.wait_asked(1)
            # Who has answered is not asked again; who has not is, after a while; a poll is as good as a stream.
            _report(sites["hospital-1"], 2)
            assert van.wait_asked(2) - first > ASK_EACH_S / 2
            before = len(hospital.asked)
            poll = sites["van-1"].get("/v1/changes?after=1.1&wait=30", timeout=40)
            assert poll.json() == {"heartbeat": True, "report": True}
            assert _is_offered(sites["cloud"], 1)
            _report(sites["van-1"], 1)
            _until(partial(_is_offered, sites["cloud"], 2))
        for held in (hospital, van):
            held.ended()
    assert len(hospital.asked) == before
    for _, line in (*hospital.asked, *van.asked):
        assert msgspec.json.decode(line, type=OldLine) == OldLine(heartbeat=True), "an older agent reads a heartbeat"


def _report(client: httpx.Client, version: int, paths: bool = True) -> None:
    up = [{"path": f"lte.{hub}.wan", "state": "up"} for hub in ("centre", "cloud")]
    said = {"applied": {"epoch": 1, "version": version}, "confirmed": True, "paths": up if paths else []}
    client.post("/v1/status", json=said).raise_for_status()


def _is_offered(client: httpx.Client, version: int) -> bool:
    return decode(client.get("/v1/document").content).version == version


def _told(state: Path, command: commands.Command) -> str:
    answer = control.ask(state / "control.sock", command)
    assert answer is not None
    return "\n".join(answer.lines)


def _until(seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.05)
