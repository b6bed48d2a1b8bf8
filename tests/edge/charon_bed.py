"""Two real charons, hub and branch, each in a network namespace of its own, joined by two links that can be cut.

The namespaces have no name: they live as long as the processes in them, and these die with the test (parent death
signal), so that whatever ends a test leaves nothing behind. Addresses of the two links are documentation addresses
(RFC 5737). The hub has one public address, reached over either link; the branch's tables send each of its two
addresses out of its own link.
"""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cpe_agent.edge.ipsec import resolve, strongswan_conf
from tests.lab.container import listens
from tests.lab.pace import BACKEND, patience

CHARON = "/usr/sbin/charon-systemd"
NO_CHARON = os.geteuid() != 0 or not Path(CHARON).exists() or not Path("/dev/net/tun").exists()
START_S = 10.0

HUB_ADDRESS = "192.0.2.100"
WIRED_ADDRESS, CELLULAR_ADDRESS = "192.0.2.2", "192.0.2.6"
PROBE_ADDRESS, READY_ADDRESS = "10.255.0.1", "10.255.0.2"
WIRED_PATH_ADDRESS, CELLULAR_PATH_ADDRESS = "10.255.1.1", "10.255.1.2"
HUB_ID, BRANCH_ID = "centre.example", "hospital-1.example"
HUB_LANS = ("10.0.0.0/24", "10.0.1.0/24")
BRANCH_LAN = "10.1.0.0/24"


@dataclass(frozen=True)
class Identity:
    """A leaf certificate and its key, PEM."""

    certificate_pem: bytes
    key_pem: bytes


@dataclass(frozen=True)
class Authority:
    """A P-256 authority that lives for one test run."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, name: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = (
            _builder(subject, subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return cls(key, builder.sign(key, hashes.SHA256()))

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, identity: str) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        certificate = (
            _builder(_name(identity), self.certificate.subject, key.public_key())
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(identity)]), critical=False)
            .add_extension(usage, critical=True)
            .sign(self.key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        plain = serialization.NoEncryption()
        return Identity(certificate.public_bytes(pem), key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))


@cache
def authority() -> Authority:
    return Authority.make("overlay")


@dataclass
class Host:
    """A network namespace with at most one charon in it."""

    name: str
    directory: Path
    _holder: subprocess.Popen[bytes] = field(init=False)
    _charon: subprocess.Popen[bytes] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._holder = _spawn("unshare", "-n", "sh", "-c", "echo; exec sleep 600", stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        self._holder.stdout.readline()
        self.run("ip", "link", "set", "lo", "up")

    @property
    def pid(self) -> int:
        return self._holder.pid

    @property
    def vici(self) -> Path:
        return self.directory / f"{self.name}.vici"

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    def run(self, *command: str) -> str:
        argv = ("nsenter", f"--net=/proc/{self.pid}/ns/net", *command)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
        if done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def start_charon(self) -> None:
        """Start it and wait until it listens."""
        self.vici.unlink(missing_ok=True)
        conf = self.directory / f"{self.name}.conf"
        conf.write_text(strongswan_conf(resolve(BACKEND), self.vici, self.log))
        environment = {**os.environ, "STRONGSWAN_CONF": str(conf)}
        net = f"--net=/proc/{self.pid}/ns/net"
        self._charon = _spawn("nsenter", net, CHARON, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + patience(START_S)
        while not listens(self.vici):
            if self._charon.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"charon did not start: {self.log.read_text() if self.log.exists() else ''}")
            time.sleep(0.01)

    def kill_charon(self) -> None:
        """kill -9. Its TUN device goes with it."""
        if self._charon is not None:
            self._charon.kill()
            self._charon.wait(5)
            self._charon = None

    def close(self) -> None:
        self.kill_charon()
        self._holder.kill()
        self._holder.wait(5)
        assert self._holder.stdout is not None
        self._holder.stdout.close()


@dataclass(frozen=True)
class Bed:
    """Both hosts, wired up, charons running."""

    hub: Host
    branch: Host

    def blackhole(self, link: str) -> None:
        """What arrives at the hub over `link` is dropped without a word, and the other way round."""
        self.hub.run("nft", f"add rule inet bed cut iifname {link} drop")
        self.hub.run("nft", f"add rule inet bed cut_out oifname {link} drop")

    def heal(self) -> None:
        self.hub.run("nft", "flush table inet bed")


@contextmanager
def bed() -> Iterator[Bed]:
    directory = Path(tempfile.mkdtemp(prefix="cpe-charon-"))
    hosts: list[Host] = []
    try:
        for name in ("hub", "branch"):
            hosts.append(Host(name, directory))
        hub, branch = hosts
        _wire(hub, branch)
        for host in hosts:
            host.start_charon()
        yield Bed(hub, branch)
    finally:
        for host in hosts:
            host.close()
        shutil.rmtree(directory, ignore_errors=True)


def _wire(hub: Host, branch: Host) -> None:
    links = (("wired", "192.0.2.1", WIRED_ADDRESS), ("cellular", "192.0.2.5", CELLULAR_ADDRESS))
    for table, (link, there, here) in enumerate(links, 101):
        hub.run("ip", "link", "add", link, "type", "veth", "peer", "name", link, "netns", str(branch.pid))
        for host, address in ((hub, there), (branch, here)):
            host.run("ip", "address", "add", f"{address}/30", "dev", link)
            host.run("ip", "link", "set", link, "up")
        branch.run("ip", "rule", "add", "from", here, "lookup", str(table))
        branch.run("ip", "route", "add", "default", "via", there, "dev", link, "table", str(table))
    branch.run("ip", "route", "add", "default", "via", "192.0.2.1")
    # charon's userland ESP needs an address of its own inside every local subnet.
    hub_own = (HUB_ADDRESS, PROBE_ADDRESS, READY_ADDRESS, *(lan.replace(".0/24", ".1") for lan in HUB_LANS))
    for address in hub_own:
        hub.run("ip", "address", "add", f"{address}/32", "dev", "lo")
    for address in (WIRED_PATH_ADDRESS, CELLULAR_PATH_ADDRESS, BRANCH_LAN.replace(".0/24", ".1")):
        branch.run("ip", "address", "add", f"{address}/32", "dev", "lo")
    hub.run("nft", "add table inet bed")
    hub.run("nft", "add chain inet bed cut { type filter hook input priority 0; }")
    hub.run("nft", "add chain inet bed cut_out { type filter hook output priority 0; }")


def _spawn(*command: str, stdout: int, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    argv = ("setpriv", "--pdeathsig", "KILL", *command)
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.DEVNULL, env=env)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )
