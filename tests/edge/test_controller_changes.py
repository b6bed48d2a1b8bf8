"""The stream in which a controller says what is new: lines that are none, silence, and whoever leaves it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
import trio.testing

from cpe_agent.edge import controller as module
from cpe_agent.edge.controller import HttpsController
from cpe_agent.ports import Change
from tests.edge.controllers import GOOD, HANGS_S, NDJSON, Tls, refusal
from tests.edge.tls_server import Answer, Stream, response, says


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([GOOD], "expected application/x-ndjson"),
        ([response("200 OK", NDJSON)], "ended the stream"),
        ([response("200 OK", NDJSON | {"transfer-encoding": "chunked"}, b"5\r\nab")], "the connection broke"),
        ([response("200 OK", NDJSON, b"x" * 5000)], "a line longer than 1024 bytes"),
        ([response("200 OK", NDJSON, b"x" * 1025 + b"\n")], "a line longer than 1024 bytes"),
        *(
            ([response("200 OK", NDJSON, line + b"\n")], "neither a version nor a heartbeat")
            for line in (
                b"", b"{}", b"[1,2]", b"\xff", b'{"epoch":0}', b'{"epoch":"0","version":1}',
                b'{"epoch":-1,"version":1}',
                b'{"epoch":1,"version":0}', b'{"heartbeat":false}', b'{"epoch":1.5,"version":1}', b"[" * 1000,
                b'{"report":true}', b'{"heartbeat":true,"report":1}',
            )
        ),
    ],
)  # fmt: skip
async def test_no_changes(tls: Tls, said: list[bytes], words: str) -> None:
    server = await tls.serve(says(*said))
    stream = tls.client(server.url).changes("")
    error = await refusal(anext(stream))
    assert error.op == "changes"
    assert words in error.cause
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_lines_are_found_however_the_bytes_arrive(tls: Tls) -> None:
    lines = (
        b'{"epoch":1,"version":2,"note":"\xe2\x80\xa8"}\n{"heartbeat":true}\n{"epoch":1,"version":3,"report":true}\n'
    )
    server = await tls.serve(says(response("200 OK", NDJSON), *(lines[i : i + 1] for i in range(len(lines)))))
    stream = tls.client(server.url).changes("127.0.0.7")
    with trio.fail_after(HANGS_S):
        assert [await anext(stream) for _ in range(3)] == [Change((1, 2)), Change(), Change((1, 3), True)]
    assert [(request.path, request.peer) for request in server.requests] == [("/v1/changes", "127.0.0.7")]
    assert "ended the stream" in (await refusal(anext(stream))).cause


@pytest.mark.parametrize("how", ["before the headers", "after a line", "dripping"])
async def test_silence(tls: Tls, how: str, autojump_clock: trio.testing.MockClock) -> None:
    async def answer(stream: Stream) -> None:
        if how == "before the headers":
            await trio.sleep_forever()
        await stream.send_all(response("200 OK", NDJSON, b'{"epoch":1,"version":2}\n'))
        while how == "dripping":
            await stream.send_all(b" ")
            await trio.sleep(0.01)
        await trio.sleep_forever()

    server = await tls.serve(answer)
    stream = tls.client(server.url, silence_s=0.2).changes("")
    if how != "before the headers":
        assert await anext(stream) == Change((1, 2))
    error = await refusal(anext(stream))
    assert ("does not answer" if how == "before the headers" else "silent for 0.2 s") in error.cause


async def listening() -> tuple[Answer, trio.Event]:
    """Says one line, then sets the event once the client has gone."""
    gone = trio.Event()

    async def answer(stream: Stream) -> None:
        await stream.send_all(response("200 OK", NDJSON, b'{"epoch":1,"version":2}\n'))
        with suppress(trio.BrokenResourceError):
            await stream.receive_some(1)
        gone.set()

    return answer, gone


Leave = Callable[[HttpsController, module.ChangeStream], Awaitable[None]]


async def leave_by_closing_while_another_task_waits(_: HttpsController, stream: module.ChangeStream) -> None:
    async def wait() -> None:
        async for _ in stream:
            raise AssertionError("nothing was said")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await stream.aclose()


async def leave_by_starting_another(client: HttpsController, _: module.ChangeStream) -> None:
    another = client.changes("")
    assert await anext(another) == Change((1, 2))
    await another.aclose()


async def leave_by_closing(_: HttpsController, stream: module.ChangeStream) -> None:
    await stream.aclose()


async def leave_by_closing_all(client: HttpsController, _: module.ChangeStream) -> None:
    await client.aclose()


async def leave_by_cancelling(_: HttpsController, stream: module.ChangeStream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(anext, stream)
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "leave",
    [
        leave_by_closing,
        leave_by_closing_all,
        leave_by_closing_while_another_task_waits,
        leave_by_cancelling,
        leave_by_starting_another,
    ],
)
async def test_whoever_leaves_a_stream_closes_its_connection(tls: Tls, leave: Leave) -> None:
    answer, gone = await listening()
    server = await tls.serve(answer)
    client = tls.client(server.url)
    stream = client.changes("")
    assert await anext(stream) == Change((1, 2))
    await leave(client, stream)
    with trio.fail_after(HANGS_S):
        await gone.wait()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert not client._streams
