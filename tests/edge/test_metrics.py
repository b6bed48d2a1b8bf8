"""The metrics: what each report says to Prometheus, and a server that answers that one question and no other."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from cpe_agent.core.wanted_chains import INIT_DROPPED, SOME_DROPPED
from cpe_agent.edge.exposition import exposition
from cpe_agent.edge.metric_table import METRICS, metrics_page
from cpe_agent.edge.metrics import CONNECTIONS_MAX, EXCHANGE_S, serve_metrics
from cpe_agent.model.advice import ADVICE
from cpe_agent.model.condition import OUTAGE_BOUNDS_S, Condition, Outages, PeerReport, ServiceReport, Status
from cpe_agent.ports import EdgeError
from tests.reports import BLANK, BRANCH, HUB, NOW

ROOT = Path(__file__).parent.parent.parent
SERVICES = (ServiceReport("records", "centre+cloud", "10.10.0.10 (echo)", "answering", "centre"),)
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: bytes) -> Samples:
    """(name, labels) -> value; fails on a sample that is there twice."""
    found: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def samples(*rows: tuple[str, dict[str, str], float]) -> Samples:
    return {("cpe_agent_" + name, frozenset(labels.items())): value for name, labels, value in rows}


WIRED = {"path": "wired.centre.a", "uplink": "wired", "peer": "centre", "endpoint": "a"}
LTE = {"path": "lte.centre.a", "uplink": "lte", "peer": "centre", "endpoint": "a"}


class TestExposition:
    def test_a_branch(self) -> None:
        # wired.cloud.a is unknown, so nothing is said of it but its IKE_SA; cloud/voice has no active path.
        assert parsed(exposition(BRANCH)) == samples(
            ("build_info", {"version": "0.1.0", "backend": "userland"}, 1),
            ("document_info", {"site": "hospital-1", "role": "branch", "epoch": "1", "version": "42"}, 1),
            ("start_timestamp_seconds", {}, NOW - 11_525),
            ("document_issued_timestamp_seconds", {}, NOW - 84 * 86_400),
            ("document_expiry_timestamp_seconds", {}, NOW + 6 * 86_400 + 10_900),
            ("clock_trusted", {}, 1),
            ("controller_last_contact_timestamp_seconds", {}, NOW - 4),
            ("condition", {"type": "UplinkDown"}, 1),
            ("condition", {"type": "BundleWithoutPath"}, 1),
            ("condition", {"type": "Draining"}, 1),
            ("uplink_up", {"uplink": "wired"}, 1),
            ("uplink_up", {"uplink": "lte"}, 0),
            ("path_up", WIRED, 1),
            ("path_up", LTE, 0),
            ("path_rtt_seconds", WIRED, 0.02013),
            ("path_rtt_seconds", LTE, 0.0615),
            ("path_jitter_seconds", WIRED, 0.00031),
            ("path_jitter_seconds", LTE, 0.01225),
            ("path_loss_ratio", WIRED, 0.02),
            ("path_loss_ratio", LTE, 1),
            ("uplink_bytes_total", {"uplink": "lte"}, 7_000_000_000),
            ("uplink_budget_remaining_bytes", {"uplink": "lte"}, 500_000_000),
            ("overhead_bytes_total", {"uplink": "lte"}, 12_000_000),
            ("path_mtu_bytes", WIRED, 1400),
            ("path_mtu_bytes", LTE, 1218),
            ("peer_ready", {"peer": "centre"}, 1),
            ("ike_sas", {"state": "established"}, 1),
            ("ike_sas", {"state": "connecting"}, 1),
            ("bundle_up", {"bundle": "centre+cloud"}, 1),
            ("bundle_up", {"bundle": "cloud/voice"}, 0),
            ("bundle_active_path_info", {"bundle": "centre+cloud", "path": "wired.centre.a"}, 1),
            ("bundle_moves_total", {"bundle": "centre+cloud", "reason": "adopted"}, 1),
            ("bundle_moves_total", {"bundle": "centre+cloud", "reason": "path_down"}, 2),
            ("dropped_packets_total", {"reason": "unlisted"}, 12),
            ("dropped_packets_total", {"reason": "cleartext"}, 0),
            ("pair_packets_total", {"pair": "records"}, 1_234),
            ("pair_packets_total", {"pair": "pacs"}, 0),
            ("pair_packets_total", {"pair": "voice"}, 7),
            ("pair_bytes_total", {"pair": "records"}, 1_234_567),
            ("pair_bytes_total", {"pair": "pacs"}, 0),
            ("dataplane_in_sync", {}, 0),
            ("drift_total", {"target": "firewall"}, 0),
            ("drift_total", {"target": "tunnels"}, 3),
            ("reconcile_last_success_timestamp_seconds", {"target": "firewall"}, NOW - 1),
        )

    def test_a_hub_counts_its_branches_and_names_no_pair(self) -> None:
        found = parsed(exposition(HUB))
        assert found[("cpe_agent_ike_sas", frozenset({("state", "established")}))] == 46
        assert found[("cpe_agent_peers", frozenset({("state", "connected")}))] == 23
        assert found[("cpe_agent_pair_packets_total", frozenset())] == 10
        assert found[("cpe_agent_pair_bytes_total", frozenset())] == 840
        assert found[("cpe_agent_dataplane_in_sync", frozenset())] == 1

    def test_outages_are_a_histogram(self) -> None:
        outages = Outages((2, 0, 1, *([0] * 8), 1), 4000.5)
        found = parsed(exposition(msgspec.structs.replace(BRANCH, outages=outages)))
        name = "cpe_agent_outage_seconds"
        buckets = {dict(labels)["le"]: value for (kind, labels), value in found.items() if kind == f"{name}_bucket"}
        assert list(buckets.items())[:4] == [("0.1", 2), ("0.25", 2), ("0.5", 3), ("1.0", 3)]
        assert list(buckets) == [*map(str, OUTAGE_BOUNDS_S), "+Inf"]
        assert (buckets["1800.0"], buckets["+Inf"], found[(f"{name}_count", frozenset())]) == (3, 4, 4)
        assert found[(f"{name}_sum", frozenset())] == 4000.5

    def test_a_hub_of_2000_branches_has_few_series(self) -> None:
        """With everything that a hub may say at once: 10,000 pairs, every reason, every condition."""
        peers = tuple(PeerReport(f"van-{number:04}", number % 3, 4, number, 999) for number in range(2000))
        pairs = {f"van-{number // 5:04}-{number % 5}": number for number in range(10_000)}
        conditions = tuple(
            Condition(type_, f"van-{number:04}", "something") for number in range(2000) for type_ in sorted(ADVICE)
        )
        drops = dict.fromkeys(
            (*SOME_DROPPED, *INIT_DROPPED, "unlisted", "tunnel_input", "lan_input", "uplink_input"), 1
        )
        hub = msgspec.structs.replace(
            HUB,
            peers=peers,
            pair_packets=pairs,
            pair_bytes=pairs,
            conditions=conditions,
            dropped_packets=drops,
            outages=Outages(),
            paths=BRANCH.paths * 4,
            bundles=BRANCH.bundles,
        )
        hub = msgspec.structs.replace(
            hub, paths=tuple(msgspec.structs.replace(p, path=f"{p.path}-{i}") for i, p in enumerate(hub.paths))
        )
        text = exposition(hub)
        found = parsed(text)
        assert len(found) < 200
        assert b"van-" not in text
        assert len(text) < 40_000

    def test_every_metric_is_in_the_table_and_the_table_in_the_page(self) -> None:
        seen: set[str] = set()
        whole = msgspec.structs.replace(BRANCH, outages=Outages(), certificate_expires=NOW, services=SERVICES)
        limited = msgspec.structs.replace(HUB, dropped_packets={"ike_init_all": 1})
        for status in (whole, limited, BLANK):
            for family in text_string_to_metric_families(exposition(status).decode()):
                name = family.name.removeprefix("cpe_agent_")
                described = METRICS[name]
                seen.add(name)
                assert (family.type, family.documentation) == (described.kind, described.about)
                for sample in family.samples:
                    labels = set(sample.labels) - {"le"}
                    assert labels in (set(described.labels), set()), sample
        assert seen == set(METRICS), "each one is really made"
        page = (ROOT / "docs" / "METRICS.md").read_text()
        assert page == metrics_page(), "python -m cpe_agent.edge.metric_table > docs/METRICS.md"

    def test_a_site_that_knows_nothing_says_nothing(self) -> None:
        assert parsed(exposition(BLANK)) == samples(
            ("build_info", {"version": "0.1.0", "backend": "userland"}, 1),
            ("start_timestamp_seconds", {}, NOW - 2),
            ("clock_trusted", {}, 1),
            ("condition", {"type": "NoDocument"}, 1),
        )

    def test_conditions_of_a_type_are_counted(self) -> None:
        twice = msgspec.structs.replace(BLANK, conditions=BLANK.conditions * 2)
        assert parsed(exposition(twice))[("cpe_agent_condition", frozenset({("type", "NoDocument")}))] == 2

    def test_a_bundle_whose_tunnel_is_not_there_yet_has_no_active_path(self) -> None:
        bundle = msgspec.structs.replace(BRANCH.bundles[0], installed=False)
        found = parsed(exposition(msgspec.structs.replace(BRANCH, bundles=(bundle,))))
        assert "cpe_agent_bundle_active_path_info" not in {name for name, _ in found}

    def test_servers_are_told_by_bundle_and_not_by_pair(self) -> None:
        def server(pair: str, bundle: str, state: str) -> ServiceReport:
            return ServiceReport(pair, bundle, "10.10.0.10 (echo)", state, "centre")

        servers = (server("a", "x", "answering"), server("b", "x", "silent"), server("c", "y", "unknown"))
        page = parsed(exposition(msgspec.structs.replace(BRANCH, services=servers)))
        found = {key: value for key, value in page.items() if "service_up" in str(key)}
        assert list(found.values()) == [0.5] and "'x'" in str(found)

    def test_limits_on_ike_init_are_told_apart_from_other_drops(self) -> None:
        drops = {"unlisted": 3, "ike_init_source": 5, "ike_init_all": 0}
        found = parsed(exposition(msgspec.structs.replace(BLANK, dropped_packets=drops)))
        name = "cpe_agent_ike_init_dropped_packets_total"
        assert {key: value for key, value in found.items() if key[0] == name} == {
            (name, frozenset({("limit", "source")})): 5,
            (name, frozenset({("limit", "all")})): 0,
        }

    def test_the_global_registry_is_left_alone(self) -> None:
        exposition(BRANCH)
        assert not [family.name for family in REGISTRY.collect() if family.name.startswith("cpe_agent")]

    @given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2**53), max_size=5))
    def test_no_name_can_break_the_page(self, drops: dict[str, int]) -> None:
        found = parsed(exposition(msgspec.structs.replace(BLANK, dropped_packets=drops)))
        name = "cpe_agent_dropped_packets_total"
        assert {key: value for key, value in found.items() if key[0] == name} == {
            (name, frozenset({("reason", reason)})): float(count) for reason, count in drops.items()
        }


async def branch() -> Status:
    return BRANCH


async def unreadable() -> Status:
    raise EdgeError("nftables", "counters", "no permission")


@asynccontextmanager
async def serving(fails: bool = False) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(serve_metrics, "127.0.0.1", 0, unreadable if fails else branch)
        nursery.cancel_scope.cancel()


async def exchange(port: int, request: bytes) -> tuple[bytes, bytes]:
    """(head, body) of the answer to `request`."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(request)
        head, _, body = b"".join([chunk async for chunk in stream]).partition(b"\r\n\r\n")
        return head, body


def get(target: str, method: str = "GET") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


class TestServer:
    async def test_the_page(self) -> None:
        async with serving() as port:
            head, body = await exchange(port, get("/metrics"))
        status, *fields = head.lower().split(b"\r\n")
        assert status.startswith(b"http/1.1 200")
        assert b"content-type: text/plain; version=0.0.4; charset=utf-8" in fields
        assert f"content-length: {len(body)}".encode() in fields
        assert parsed(body) == parsed(exposition(BRANCH))

    @pytest.mark.parametrize(
        ("request_", "code"),
        [
            (get("/metrics?name=x"), 200),
            (b"GET /metrics HTTP/1.0\r\n\r\n", 200),
            (get("/"), 404),
            (get("/metrics/"), 404),
            (get("/status"), 404),
            (get("/metrics", "HEAD"), 405),
            (get("/", "HEAD"), 405),
            (get("127.0.0.1:22", "CONNECT"), 405),
            (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n", 405),
            (b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 200),
            (get("/metrics", "DELETE"), 405),
            (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
            (b"\x16\x03\x01\x02\x00 TLS\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 9000, 431),
        ],
    )
    async def test_everything_else_gets_its_code(self, request_: bytes, code: int) -> None:
        async with serving() as port:
            head, _ = await exchange(port, request_)
            assert head.startswith(f"HTTP/1.1 {code} ".encode())
            assert (await exchange(port, get("/metrics")))[1] == exposition(BRANCH)

    async def test_a_report_that_cannot_be_made_fails_the_scrape_and_not_the_server(self) -> None:
        async with serving(fails=True) as port:
            for _ in range(2):
                head, body = await exchange(port, get("/metrics"))
                assert head.startswith(b"HTTP/1.1 503 ")
                assert body == b"nftables: counters: no permission\n"

    async def test_a_port_that_is_taken_is_an_error_in_words(self) -> None:
        async with serving() as port:
            with pytest.raises(EdgeError, match=rf"nothing can listen on 127\.0\.0\.1 port {port}: .*in use"):
                await serve_metrics("127.0.0.1", port, branch)

    async def test_an_address_that_is_not_there_yet_is_listened_on(self) -> None:
        """An overlay address comes with the document, a LAN's with its interface."""
        async with trio.open_nursery() as nursery:
            assert await nursery.start(serve_metrics, "192.0.2.77", 0, branch) > 0
            if socket.has_ipv6:
                assert await nursery.start(serve_metrics, "2001:db8::77", 0, branch) > 0
            nursery.cancel_scope.cancel()

    async def test_a_silent_client_is_dropped(self, autojump_clock: trio.testing.MockClock) -> None:
        async with serving() as port, await trio.open_tcp_stream("127.0.0.1", port) as stream:
            started = trio.current_time()
            assert await stream.receive_some() == b""
            assert trio.current_time() - started == pytest.approx(EXCHANGE_S, abs=0.5)

    async def test_silent_clients_do_not_keep_others_out(self, autojump_clock: trio.testing.MockClock) -> None:
        async with serving() as port:
            silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(CONNECTIONS_MAX)]
            for stream in silent:
                await stream.send_all(b"GET /met")
            await trio.testing.wait_all_tasks_blocked()
            async with await trio.open_tcp_stream("127.0.0.1", port) as refused:
                assert (await refused.receive_some()).startswith(b"HTTP/1.1 503 ")
            for stream in silent:
                assert await stream.receive_some() == b""
                await stream.aclose()
            assert (await exchange(port, get("/metrics")))[1] == exposition(BRANCH)
