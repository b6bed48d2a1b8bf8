"""2,000 agents, as light as they can be and still be agents.

Stand-alone (`python -m tests.bench.agents HOST PORT DIRECTORY COUNT`): each has its own certificate (SITE.pem, SITE.key
in the directory), holds a stream of changes, reports its status, verifies each document's signature over its exact
bytes, and reconnects with jitter when its stream ends. Speaks with whoever runs it in lines of JSON on stdout:

    {"connected": N}                     whenever another 100 hold a stream, and when all do
    {"verified": VERSION, "at": [...]}   once all have a version: the moments, on the machine's monotonic clock
    {"error": WORDS}                     anything but a connection that was refused or cut
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cpe_agent.model.document import SIGNATURE_CONTEXT

# So that 2,000 do not come at the same moment: what a real agent waits after its stream ended.
RECONNECT_S = (0.5, 5.0)
CONNECT_S = 20.0
SILENCE_S = 45.0
CONFIRM_S = (1.0, 20.0)
# Handshakes under way at once: one process stands for 2,000 machines, and its own processor is not what is measured.
DIALLING = asyncio.Semaphore(50)


class Fleet:
    def __init__(self, host: str, port: int, directory: Path, count: int) -> None:
        self.host, self.port, self.count = host, port, count
        self.directory = directory
        self.key = Ed25519PublicKey.from_public_bytes(base64.b64decode((directory / "signing.pub").read_text()))
        self.connected: set[str] = set()
        self.verified: dict[int, list[float]] = {}
        self.tasks = asyncio.TaskGroup()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as self.tasks:
            for number in range(self.count):
                self.tasks.create_task(self._agent(f"b{number}"))

    async def _agent(self, site: str) -> None:
        context = ssl.create_default_context(cafile=str(self.directory / "root.pem"))
        context.load_cert_chain(self.directory / f"{site}.pem", self.directory / f"{site}.key")
        has = 0
        await asyncio.sleep(random.uniform(0, 1))
        while True:
            try:
                has = await self._hold(site, context, has)
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                pass  # a connection that was refused or cut: what a retry is for
            except Exception as error:
                _say({"error": f"{site}: {error!r}"})
                raise
            self.connected.discard(site)
            await asyncio.sleep(random.uniform(*RECONNECT_S))

    async def _hold(self, site: str, context: ssl.SSLContext, has: int) -> int:
        async with DIALLING:
            await self._report(site, context, has)
            reader, writer = await self._ask(context, b"GET /v1/changes?documents=65536", b"")
        try:
            await _status(reader, b"200")
            while True:
                async with asyncio.timeout(SILENCE_S):
                    line = await _chunk(reader)
                if line is None:
                    return has
                said = json.loads(line)
                if "document" in said:
                    raw = said["document"].encode()
                    self.key.verify(base64.b64decode(said["signature"]), SIGNATURE_CONTEXT + raw)
                    has = said["version"]
                    self._has_verified(has)
                    self.tasks.create_task(self._report_soon(site, context, has))
                if site not in self.connected:
                    self.connected.add(site)
                    if len(self.connected) % 100 == 0 or len(self.connected) == self.count:
                        _say({"connected": len(self.connected)})
        finally:
            writer.close()

    async def _report_soon(self, site: str, context: ssl.SSLContext, has: int) -> None:
        """That it has taken its document, when it has also programmed it and seen that it is well."""
        await asyncio.sleep(random.uniform(*CONFIRM_S))
        try:
            async with DIALLING:
                await self._report(site, context, has)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            pass  # the next report says the same

    async def _report(self, site: str, context: ssl.SSLContext, has: int) -> None:
        applied = {"epoch": 1, "version": has, "at": 0} if has else None
        said = {
            "instance": site,
            "boot_id": site,
            "agent_version": "0",
            "schemas": [1],
            "applied": applied,
            "confirmed": bool(has),
            "rejected": None,
            "conditions": [{"type": "PathDown", "subject": "lte.cloud.wan", "reason": "3 misses", "since": 0}],
            "paths": [{"path": f"{uplink}.{hub}.wan", "state": "up"} for uplink in "ab" for hub in ("centre", "cloud")],
            "serving": False,
        }
        reader, writer = await self._ask(context, b"POST /v1/status", json.dumps(said).encode())
        try:
            async with asyncio.timeout(CONNECT_S):
                await _status(reader, b"204")
        finally:
            writer.close()

    async def _ask(self, context: ssl.SSLContext, what: bytes, body: bytes) -> tuple[Any, Any]:
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(self.host, self.port, ssl=context)
        length = b"Content-Length: %d\r\n" % len(body) if body else b""
        writer.write(b"%s HTTP/1.1\r\nHost: controller\r\n%s\r\n%s" % (what, length, body))
        return reader, writer

    def _has_verified(self, version: int) -> None:
        moments = self.verified.setdefault(version, [])
        moments.append(time.monotonic())
        if len(moments) == self.count:
            _say({"verified": version, "at": moments})


async def _status(reader: asyncio.StreamReader, wanted: bytes) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    if head.split(b" ", 2)[1] != wanted:
        raise ValueError(head.decode())


async def _chunk(reader: asyncio.StreamReader) -> bytes | None:
    """A chunk is a line, as this server writes them; None at the end."""
    size = int(await reader.readuntil(b"\r\n"), 16)
    content = await reader.readexactly(size + 2)
    return content[:-2] if size else None


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    uvloop.run(Fleet(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])).run())
