"""Which IPsec carries our packets here, and what does the agent's own charon need to be told because of it?

In: the setting of agent.yaml (`auto`, `kernel`, `userland`) and the kernel's own answer. Out: a `Backend`, and the
whole strongswan.conf of the charon that only this agent uses. `kernel` is XFRM/ESP; `userland` is strongSwan's
kernel-libipsec over a TUN device, for containers and kernels without ESP.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
import struct
from pathlib import Path

from cpe_agent.model.dataplane import Backend
from cpe_agent.ports import EdgeError

# The throwaway SA joins two documentation addresses (RFC 5737): no packet ever matches it.
TRIAL_SOURCE, TRIAL_TARGET = "192.0.2.1", "192.0.2.2"
# Should we die between adding and deleting, the kernel drops the SA by itself.
TRIAL_LIFETIME_S = 2
# The kernel answers at once, but may load modules first: esp4 and the ciphers, from an SD card (emulated: 12 s).
TRIAL_TIMEOUT_S = 60
# charon installs its own routes whatever it is told; here nobody looks them up before ours (the agent owns all routes
# into tunnels, at rule priorities below 220).
CHARON_ROUTING_TABLE = 991
CHARON_ROUTING_PRIORITY = 32000

# No ESP: no XFRM in the kernel at all, no ESP type, or not the cipher that we use.
_NO_ESP = frozenset({errno.EPROTONOSUPPORT, errno.ENOSYS, errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP})

_NETLINK_XFRM = 6
_NLMSG_ERROR = 2
_NLM_F_REQUEST_ACK = 0x1 | 0x4
_NLM_F_CREATE_EXCL = 0x200 | 0x400
_XFRM_MSG_NEWSA, _XFRM_MSG_DELSA = 0x10, 0x11
_XFRMA_ENCAP, _XFRMA_ALG_AEAD = 4, 18
_XFRM_MODE_TUNNEL = 1
_UDP_ENCAP_ESPINUDP = 2
_UNLIMITED = 0xFFFFFFFFFFFFFFFF


# "!" makes charon refuse to start without it, rather than run and fail at the first tunnel. kdf belongs in every list
# of one's own. Left out on purpose: updown (runs a shell for whoever can write to the socket), resolve, attr and unity
# (the peer would choose our DNS and addresses), bypass-lan (cleartext), dhcp, farp, eap and xauth.
_PLUGINS = {
    Backend.KERNEL: (
        "random! nonce! openssl! pem pkcs1 pkcs8 x509! pubkey constraints! revocation kdf! "
        "kernel-netlink! socket-default! counters vici!"
    ),
    # kernel-libipsec first, or kernel-netlink's ESP is used; after it, kernel-netlink must not be critical, since only
    # its other half (addresses and routes) can load.
    Backend.USERLAND: (
        "random! nonce! openssl! pem pkcs1 pkcs8 x509! pubkey constraints! revocation kdf! "
        "kernel-libipsec! kernel-netlink socket-default! counters vici!"
    ),
}

_CONF = """\
# Written by cpe_agent for its own charon, and again at every start: changes made here are lost.
charon-systemd {{
    # Only what is listed, in this order. Without updown: it runs shell commands that come over VICI.
    load_modular = no
    load = {plugins}
{group}
    # UDP 4500 alone carries everything (forced encapsulation). 500 stays free: 0 binds a random port, which nothing
    # dials and the firewall closes.
    port = 0
    port_nat_t = 4500

    # All routes into tunnels are the agent's. What charon installs all the same goes where nobody looks before ours.
    install_routes = no
    routing_table = {table}
    routing_table_prio = {priority}
    install_virtual_ip = no

    # Paths are pinned to addresses, and routes are no business of charon's. A hub's thousands in a burst made it lose
    # what comes with them on the same socket: addresses, without which it refuses every CHILD_SA from then on.
    process_route = no

    # About once a second: a path that heals, or a hub that is back, is met by the next repeat, not after a pause that
    # has grown to seconds. The first repeats come sooner: the request that moves traffic to another path is one packet,
    # and a cellular link may lose it. A dead peer is given up after 9 s.
    # Jitter only shortens: a hub's branches must not repeat in step.
    retransmit_timeout = 0.5
    retransmit_base = 1.1
    retransmit_tries = 10
    retransmit_jitter = 10

    # Carrier NATs forget a silent UDP flow after 30 s and more. Sent only from behind a NAT, and only when nothing else
    # was: on a standby path, where each costs as much as a sixth of a probe and its answer.
    keep_alive = 25s

    # The dialler replaces an IKE_SA without a gap: the new one first.
    make_before_break = yes

    # Nobody is refused for his source address: many vans share one of their carrier's. A cookie costs one round trip
    # and no memory, and is asked for when many half-open IKE_SAs wait, here or from one address. So a flood that hears
    # no answers makes some 30 of them; 3000/s take a seventh of a core and less than 1 MB (measured), and our nftables
    # rules let less than that through.
    dos_protection = yes
    block_threshold = 0
    cookie_threshold = 30
    cookie_threshold_ip = 10
    # With cookies these peers are real; a hub that has just started sees all of its branches at once.
    init_limit_half_open = 2000
    # The dialler has given up by then.
    half_open_timeout = 15s

    # The kernel's ESP (in user space it is 128): what came for a new CHILD_SA before it was installed is handed over as
    # soon as the agent has heard of it, and by then a hundred later packets may have passed. Links reorder, too.
    replay_window = 1024

    # A hub keeps several IKE_SAs per branch: hash them, and lock parts of the table only.
    ikesa_table_size = 1024
    ikesa_table_segments = 16
    threads = 16

    # IKE must pass where the path MTU is below 1280 (LTE inside tunnels, 464XLAT). Certificates need no more than this.
    fragment_size = 1200
    max_packet = 10000

    # Nobody may send a branch to another gateway.
    follow_redirects = no

    plugins {{
        vici {{
            socket = {vici}
        }}
        kernel-netlink {{
            # The agent watches links itself and pins each path to an address; charon would look at every IKE_SA
            # whenever any route changes, and the agent changes routes.
            roam_events = no
        }}
    }}

    # Ups, downs and errors; neither packets nor payloads (net, enc, asn at 1 are several lines per exchange).
    journal {{
        default = 1
        net = 0
        enc = 0
        asn = 0
        job = 0
    }}
{filelog}}}
"""

_GROUP = """\
    # charon drops to this group and keeps the capabilities that it needs; its VICI socket belongs to the group.
    group = {group}
"""

_FILELOG = """\
    filelog {{
        agent {{
            path = {path}
            append = yes
            # Lines must be there when charon is killed.
            flush_line = yes
            time_format = %Y-%m-%dT%H:%M:%S
            time_add_ms = yes
            ike_name = yes
            default = 1
            net = 0
            enc = 0
            asn = 0
            job = 0
        }}
    }}
"""


def resolve(setting: str) -> Backend:
    """The backend that `auto`, `kernel` or `userland` means here. Raises ValueError for any other word, and what
    `detect` raises."""
    return detect() if setting == "auto" else Backend(setting)


def detect() -> Backend:
    """Ask the kernel for what charon will ask of it: an ESP SA in UDP with AES-GCM, in our network namespace.

    Asking for an SPI is not enough: a kernel without ESP hands those out too. The SA is deleted at once. Needs
    CAP_NET_ADMIN. Raises EdgeError where the kernel gives no verdict (EPERM above all): guessing `userland` on a router
    would cost it most of its throughput, unnoticed.
    """
    # charon draws from 0xc0000000 up, so that no SA of a running charon can be hit; 1 to 255 are reserved.
    spi = 0x100 + secrets.randbelow(0x1000)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_XFRM) as netlink:
            netlink.settimeout(TRIAL_TIMEOUT_S)
            netlink.bind((0, 0))
            code = _transact(netlink, _XFRM_MSG_NEWSA, _NLM_F_CREATE_EXCL, _new_sa(spi))
            if code == 0:
                _transact(netlink, _XFRM_MSG_DELSA, 0, _sa_id(spi))
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return Backend.USERLAND
        raise EdgeError("kernel", "ask for ESP", str(error)) from error
    # EEXIST is said after the type and the cipher were found; that SA is not ours to delete.
    if code in (0, errno.EEXIST):
        return Backend.KERNEL
    if code in _NO_ESP:
        return Backend.USERLAND
    raise EdgeError("kernel", "ask for ESP", os.strerror(code))


def strongswan_conf(backend: Backend, vici_socket: Path, log: Path | None = None, group: str | None = None) -> str:
    """The complete strongswan.conf of the agent's charon-systemd; nothing else is read.

    `log` is a file for charon's log, beside the journal. `group` is who may use the VICI socket beside root (mode 770).
    Raises ValueError for a path that is not absolute and for what the file's syntax cannot hold.
    """
    if group is not None and not re.fullmatch(r"[a-z_][a-z0-9_-]*", group):
        raise ValueError(f"strongswan.conf cannot hold the group {group!r}")
    return _CONF.format(
        plugins=_PLUGINS[backend],
        vici=_quoted("unix://", vici_socket),
        table=CHARON_ROUTING_TABLE,
        priority=CHARON_ROUTING_PRIORITY,
        group="" if group is None else _GROUP.format(group=group),
        filelog="" if log is None else _FILELOG.format(path=_quoted("", log)),
    )


def _transact(netlink: socket.socket, kind: int, flags: int, body: bytes) -> int:
    """Send one request, return its errno (0: done)."""
    sequence = kind
    header = struct.pack("=IHHII", 16 + len(body), kind, _NLM_F_REQUEST_ACK | flags, sequence, 0)
    netlink.send(header + body)
    while True:
        answer = netlink.recv(65536)
        _, answer_kind, _, answer_sequence, _ = struct.unpack_from("=IHHII", answer)
        if answer_kind == _NLMSG_ERROR and answer_sequence == sequence:
            (code,) = struct.unpack_from("=i", answer, 16)
            return -int(code)


def _address(address: str) -> bytes:
    return socket.inet_aton(address).ljust(16, b"\0")


def _sa_id(spi: int) -> bytes:
    """struct xfrm_usersa_id."""
    return _address(TRIAL_TARGET) + struct.pack("!I", spi) + struct.pack("=HBx", socket.AF_INET, socket.IPPROTO_ESP)


def _new_sa(spi: int) -> bytes:
    """struct xfrm_usersa_info with its cipher (AES-256-GCM, 128-bit ICV) and UDP encapsulation on port 4500."""
    selector = struct.pack("=16s16s5H3B3xiI", b"", b"", 0, 0, 0, 0, socket.AF_INET, 0, 0, 0, 0, 0)
    sa_id = _address(TRIAL_TARGET) + struct.pack("!I", spi) + struct.pack("=B3x", socket.IPPROTO_ESP)
    lifetime = struct.pack("=4Q4Q", *[_UNLIMITED] * 4, 0, TRIAL_LIFETIME_S, 0, 0)
    used, statistics = bytes(32), bytes(12)
    tail = struct.pack("=IIHBBB7x", 0, 0, socket.AF_INET, _XFRM_MODE_TUNNEL, 0, 0)
    info = selector + sa_id + _address(TRIAL_SOURCE) + lifetime + used + statistics + tail
    key = secrets.token_bytes(36)  # 32 of key, 4 of salt
    cipher = struct.pack("=64sII", b"rfc4106(gcm(aes))", len(key) * 8, 128) + key
    ports = struct.pack("!HH", 4500, 4500)
    encapsulation = struct.pack("=H", _UDP_ENCAP_ESPINUDP) + ports + bytes(2) + bytes(16)
    return info + _attribute(_XFRMA_ALG_AEAD, cipher) + _attribute(_XFRMA_ENCAP, encapsulation)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _quoted(scheme: str, path: Path) -> str:
    if not path.is_absolute() or not str(path).isprintable() or any(mark in str(path) for mark in '"\\'):
        raise ValueError(f"strongswan.conf cannot hold the path {str(path)!r}")
    return f'"{scheme}{path}"'
