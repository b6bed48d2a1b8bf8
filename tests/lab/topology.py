"""What is in a lab? Sites, their uplinks and LANs, and the internet between them, as data.

`NETWORK` is the network of the README; `wide` has another, with what this one lacks. `wiring` turns any `Network` into
namespaces; nothing here touches the machine. Public addresses come from the documentation ranges; 192.0.2.0/24 is kept
for the links between internet routers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Literal, Protocol, TypeVar

Role = Literal["hub", "branch"]
Kind = Literal["wired", "cellular"]


@dataclass(frozen=True)
class Host:
    """A machine behind a site. One that serves has a web page on port 80 that names it."""

    name: str
    address: IPv4Address
    serves: bool = False
    address6: IPv6Address | None = None


@dataclass(frozen=True)
class Beyond:
    """A subnet behind the machine of a LAN, which routes between the two. `host` is the one machine in it."""

    subnet: IPv4Network
    host: Host

    @property
    def router(self) -> IPv4Interface:
        return IPv4Interface(f"{self.subnet[1]}/{self.subnet.prefixlen}")


@dataclass(frozen=True)
class Lan:
    """A site's LAN: the site's interface `name` has the subnet's first address, `host` is the one machine on it."""

    name: str
    subnet: IPv4Network
    host: Host
    subnet6: IPv6Network | None = None
    beyond: Beyond | None = None

    @property
    def router(self) -> IPv4Interface:
        return IPv4Interface(f"{self.subnet[1]}/{self.subnet.prefixlen}")

    @property
    def router6(self) -> IPv6Interface | None:
        return IPv6Interface(f"{self.subnet6[1]}/{self.subnet6.prefixlen}") if self.subnet6 else None

    @property
    def hosts(self) -> tuple[Host, ...]:
        """Also the one beyond it."""
        return (self.host, self.beyond.host) if self.beyond else (self.host,)


@dataclass(frozen=True)
class Nat:
    """A provider's NAT, which hides the uplinks that name it behind `public`.

    `one_to_one` also lets new flows in, to the one uplink behind it, as clouds do; `carrier` (CGNAT) lets none in.
    """

    name: str
    kind: Literal["one_to_one", "carrier"]
    public: IPv4Address


@dataclass(frozen=True)
class Ipv6:
    """An IPv6 address on a wire whose other end has `gateway`."""

    address: IPv6Interface
    gateway: IPv6Address


@dataclass(frozen=True)
class Uplink:
    """A site's link to the internet. The interface has its name; the provider's end of the wire is `gateway`.

    `mtu` holds at both ends of the wire; what is too long is answered with fragmentation-needed unless `silent_mtu`.
    Without `ipv4` the wire has IPv6 alone, and `address` and `gateway` are given to nobody.
    """

    name: str
    kind: Kind
    address: IPv4Interface
    gateway: IPv4Address
    nat: str | None = None
    delay_ms: float = 0.0  # one way
    mtu: int = 1500
    silent_mtu: bool = False
    ipv6: Ipv6 | None = None
    ipv4: bool = True


@dataclass(frozen=True)
class Site:
    """A CPE or vCPE. The uplinks' order is the order of the default routes that DHCP would leave."""

    name: str
    role: Role
    uplinks: tuple[Uplink, ...]
    lans: tuple[Lan, ...]

    def uplink(self, name: str) -> Uplink:
        return _named(self.uplinks, name)


@dataclass(frozen=True)
class InternetHost:
    """A machine with a public address, wired to the core router, whose end has `gateway`."""

    name: str
    address: IPv4Interface
    gateway: IPv4Address
    ipv6: Ipv6 | None = None


@dataclass(frozen=True)
class Network:
    """Everything in one lab. All names, of whatever, become namespaces, so they must differ."""

    sites: tuple[Site, ...]
    nats: tuple[Nat, ...]
    internet_hosts: tuple[InternetHost, ...]
    controller: str  # which of the internet hosts

    def site(self, name: str) -> Site:
        return _named(self.sites, name)

    def nat(self, name: str) -> Nat:
        return _named(self.nats, name)

    def internet_host(self, name: str) -> InternetHost:
        return _named(self.internet_hosts, name)

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The machines behind all sites."""
        return tuple(host for site in self.sites for lan in site.lans for host in lan.hosts)

    def host(self, name: str) -> Host:
        return _named(self.hosts, name)

    def address_of(self, host: str) -> IPv4Address:
        """Of a machine behind a site or on the internet."""
        for machine in self.internet_hosts:
            if machine.name == host:
                return machine.address.ip
        return self.host(host).address

    def address6_of(self, host: str) -> IPv6Address:
        """Of a machine behind a site or on the internet, if it has one."""
        for machine in self.internet_hosts:
            if machine.name == host and machine.ipv6:
                return machine.ipv6.address.ip
        address = self.host(host).address6
        if address is None:
            raise LookupError(f"{host!r} has no IPv6 address")
        return address

    def site_of(self, host: str) -> Site:
        """The site that `host` is behind."""
        return next(site for site in self.sites for lan in site.lans for machine in lan.hosts if machine.name == host)

    def public_address(self, site: str, uplink: str) -> IPv4Address:
        """The address by which the internet knows this uplink."""
        link = self.site(site).uplink(uplink)
        return self.nat(link.nat).public if link.nat else link.address.ip

    @property
    def private_subnets(self) -> tuple[IPv4Network, ...]:
        """What must never be seen on the internet: 10/8, where all LANs and inner addresses are, and any other LAN."""
        ten = IPv4Network("10.0.0.0/8")
        others = (lan.subnet for site in self.sites for lan in site.lans if not lan.subnet.subnet_of(ten))
        return (ten, *others)

    @property
    def has_ipv6(self) -> bool:
        """Does the internet of this lab speak it?"""
        uplinks = [uplink.ipv6 for site in self.sites for uplink in site.uplinks]
        return any(uplinks) or any(host.ipv6 for host in self.internet_hosts)


def access_router(site: str, uplink: str) -> str:
    """The namespace of the provider's router at the far end of an uplink, where its faults are made."""
    return f"net-{site}-{uplink}"


def uplink(name: str, kind: Kind, address: str, gateway: str, nat: str | None = None, delay_ms: float = 0.0) -> Uplink:
    return Uplink(name, kind, IPv4Interface(address), IPv4Address(gateway), nat, delay_ms)


def lan(
    name: str, subnet: str, host: str, *, serves: bool = False, subnet6: str | None = None, beyond: Beyond | None = None
) -> Lan:
    """A LAN whose host has the subnet's address .10 (and ::10)."""
    network, network6 = IPv4Network(subnet), IPv6Network(subnet6) if subnet6 else None
    machine = Host(host, network[10], serves, network6[0x10] if network6 else None)
    return Lan(name, network, machine, network6, beyond)


def beyond(subnet: str, host: str, *, serves: bool = False) -> Beyond:
    """A subnet behind a LAN's machine, whose host has the address .10."""
    network = IPv4Network(subnet)
    return Beyond(network, Host(host, network[10], serves))


def internet_host(name: str, address: str, gateway: str, ipv6: Ipv6 | None = None) -> InternetHost:
    return InternetHost(name, IPv4Interface(address), IPv4Address(gateway), ipv6)


def ipv6(address: str, gateway: str) -> Ipv6:
    return Ipv6(IPv6Interface(address), IPv6Address(gateway))


class _Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=_Named)


def _named(things: tuple[T, ...], name: str) -> T:
    for thing in things:
        if thing.name == name:
            return thing
    raise LookupError(f"{name!r} is not in this lab, only {', '.join(thing.name for thing in things)}")


# Two hubs that both serve 10.50.0.0/24, each with its own machine at the same address; a hospital with two uplinks;
# and a van. The hospital's and the van's cellular uplinks share one public address.
NETWORK = Network(
    sites=(
        Site(
            "centre",
            "hub",
            uplinks=(uplink("wan", "wired", "198.51.100.10/29", "198.51.100.9"),),
            lans=(
                lan("lan0", "10.10.0.0/24", "centre-server", serves=True),
                lan("lan1", "10.50.0.0/24", "centre-shared", serves=True),
            ),
        ),
        Site(
            "cloud",
            "hub",
            uplinks=(uplink("wan", "wired", "172.31.0.10/24", "172.31.0.1", nat="cloud-nat"),),
            lans=(
                lan("lan0", "10.20.0.0/24", "cloud-server", serves=True),
                lan("lan1", "10.50.0.0/24", "cloud-shared", serves=True),
            ),
        ),
        Site(
            "hospital-1",
            "branch",
            uplinks=(
                uplink("wired", "wired", "203.0.113.18/28", "203.0.113.17"),
                uplink("lte", "cellular", "100.64.1.10/24", "100.64.1.1", nat="cgnat"),
            ),
            lans=(lan("lan0", "10.101.0.0/24", "hospital-1-host"),),
        ),
        Site(
            "van-1",
            "branch",
            uplinks=(uplink("lte", "cellular", "100.64.2.10/24", "100.64.2.1", nat="cgnat"),),
            lans=(lan("lan0", "10.102.0.0/24", "van-1-host"),),
        ),
    ),
    nats=(
        Nat("cloud-nat", "one_to_one", IPv4Address("198.51.100.20")),
        Nat("cgnat", "carrier", IPv4Address("203.0.113.100")),
    ),
    internet_hosts=(
        internet_host("controller", "198.51.100.202/30", "198.51.100.201"),
        internet_host("outside", "203.0.113.202/30", "203.0.113.201"),
    ),
    controller="controller",
)

# The least that can fail over: one hub, and a branch with two uplinks. For slow machines.
SMALL = replace(
    NETWORK,
    sites=tuple(site for site in NETWORK.sites if site.name in ("centre", "hospital-1")),
    nats=tuple(nat for nat in NETWORK.nats if nat.name != "cloud-nat"),
)
