"""The status table: what a person sees of a branch, of a hub and of a site without a document; always 80 columns."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.core.enrolment import Kind
from cpe_agent.layout import WIDTH
from cpe_agent.model.advice import ADVICE
from cpe_agent.model.condition import (
    BundleReport,
    Condition,
    PathReport,
    PeerReport,
    ServiceReport,
    Severity,
    Status,
    TargetReport,
    UplinkReport,
)
from cpe_agent.render import ROWS_MAX, render
from tests.reports import BLANK, BRANCH, HUB, NOW

BRANCH_TEXT = """\
hospital-1 (branch)                                                         down
document    1.42, expires in 6 d 3 h
controller  answered 4 s ago
agent       0.1.0, backend userland, running for 3 h 12 min
data plane  not in sync: tunnels
dropped     cleartext 0, unlisted 12 packets

UPLINK  KIND      INTERFACE  STATE  ADDRESS         LEFT  GATEWAY
wired   wired     eth0       up     192.0.2.10         -  192.0.2.1
lte     cellular  wwan0      down   -           500.0 MB  -

PATH            STATE        RTT   JITTER     LOSS  READY   MTU  IKE
wired.centre.a  up       20.1 ms   0.3 ms    2.0 %  yes    1400  established
wired.cloud.a   unknown        -        -        -  no        -  connecting
lte.centre.a    down     61.5 ms  12.2 ms  100.0 %  no     1218  none

BUNDLE        ACTIVE PATH     STATE    PAIRS  MOVES  PACKETS   BYTES
centre+cloud  wired.centre.a  carried      2      3     1234  1.2 MB
cloud/voice   -               no path      1      0        7     0 B

PAIR     ACTIVE PATH     PACKETS   BYTES
pacs     wired.centre.a        0     0 B
records  wired.centre.a     1234  1.2 MB
voice    -                     7       -

! BundleWithoutPath cloud/voice: no path to cloud is up and ready, so nothing
    that it carries gets through until an uplink comes back (for 30 s)
! UplinkDown lte: wwan0 is down or has no carrier (for 1 min 15 s)
    What to do: plug the cable in, or look at the modem: SIM, antenna, power.
i Draining: asked for by the document
"""

HUB_HEAD = """\
centre (hub)                                                             healthy
document    1.42, expired 2 min 0 s ago
controller  no contact yet
agent       0.1.0, backend kernel, running for 1 d 1 h
data plane  in sync
branches    23 of 23 have a tunnel here

UPLINK  KIND   INTERFACE  STATE  ADDRESS                                 GATEWAY
isp     wired  eth0       up     2001:db8:1234:5678:9abc:def0:1234:5678  fe80::1

PEER    STATE  IKE_SAS  CHILD_SAS  RECEIVED   SENT
van-01  up           2          4    1.0 MB  999 B
"""

HUB_TAIL = """\
van-20  up           2          4   20.0 MB  999 B
and 3 more: --all lists them, NAME those with NAME in them

PAIR            PACKETS  BYTES
van-01-records       10  840 B
"""

BLANK_TEXT = """\
van-1 (unknown)                                                             down
document    none yet
controller  no contact yet
agent       0.1.0, backend userland, running for 2 s

! NoDocument: the controller has not sent one yet (for 2 s)
    What to do: look at ControllerUnreachable and DocumentRejected; if there is
      none, apply a network.yaml.
"""

# Escape sequences that set a colour: on the screen they take no place.
COLOUR = re.compile(r"\x1b\[\d*m")


class TestGolden:
    def test_a_branch(self) -> None:
        assert render(BRANCH) == BRANCH_TEXT

    def test_a_hub(self) -> None:
        text = render(HUB)
        assert text.startswith(HUB_HEAD)
        assert text.endswith(HUB_TAIL)

    def test_a_site_without_a_document(self) -> None:
        assert render(BLANK) == BLANK_TEXT

    def test_a_box_that_belongs_to_no_site(self) -> None:
        assert render(msgspec.structs.replace(BLANK, site="")).startswith("a new box" + " " * 67 + "down\n")

    def test_servers_are_shown_silent_ones_first(self) -> None:
        servers = (
            ServiceReport("a", "x", "10.10.0.10 (tcp 443)", "answering", "centre"),
            ServiceReport("b", "x", "10.50.0.10 (echo)", "silent", "centre"),
        )
        lines = render(msgspec.structs.replace(BRANCH, services=servers)).splitlines()
        at = next(i for i, line in enumerate(lines) if line.startswith("SERVER"))
        assert lines[at].split() == ["SERVER", "STATE", "BEHIND", "PAIR"]
        assert lines[at + 1].split() == ["10.50.0.10", "(echo)", "silent", "centre", "b"]
        assert lines[at + 2].startswith("10.10.0.10 (tcp 443)  answering  centre")

    def test_colour_changes_nothing_but_the_colour(self) -> None:
        coloured = render(BRANCH, colour=True)
        assert "\x1b[31mdown   \x1b[0m" in coloured
        assert "\x1b[32mcarried\x1b[0m" in coloured
        assert COLOUR.sub("", coloured) == BRANCH_TEXT


class TestRoom:
    def test_what_can_be_spared_goes_before_a_name_is_cut(self) -> None:
        address = "2001:db8:1234:5678:9abc:def0:1234:5678"
        uplink = UplinkReport("wired", "cellular", "enp1s0f0", True, address, "2001:db8:1234:5678::1")
        text = render(msgspec.structs.replace(HUB, uplinks=(uplink,)))
        assert address in text
        assert "GATEWAY" not in text

    def test_a_long_name_is_cut_in_its_middle(self) -> None:
        name = "cellular-operator-number-one.blood-centre-of-the-northern-district.provider-a"
        path = msgspec.structs.replace(BRANCH.paths[0], path=name)
        text = render(msgspec.structs.replace(BRANCH, paths=(path,)))
        assert re.search(r"^cellular-op\S+~\S+provider-a  up", text, re.MULTILINE)

    def test_conditions_without_end_do_not_scroll_the_rest_away(self) -> None:
        many = tuple(Condition("PathDown", f"path-{n:03}", "no answer", Severity.DEGRADED) for n in range(500))
        worst = Condition("Zero", "", "the worst is shown first", Severity.DOWN)
        text = render(msgspec.structs.replace(BLANK, conditions=(*many, worst)))
        assert "! Zero: the worst is shown first\n! PathDown path-000: no answer\n" in text
        assert text.count("What to do: ") == 1
        assert text.endswith(f"and {501 - ROWS_MAX} more: --all lists them, NAME those with NAME in them\n")

    def test_nothing_foreign_reaches_the_terminal(self) -> None:
        condition = Condition("DocumentRejected", "x\x1b[2J", "\x1b]0;owned\x07 line\nfeed\u202e")
        text = render(msgspec.structs.replace(BLANK, conditions=(condition,)))
        assert "\x1b" not in text
        assert "! DocumentRejected x?[2J: ?]0;owned? line?feed?\n" in text


class TestAHubOf2000Branches:
    """A hub's report must fit a person; all of it is there for who asks."""

    NAMES = tuple(f"hospital-of-the-northern-district-{number:04}" for number in range(2000))
    STATUS = msgspec.structs.replace(
        HUB,
        peers=tuple(PeerReport(name, 0 if name.endswith("77") else 2, 4, 10**9, 10**12) for name in NAMES),
        pair_packets={f"{name}-service-{n}": n * i for i, name in enumerate(NAMES) for n in range(5)},
        pair_bytes={f"{name}-service-{n}": n * i * 1000 for i, name in enumerate(NAMES) for n in range(5)},
        conditions=tuple(Condition("IdentityDuplicated", name, "two boxes use its key") for name in NAMES),
    )

    def test_it_is_a_few_screens_with_the_absent_ones_first(self) -> None:
        lines = render(self.STATUS).splitlines()
        assert len(lines) < 100 and max(map(len, lines)) <= WIDTH
        assert "branches    1980 of 2000 have a tunnel here" in lines
        assert any(line.startswith("pairs       7996 of 10000 have carried something: ") for line in lines)
        at = next(i for i, line in enumerate(lines) if line.startswith("PEER"))
        assert all(line.split()[1] == "down" for line in lines[at + 1 : at + 21])
        busiest = next(i for i, line in enumerate(lines) if line.startswith("PAIR"))
        assert lines[busiest + 1].startswith("hospital-of-the-northern-district-1999-service-4")

    def test_all_of_it_can_be_asked_for(self) -> None:
        text = render(self.STATUS, rows_max=None)
        assert all(name in text for name in self.NAMES)
        assert len(text.splitlines()) > 14_000 and "more:" not in text

    def test_a_name_picks_what_has_it(self) -> None:
        text = render(self.STATUS, only=("-0042",))
        named = [line for line in text.splitlines() if re.match(r"(! \w+ )?hosp", line)]
        assert len(named) == 1 + 5 + 1 and all("-0042" in line for line in named)


@pytest.mark.parametrize("mode", [{}, {"rows_max": None}, {"only": ("centre",)}])
def test_long_names_fit_80_columns_in_every_table(mode: dict[str, Any]) -> None:
    site, hub, uplink = "n" * 40, "c" * 40, "u" * 40
    path = f"{uplink}.{hub}.{'e' * 40}"
    pair = f"{site}-{'s' * 40}-{'l' * 40}"
    status = msgspec.structs.replace(
        BRANCH,
        site=site,
        uplinks=(UplinkReport(uplink, "cellular", "w" * 15, True, "2001:db8:" * 4, "fe80::1", 1, 1, 10**13),),
        paths=(msgspec.structs.replace(BRANCH.paths[0], path=path, rtt_ms=12345.6, jitter_ms=1234.5),),
        bundles=(BundleReport(f"{hub}+{hub}/{'v' * 40}", (pair,), path, True, {"adopted": 10**6}),),
        services=(ServiceReport(pair, "x", "2001:db8:1234:5678:9abc:def0:1234:5678 (tcp 443)", "silent", hub),),
        peers=(PeerReport(site, 2, 4, 10**15, 10**15),),
        pair_packets={pair: 10**12},
        pair_bytes={pair: 10**15},
        conditions=tuple(Condition(type_, path, f"no answer from {hub} over {uplink}") for type_ in sorted(ADVICE)),
    )
    assert max(map(len, render(status, **mode).splitlines())) <= WIDTH


def test_every_condition_in_the_code_has_its_line_of_advice() -> None:
    """Looks for Condition("Type", ...), and takes those of enrolment from their list."""
    found = {kind.value for kind in Kind}
    for file in (Path(__file__).parent.parent / "cpe_agent").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Condition" and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    found.add(first.value)
    assert len(found) > 30
    assert found <= ADVICE.keys()
    assert all(not words.endswith(".") for words in ADVICE.values())


class TestWords:
    @pytest.mark.parametrize(
        ("age_s", "words"),
        [
            (-5, "0 s"),
            (59.9, "59 s"),
            (60, "1 min 0 s"),
            (3_599, "59 min 59 s"),
            (3_600, "1 h 0 min"),
            (90_000, "1 d 1 h"),
        ],
    )
    def test_spans(self, age_s: float, words: str) -> None:
        assert f"running for {words}\n" in render(msgspec.structs.replace(BLANK, started=NOW - age_s))

    @pytest.mark.parametrize(
        ("count", "words"),
        [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"), (10**15, "1.0 PB")],
    )
    def test_bytes(self, count: int, words: str) -> None:
        text = render(msgspec.structs.replace(BLANK, pair_packets={"p": 1}, pair_bytes={"p": count}))
        assert re.search(rf" {re.escape(words)}$", text, re.MULTILINE)


text = st.text(max_size=120)
count = st.integers(0, 2**64)
seconds = st.floats(0, 1e12)
maybe_ms = st.none() | st.floats(0, 1e9)
statuses = st.builds(
    Status,
    site=text,
    role=st.sampled_from(["hub", "branch", "unknown"]),
    agent_version=text,
    backend=text,
    started=seconds,
    now=seconds,
    document_epoch=st.none() | count,
    document_version=st.none() | count,
    document_issued=st.none() | seconds,
    document_expires=st.none() | seconds,
    controller_last_contact=st.none() | seconds,
    uplinks=st.tuples(st.builds(UplinkReport, text, text, text, st.booleans(), st.none() | text, st.none() | text)),
    paths=st.tuples(
        st.builds(
            PathReport,
            path=text,
            uplink=text,
            peer=text,
            endpoint=text,
            state=st.sampled_from(["up", "down", "unknown"]),
            ike=text,
            rtt_ms=maybe_ms,
            jitter_ms=maybe_ms,
            loss_percent=st.floats(0, 100),
            mtu=st.none() | st.integers(576, 9000),
            ready=st.booleans(),
            bundles=st.just(()),
            bytes_in=count,
            bytes_out=count,
        )
    ),
    bundles=st.tuples(
        st.builds(BundleReport, text, st.tuples(text), st.none() | text, st.booleans(), st.dictionaries(text, count))
    ),
    peers=st.tuples(st.builds(PeerReport, text, count, count, count, count)),
    targets=st.tuples(st.builds(TargetReport, text, st.booleans(), count, seconds, text)),
    dropped_packets=st.dictionaries(text, count, max_size=4),
    pair_packets=st.dictionaries(text, count, max_size=4),
    pair_bytes=st.dictionaries(text, count, max_size=4),
    conditions=st.tuples(st.builds(Condition, text, text, text, st.sampled_from(Severity), seconds)),
)


@given(statuses)
def test_no_report_is_wider_than_the_screen(status: Status) -> None:
    plain = render(status)
    assert max(len(line) for line in plain.split("\n")) <= WIDTH
    assert plain.replace("\n", "").isprintable()
    assert [line.rstrip() for line in COLOUR.sub("", render(status, colour=True)).split("\n")] == plain.split("\n")
