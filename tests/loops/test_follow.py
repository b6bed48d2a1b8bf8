"""Which documents does the agent obey, and what becomes of the data plane while the controller misbehaves?"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cpe_agent.model.dataplane import FOUND_TABLES
from cpe_agent.model.document import Document, encode
from cpe_agent.ports import SignedDocument
from tests.loops.documents import PAIRS, POST, STRANGER, branch
from tests.loops.story import Line, expect
from tests.loops.world import World

KERNEL = ("rules", "routes", "tunnels")


def _edited(edit: Callable[[dict[str, Any]], object]) -> SignedDocument:
    """Version 2 after `edit` of its JSON, signed as it should be."""
    fields = json.loads(encode(branch(2)))
    edit(fields)
    return POST.sign(json.dumps(fields).encode())


def _tampered() -> SignedDocument:
    signed = POST.send(branch(2))
    return SignedDocument(signed.raw.replace(b"10.10.0.0", b"10.11.0.0"), signed.signature, signed.key_id)


# What is wrong -> (the document, the field that the refusal names, words of its reason).
BAD = {
    "not JSON": (POST.sign(b"<html>503</html>"), "", "not JSON"),
    "half of it": (POST.sign(encode(branch(2))[:-20]), "", "not JSON"),
    "not an object": (POST.sign(b"[]"), "", "object"),
    "wrong signature": (_tampered(), "signature", "does not fit"),
    "signed by another key of the same name": (STRANGER.send(branch(2)), "signature", "does not fit"),
    "signed by an unknown key": (SignedDocument(encode(branch(2)), b"x" * 64, "key-9"), "signature", "key-9"),
    "another site's": (POST.send(branch(2, site="hospital-2")), "site", "hospital-2"),
    "another network's": (POST.send(branch(2, network="other")), "network", "other"),
    "an older version": (POST.send(branch(1, hub_nat=True)), "version", "not newer"),
    "an older epoch": (POST.send(branch(9, epoch=0)), "version", "not newer"),
    "an unknown field": (_edited(lambda d: d["lans"][0].update(colour="red")), "lans[0]", "colour"),
    "an unknown top field": (_edited(lambda d: d.update(colour="red")), "", "colour"),
    "no network": (_edited(lambda d: d["pairs"][1].update(remote="10.20.0.300/24")), "pairs[1].remote", "10.20.0.300"),
    "a network with host bits": (_edited(lambda d: d["lans"][0].update(subnet="10.101.0.7/24")), "lans[0].subnet", ""),
    "an address that is a number": (_edited(lambda d: d.update(site_address=5)), "site_address", "str"),
    "a missing field": (_edited(lambda d: d.pop("peers")), "", "peers"),
    "an unknown peer": (_edited(lambda d: d["pairs"][0].update(peers=["nobody"])), "pairs[0].peers[0]", "nobody"),
    "expired": (
        POST.send(branch(2, expires_at=dt.datetime(2026, 1, 2, tzinfo=dt.UTC))),
        "expires_at",
        "has passed",
    ),
    "mass removal": (POST.send(branch(2, pairs=PAIRS[:1])), "pairs", "allow_mass_removal"),
    "no peers": (POST.send(branch(2, peers={}, pairs=())), "peers", "allow_mass_removal"),
    "another schema": (_edited(lambda d: d.update(schema=99)), "schema", "99"),
}


@pytest.mark.parametrize("name", BAD)
async def test_that_a_bad_document_is_refused_and_changes_nothing(autojump_clock: MockClock, name: str) -> None:
    signed, field, words = BAD[name]
    world = World()
    world.publish(branch(1))
    async with world.agent() as agent:
        await trio.sleep(3)
        before = await world.dataplane()
        served_at = trio.current_time()
        world.controller.put(signed, (1, 2))
        await trio.sleep(5)
        [refusal] = world.story.events("document_rejected", served_at)
        assert f"field={field} reason=" in refusal.text
        assert words in refusal.text
        shown = (await agent.conditions())["DocumentRejected"]
        assert field in shown and words in shown
        expect(world.story.since(served_at, *KERNEL), [])
        assert await world.dataplane() == before
        assert (await agent.status()).document_version == 1
        assert world.store.document == POST.send(branch(1))
        # The next good one is obeyed, and the condition goes.
        world.publish(branch(3))
        await trio.sleep(1)
        assert (await agent.status()).document_version == 3
        assert "DocumentRejected" not in await agent.conditions()


async def test_that_a_bad_first_document_opens_nothing(autojump_clock: MockClock) -> None:
    world = World()
    world.controller.put(STRANGER.send(branch()), (1, 1))
    async with world.agent() as agent:
        await trio.sleep(30)
        expect(_but_its_own_way_out(world), ["rules replace table"])
        assert {"NoDocument", "DocumentRejected"} == set(await agent.conditions())


@pytest.mark.parametrize("damage", ["signature", "another site's"])
async def test_that_a_stored_document_is_verified_again(autojump_clock: MockClock, damage: str) -> None:
    world = World()
    world.controller.fault = "timed out"
    world.store.document = {
        "signature": STRANGER.send(branch()),
        "another site's": POST.send(branch(site="hospital-2")),
    }[damage]
    async with world.agent() as agent:
        await trio.sleep(30)
        expect(_but_its_own_way_out(world), ["rules replace table"])
        assert "NoDocument" in await agent.conditions()
        assert len(world.story.events("document_rejected")) == 1


async def test_that_a_change_is_in_force_at_once(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(10)
        world.publish(branch(2, pairs=PAIRS[:2]))
        await trio.sleep(0.1)
        assert (await agent.status()).document_version == 2
        assert not any("10.50.0.0" in element for element in _pairs(world))
        assert world.store.document is not None and world.store.order == (1, 2)


async def test_the_controller_silent_failing_and_back(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(10)
        before = await world.dataplane()
        lost_at = trio.current_time()
        world.controller.fault = "fell silent"
        world.controller.cut()
        await trio.sleep(65)
        assert "fell silent" in (await agent.conditions())["ControllerUnreachable"]
        # Every address of ours is tried, the better uplink first, and the kernel's own choice last.
        asked = world.controller.asked[-6:]
        assert set(asked) == {"203.0.113.18", "100.64.1.10", ""}
        world.controller.fault = "answered 500 Internal Server Error"
        await trio.sleep(65)
        assert "500" in (await agent.conditions())["ControllerUnreachable"]
        assert len(world.story.events("controller_lost", lost_at)) == 1, "once is enough"
        expect(world.story.since(lost_at, *KERNEL), [])
        assert await world.dataplane() == before
        world.controller.fault = None
        world.publish(branch(2))
        await trio.sleep(35)
        assert await agent.conditions() == {}
        assert (await agent.status()).document_version == 2


async def test_that_waits_for_the_controller_grow_but_not_for_ever(autojump_clock: MockClock) -> None:
    world = World()
    world.controller.fault = "refused"
    async with world.agent():
        await trio.sleep(600)
        rounds = world.controller.asked.count("")
        assert 600 / 30 - 2 <= rounds <= 60, f"{rounds} rounds in ten minutes"


async def test_that_a_document_is_obeyed_although_the_disk_is_full(autojump_clock: MockClock) -> None:
    world = World()
    world.publish(branch())
    async with world.agent() as agent:
        await trio.sleep(10)
        world.store.refusal = "No space left on device"
        world.publish(branch(2, pairs=PAIRS[:2]))
        await trio.sleep(10)
        assert (await agent.status()).document_version == 2
        assert any("No space left" in reason for reason in (await agent.conditions()).values())
        assert not any("10.50.0.0" in element for element in _pairs(world))
        world.store.refusal = None
        world.publish(branch(3))
        await trio.sleep(10)
        assert _version(world.store.document) == 3
        assert await agent.conditions() == {}


def _pairs(world: World) -> frozenset[str]:
    assert world.firewall.table is not None
    return next(nft_set.elements for nft_set in world.firewall.table.sets if nft_set.name == "local_pairs4")


def _version(signed: SignedDocument | None) -> int:
    assert signed is not None
    version: int = json.loads(signed.raw)["version"]
    return version


def test_that_the_documents_of_these_tests_differ_from_the_good_one() -> None:
    good: Document = branch(1)
    assert all(signed.raw != encode(good) for signed, _, _ in BAD.values())


def _but_its_own_way_out(world: World) -> list[Line]:
    """What was done, without the routes by which a router that was never told anything asks its controller."""
    return [line for line in world.story.since(0, *KERNEL) if f"table {FOUND_TABLES // 10}" not in line.text]


async def test_that_without_a_document_every_link_is_tried_by_its_own_way(autojump_clock: MockClock) -> None:
    world = World()
    world.controller.fault = "timed out"
    async with world.agent():
        await trio.sleep(20)
        assert {"", "203.0.113.18", "100.64.1.10"} == set(world.controller.asked)
        found = await world.routes.read()
        ways = {(route.device, route.gateway) for route in found.routes if route.destination == "0.0.0.0/0"}
        assert ways == {("wired", "203.0.113.17"), ("lte", "100.64.1.1")}
        assert {rule.source for rule in found.rules} == {"203.0.113.18", "100.64.1.10"} and not found.forwarding
        world.controller.fault = None
        world.publish(branch())
        await trio.sleep(40)
        assert world.carried()


async def test_that_a_silent_uplink_is_left_at_once(autojump_clock: MockClock) -> None:
    """The stream over it would be missed after 30 s; the paths know within a second."""
    world = World()
    world.publish(branch())
    async with world.agent():
        await trio.sleep(10)
        asked = len(world.controller.asked)
        world.blackhole("wired")
        await trio.sleep(3)
        assert world.controller.asked[asked:] == ["100.64.1.10"] * 2, "a document, then the stream"
        # What comes over the good link is obeyed, and the good link is not left.
        world.publish(branch(2))
        await trio.sleep(1)
        assert world.story.events("document_accepted")[-1].text.endswith("version=2")
        world.heal("wired")
        await trio.sleep(60)
        assert world.controller.asked[-1] == "203.0.113.18"
        assert not world.story.events("controller_lost")
