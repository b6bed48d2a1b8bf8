"""Does `cpe-agent verify` tell every change that somebody makes by hand?

On a living site of the lab, whose agent has been stopped so that it repairs nothing. The oracle (its own readers)
confirms that each change is really there; what verify newly reports must name it.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cpe_agent.edge.ipsec import resolve
from cpe_agent.model.dataplane import Backend
from tests.lab import watch
from tests.lab.container import Completed, wait_until
from tests.lab.init import LOGS
from tests.lab.lab import Lab
from tests.lab.pace import BACKEND, patience
from tests.lab.site import RunningSite
from tests.scenarios import oracle
from tests.scenarios.charon_mutations import CHARON
from tests.scenarios.conftest import wait_whole
from tests.scenarios.mutations import ANY, FIREWALL, POLICIES, ROUTING, Mutation

SITE = "hospital-1"
SOCKET = "answering.sock"
UP_S = 30.0
ANSWER_S = 10.0


class Observed:
    """The site, and what the product finds different there now."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.site = lab.site(SITE)

    def differences(self) -> set[str]:
        """As "missing chain forward" and so on."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(patience(ANSWER_S))
            connection.connect(str(self.site.outside / SOCKET))
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        return {f"{d['kind']} {d['what']}" for d in json.loads(answer)["differences"]}

    def document(self) -> dict[str, Any]:
        """What is stored as the last good one."""
        content = (self.site.outside / "state" / "document").read_bytes()
        found: dict[str, Any] = json.loads(content.partition(b"\n")[2])
        return found

    @property
    def version(self) -> str:
        document = self.document()
        return f"{document['epoch']}.{document['version']}"

    def command(self, *argv: str) -> Completed:
        config = str(self.site.inside / "agent.yaml")
        return self.site.run(sys.executable, "-m", "cpe_agent", *argv, "--config", config, check=False)

    def settle(self) -> None:
        """Let the agent mend everything, then stop it: nothing may be on its way that somebody would have to end."""
        self.site.agent.start()
        wait_whole(self.lab)
        watch.wait_for(self.lab, SITE, "its document is confirmed", watch.confirmed, UP_S)
        wait_until(f"{SITE} is in sync", lambda: not self.differences(), UP_S, 0.1)
        self.site.agent.stop()
        assert not self.differences()


@pytest.fixture(scope="module")
def observed(whole_lab: Lab) -> Iterator[Observed]:
    """The site in its best state, its agent stopped."""
    wait_whole(whole_lab)
    found = Observed(whole_lab)
    inside = found.site.inside
    argv = [sys.executable, "-m", "tests.scenarios.answering", str(inside / "agent.yaml"), str(inside / SOCKET)]
    with open(whole_lab.path(f"{LOGS}/answering.log"), "wb") as log:
        answering = whole_lab.container.spawn(argv, namespace=SITE, stdout=log)
    try:
        wait_until("the comparison answers", (found.site.outside / SOCKET).exists, ANSWER_S)
        found.settle()
        yield found
    finally:
        answering.signal(signal.SIGKILL)
        answering.close()
        if not found.site.charon.running:
            found.site.start_charon()
        found.site.agent.start()
        wait_whole(whole_lab)


def fits(found: dict[str, tuple[int, int]], expected: dict[str, tuple[int, int]]) -> bool:
    """Are the counts as expected, where ANY stands for some?"""
    if set(found) != set(expected):
        return False
    pairs = [(f, e) for kind in found for f, e in zip(found[kind], expected[kind], strict=True)]
    return all(f > 0 if e == ANY else f == e for f, e in pairs)


def confirmed(
    observed: Observed, mutation: Mutation, read: Callable[[RunningSite], oracle.Facts], told: set[str]
) -> set[str]:
    """Make the change; the oracle must see it, and verify must report it beside what it has `told` before. Returns all
    that it reports now."""
    before = read(observed.site)
    mutation.do(observed.site)
    found = oracle.changed(before, read(observed.site))
    assert fits(found, mutation.facts), found
    now = observed.differences()
    said = mutation.said.replace("TUNNEL", observed.site.ipsec.device)
    assert any(said in text for text in now - told), "\n".join(sorted(now - told))
    return now


class TestChanges:
    """Every change by hand is reported, and nothing when it has been undone."""

    @pytest.mark.parametrize("mutation", FIREWALL, ids=str)
    def test_of_the_firewall(self, observed: Observed, mutation: Mutation) -> None:
        saved = observed.site.run("nft", "-s", "list", "table", "inet", "cpe_agent").stdout
        try:
            confirmed(observed, mutation, oracle.nftables, set())
        finally:
            anew = f"add table inet cpe_agent\ndelete table inet cpe_agent\n{saved}"
            observed.lab.run(SITE, "nft", "-f", "-", input=anew)
        assert observed.differences() == set()

    @pytest.mark.skipif(resolve(BACKEND) is not Backend.KERNEL, reason="this kernel has no ESP")
    @pytest.mark.parametrize(("mutation", "undo"), POLICIES, ids=[str(mutation) for mutation, _ in POLICIES])
    def test_of_the_kernels_ipsec(
        self, observed: Observed, mutation: Mutation, undo: Callable[[RunningSite], None]
    ) -> None:
        try:
            confirmed(observed, mutation, oracle.routing, set())
        finally:
            undo(observed.site)
        assert observed.differences() == set()

    @pytest.mark.parametrize(("mutation", "undo"), ROUTING, ids=[str(mutation) for mutation, _ in ROUTING])
    def test_of_the_routing(self, observed: Observed, mutation: Mutation, undo: Callable[[RunningSite], None]) -> None:
        try:
            confirmed(observed, mutation, oracle.routing, set())
        finally:
            undo(observed.site)
        assert observed.differences() == set()

    def test_of_charon(self, observed: Observed) -> None:
        try:
            told: set[str] = set()
            for mutation in CHARON:
                try:
                    told = confirmed(observed, mutation, oracle.charon, told)
                except AssertionError as error:
                    pytest.fail(f"{mutation}: {error}")
            observed.site.charon.kill()
            assert any(text.startswith("missing charon does not answer") for text in observed.differences())
        finally:
            observed.site.charon.stop()
            observed.site.start_charon()
            observed.settle()

    def test_are_many(self) -> None:
        assert len({str(m) for m in (*FIREWALL, *(m for m, _ in ROUTING), *CHARON)}) >= 30


class TestVerify:
    """The command itself: what it prints, and what it exits with."""

    def test_in_sync_without_the_daemon(self, observed: Observed) -> None:
        done = observed.command("verify")
        assert (done.status, done.stdout, done.stderr) == (
            0,
            f"{SITE}: in sync with document {observed.version}.\n",
            "",
        )

    def test_differences_are_printed_by_target(self, observed: Observed) -> None:
        lan = "10.101.0.0/24"
        element = f"{lan} . 192.168.7.0/24 . 6 . 22"
        observed.site.run("nft", f"add element inet cpe_agent local_pairs4 {{ {element} }}")
        observed.site.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=0")
        try:
            told, for_programs = observed.command("verify"), observed.command("verify", "--json")
        finally:
            observed.site.run("nft", f"delete element inet cpe_agent local_pairs4 {{ {element} }}")
            observed.site.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        assert told.status == for_programs.status == 1
        assert told.stdout.splitlines() == [
            f"{SITE}: 2 differences from document {observed.version}.",
            "",
            "rules",
            f"  foreign  set local_pairs4: element {element}",
            "",
            "routes",
            "  altered  v4 forwarding is off, not on",
        ]
        report = json.loads(for_programs.stdout)
        assert report["in_sync"] is False
        assert [(d["target"], d["kind"]) for d in report["differences"]] == [
            ("rules", "foreign"),
            ("routes", "altered"),
        ]


class TestPlan:
    """What would be changed, and nothing is."""

    def test_of_a_repair(self, observed: Observed) -> None:
        observed.site.run("nft", "delete element inet cpe_agent lans { lan0 }")
        observed.site.run("ip", "rule", "del", "priority", "110", "iif", "wired")
        before = _all(observed.site)
        planned = observed.command("plan")
        assert _all(observed.site) == before
        assert (planned.status, planned.stdout.splitlines()) == (
            0,
            [
                f"{SITE}: 2 operations for document {observed.version}.",
                "",
                "routes",
                "  add v4 rule 110 iif wired table 15501",
                "",
                "open rules",
                "  add 1 element to set lans",
                "    lan0",
            ],
        )
        observed.settle()

    def test_of_another_document(self, observed: Observed) -> None:
        document = observed.document()
        document["version"] += 1
        gone = document["pairs"].pop()
        document["network"] = "elsewhere"
        file = observed.site.outside / "candidate.json"
        file.write_text(json.dumps(document))
        before = _all(observed.site)
        planned = observed.command("plan", "--json", str(observed.site.inside / file.name))
        assert _all(observed.site) == before
        assert planned.status == 0, planned.stderr
        report = json.loads(planned.stdout)
        assert (report["document_version"], report["count"]) == (document["version"], len(report["operations"]))
        (note,) = report["notes"]
        assert note.startswith("the agent would refuse this document: network: is 'elsewhere'")
        stages = [operation["stage"] for operation in report["operations"]]
        assert sorted(stages, key=["close rules", "routes", "tunnels", "open rules"].index) == stages
        (pairs,) = [o for o in report["operations"] if o["what"] == "delete 1 element from set local_pairs4"]
        assert pairs["details"][0].endswith(f"(pair {gone['id']})")
        assert any(o["what"].startswith("end CHILD_SA") for o in report["operations"])


def _all(site: RunningSite) -> oracle.Facts:
    return oracle.nftables(site) + oracle.routing(site) + oracle.charon(site)
