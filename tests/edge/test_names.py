"""Is a controller found by name on the day that the DNS is dead? Over real TLS, which goes on asking for the name."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509

from cpe_agent.edge import names as module
from cpe_agent.edge.controller import ControllerError, HttpsController
from cpe_agent.edge.names import Names
from tests.edge.authority import NOW, Authority
from tests.edge.controllers import GOOD, SIGNED
from tests.edge.tls_server import TlsServer, says, serve
from tests.fakes.store import FakeStore

HOST = "controller.example"


class Dns:
    """`addresses` None: no server answers; "slow": nor does it say so."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: tuple[str, ...] | None = addresses
        self.slow = False

    async def __call__(self, host: str) -> Sequence[str]:
        if self.slow:
            await trio.sleep(40)
        if self.addresses is None:
            raise OSError(-3, "Temporary failure in name resolution")
        return self.addresses


class TestRemembering:
    async def test_what_the_dns_knows_is_its_business(self) -> None:
        store = FakeStore()
        assert await Names(store, Dns("192.0.2.1", "2001:db8::1")).last_known(HOST) == ()
        assert store.addresses == {HOST: ("192.0.2.1", "2001:db8::1")}

    @pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "[2001:db8::1]"])
    async def test_an_address_needs_no_dns(self, host: str) -> None:
        dns = Dns()
        dns.addresses = None
        assert await Names(FakeStore(), dns).last_known(host) == ()

    @pytest.mark.parametrize("slow", [False, True])
    async def test_a_dead_dns_after_a_restart(self, slow: bool, autojump_clock: trio.testing.MockClock) -> None:
        store, dns = FakeStore(), Dns("192.0.2.1")
        await Names(store, dns).last_known(HOST)
        dns.addresses, dns.slow = None, slow
        began = trio.current_time()
        assert await Names(store, dns).last_known(HOST) == ("192.0.2.1",)
        assert trio.current_time() - began <= module.LOOK_UP_S

    async def test_a_name_that_was_never_known(self) -> None:
        dns = Dns()
        dns.addresses = None
        with pytest.raises(module.NameUnknown, match=r"does not know controller\.example .*Temporary failure"):
            await Names(FakeStore(), dns).last_known(HOST)

    async def test_the_same_addresses_in_another_order_are_not_written_again(self) -> None:
        store, dns = FakeStore(), Dns("192.0.2.1", "192.0.2.2")
        names = Names(store, dns)
        await names.last_known(HOST)
        store.refusal = "would be written"
        dns.addresses = ("192.0.2.2", "192.0.2.1")
        await names.last_known(HOST)
        assert store.addresses == {HOST: ("192.0.2.1", "192.0.2.2")}

    async def test_it_does_not_grow(self) -> None:
        names = Names(FakeStore(), Dns("192.0.2.1"))
        for number in range(100):
            await names.last_known(f"host-{number}.example")
        assert len(names._known) == module.HOSTS_MAX


class Bed:
    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.authority = Authority(directory)
        self.identity = self.authority.issue("van-1", x509.DNSName("van-1"))
        self._nursery = nursery

    async def serve(self, name: str = HOST, not_after: dt.datetime | None = None) -> TlsServer:
        certificate = self.authority.issue("controller", x509.DNSName(name), not_after=not_after)
        return await serve(self._nursery, self.authority.ca_path, *certificate, says(GOOD))

    def client(self, server: TlsServer, names: Names, now_s: float | None = None) -> HttpsController:
        url = server.url.replace("127.0.0.1", HOST)
        clock = time.time if now_s is None else lambda: now_s
        return HttpsController([url], self.authority.ca_path, *self.identity, names=names, now=clock)


def remembered(*addresses: str) -> Names:
    store, dns = FakeStore(), Dns()
    store.addresses = {HOST: addresses}
    dns.addresses = None
    return Names(store, dns)


async def test_a_controller_is_found_by_the_address_it_had(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        bed = Bed(tmp_path, nursery)
        server = await bed.serve()
        # The first address is of a machine that is no more.
        answer = await bed.client(server, remembered("127.0.0.99", "127.0.0.1")).document("", None)
        assert answer is not None and answer[0] == SIGNED
        assert server.requests[-1].headers["host"] == server.url.replace("https://127.0.0.1", HOST)
        nursery.cancel_scope.cancel()


async def test_another_machine_at_that_address_is_not_believed(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        bed = Bed(tmp_path, nursery)
        server = await bed.serve("somebody-else.example")
        with pytest.raises(ControllerError, match="Hostname mismatch"):
            await bed.client(server, remembered("127.0.0.1")).document("", None)
        nursery.cancel_scope.cancel()


async def test_no_address_at_all_is_said_in_words(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        bed = Bed(tmp_path, nursery)
        server = await bed.serve()
        with pytest.raises(ControllerError, match=r"the DNS does not know controller\.example"):
            await bed.client(server, Names(FakeStore(), _dead())).document("", None)
        nursery.cancel_scope.cancel()


def _dead() -> Dns:
    dns = Dns()
    dns.addresses = None
    return dns


class TestTime:
    """The certificate's time is judged by the given clock, whatever the system's says."""

    @pytest.mark.parametrize(
        ("now", "words"),
        [
            (NOW, None),
            # Somebody issued it, so the clock is behind.
            (dt.datetime(1970, 1, 2, tzinfo=dt.UTC), None),
            (dt.datetime(2050, 1, 2, tzinfo=dt.UTC), "clock says 2050-01-02: is it right"),
        ],
    )
    async def test_by_the_clock_that_is_given(self, tmp_path: Path, now: dt.datetime, words: str | None) -> None:
        async with trio.open_nursery() as nursery:
            bed = Bed(tmp_path, nursery)
            client = bed.client(await bed.serve(), remembered("127.0.0.1"), now.timestamp())
            if words is None:
                assert await client.document("", None) is not None
            else:
                with pytest.raises(ControllerError, match=words):
                    await client.document("", None)
            nursery.cancel_scope.cancel()

    async def test_a_certificate_of_long_ago_by_a_clock_that_stands_there(self, tmp_path: Path) -> None:
        async with trio.open_nursery() as nursery:
            bed = Bed(tmp_path, nursery)
            server = await bed.serve(not_after=NOW - dt.timedelta(days=300))
            with pytest.raises(ControllerError, match="its certificate was valid until"):
                await bed.client(server, remembered("127.0.0.1")).document("", None)
            long_ago = (NOW - dt.timedelta(days=301)).timestamp()
            assert await bed.client(server, remembered("127.0.0.1"), long_ago).document("", None) is not None
            nursery.cancel_scope.cancel()
