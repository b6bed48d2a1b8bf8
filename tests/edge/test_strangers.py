"""What is not ours and stands in our way is told; what is ours, and what does not concern us, is not."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from cpe_agent.edge.netlink import Netlink

OURS = (
    "rule add priority 110 iif str0 table 15501 protocol 155",
    "rule add priority 140 from 192.0.2.1 table 15510 protocol 155",
    "route add unreachable default table 15501 metric 1000 proto 155",
    "route add 10.1.0.0/24 dev str0 table 15500 metric 100 proto 155",
    "-6 rule add priority 110 iif str0 table 15501 protocol 155",
    "-6 route add unreachable default table 15501 metric 1000 proto 155",
)
# Another program's, where it does no harm.
FARTHER = (
    "rule add priority 5210 table 52",
    "route add 10.7.0.0/24 dev str0 table 52",
    "route add 10.8.0.0/24 dev str0",
)


def ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)


@pytest.fixture(autouse=True)
def ours() -> Iterator[None]:
    ip("link add str0 type veth peer name str1", "link set str0 up", *OURS, *FARTHER)
    yield
    ip("link del str0", "rule del priority 5210")
    for rule in OURS:
        if " rule " in f" {rule}":
            ip(rule.replace("add", "del"))
    ip("route flush table 15501", "-6 route flush table 15501")


async def test_nothing_of_ours_and_nothing_farther_away() -> None:
    assert await Netlink().strangers() == ()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("route add 10.2.0.0/24 dev str0 table 15500", "route 10.2.0.0/24 table 15500 metric 0 is somebody else's"),
        ("-6 route add fd00:2::/64 dev str0 table 15531", "route fd00:2::/64 table 15531"),
        (
            "route add blackhole 10.2.0.0/24 table 15500 proto 155",
            "route 10.2.0.0/24 table 15500 metric 0 is not of a kind that the agent makes",
        ),
        ("rule add priority 50 table main", "v4 rule 50 table 254 is somebody else's and comes before ours"),
        ("-6 rule add priority 120 table main", "v6 rule 120 table 254 is somebody else's and comes before ours"),
        ("rule add priority 111 to 10.9.0.0/16 table main protocol 155", "v4 rule 111 table 254 says more"),
        ("rule add priority 111 iif str0 fwmark 1 table 15501 protocol 155", "(fwmark, fwmask)"),
        ("rule add priority 111 not from 10.9.0.0/16 table main protocol 155", "(not)"),
        ("rule add priority 111 iif str0 unreachable protocol 155", "(action)"),
        ("rule add priority 111 iif str0 table 15501 suppress_prefixlength 8 protocol 155", "(suppress_prefixlen)"),
        ("route add 10.2.0.0/24 dev str0 table 15502", "route 10.2.0.0/24 table 15502 metric 0 is somebody else's"),
    ],
)
async def test_a_stranger(command: str, words: str) -> None:
    ip(command)
    try:
        told = await Netlink().strangers()
        assert len(told) == 1 and words in told[0]
    finally:
        ip(command.replace(" add ", " del "))
