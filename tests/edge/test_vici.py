"""The VICI client against a scripted charon on a real unix socket. test_ipsec.py has it talk to a real one."""

from __future__ import annotations

import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from vici.protocol import Message, Packet

from cpe_agent.edge.vici import Outgoing, ViciClient, ViciError, ViciLost, ViciRefused, open_vici, section, text, texts
from cpe_agent.edge.vici_codec import Reply, decode_message, encode_request
from cpe_agent.ports import EdgeError


def framed(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack("!IB", 1 + len(payload), kind) + payload


def reply(**values: object) -> bytes:
    return framed(Packet.CMD_RESPONSE, Message.serialize(values))


def event(name: str, **values: object) -> bytes:
    return framed(Packet.EVENT, bytes([len(name)]) + name.encode() + Message.serialize(values))


CONFIRM = framed(Packet.EVENT_CONFIRM)


class Scripted:
    """One accepted connection: reads whole packets, sends raw bytes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def take(self) -> tuple[int, str, dict[str, object]]:
        (length,) = struct.unpack("!I", await self._exactly(4))
        packet = await self._exactly(length)
        name = packet[2 : 2 + packet[1]].decode()
        return packet[0], name, decode_message("test", packet[2 + packet[1] :])  # type: ignore[return-value]

    async def send(self, *packets: bytes) -> None:
        await self.stream.send_all(b"".join(packets))

    async def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = await self.stream.receive_some(count - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return data


Script = Callable[[Scripted], Awaitable[None]]


@asynccontextmanager
async def scripted(*scripts: Script) -> AsyncIterator[Path]:
    """A charon that plays one script per connection, in order, and closes the connection after it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "vici"
        listener = trio.socket.socket(socket.AF_UNIX)
        await listener.bind(str(path))
        listener.listen(3)

        async def play(script: Script, accepted: trio.socket.SocketType) -> None:
            async with trio.SocketStream(accepted) as stream:
                await script(Scripted(stream))

        async def serve() -> None:
            async with trio.open_nursery() as players:
                for script in scripts:
                    accepted, _ = await listener.accept()
                    players.start_soon(play, script, accepted)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield path
            nursery.cancel_scope.cancel()
        listener.close()


async def version_twice(charon: Scripted) -> None:
    for number in "12":
        await charon.take()
        await charon.send(reply(version=number))


async def test_request_encodes_what_charon_reads_and_decodes_text() -> None:
    seen: list[object] = []

    async def script(charon: Scripted) -> None:
        seen.append(await charon.take())
        await charon.send(reply(success="yes", sub={"id": b"CN=\xff", "list": ["a", "b"]}, data=b"\x30\x82"))

    message: dict[str, Outgoing] = {
        "c": {"mobike": False, "encap": True, "port": 4500, "children": {"p": {"ts": ("10.0.0.1/32",)}}, "e": {}}
    }
    async with scripted(script) as path, open_vici(path) as vici:
        answer = await vici.request("load-conn", message)
    sent = {"mobike": "no", "encap": "yes", "port": "4500", "children": {"p": {"ts": ["10.0.0.1/32"]}}, "e": {}}
    assert seen == [(Packet.CMD_REQUEST, "load-conn", {"c": sent})]
    sub = section(answer, "sub")
    assert text(sub, "id").encode("utf-8", "surrogateescape") == b"CN=\xff"
    assert texts(sub, "list") == ("a", "b")
    assert answer["data"] == b"\x30\x82"
    assert text(answer, "absent", "-") == "-"
    with pytest.raises(ViciError):
        text(answer, "sub")


async def test_what_cannot_be_said_is_never_sent() -> None:
    async with open_vici(Path("/nonexistent/vici")) as vici:
        with pytest.raises(ViciRefused, match="cannot be encoded"):
            await vici.request("load-cert", {"data": b"x" * 70_000})
        with pytest.raises(ViciRefused, match="allowed"):
            await vici.request("load-conn", {f"k{n}": b"x" * 60_000 for n in range(9)})
        with pytest.raises(TypeError, match="None"):
            await vici.request("load-conn", {"c": {"id": None}})  # type: ignore[dict-item]
        with pytest.raises(ViciLost, match="version"):
            await vici.request("version")


async def test_refusals_keep_the_connection() -> None:
    async def script(charon: Scripted) -> None:
        await charon.take()
        await charon.send(reply(success="no", errmsg="CHILD_SA config 'x' not found"))
        await charon.take()
        await charon.send(framed(Packet.CMD_UNKNOWN))
        await version_twice(charon)

    async with scripted(script) as path, open_vici(path) as vici:
        with pytest.raises(ViciRefused) as refusal:
            await vici.request("initiate", {"child": "x"})
        assert isinstance(refusal.value, EdgeError)
        assert (refusal.value.target, refusal.value.op) == ("charon", "initiate")
        assert refusal.value.cause == "CHILD_SA config 'x' not found"
        with pytest.raises(ViciRefused, match="does not know this command"):
            await vici.request("dance")
        assert await vici.request("version") == {"version": "1"}


async def test_collect_returns_all_streamed_in_order_and_unsubscribes() -> None:
    taken: list[tuple[int, str]] = []

    async def script(charon: Scripted) -> None:
        taken.append((await charon.take())[:2])
        await charon.send(CONFIRM)
        taken.append((await charon.take())[:2])
        # In pieces that have nothing to do with packets.
        for byte in event("list-sa", a={"uniqueid": "1"}) + event("list-sa", b={"uniqueid": "2"}) + reply():
            await charon.send(bytes([byte]))
        taken.append((await charon.take())[:2])
        await charon.send(CONFIRM)
        await version_twice(charon)

    async with scripted(script) as path, open_vici(path) as vici:
        listed = await vici.collect("list-sas", {"noblock": True}, "list-sa")
        assert listed == [{"a": {"uniqueid": "1"}}, {"b": {"uniqueid": "2"}}]
        assert await vici.request("version") == {"version": "1"}
    assert taken == [
        (Packet.EVENT_REGISTER, "list-sa"),
        (Packet.CMD_REQUEST, "list-sas"),
        (Packet.EVENT_UNREGISTER, "list-sa"),
    ]


async def test_what_a_listing_said_before_is_not_decoded_again() -> None:
    async def script(charon: Scripted) -> None:
        for second in ("2", "3"):
            await charon.take()
            await charon.send(CONFIRM)
            await charon.take()
            await charon.send(
                event("list-conn", a={"version": "1"}) + event("list-conn", b={"version": second}) + reply()
            )
            await charon.take()
            await charon.send(CONFIRM)

    known: dict[bytes, Reply] = {}
    async with scripted(script) as path, open_vici(path) as vici:
        before = await vici.collect("list-conns", {}, "list-conn", known=known)
        after = await vici.collect("list-conns", {}, "list-conn", known=known)
    assert before == [{"a": {"version": "1"}}, {"b": {"version": "2"}}]
    assert after == [{"a": {"version": "1"}}, {"b": {"version": "3"}}]
    assert after[0] is before[0]
    assert list(known.values()) == after, "what nobody says any more is forgotten"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\x00",
        reply(version="1")[:-1],
        struct.pack("!I", 600_000),
        framed(Packet.CMD_RESPONSE, b"\x03\x01k\x00\x09short"),
        framed(Packet.CMD_RESPONSE, b"\x02"),
        framed(Packet.CMD_RESPONSE, b"\x01\x01s"),
        framed(Packet.EVENT_CONFIRM),
        struct.pack("!I", 0),
    ],
)
async def test_eof_and_bad_bytes_lose_the_connection_and_the_next_call_has_a_new_one(answer: bytes) -> None:
    async def bad(charon: Scripted) -> None:
        await charon.take()
        await charon.send(answer)

    async with scripted(bad, version_twice) as path, open_vici(path) as vici:
        with pytest.raises(ViciLost):
            await vici.request("version")
        assert await vici.request("version") == {"version": "1"}


async def test_listing_that_breaks_off_is_an_error_not_a_short_listing() -> None:
    async def script(charon: Scripted) -> None:
        await charon.take()
        await charon.send(CONFIRM)
        await charon.take()
        await charon.send(event("list-sa", a={}))

    async with scripted(script) as path, open_vici(path) as vici:
        with pytest.raises(ViciLost, match="closed"):
            await vici.collect("list-sas", {}, "list-sa")


async def test_hung_charon_is_given_up_and_queued_callers_too(autojump_clock: trio.testing.MockClock) -> None:
    async def hang(charon: Scripted) -> None:
        await charon.take()
        await trio.sleep_forever()

    async with scripted(hang, version_twice) as path, open_vici(path) as vici:
        started = trio.current_time()
        failed: list[float] = []

        async def ask(timeout_s: float) -> None:
            with pytest.raises(ViciLost, match="no answer"):
                await vici.request("version", timeout_s=timeout_s)
            failed.append(trio.current_time() - started)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 10.0)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask, 2.0)
        assert failed == pytest.approx([2.0, 10.0], abs=0.1)
        assert await vici.request("version") == {"version": "1"}


async def test_cancelled_request_never_answers_the_next_one() -> None:
    asked, cancelled = trio.Event(), trio.Event()

    async def late(charon: Scripted) -> None:
        await charon.take()
        asked.set()
        await cancelled.wait()
        with pytest.raises((trio.BrokenResourceError, EOFError)):
            await charon.send(reply(version="late"))
            await charon.take()

    async with scripted(late, version_twice) as path, open_vici(path) as vici:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vici.request, "version")
            await asked.wait()
            nursery.cancel_scope.cancel()
        cancelled.set()
        assert await vici.request("version") == {"version": "1"}


async def test_idle_connection_that_charon_closed_costs_no_error() -> None:
    async def once(charon: Scripted) -> None:
        await charon.take()
        await charon.send(reply(version="old"))

    async with scripted(once, version_twice) as path, open_vici(path) as vici:
        assert await vici.request("version") == {"version": "old"}
        await trio.testing.wait_all_tasks_blocked()
        assert await vici.request("version") == {"version": "1"}


async def test_requests_of_many_tasks_do_not_mix() -> None:
    async def echo(charon: Scripted) -> None:
        while True:
            try:
                _, _, message = await charon.take()
            except EOFError:
                return
            await charon.send(reply(**message))

    async with scripted(echo) as path, open_vici(path) as vici:

        async def ask(number: int) -> None:
            assert await vici.request("echo", {"n": number}) == {"n": str(number)}

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(ask, number)


async def test_full_backlog_is_waited_out_within_the_bound(autojump_clock: trio.testing.MockClock) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "vici"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(0)
            with socket.socket(socket.AF_UNIX) as filler:
                filler.connect(str(path))
                vici = ViciClient(path)
                with pytest.raises(ViciLost, match="no answer within 3 s"):
                    await vici.request("version", timeout_s=3)
                async with trio.open_nursery() as nursery:

                    async def accept_both() -> None:
                        await trio.sleep(1)
                        listener.accept()[0].close()
                        await trio.sleep(1)
                        accepted = trio.socket.from_stdlib_socket(listener.accept()[0])
                        async with trio.SocketStream(accepted) as stream:
                            await version_twice(Scripted(stream))

                    nursery.start_soon(accept_both)
                    assert await vici.request("version") == {"version": "1"}
                    assert await vici.request("version") == {"version": "2"}
                    vici.close()


async def test_events_have_their_own_connection_and_miss_nothing() -> None:
    async def push(charon: Scripted) -> None:
        assert (await charon.take())[:2] == (Packet.EVENT_REGISTER, "ike-updown")
        await charon.send(CONFIRM)
        assert (await charon.take())[:2] == (Packet.EVENT_REGISTER, "child-updown")
        # One happens before the second name is confirmed.
        await charon.send(event("ike-updown", up="yes", p={"uniqueid": "7"}), CONFIRM)
        await charon.send(event("child-updown", p={"uniqueid": "7"}))

    async with scripted(push, version_twice) as path, open_vici(path) as vici:
        async with vici.events("ike-updown", "child-updown") as events:
            assert await vici.request("version") == {"version": "1"}
            assert await anext(events) == ("ike-updown", {"up": "yes", "p": {"uniqueid": "7"}})
            assert await anext(events) == ("child-updown", {"p": {"uniqueid": "7"}})
            with pytest.raises(ViciLost, match="closed"):
                await anext(events)
        assert await vici.request("version") == {"version": "2"}


async def test_unknown_event_is_refused() -> None:
    async def script(charon: Scripted) -> None:
        await charon.take()
        await charon.send(framed(Packet.EVENT_UNKNOWN))

    async with scripted(script) as path, open_vici(path) as vici:
        with pytest.raises(ViciRefused, match="does not know this event"):
            async with vici.events("full-moon"):
                pytest.fail("subscribed")


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name != "data"
)
LEAVES = st.text(max_size=30) | st.integers() | st.booleans() | st.lists(st.text(max_size=9), max_size=3)


@settings(deadline=None)  # the machine may be busy
@given(
    st.recursive(st.dictionaries(NAMES, LEAVES, max_size=4), lambda inner: st.dictionaries(NAMES, inner, max_size=3))
)
def test_what_is_encoded_is_what_is_decoded(message: dict[str, object]) -> None:
    def spoken(value: object) -> object:
        if isinstance(value, dict):
            return {key: spoken(item) for key, item in value.items()}
        if isinstance(value, list):
            return list(value)
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)

    packet = encode_request("c", message)  # type: ignore[arg-type]
    assert decode_message("c", packet[3:]) == spoken(message)


@settings(deadline=None)  # the machine may be busy
@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_an_error(payload: bytes) -> None:
    with suppress(ViciLost):
        decode_message("fuzz", payload)
