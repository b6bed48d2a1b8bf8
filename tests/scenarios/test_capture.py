"""`capture` and `support-bundle` on living sites: what a real flow looks like on both sides of encryption, and
what a bundle of a site with tunnels has in it, with its agent and without."""

from __future__ import annotations

import base64
import json
import re
import sys
import tarfile
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from cpe_agent import exits
from tests.edge.test_tap import records
from tests.lab.container import Completed
from tests.lab.lab import Lab
from tests.scenarios.publishing import served

HOST, SERVER = IPv4Address("10.101.0.10"), IPv4Address("10.10.0.10")
BRANCH_WIRED, HUB_WAN = IPv4Address("203.0.113.18"), IPv4Address("198.51.100.10")
# The hospital's other uplink, as itself and as the hub knows it: by the carrier's NAT, which the van is behind as well.
BRANCH_LTE = {"hospital-1": IPv4Address("100.64.1.10"), "centre": IPv4Address("203.0.113.100")}
UDP = 17
COMMAND_S = 40.0


def command(lab: Lab, site: str, *words: str) -> Completed:
    name, *more = words
    argv = [sys.executable, "-m", "cpe_agent", name, "--config", str(lab.site(site).inside / "agent.yaml"), *more]
    return lab.site(site).run(*argv, check=False, timeout_s=COMMAND_S)


def pair_of(lab: Lab, site: str, local: str, remote: str) -> str:
    pairs = served(lab, site)["pairs"]
    return str(next(pair["id"] for pair in pairs if (pair["local"], pair["remote"]) == (local, remote)))


def ends(packet: bytes) -> tuple[IPv4Address, IPv4Address]:
    return IPv4Address(packet[12:16]), IPv4Address(packet[16:20])


def captured(lab: Lab, site: str, pair: str, *options: str) -> tuple[dict[str, Any], list[bytes], list[bytes]]:
    """The report, and the packets before and after encryption."""
    where = f"/run/{site}/capture"
    lab.path(where).mkdir(exist_ok=True)
    done = command(lab, site, "capture", pair, "--json", "--output", where, *options)
    assert done.status == 0, (done.stdout, done.stderr)
    report = json.loads(done.stdout)
    before, after = ([data for _, _, data in records(lab.path(report[name]))] for name in ("before", "after"))
    return report, before, after


@pytest.mark.parametrize("site", ["hospital-1", "centre"])
def test_that_a_flow_is_seen_before_and_after_encryption(lab: Lab, site: str) -> None:
    subnets = ("10.101.0.0/24", "10.10.0.0/24")
    pair = pair_of(lab, site, *(subnets if site == "hospital-1" else reversed(subnets)))
    with lab.flow("hospital-1-host", "centre-server", rate=50), lab.flow("van-1-host", "centre-server", port=7001):
        report, before, after = captured(lab, site, pair, "--seconds", "4", "--packets", "5000", "--whole")
    assert {ends(packet) for packet in before} == {(HOST, SERVER), (SERVER, HOST)}, "the van's are of another pair"
    outside = {ends(packet) for packet in after}
    assert outside >= {(BRANCH_WIRED, HUB_WAN), (HUB_WAN, BRANCH_WIRED)}
    assert {end for both in outside for end in both} <= {BRANCH_WIRED, BRANCH_LTE[site], HUB_WAN}
    assert all(packet[9] == UDP for packet in after)
    assert all(4500 in (int.from_bytes(p[20:22]), int.from_bytes(p[22:24])) for p in after)
    # Neither address of the inside is anywhere outside.
    assert not [p for p in after if HOST.packed in p or SERVER.packed in p]
    # 50 packets a second each way; starting and ending are not of the same instant.
    counts = report["before_packets"]
    assert sum(counts["packets_in"].values()) >= 100 and sum(counts["packets_out"].values()) >= 100
    assert len(after) >= len(before) * 0.9, "what passed on the LAN passed in a tunnel"
    assert any("traffic" in words and "SPI in" in words for words in report["carried_by"])
    mode = lab.path(report["before"]).stat().st_mode & 0o777
    assert mode == 0o600


def test_that_it_is_bounded_by_packets_and_keeps_headers_only(lab: Lab) -> None:
    pair = pair_of(lab, "hospital-1", "10.101.0.0/24", "10.10.0.0/24")
    with lab.flow("hospital-1-host", "centre-server", rate=100):
        report, before, after = captured(lab, "hospital-1", pair, "--seconds", "30", "--packets", "20")
    assert len(before) == len(after) == 20 and report["before_packets"]["full"] and report["seconds"] < 20
    assert max(map(len, before + after)) <= 128


def test_that_silence_and_unknown_pairs_are_told(lab: Lab) -> None:
    pair = pair_of(lab, "van-1", "10.102.0.0/24", "10.20.0.0/24")
    silent = command(lab, "van-1", "capture", pair, "--seconds", "1", "--output", "/run")
    assert silent.status == exits.NOTHING_CAPTURED
    assert "Nothing passed on the LAN: is anybody talking" in silent.stdout
    unknown = command(lab, "van-1", "capture", pair[:-1])
    assert unknown.status == exits.BAD_DATA
    said = " ".join(unknown.stderr.split())
    assert f"van-1 has no pair {pair[:-1]!r}: it has " in said and f"'{pair}'" in said.partition(": it has ")[2]
    # What a shell leaves of it when it was typed without quotes.
    unquoted = command(lab, "van-1", "capture", pair.partition(">")[0])
    assert unquoted.status == exits.BAD_DATA
    assert "without quotes the shell takes what follows >" in " ".join(unquoted.stderr.split())


@pytest.mark.parametrize("alive", [True, False])
def test_that_a_bundle_has_what_helps_and_no_key(lab: Lab, alive: bool) -> None:
    site = lab.site("hospital-1")
    path = f"/run/bundle-{alive}.tar.gz"
    if not alive:
        site.agent.stop()
    try:
        done = command(lab, "hospital-1", "support-bundle", "--output", path)
    finally:
        site.agent.start()
    assert done.status == 0 and path in done.stdout.splitlines(), done.stdout + done.stderr
    with tarfile.open(lab.path(path)) as tar:
        parts = {m.name.partition("/")[2]: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
    assert (b"hospital-1 (branch)" in parts.get("status.txt", b"")) is alive
    assert b"hospital-1: in sync with document" in parts["verify.txt"]
    assert b"chain lan_to_tunnel" in parts["network/nftables.txt"]
    assert b"ESTABLISHED" in parts["ipsec/sas.txt"] and b"lookup" in parts["network/rules.txt"]
    # As it was signed, whoever wrote it: with spaces or without.
    assert re.search(rb'"site": ?"hospital-1"', parts["state/document"])
    assert json.loads(parts["living.json"])["charon"]["ike_sas"]
    assert len(parts["network/routes.txt"]) > 500
    key = "".join((site.outside / "key.pem").read_text().splitlines()[1:-1])
    secret = base64.b64decode(key)[36:68]
    for name, content in parts.items():
        for form in (secret, secret.hex().encode(), key[48:88].encode(), b"PRIVATE KEY"):
            assert form not in content, name
    # 3 MB would be much for four paths.
    assert Path(lab.path(path)).stat().st_size < 1_000_000
