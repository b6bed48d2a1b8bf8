"""Does a document hold together?

In: the exact bytes of a document (JSON, already verified), or a `Document` that the controller has built. Out: a
`Document`, or a `DocumentError` that names the field. Here is all that the structures' types cannot say: names,
addresses, ranges, and what one part of a document says of another.
"""

from __future__ import annotations

import ipaddress
import re

import msgspec

from cpe_agent.model.document import (
    MAX_BYTES,
    NAME,
    SCHEMA,
    Address,
    Class,
    Document,
    DocumentError,
    Endpoint,
    Lan,
    Network,
    Pair,
    Peer,
    ServiceProbe,
    Uplink,
)

# As the kernel has it: at most 15 bytes, no slash and no white space; and nothing that nft would have to quote.
INTERFACE = re.compile(r"[A-Za-z0-9_.@-]{1,15}\Z")
_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")
# Ten years. What is added to a clock must fit into a float, and into charon's 32 bits.
SECONDS_MAX = 315_360_000
# What is counted and compared must fit into a float, and a month after it still be a date.
BYTES_MAX = 10**18
MILLISECONDS_MAX = 3_600_000
YEAR_MAX = 9998
PORTS = re.compile(r"([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?\Z")
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}

_decoder = msgspec.json.Decoder(Document)


def decode(raw: bytes) -> Document:
    """Bytes to a document that holds together, or `DocumentError`. Verify the signature over `raw` before this."""
    if len(raw) > MAX_BYTES:
        raise DocumentError("", f"is {len(raw)} bytes long; at most {MAX_BYTES} are read")
    try:
        document = _decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _named(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DocumentError("", f"is not JSON: {error}") from None
    check(document)
    return document


def check(document: Document) -> None:
    """Everything that types cannot say. Raises `DocumentError` at the first field that is wrong."""
    if document.schema != SCHEMA:
        raise DocumentError("schema", f"is {document.schema}; this agent speaks {SCHEMA}")
    _name("site", document.site)
    if document.epoch < 0 or document.version < 1:
        raise DocumentError("version", "epoch starts at 0 and version at 1")
    for field, moment in (("issued_at", document.issued_at), ("expires_at", document.expires_at)):
        if moment.tzinfo is None:
            raise DocumentError(field, f"{moment.isoformat()} has no time zone; write it as 2026-01-31T12:00:00Z")
        if moment.year > YEAR_MAX:
            raise DocumentError(field, f"{moment.isoformat()} is too late; {YEAR_MAX} is the last possible year")
    if document.expires_at <= document.issued_at:
        raise DocumentError("expires_at", "is not after issued_at")
    _address("site_address", document.site_address)
    _check_lans(document.lans)
    _check_uplinks(document.uplinks)
    _check_endpoints("endpoints", document.endpoints)
    if document.role == "hub" and not document.endpoints:
        raise DocumentError("endpoints", "a hub needs at least one")
    for name, peer in document.peers.items():
        _check_peer(name, peer)
    _check_probed(document)
    for name, class_ in document.classes.items():
        _check_class(f"classes.{name}", name, class_)
    _check_pairs(document)
    _check_numbers(document)
    for field in ("metrics_from", "ssh_from", "routing_from"):
        for index, subnet in enumerate(getattr(document.management, field)):
            parse_network(f"management.{field}[{index}]", subnet)
    for index, server in enumerate(document.management.time_servers):
        # Each becomes a word in a line of somebody else's settings.
        if not _HOST.fullmatch(server):
            raise DocumentError(f"management.time_servers[{index}]", f"{server!r} is no address or host name")


def parse_network(path: str, text: str) -> Network:
    """`text` as a network, exact (no host bits). Raises `DocumentError` at `path`."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise DocumentError(path, f"{text!r} is no network: {error}") from None
    # The kernel and charon give it back in one form only, and what differs from the wanted would be set right for ever.
    if str(network) != text or "%" in text:
        raise DocumentError(path, f"{text!r} is no network as it is written here: {network}")
    if _embeds_ipv4(network.network_address):
        raise DocumentError(path, f"{text!r} stands for IPv4 addresses: write these")
    return network


def _embeds_ipv4(address: Address) -> bool:
    """::/96 and ::ffff:0:0/96 (not :: itself): everybody prints them differently, the kernel routes them nowhere."""
    return address.version == 6 and int(address) != 0 and int(address) >> 32 in (0, 0xFFFF)


def _named(message: str) -> DocumentError:
    reason, _, where = message.rpartition(" - at ")
    if not reason:
        return DocumentError("", message)
    return DocumentError(where.strip("`").removeprefix("$").removeprefix("."), reason)


def _name(path: str, text: str) -> None:
    if not NAME.match(text):
        raise DocumentError(path, f"{text!r} is no name: use 1 to 40 of a-z, 0-9 and - (not first or last)")


def _interface(path: str, text: str | None) -> None:
    if text is not None and not INTERFACE.match(text):
        raise DocumentError(path, f"{text!r} is no interface name")


def _address(path: str, text: str) -> Address:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise DocumentError(path, f"{text!r} is no IP address: {error}") from None
    if str(address) != text or "%" in text:
        raise DocumentError(path, f"{text!r} is no IP address as it is written here: {address}")
    if address.is_unspecified or address.is_loopback or address.is_multicast or _embeds_ipv4(address):
        raise DocumentError(path, f"{text!r} is no address that a machine of this network can have")
    return address


def _unique(path: str, names: list[str]) -> None:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            raise DocumentError(f"{path}[{index}]", f"{name!r} is listed twice")
        seen.add(name)


def _check_lans(lans: tuple[Lan, ...]) -> None:
    _unique("lans", [lan.name for lan in lans])
    taken: list[tuple[str, Network]] = []
    for index, lan in enumerate(lans):
        path = f"lans[{index}]"
        _name(f"{path}.name", lan.name)
        subnet = parse_network(f"{path}.subnet", lan.subnet)
        for other, network in taken:
            if network.version == subnet.version and network.overlaps(subnet):
                raise DocumentError(f"{path}.subnet", f"{subnet} overlaps {network} of LAN {other!r}")
        taken.append((lan.name, subnet))
        _interface(f"{path}.interface", lan.interface)
        for field in ("via", "check"):
            value = getattr(lan, field)
            if value is not None:
                _address(f"{path}.{field}", value)


def _check_uplinks(uplinks: dict[str, Uplink]) -> None:
    for name, uplink in uplinks.items():
        path = f"uplinks.{name}"
        _name(path, name)
        _interface(f"{path}.interface", uplink.interface)
        _address(f"{path}.path_address", uplink.path_address)
        if uplink.mtu is not None and not 1280 <= uplink.mtu <= 9216:
            raise DocumentError(f"{path}.mtu", f"is {uplink.mtu}; 1280 to 9216 is possible")
        if not 1 <= uplink.budget_day <= 31:
            raise DocumentError(f"{path}.budget_day", f"is {uplink.budget_day}; a day of the month is 1 to 31")
        if uplink.monthly_bytes is not None and not 0 <= uplink.monthly_bytes <= BYTES_MAX:
            raise DocumentError(f"{path}.monthly_bytes", f"is {uplink.monthly_bytes}; 0 to {BYTES_MAX} is possible")
        probe = uplink.probe
        for field in ("active_interval_ms", "standby_interval_ms"):
            value = getattr(probe, field)
            if not 20 <= value <= 600_000:
                raise DocumentError(f"{path}.probe.{field}", f"is {value}; 20 to 600000 is possible")
        if not 1 <= probe.misses <= 100:
            raise DocumentError(f"{path}.probe.misses", f"is {probe.misses}; 1 to 100 is possible")
    _unique("uplinks.path_address", [uplink.path_address for uplink in uplinks.values()])


def _check_class(path: str, name: str, class_: Class) -> None:
    _name(path, name)
    for field in ("latency_ms", "jitter_ms"):
        value = getattr(class_, field)
        if value is not None and not 1 <= value <= MILLISECONDS_MAX:
            raise DocumentError(f"{path}.{field}", f"is {value}; 1 to {MILLISECONDS_MAX} is possible")
    if class_.loss_percent is not None and not 0 <= class_.loss_percent <= 100:
        raise DocumentError(f"{path}.loss_percent", f"is {class_.loss_percent:g}; 0 to 100 is possible")
    _unique(f"{path}.uplinks", list(class_.uplinks))
    for index, uplink in enumerate(class_.uplinks):
        # Whether this very site has such an uplink is no matter: a class is one for all sites.
        _name(f"{path}.uplinks[{index}]", uplink)


def _check_endpoints(path: str, endpoints: tuple[Endpoint, ...]) -> None:
    _unique(path, [endpoint.name for endpoint in endpoints])
    for index, endpoint in enumerate(endpoints):
        _name(f"{path}[{index}].name", endpoint.name)
        if not endpoint.address or any(c.isspace() or c in ",%#" for c in endpoint.address):
            raise DocumentError(f"{path}[{index}].address", f"{endpoint.address!r} is no address or host name")
        for field in ("probe_address", "ready_address"):
            _address(f"{path}[{index}].{field}", getattr(endpoint, field))


def _check_peer(name: str, peer: Peer) -> None:
    path = f"peers.{name}"
    _name(path, name)
    if not peer.identity or any(c.isspace() or c in "*%#,=" for c in peer.identity):
        raise DocumentError(
            f"{path}.identity", f"{peer.identity!r} is no identity: it is the DNS name in a certificate"
        )
    _address(f"{path}.site_address", peer.site_address)
    if not 1 <= peer.port <= 65535:
        raise DocumentError(f"{path}.port", f"is {peer.port}; 1 to 65535 is possible")
    for index, subnet in enumerate(peer.lans):
        parse_network(f"{path}.lans[{index}]", subnet)
    for index, address in enumerate(peer.path_addresses):
        _address(f"{path}.path_addresses[{index}]", address)
    _check_endpoints(f"{path}.endpoints", peer.endpoints)
    if peer.dial and not peer.endpoints:
        raise DocumentError(f"{path}.endpoints", "a peer that is dialled needs at least one")


def _check_probed(document: Document) -> None:
    """Who asks and who is asked inside a path must be of one IP version."""
    ours = {ipaddress.ip_address(uplink.path_address).version: name for name, uplink in document.uplinks.items()}
    for name, peer in document.peers.items():
        for index, endpoint in enumerate(peer.endpoints if peer.dial else ()):
            for field in ("probe_address", "ready_address"):
                text = getattr(endpoint, field)
                for version, uplink in ours.items():
                    if ipaddress.ip_address(text).version != version:
                        reason = f"{text} is not of the IP version of uplink {uplink!r}, whose path_address asks it"
                        raise DocumentError(f"peers.{name}.endpoints[{index}].{field}", reason)


def _check_pairs(document: Document) -> None:
    _unique("pairs", [pair.id for pair in document.pairs])
    own = [parse_network(f"lans[{i}].subnet", lan.subnet) for i, lan in enumerate(document.lans)]
    own.append(ipaddress.ip_network(document.site_address))
    theirs: dict[str, list[Network]] = {}
    for name, peer in document.peers.items():
        theirs[name] = [ipaddress.ip_network(subnet) for subnet in peer.lans]
        theirs[name].append(ipaddress.ip_network(peer.site_address))
    for index, pair in enumerate(document.pairs):
        _check_pair(f"pairs[{index}]", pair, own, theirs, document.classes)


def _check_pair(
    path: str, pair: Pair, own: list[Network], theirs: dict[str, list[Network]], classes: dict[str, Class]
) -> None:
    local = parse_network(f"{path}.local", pair.local)
    remote = parse_network(f"{path}.remote", pair.remote)
    if local.version != remote.version:
        raise DocumentError(f"{path}.remote", f"{remote} is not of the same IP version as {local}")
    if not _inside(local, own):
        raise DocumentError(f"{path}.local", f"{local} is in no LAN of this site")
    if not pair.peers:
        raise DocumentError(f"{path}.peers", "names no peer that serves it")
    _unique(f"{path}.peers", list(pair.peers))
    for number, name in enumerate(pair.peers):
        if name not in theirs:
            raise DocumentError(f"{path}.peers[{number}]", f"{name!r} is no peer of this site")
        if not _inside(remote, theirs[name]):
            raise DocumentError(f"{path}.remote", f"{remote} is in no LAN of peer {name!r}")
    if pair.protocol is not None:
        protocol_number(f"{path}.protocol", pair.protocol)
    if pair.ports and pair.protocol not in ("tcp", "udp"):
        raise DocumentError(f"{path}.ports", "ports need protocol tcp or udp")
    for number, ports in enumerate(pair.ports):
        port_range(f"{path}.ports[{number}]", ports)
    if pair.class_ != "default" and pair.class_ not in classes:
        raise DocumentError(f"{path}.class", f"{pair.class_!r} is no class of this document")
    if pair.probe is not None:
        _check_service(f"{path}.probe", pair, pair.probe, remote)


def _check_service(path: str, pair: Pair, probe: ServiceProbe, remote: Network) -> None:
    if (probe.kind == "tcp") != (probe.port is not None):
        raise DocumentError(f"{path}.port", "a tcp probe needs a port, an icmp probe has none")
    if probe.port is not None and not 1 <= probe.port <= 65535:
        raise DocumentError(f"{path}.port", f"is {probe.port}; 1 to 65535 is possible")
    if probe.address is None:
        if remote.num_addresses != 1:
            raise DocumentError(f"{path}.address", f"is needed: {remote} is more than one host")
    elif _address(f"{path}.address", probe.address) not in remote:
        raise DocumentError(f"{path}.address", f"{probe.address} is not in {remote}")
    if not admits(pair.protocol, pair.ports, pair.initiator, probe):
        asked = f"tcp port {probe.port}" if probe.kind == "tcp" else "an echo"
        raise DocumentError(f"{path}.kind", f"the pair does not let this site start {asked}: probe what it does")


def admits(protocol: str | None, ports: tuple[str, ...], initiator: str, probe: ServiceProbe) -> bool:
    """Would a pair with these let its local side ask what `probe` asks?"""
    if initiator == "remote":
        return False
    if protocol is None:
        return True
    number = protocol_number("protocol", protocol)
    if probe.kind == "icmp":
        return number in (PROTOCOLS["icmp"], PROTOCOLS["icmpv6"])
    ranges = [port_range("ports", text) for text in ports] or [(0, 65535)]
    return number == PROTOCOLS["tcp"] and any(low <= (probe.port or 0) <= high for low, high in ranges)


def _inside(subnet: Network, networks: list[Network]) -> bool:
    return any(
        subnet.version == network.version and subnet.subnet_of(network)  # type: ignore[arg-type]
        for network in networks
    )


def protocol_number(path: str, text: str) -> int:
    """tcp, udp, icmp, icmpv6 or "0".."255" to its IP protocol number."""
    if text in PROTOCOLS:
        return PROTOCOLS[text]
    if text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= 255:
        return int(text)
    raise DocumentError(path, f"{text!r} is no protocol: use {', '.join(PROTOCOLS)} or a number from 0 to 255")


def port_range(path: str, text: str) -> tuple[int, int]:
    """ "443" or "8000-8010" to (first, last)."""
    match = PORTS.match(text)
    if match:
        first, last = int(match[1]), int(match[2] or match[1])
        if first <= last <= 65535 and match[2] != match[1]:
            return first, last
    raise DocumentError(path, f"{text!r} is no port: write 443 or 8000-8010, from 1 to 65535")


def _check_numbers(document: Document) -> None:
    for name, at_least, value in (
        ("ipsec.dpd_s", 1, document.ipsec.dpd_s),
        ("ipsec.rekey_s", 60, document.ipsec.rekey_s),
        ("ipsec.max_age_s", 60, document.ipsec.max_age_s),
        ("policy.failback_s", 0, document.policy.failback_s),
        ("policy.confirm_s", 1, document.policy.confirm_s),
    ):
        if value < at_least:
            raise DocumentError(name, f"is {value}; at least {at_least} is possible")
        if value > SECONDS_MAX:
            raise DocumentError(name, f"is {value}; at most {SECONDS_MAX} is possible")
