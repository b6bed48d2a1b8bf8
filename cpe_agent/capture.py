"""What passes between the two subnets of a pair, and what becomes of it on the way to the other site?

In: a pair's id and bounds. Out: two pcap files, of the same moments: `before` encryption, on the LAN's interfaces, what
passes between the pair's subnets; and `after` it, on the uplinks, the tunnels to the sites that serve the pair. Whether
a packet that came from the LAN went on into a tunnel, and one that came out of it went on to the LAN, can be seen there
side by side. The daemon may run or not; it is not asked.
"""

from __future__ import annotations

import difflib
import shlex
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import trio

from cpe_agent import comparison
from cpe_agent.core.addresses import network
from cpe_agent.core.lans import lan_interface
from cpe_agent.core.packet_filter import between, tunnels
from cpe_agent.core.uplinks import interfaces
from cpe_agent.edge.identity import load_identity
from cpe_agent.edge.ipsec import resolve
from cpe_agent.edge.netlink import Netlink
from cpe_agent.edge.tap import HEADERS_BYTES, WHOLE_BYTES, Tap, Tapped
from cpe_agent.model.dataplane import Path as TunnelPath
from cpe_agent.model.dataplane import stem_of
from cpe_agent.model.document import Document, Pair
from cpe_agent.model.observed import Charon, Links
from cpe_agent.ports import EdgeError
from cpe_agent.settings import Settings


class NoPair(Exception):
    """This site has no such pair; the words say which it has."""


class Bounds(msgspec.Struct, frozen=True):
    """Whichever is reached first. `whole`: packets with all their content, and not only the headers."""

    seconds: float
    packets: int
    whole: bool = False


class Captured(msgspec.Struct, frozen=True):
    """The two files and what is in them. `carried_by`: the tunnels to the pair's sites when it began, in words."""

    pair: str
    seconds: float
    before: str
    after: str
    before_packets: Tapped
    after_packets: Tapped
    carried_by: tuple[str, ...]


def capture(settings: Settings, pair_id: str, bounds: Bounds, directory: Path) -> Captured:
    """Capture now, into `directory`. Raises `NoPair`, `comparison.NoDocument`, and `EdgeError` without the right to."""
    settings = comparison.settled(settings)
    document = comparison.stored_document(settings)
    return trio.run(_capture, settings, document, _pair(document, pair_id), bounds, directory)


async def _capture(settings: Settings, document: Document, pair: Pair, bounds: Bounds, directory: Path) -> Captured:
    links = await Netlink().links()
    charon = await _charon(settings)
    ends, words = _tunnels(charon, pair)
    name = f"cpe-capture-{_file_name(pair.id)}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    before_path, after_path = directory / f"{name}-before.pcap", directory / f"{name}-after.pcap"
    snap = WHOLE_BYTES if bounds.whole else HEADERS_BYTES
    started = trio.current_time()
    before = Tap(
        _lan_interfaces(document, pair, links),
        between((pair.local,), (pair.remote,)),
        before_path,
        bounds.packets,
        snap,
    )
    try:
        after = Tap(_uplink_interfaces(document, links), tunnels(ends), after_path, bounds.packets, snap)
    except BaseException:
        before.close()
        before_path.unlink()
        raise
    try:
        # A file that is full does not end the other one: they are to be compared.
        with trio.move_on_after(bounds.seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(before.run)
                nursery.start_soon(after.run)
    except* KeyboardInterrupt:
        pass  # what was captured until now is what somebody wanted
    finally:
        in_before, in_after = before.close(), after.close()
    seconds = round(trio.current_time() - started, 1)
    return Captured(pair.id, seconds, str(before_path), str(after_path), in_before, in_after, words)


def _pair(document: Document, pair_id: str) -> Pair:
    pairs = {pair.id: pair for pair in document.pairs}
    if pair_id in pairs:
        return pairs[pair_id]
    near = difflib.get_close_matches(pair_id, pairs, n=5, cutoff=0.3) or sorted(pairs)[:5]
    # As they are typed: most have a > in them.
    names = ", ".join(map(shlex.quote, near))
    has = f"it has {names}" if len(near) == len(pairs) else f"it has {len(pairs)}, such as {names}"
    if any(name.startswith(f"{pair_id}>") for name in pairs):
        has += "; without quotes the shell takes what follows > for a file to write into"
    raise NoPair(f"{document.site} has no pair {pair_id!r}: {has if pairs else 'it has none at all'}")


def _lan_interfaces(document: Document, pair: Pair, links: Links) -> tuple[str, ...]:
    """Those that the pair's local subnet is behind; a router's own address is behind none, and its packets are seen on
    no LAN."""
    subnet = network(pair.local)
    lans = [lan for lan in document.lans if network(lan.subnet).overlaps(subnet)]
    found = {interface for lan in lans if (interface := lan_interface(document, lan))}
    if not found:
        raise EdgeError(
            "capture", pair.id, f"{pair.local} is behind no LAN interface of this site; name the LAN's in network.yaml"
        )
    if missing := sorted(found - links.by_name.keys()):
        raise EdgeError("capture", pair.id, f"there is no interface {', '.join(missing)}")
    return tuple(sorted(found))


def _uplink_interfaces(document: Document, links: Links) -> tuple[str, ...]:
    bound = set(interfaces(document, links).values())
    found = tuple(sorted(bound & links.by_name.keys()))
    if not found:
        raise EdgeError("capture", "uplinks", f"there is no interface {', '.join(sorted(bound))}")
    return found


async def _charon(settings: Settings) -> Charon:
    """Without an answer: an account of nothing, and every tunnel is taken."""
    identity = load_identity(settings.certificate, settings.key)
    port = comparison.charon_port(settings, identity, resolve(settings.backend))
    try:
        return await port.read()
    except EdgeError:
        return Charon()
    finally:
        port.close()


def _tunnels(charon: Charon, pair: Pair) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The addresses that the pair's tunnels lead to, and what there is in each, in words."""
    ends: dict[str, None] = {}
    words = []
    for sa in charon.ike_sas:
        stem = stem_of(sa.connection)
        path = TunnelPath.parse(stem)
        if (path.peer if path else stem) not in pair.peers or not sa.remote_host:
            continue
        ends[sa.remote_host] = None
        for child in sa.children:
            if child.installed and child.spi_in:
                spis = f"SPI in {child.spi_in:08x}, out {child.spi_out:08x}"
                words.append(f"{stem} to {sa.remote_host}: {child.name}, {spis}")
    return tuple(ends), tuple(words)


def _file_name(pair_id: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in pair_id)[:80]


def in_words(captured: Captured) -> tuple[str, ...]:
    """One line each; what is odd about it says what to look at."""
    lines = [f"{captured.seconds:g} s of {captured.pair}:"]
    for name, file, tapped in (
        ("before encryption", captured.before, captured.before_packets),
        ("after encryption", captured.after, captured.after_packets),
    ):
        lines.append(f"  {name}: {_counts(tapped)}{_limits(tapped)}")
        lines.append(f"    {file}")
    lines += [f"  {words}" for words in captured.carried_by]
    if not captured.before_packets.packets:
        lines.append("Nothing passed on the LAN: is anybody talking, and is this the right pair?")
    elif not captured.after_packets.packets:
        lines.append("Nothing went into a tunnel: `cpe-agent status` says whether one is up.")
    return tuple(lines)


def _counts(tapped: Tapped) -> str:
    def by_interface(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{count} on {name}" for name, count in sorted(counts.items())) or "none"

    return f"in {by_interface(tapped.packets_in)}; out {by_interface(tapped.packets_out)}"


def _limits(tapped: Tapped) -> str:
    full = " (full: there were more)" if tapped.full else ""
    return full + (f" ({tapped.missed} more came too fast)" if tapped.missed else "")
