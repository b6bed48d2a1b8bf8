"""Does a bad document say which field is bad, and does nothing but `DocumentError` come out?"""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpe_agent.model import document as doc
from cpe_agent.model.document import Document, DocumentError, encode
from cpe_agent.model.document_check import decode
from tests.core import documents

BRANCH: dict[str, Any] = msgspec.json.decode(encode(documents.branch()))
HUB: dict[str, Any] = msgspec.json.decode(encode(documents.hub()))
LEAVE_OUT = object()

Step = str | int


def changed(start: dict[str, Any], where: tuple[Step, ...], value: object) -> bytes:
    """`start` with one value replaced, added (appended to a list with index -1) or left out, as bytes."""
    built = copy.deepcopy(start)
    node: Any = built
    for step in where[:-1]:
        node = node[step]
    if value is LEAVE_OUT:
        del node[where[-1]]
    elif where[-1] == -1:
        node.append(value)
    else:
        node[where[-1]] = value
    return msgspec.json.encode(built)


@pytest.mark.parametrize("document", [documents.branch(), documents.hub()])
def test_round_trip(document: Document) -> None:
    assert decode(encode(document)) == document
    assert encode(decode(encode(document))) == encode(document)


def test_defaults_are_left_out_on_the_wire() -> None:
    assert "ipsec" not in BRANCH and "drain" not in BRANCH
    assert BRANCH["pairs"][1].keys() == {"id", "local", "remote", "initiator", "peers"}


def test_order_is_epoch_before_version() -> None:
    old = documents.branch(epoch=1, version=99)
    new = documents.branch(epoch=2, version=1)
    assert old.order < new.order


BAD: list[tuple[tuple[Step, ...], object, str]] = [
    (("surprise",), 1, ""),
    (("peers", "centre", "surprise"), 1, "peers[...]"),
    (("pairs", 0, "surprise"), 1, "pairs[0]"),
    (("site",), LEAVE_OUT, ""),
    (("schema",), 2, "schema"),
    (("schema",), "1", "schema"),
    (("site",), "Hospital", "site"),
    (("site",), "hospital\n", "site"),
    (("role",), "spoke", "role"),
    (("version",), 0, "version"),
    (("version",), True, "version"),
    (("epoch",), -1, "version"),
    (("issued_at",), "yesterday", "issued_at"),
    (("issued_at",), "2026-01-01T00:00:00", "issued_at"),
    (("expires_at",), "2025-01-01T00:00:00Z", "expires_at"),
    (("expires_at",), "9999-12-31T00:00:00Z", "expires_at"),
    (("expires_at",), 5, "expires_at"),
    (("site_address",), 5, "site_address"),
    (("site_address",), "10.0.0", "site_address"),
    (("site_address",), "10.0.0.1/32", "site_address"),
    (("site_address",), "010.0.0.1", "site_address"),
    (("site_address",), "fe80::1%eth0", "site_address"),
    (("site_address",), "FD00::1", "site_address"),
    (("lans",), {}, "lans"),
    (("lans", 0, "subnet"), "10.101.0.1/24", "lans[0].subnet"),
    (("lans", 0, "subnet"), "10.101.0.0/33", "lans[0].subnet"),
    (("lans", 0, "subnet"), "10.101.0.0/255.255.255.0", "lans[0].subnet"),
    (("lans", 0, "subnet"), "10.101.0.0", "lans[0].subnet"),
    (("lans", 0, "subnet"), 168099840, "lans[0].subnet"),
    (("lans", 0, "subnet"), "wards", "lans[0].subnet"),
    (("lans", 1, "subnet"), "fd00:101:0:0::/64", "lans[1].subnet"),
    (("lans", 1, "subnet"), "10.101.0.128/25", "lans[1].subnet"),
    (("lans", 1, "name"), "wards", "lans[1]"),
    (("lans", 0, "interface"), "lan 0", "lans[0].interface"),
    (("lans", 0, "interface"), 'lan"; drop', "lans[0].interface"),
    (("lans", 0, "interface"), "interface-too-long", "lans[0].interface"),
    (("lans", 0, "via"), "router", "lans[0].via"),
    (("lans", 0, "check"), 1, "lans[0].check"),
    (("uplinks", "Wired"), BRANCH["uplinks"]["lte"], "uplinks.Wired"),
    (("uplinks", "wired", "kind"), "satellite", "uplinks[...].kind"),
    (("uplinks", "wired", "path_address"), "10.255.101.2", "uplinks.path_address[1]"),
    (("uplinks", "wired", "path_address"), "x", "uplinks.wired.path_address"),
    (("uplinks", "wired", "mtu"), 100, "uplinks.wired.mtu"),
    (("uplinks", "wired", "budget_day"), 32, "uplinks.wired.budget_day"),
    (("uplinks", "lte", "monthly_bytes"), -1, "uplinks.lte.monthly_bytes"),
    (("uplinks", "lte", "monthly_bytes"), 10**400, "uplinks.lte.monthly_bytes"),
    (("uplinks", "wired", "probe"), {"active_interval_ms": 1}, "uplinks.wired.probe.active_interval_ms"),
    (("uplinks", "wired", "probe"), {"misses": 0}, "uplinks.wired.probe.misses"),
    (("peers", "cen.tre"), BRANCH["peers"]["centre"], "peers.cen.tre"),
    (("peers", "centre", "identity"), "*", "peers.centre.identity"),
    (("peers", "centre", "port"), 65536, "peers.centre.port"),
    (("peers", "centre", "lans", 0), "10.10.0.1/24", "peers.centre.lans[0]"),
    (("peers", "centre", "lans", 0), 5, "peers[...].lans[0]"),
    (("peers", "centre", "endpoints"), [], "peers.centre.endpoints"),
    (("peers", "centre", "endpoints", 1, "name"), "a", "peers.centre.endpoints[1]"),
    (("peers", "centre", "endpoints", 0, "address"), "%any", "peers.centre.endpoints[0].address"),
    (("peers", "centre", "endpoints", 0, "address"), "", "peers.centre.endpoints[0].address"),
    (("peers", "centre", "endpoints", 0, "ready_address"), "hub", "peers.centre.endpoints[0].ready_address"),
    (("peers", "centre", "endpoints", 0, "ready_address"), "fd00::7", "peers.centre.endpoints[0].ready_address"),
    (("uplinks", "wired", "path_address"), "fd00::7", "peers.centre.endpoints[0].probe_address"),
    (("peers", "cloud"), LEAVE_OUT, "pairs[1].peers[0]"),
    (("pairs", 1, "id"), "web", "pairs[1]"),
    (("pairs", 0, "local"), "10.102.0.0/24", "pairs[0].local"),
    (("pairs", 0, "local"), "0.0.0.0/0", "pairs[0].local"),
    (("pairs", 0, "remote"), "10.11.0.0/24", "pairs[0].remote"),
    (("pairs", 0, "remote"), "10.10.0.7/24", "pairs[0].remote"),
    (("pairs", 0, "remote"), "fd00:10::/64", "pairs[0].remote"),
    (("pairs", 0, "peers"), ["elsewhere"], "pairs[0].peers[0]"),
    (("pairs", 0, "peers"), ["centre", "cloud"], "pairs[0].remote"),
    (("pairs", 2, "peers"), ["centre", "centre"], "pairs[2].peers[1]"),
    (("pairs", 0, "peers"), [], "pairs[0].peers"),
    (("pairs", 0, "initiator"), "nobody", "pairs[0].initiator"),
    (("pairs", 0, "protocol"), LEAVE_OUT, "pairs[0].ports"),
    (("pairs", 0, "protocol"), "icmp", "pairs[0].ports"),
    (("pairs", 1, "protocol"), "256", "pairs[1].protocol"),
    (("pairs", 1, "protocol"), "9" * 5000, "pairs[1].protocol"),
    (("pairs", 1, "protocol"), "TCP", "pairs[1].protocol"),
    (("pairs", 0, "ports", 0), "0", "pairs[0].ports[0]"),
    (("pairs", 0, "ports", 0), "65536", "pairs[0].ports[0]"),
    (("pairs", 0, "ports", 0), "90-80", "pairs[0].ports[0]"),
    (("pairs", 0, "ports", 0), "0443", "pairs[0].ports[0]"),
    (("pairs", 0, "ports", 0), "443-443", "pairs[0].ports[0]"),
    (("pairs", 0, "ports", 0), "\u0664\u0664\u0663", "pairs[0].ports[0]"),
    (("pairs", 0, "ports", 0), 443, "pairs[0].ports[0]"),
    (("pairs", 0, "class"), "voice", "pairs[0].class"),
    (("pairs", 0, "probe"), {"kind": "tcp"}, "pairs[0].probe.port"),
    (("pairs", 0, "probe"), {"kind": "icmp", "port": 1}, "pairs[0].probe.port"),
    (("classes",), {"a b": {}}, "classes.a b"),
    (("classes",), {"voice": {"latency_ms": 0}}, "classes.voice.latency_ms"),
    (("classes",), {"voice": {"jitter_ms": 10**400}}, "classes.voice.jitter_ms"),
    (("classes",), {"voice": {"loss_percent": 101}}, "classes.voice.loss_percent"),
    (("classes",), {"voice": {"uplinks": ["wired", "wired"]}}, "classes.voice.uplinks[1]"),
    (("classes",), {"voice": {"uplinks": ["the wire"]}}, "classes.voice.uplinks[0]"),
    (("ipsec",), {"dpd_s": 0}, "ipsec.dpd_s"),
    (("ipsec",), {"suite": "rot13"}, "ipsec.suite"),
    (("policy",), {"failback_s": -1}, "policy.failback_s"),
    (("management",), {"ssh_from": ["10.0.0.1/8"]}, "management.ssh_from[0]"),
]


@pytest.mark.parametrize(("where", "value", "path"), BAD, ids=[f"{w[-1]}-{p}-{n}" for n, (w, _, p) in enumerate(BAD)])
def test_a_bad_field_is_named(where: tuple[Step, ...], value: object, path: str) -> None:
    with pytest.raises(DocumentError) as caught:
        decode(changed(BRANCH, where, value))
    assert caught.value.path == path
    assert caught.value.reason
    # Where the path cannot (an unknown field, a mapping's key), the reason names it.
    if path == "" or "[...]" in path:
        assert str(where[-1]) in str(caught.value) or path.endswith("lans[0]")


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"site": "\xff"}', b"[" * 100_000])
def test_not_a_json_object(raw: bytes) -> None:
    with pytest.raises(DocumentError) as caught:
        decode(raw)
    assert caught.value.path == "" or raw.startswith(b'{"site')


def test_a_hub_needs_an_endpoint() -> None:
    with pytest.raises(DocumentError) as caught:
        decode(changed(HUB, ("endpoints",), []))
    assert caught.value.path == "endpoints"


def test_too_long_is_refused_unparsed() -> None:
    with pytest.raises(DocumentError, match="bytes long"):
        decode(b" " * (doc.MAX_BYTES + 1))


_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=12),
    st.sampled_from(
        ["", "0.0.0.0/0", "::/0", "10.0.0.1", "::1", "fe80::1%x", "10.10.0.0/24", "9" * 5000, "tcp", "255", "1-65535"]
    ),
    st.sampled_from(["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-01-01T00:00:00Z"]),
    st.lists(st.text(max_size=4), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


def _places(node: Any, where: tuple[Step, ...] = ()) -> list[tuple[Step, ...]]:
    found = [where] if where else []
    items: list[tuple[Step, Any]] = []
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    for step, value in items:
        found += _places(value, (*where, step))
    return found


@settings(max_examples=400, deadline=None)
@given(
    start=st.sampled_from([BRANCH, HUB]),
    data=st.data(),
    value=st.one_of(_values, st.just(LEAVE_OUT)),
)
def test_a_mutated_document_raises_nothing_but_document_errors(
    start: dict[str, Any], data: st.DataObject, value: object
) -> None:
    where = data.draw(st.sampled_from(_places(start)))
    try:
        document = decode(changed(start, where, value))
    except DocumentError as error:
        assert error.reason
    else:
        assert decode(encode(document)) == document


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 2000), st.integers(0, 40))
def test_damaged_bytes_raise_nothing_but_document_errors(noise: bytes, at: int, cut: int) -> None:
    good = encode(documents.branch())
    try:
        decode(good[:at] + noise + good[at + cut :])
    except DocumentError as error:
        assert error.reason
