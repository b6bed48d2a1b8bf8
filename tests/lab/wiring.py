"""Which namespaces, wires, addresses, routes and NAT rules make a `Network`? And: make them.

`plan` is pure: a Network in, a Wiring out. `build` lays a Wiring out inside a lab's container.

    host --- SITE ===cpe=== net-SITE-UPLINK ---internet--- [NAT] ---internet--- core --- controller, outside

Every uplink has an access router of its own, because faults are made there: inside the internet, where the CPE cannot
see them. NAT is in a router of its own, because connection tracking would not survive the detour of a slow uplink.
Core routes public addresses only. Internet routers answer no private address, and count the packets that carry one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from tests.lab import leaks
from tests.lab.container import Container
from tests.lab.topology import InternetHost, Lan, Nat, Network, Site, Uplink, access_router

CORE = "core"
TO_CPE = "cpe"  # an access router's interface towards the site
TO_INTERNET = "internet"  # an access router's or NAT's interface towards the core

# Offered packets (see offer.py) carry this DSCP, which no real application uses and which survives NAT and tunnels.
OFFER_DSCP = 43

# What DHCP clients of several interfaces would leave: a default route each, told apart by metric.
_FIRST_METRIC = 100

_BEFORE_EVERYTHING = -450  # nftables priority: before connection tracking reassembles fragments


@dataclass
class Wiring:
    """What to make, by namespace, in order."""

    namespaces: list[str] = field(default_factory=list)
    wires: list[str] = field(default_factory=list)  # `ip -batch` lines
    routers: set[str] = field(default_factory=set)  # these forward; sites do not until their agent says so
    addresses: dict[str, list[str]] = field(default_factory=dict)  # `ip -batch` lines
    routes: dict[str, list[str]] = field(default_factory=dict)  # `ip -batch` lines, once all addresses are there
    rules: dict[str, str] = field(default_factory=dict)  # nft text
    has_ipv6: bool = False

    def namespace(self, name: str, *, router: bool = False, rules: str = "") -> None:
        if name in self.addresses:
            raise ValueError(f"two things in this lab are named {name!r}")
        self.namespaces.append(name)
        self.addresses[name] = ["link set lo up"]
        self.routes[name] = []
        if router:
            self.routers.add(name)
        if rules:
            self.rules[name] = rules

    def wire(self, a: str, a_interface: str, b: str, b_interface: str) -> None:
        self.wires.append(f"link add {a_interface} netns {a} type veth peer name {b_interface} netns {b}")

    def address(self, namespace: str, interface: str, address: object) -> None:
        self.addresses[namespace] += [f"addr add {address} dev {interface}", f"link set {interface} up"]

    def mtu(self, namespace: str, interface: str, mtu: int) -> None:
        self.addresses[namespace].append(f"link set {interface} mtu {mtu}")

    def route(self, namespace: str, destination: object, via: object, metric: int = 0) -> None:
        self.routes[namespace].append(f"route add {destination} via {via}" + (f" metric {metric}" if metric else ""))


def plan(network: Network) -> Wiring:
    wiring = Wiring(has_ipv6=network.has_ipv6)
    wiring.namespace(CORE, router=True, rules=leaks.rules(network, ""))
    transfer = _Transfer(wiring)
    for nat in network.nats:
        _add_nat(wiring, transfer, network, nat)
    for site in network.sites:
        wiring.namespace(site.name)
        for metric, uplink in enumerate(site.uplinks, _FIRST_METRIC):
            _add_uplink(wiring, transfer, network, site, uplink, metric)
        for lan in site.lans:
            _add_lan(wiring, site, lan)
    for host in network.internet_hosts:
        _add_internet_host(wiring, host)
    return wiring


def build(container: Container, wiring: Wiring) -> None:
    """Lay `wiring` out. Hosts, sites and routers are reachable when this returns."""
    container.run(["ip", "-batch", "-"], input=_lines(f"netns add {name}" for name in wiring.namespaces))
    for name in wiring.namespaces:
        # Before any interface exists, so that each starts with these. A fresh namespace copies the machine's own.
        settings = {"ip_forward": int(name in wiring.routers)} | {
            f"conf/{scope}/{setting}": 0
            for scope in ("all", "default")
            for setting in ("rp_filter", "accept_redirects", "send_redirects")
        }
        script = "cd /proc/sys/net/ipv4 && " + " && ".join(f"echo {value} > {key}" for key, value in settings.items())
        if wiring.has_ipv6:
            # Addresses are usable at once; sites and hosts learn nothing from router advertisements.
            settings6 = {"accept_dad": 0, "accept_ra": 0, "forwarding": int(name in wiring.routers)}
            for setting, value in settings6.items():
                script += "".join(f" && echo {value} > ../ipv6/conf/{scope}/{setting}" for scope in ("all", "default"))
        container.run(["sh", "-c", script], namespace=name)
    container.run(["ip", "-batch", "-"], input=_lines(wiring.wires))
    for step in (wiring.addresses, wiring.routes):
        for name, lines in step.items():
            if lines:
                container.run(["ip", "-n", name, "-batch", "-"], input=_lines(lines))
    for name, rules in wiring.rules.items():
        container.run(["nft", "-f", "-"], namespace=name, input=rules)


class _Transfer:
    """Hands out the /31 links between internet routers, from 192.0.2.0/24 (and /127 ones where there is IPv6)."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._count = 0

    def connect(self, upper: str, lower: str) -> IPv4Address:
        """Wire `lower` to `upper`, give `lower` its default route, and return its address on the link."""
        first = IPv4Address("192.0.2.0") + 2 * self._count
        upper_interface = f"link{self._count}"
        self._count += 1
        self._wiring.wire(upper, upper_interface, lower, TO_INTERNET)
        self._wiring.address(upper, upper_interface, f"{first}/31")
        self._wiring.address(lower, TO_INTERNET, f"{first + 1}/31")
        self._wiring.route(lower, "default", first)
        if self._wiring.has_ipv6:
            first6 = _transfer6(first)
            self._wiring.address(upper, upper_interface, f"{first6}/127")
            self._wiring.address(lower, TO_INTERNET, f"{first6 + 1}/127")
            self._wiring.route(lower, "::/0", first6)
        return first + 1


def _transfer6(address: IPv4Address) -> IPv6Address:
    """The IPv6 address beside this one on a link between internet routers."""
    return IPv6Address("2001:db8:ffff::") + int(address) % 256


def _add_nat(wiring: Wiring, transfer: _Transfer, network: Network, nat: Nat) -> None:
    inside = [uplink for site in network.sites for uplink in site.uplinks if uplink.nat == nat.name]
    wiring.namespace(nat.name, router=True, rules=_nat_rules(nat, inside))
    wiring.route(CORE, f"{nat.public}/32", transfer.connect(CORE, nat.name))
    # What belongs to no flow ends here instead of going round in circles.
    wiring.addresses[nat.name].append(f"addr add {nat.public}/32 dev lo")


def _add_uplink(wiring: Wiring, transfer: _Transfer, network: Network, site: Site, uplink: Uplink, metric: int) -> None:
    router = access_router(site.name, uplink.name)
    upper = uplink.nat or CORE
    rules = leaks.rules(network, f'iifname "{TO_CPE}" ') + (_SILENT_MTU if uplink.silent_mtu else "")
    wiring.namespace(router, router=True, rules=rules)
    wiring.wire(site.name, uplink.name, router, TO_CPE)
    if uplink.mtu != 1500:
        wiring.mtu(site.name, uplink.name, uplink.mtu)
        wiring.mtu(router, TO_CPE, uplink.mtu)
    via = transfer.connect(upper, router)
    if uplink.ipv4:
        wiring.address(site.name, uplink.name, uplink.address)
        wiring.address(router, TO_CPE, f"{uplink.gateway}/{uplink.address.network.prefixlen}")
        wiring.route(site.name, "default", f"{uplink.gateway} dev {uplink.name}", metric)
        wiring.route(upper, uplink.address.network, via)
    if uplink.ipv6:
        if uplink.nat:
            raise ValueError(f"{uplink.name} of {site.name} has IPv6 behind {uplink.nat}, which speaks IPv4 only")
        wiring.address(site.name, uplink.name, uplink.ipv6.address)
        wiring.address(router, TO_CPE, f"{uplink.ipv6.gateway}/{uplink.ipv6.address.network.prefixlen}")
        wiring.route(site.name, "::/0", f"{uplink.ipv6.gateway} dev {uplink.name}", metric)
        wiring.route(upper, uplink.ipv6.address.network, _transfer6(via))


def _add_lan(wiring: Wiring, site: Site, lan: Lan) -> None:
    host = lan.host
    if lan.beyond:
        # What it passes on has not arrived yet.
        wiring.namespace(host.name, router=True, rules=_ARRIVALS.replace("ip dscp", "fib daddr type local ip dscp"))
    else:
        wiring.namespace(host.name, rules=_ARRIVALS)
    wiring.wire(site.name, lan.name, host.name, "eth0")
    wiring.address(site.name, lan.name, lan.router)
    wiring.address(host.name, "eth0", f"{host.address}/{lan.subnet.prefixlen}")
    wiring.route(host.name, "default", lan.router.ip)
    if lan.router6:
        wiring.address(site.name, lan.name, lan.router6)
        wiring.address(host.name, "eth0", f"{host.address6}/{lan.router6.network.prefixlen}")
        wiring.route(host.name, "::/0", lan.router6.ip)
    if lan.beyond:
        behind = lan.beyond.host
        wiring.namespace(behind.name, rules=_ARRIVALS)
        wiring.wire(host.name, "eth1", behind.name, "eth0")
        wiring.address(host.name, "eth1", lan.beyond.router)
        wiring.address(behind.name, "eth0", f"{behind.address}/{lan.beyond.subnet.prefixlen}")
        wiring.route(behind.name, "default", lan.beyond.router.ip)


def _add_internet_host(wiring: Wiring, host: InternetHost) -> None:
    wiring.namespace(host.name)
    wiring.wire(CORE, host.name, host.name, "eth0")
    wiring.address(CORE, host.name, f"{host.gateway}/{host.address.network.prefixlen}")
    wiring.address(host.name, "eth0", host.address)
    wiring.route(host.name, "default", host.gateway)
    if host.ipv6:
        wiring.address(CORE, host.name, f"{host.ipv6.gateway}/{host.ipv6.address.network.prefixlen}")
        wiring.address(host.name, "eth0", host.ipv6.address)
        wiring.route(host.name, "::/0", host.ipv6.gateway)


def _nat_rules(nat: Nat, inside: list[Uplink]) -> str:
    if nat.kind == "one_to_one":
        if len(inside) != 1:
            raise ValueError(f"{nat.name} is one to one, but {len(inside)} uplinks are behind it")
        dnat = f'iifname "{TO_INTERNET}" ip daddr {nat.public} dnat to {inside[0].address.ip}'
        snat = f'oifname "{TO_INTERNET}" snat to {nat.public}'
    else:
        dnat = ""
        # Random ports, so that nothing comes to rely on 4500 being kept: carriers do not keep it.
        snat = f'oifname "{TO_INTERNET}" snat to {nat.public} fully-random'
    return f"""
table ip lab {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    {dnat}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    {snat}
  }}
}}
"""


# A provider that filters all ICMP: what is too long for the wire is lost, and nobody is told.
_SILENT_MTU = """
table inet lab_mtu {
  chain output {
    type filter hook output priority 0;
    icmp type destination-unreachable icmp code frag-needed drop
    icmpv6 type packet-too-big drop
  }
}
"""

# Every offered packet that reaches a host, by protocol, whatever its source looks like by then.
_ARRIVALS = f"""
table ip lab {{
  set offered {{ type inet_proto; size 256; flags dynamic; counter; }}
  chain prerouting {{
    type filter hook prerouting priority {_BEFORE_EVERYTHING};
    ip dscp {OFFER_DSCP} update @offered {{ ip protocol counter }}
  }}
}}
"""


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
