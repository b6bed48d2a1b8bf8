"""Does the kernel hold the policies that we ask for, and do we read what others gave it?

Needs a kernel with ESP: `make test-kernel`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
import trio

from cpe_agent.edge import xfrm
from cpe_agent.edge.ipsec import detect
from cpe_agent.edge.ipsecwatch import KernelIpsecPort
from cpe_agent.edge.netlink import Netlink
from cpe_agent.model.dataplane import Backend, BlockPolicy, Routes
from cpe_agent.model.observed import KernelPolicy, KernelSa
from cpe_agent.model.ops import AddPolicy, DeletePolicy

pytestmark = pytest.mark.skipif(detect() is not Backend.KERNEL, reason="this kernel has no ESP: make test-kernel")

POLICIES = frozenset(
    {
        BlockPolicy("out", "0.0.0.0/0", "10.10.0.0/24"),
        BlockPolicy("in", "10.10.0.0/24", "0.0.0.0/0"),
        BlockPolicy("fwd", "10.10.0.0/24", "0.0.0.0/0"),
        BlockPolicy("fwd", "::/0", "fd00:1::/64"),
        BlockPolicy("out", "0.0.0.0/0", "10.255.0.3/32"),
    }
)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    ip("xfrm", "policy", "flush")
    ip("xfrm", "state", "flush")
    yield
    ip("xfrm", "policy", "flush")
    ip("xfrm", "state", "flush")


def test_that_what_is_added_is_read_and_can_be_deleted() -> None:
    for policy in [*POLICIES, *POLICIES]:
        xfrm.add_block_policy(policy)
    assert xfrm.block_policies() == POLICIES
    listed = ip("xfrm", "policy", "list", "action", "block")
    assert listed.count("priority 900155") == len(POLICIES) and "src 0.0.0.0/0 dst 10.10.0.0/24" in listed
    gone = BlockPolicy("in", "10.10.0.0/24", "0.0.0.0/0")
    for _ in range(2):
        xfrm.delete_block_policy(gone)
    assert xfrm.block_policies() == POLICIES - {gone}


def test_that_others_policies_are_told_apart() -> None:
    ip("xfrm", "policy", "add", "src", "10.1.0.0/24", "dst", "10.10.0.0/24", "dir", "out", "action", "block")
    template = "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 7 mode tunnel"
    ip(*f"xfrm policy add src 10.1.0.0/24 dst 10.9.0.0/24 proto tcp dport 443 dir out priority 5 {template}".split())
    ip(*f"xfrm policy add src 10.9.0.0/24 dst 10.1.0.0/24 dir in mark 3 mask 0xffffffff {template}".split())
    assert xfrm.block_policies() == frozenset()
    held = xfrm.ipsec().policies
    assert {(p.direction, p.source, p.destination, p.protocol, p.destination_port, p.reqid, p.mark) for p in held} == {
        ("out", "10.1.0.0/24", "10.10.0.0/24", 0, 0, 0, 0),
        ("out", "10.1.0.0/24", "10.9.0.0/24", 6, 443, 7, 0),
        ("in", "10.9.0.0/24", "10.1.0.0/24", 0, 0, 7, 3),
    }


def test_that_anothers_policy_in_our_place_is_no_policy_of_ours() -> None:
    ip("xfrm", "policy", "add", "src", "0.0.0.0/0", "dst", "10.10.0.0/24", "dir", "out", "priority", "5")
    with pytest.raises(OSError, match="another program"):
        xfrm.add_block_policy(BlockPolicy("out", "0.0.0.0/0", "10.10.0.0/24"))


def _sa(spi: str, *more: str) -> None:
    key = "0x" + "00" * 36
    esp = f"src 192.0.2.1 dst 192.0.2.2 proto esp spi {spi} reqid 9 mode tunnel"
    ip(*f"xfrm state add {esp} aead rfc4106(gcm(aes)) {key} 128 encap espinudp 4500 40000 0.0.0.0".split(), *more)


def test_that_sas_and_policies_are_deleted_one_by_one() -> None:
    _sa("0xc1000001")
    _sa("0xc1000002", "output-mark", "3")
    ip("xfrm", "policy", "add", "src", "10.9.0.0/24", "dst", "10.1.0.0/24", "dir", "in", "mark", "3")
    ip("xfrm", "policy", "add", "src", "10.9.0.0/24", "dst", "10.1.0.0/24", "dir", "in")

    async def delete() -> tuple[set[KernelSa], set[KernelPolicy]]:
        port = KernelIpsecPort()
        held = await port.read()
        assert {(sa.source, sa.destination, sa.spi, sa.reqid, sa.destination_port) for sa in held.sas} == {
            ("192.0.2.1", "192.0.2.2", 0xC1000001, 9, 40000),
            ("192.0.2.1", "192.0.2.2", 0xC1000002, 9, 40000),
        }
        sas = {sa for sa in held.sas if sa.spi == 0xC1000001}
        marked = {policy for policy in held.policies if policy.mark == 3}
        assert len(marked) == 1
        for _ in range(2):
            await port.delete(sas, marked)
        left = await port.read()
        return set(left.sas), set(left.policies)

    sas, policies = trio.run(delete)
    assert {(sa.spi, sa.mark) for sa in sas} == {(0xC1000002, 3)}
    assert {policy.mark for policy in policies} == {0}


def test_that_a_flush_is_heard_and_read_anew() -> None:
    async def flush() -> Routes:
        port, netlink = KernelIpsecPort(), Netlink()
        await netlink.apply([AddPolicy(policy) for policy in sorted(POLICIES)])
        assert (await netlink.read()).policies == POLICIES
        changes = port.changes()
        await anext(changes)
        ip("xfrm", "policy", "flush")
        with trio.fail_after(10):
            await anext(changes)
        await changes.aclose()
        assert (await netlink.read()).policies == frozenset()
        await netlink.apply([AddPolicy(policy) for policy in sorted(POLICIES)])
        # One that goes by itself is heard too, and one of somebody else's is none of ours.
        await netlink.apply([DeletePolicy(BlockPolicy("out", "0.0.0.0/0", "10.255.0.3/32"))])
        return await netlink.read()

    assert trio.run(flush).policies == POLICIES - {BlockPolicy("out", "0.0.0.0/0", "10.255.0.3/32")}


def test_that_somebody_elses_policy_is_no_news_of_ours() -> None:
    netlink = xfrm.subscribed((xfrm.GROUP_POLICY,))
    assert netlink is not None
    with netlink:
        netlink.setblocking(True)
        ip("xfrm", "policy", "add", "src", "10.9.0.0/24", "dst", "10.1.0.0/24", "dir", "in", "priority", "7")
        assert not xfrm.concerns_block_policies(netlink.recv(65536))
        ip("xfrm", "policy", "del", "src", "10.9.0.0/24", "dst", "10.1.0.0/24", "dir", "in")
        assert not xfrm.concerns_block_policies(netlink.recv(65536))
        xfrm.add_block_policy(BlockPolicy("in", "10.9.0.0/24", "0.0.0.0/0"))
        assert xfrm.concerns_block_policies(netlink.recv(65536))
        ip("xfrm", "policy", "del", "src", "10.9.0.0/24", "dst", "0.0.0.0/0", "dir", "in")
        assert xfrm.concerns_block_policies(netlink.recv(65536))
