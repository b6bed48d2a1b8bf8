"""A tunnel that swallows everything, while the path that it lives on is well: noticed by its bytes, and made anew.

The hub loses what comes and goes in the one CHILD_SA that carries a bundle, told apart by its SPIs; the path's probes,
its IKE_SA and every other bundle go on. That is what a lost SA at the other end looks like from here, and as little of
it is delivered: neither charon says a word about it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cpe_agent.core.silence import SILENT_S
from cpe_agent.model.condition import Severity, Status
from tests.lab import watch
from tests.lab.container import wait_until
from tests.lab.lab import Lab
from tests.scenarios.test_failover import CLIENT, MOVE_S, SITE, undisturbed, wait_flows_again

HUB, BUNDLE = "centre", "centre"
PATH = "wired.centre.wan"
# charon is looked at every ten seconds when nothing happens: the first look has heard something since the one before,
# the second begins to count, and the last comes up to ten seconds after the time is over.
LOOKS_S = 32.0


class Child(NamedTuple):
    """charon's unique id of a CHILD_SA, and the SPIs of both directions as the branch sees them."""

    unique_id: int
    spi_in: str
    spi_out: str


def test_that_a_tunnel_that_swallows_everything_is_made_anew(lab: Lab) -> None:
    with (
        undisturbed(lab, ("van-1-host", "centre-server"), (CLIENT, "cloud-server")),
        lab.flow(CLIENT, "centre-server") as flow,
    ):
        flow.wait_flowing(5)
        doomed, moves = _child(lab), _moves(watch.status(lab, SITE))
        since = time.monotonic()
        with _swallowed(lab, doomed):
            report = watch.wait_for(lab, SITE, "it is made anew", _silent, SILENT_S + LOOKS_S)
            assert time.monotonic() - since >= SILENT_S, "a server that restarts is given its time"
            told = next(c for c in report.conditions if c.type == "BundleSilent")
            assert told.subject == BUNDLE and PATH in told.reason and "made anew (1 times)" in told.reason
            # Its SPIs are new, so nothing swallows it.
            wait_flows_again(flow)
        # The one that was doomed is ended once its successor carries.
        wait_until("there is one again", lambda: len(_children(lab)) == 1, MOVE_S)
        found = _child(lab)
        assert found.unique_id != doomed.unique_id and {found.spi_in, found.spi_out}.isdisjoint(doomed[1:])
        report = watch.wait_for(lab, SITE, "it is heard again", _helped, LOOKS_S)
        assert _moves(report) == moves, "the path is well: nothing moves"
        assert all(path.state == "up" for path in report.paths)


@contextmanager
def _swallowed(lab: Lab, child: Child) -> Iterator[None]:
    """The hub's machine drops this CHILD_SA's ESP, both ways, in a table of nobody's."""
    there = f"""
table inet swallower {{
  chain in {{
    type filter hook input priority raw
    udp dport 4500 @th,64,32 0x{child.spi_out} counter drop
  }}
  chain out {{
    type filter hook output priority raw
    udp sport 4500 @th,64,32 0x{child.spi_in} counter drop
  }}
}}
"""
    lab.run(HUB, "nft", "-f", "-", input=there)
    try:
        yield
        listed = lab.run(HUB, "nft", "list", "table", "inet", "swallower").stdout
        counts = [int(count) for count in re.findall(r"packets (\d+)", listed)]
        assert len(counts) == 2 and min(counts) > 100, f"nothing was swallowed: {listed}"
    finally:
        lab.run(HUB, "nft", "delete", "table", "inet", "swallower", check=False)


def _child(lab: Lab) -> Child:
    """The one that carries the bundle."""
    (found,) = _children(lab)
    return found


def _children(lab: Lab) -> list[Child]:
    listed = lab.run(SITE, "swanctl", "--list-sas", "--uri", f"unix://{lab.site(SITE).vici_socket}").stdout
    found = re.findall(
        rf"^  traffic-{BUNDLE}: #(\d+),[^\n]*INSTALLED.*?^ +in +([0-9a-f]{{8}}),.*?^ +out +([0-9a-f]{{8}}),",
        listed,
        re.MULTILINE | re.DOTALL,
    )
    return [Child(int(number), spi_in, spi_out) for number, spi_in, spi_out in found]


def _silent(report: Status) -> bool:
    return any(condition.type == "BundleSilent" for condition in report.conditions)


def _helped(report: Status) -> bool:
    """It goes on being told for a while, as a remark."""
    return any(c.type == "BundleSilent" and c.severity is Severity.OK for c in report.conditions)


def _moves(report: Status) -> int:
    """Of the bundle. A busy machine may well lose three probes in a row of another one's path."""
    return sum(sum(bundle.moves.values()) for bundle in report.bundles if bundle.name == BUNDLE)
