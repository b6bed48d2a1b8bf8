"""Does what is large get through, also where a provider drops it and tells nobody?

Two labs, both with an uplink of 1,492 bytes and one of 1,280: in one the providers say that a packet was too long, in
the other it is only lost. With ESP in user space a path of the first kind takes what the TUN device does, 1,400 bytes,
since the outer packets are fragmented; of the second kind, what fits into 1,280 bytes whole. The kernel's ESP lets
nothing be fragmented: a path takes what fits whole, whatever its provider says.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from cpe_agent.core.pathmtu import OVERHEAD
from cpe_agent.model.condition import Status
from cpe_controller import authorities
from cpe_controller.pki import certificate_pem, load_key
from tests.lab import bulk, watch
from tests.lab.container import wait_until
from tests.lab.init import LOGS
from tests.lab.lab import CONTROLLER_STATE, Lab
from tests.lab.pace import patience
from tests.lab.provision import provision
from tests.lab.wide import WIDE, network_yaml, silent

TUN_BYTES = 1400
LTE_BYTES = 1280
MEGABYTE = 1_000_000
BULK_PORT = 8080
HOST, SERVER = "hospital-1-host", "centre-server"
SERVER_ADDRESS, SERVER_ADDRESS_6 = "10.10.0.10", "[fd00:10::10]"
START_S = 40.0
# Four sizes at most are dropped, each three times, half a second apart.
MEASURED_S = 10.0
MOVE_S = 15.0
# By backend, what passes on the uplinks with what the providers do there; routes take the least of them.
WIRED_FITS = {"userland": TUN_BYTES, "kernel": 1492 - OVERHEAD}
OVER_IPV6_FITS = {"userland": TUN_BYTES, "kernel": 1500 - 20 - OVERHEAD}
LTE_FITS = {
    "userland": {"telling": TUN_BYTES, "silent": LTE_BYTES - OVERHEAD},
    "kernel": {"telling": LTE_BYTES - OVERHEAD, "silent": LTE_BYTES - OVERHEAD},
}
UDP = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: don't fragment
sock.connect((sys.argv[1], 9))
refused = []
for size in range(1300, 1473, 4):
    for _ in range(20):
        try:
            sock.send(bytes(size - 28))
        except OSError as error:
            if error.errno == 90:
                refused.append(size)
                break
        time.sleep(0.01)
print(refused[0] if refused else 0, sock.getsockopt(socket.IPPROTO_IP, 14))  # IP_MTU
"""
# IKE on its way through the provider's router: all of it, and what an uplink of 1,280 bytes would not take whole.
IKE_SEEN = f"""
table ip lab_ike {{
  counter seen {{}}
  counter large {{}}
  counter fragments {{}}
  chain forward {{ type filter hook forward priority 0;
    udp dport 4500 @th,64,32 0 counter name seen
    udp dport 4500 @th,64,32 0 @th,224,8 53 counter name fragments
    udp dport 4500 @th,64,32 0 meta length > {LTE_BYTES} counter name large
    ip frag-off & 0x3fff != 0 udp dport 4500 @th,64,32 0 counter name large
  }}
}}
"""


_PADDING_BYTES = 2500


@pytest.fixture(scope="module", params=["telling", "silent"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def mtu_lab(kind: str) -> Iterator[Lab]:
    network = silent(WIDE) if kind == "silent" else WIDE
    with Lab(network, name=f"mtu-{kind}") as lab:
        provision(lab, network_yaml(network))
        for site in ("centre", "cloud", "hospital-1"):
            _enlarge_certificate(lab, site)
        lab.start()
        watch.wait_all_up(lab, START_S)
        with open(lab.path(f"{LOGS}/bulk.log"), "wb") as log:
            argv = [sys.executable, "-S", str(Path(bulk.__file__)), "--port", str(BULK_PORT)]
            server = lab.container.spawn(argv, namespace=SERVER, stdout=log)
        wait_until("the server is there", lambda: lab.path(f"{LOGS}/bulk.log").read_bytes() == b"ready\n", 10)
        yield lab
        server.signal(signal.SIGTERM)
        server.close()


@pytest.fixture
def lab(mtu_lab: Lab) -> Iterator[Lab]:
    yield mtu_lab
    for uplink in mtu_lab.site("hospital-1").uplinks.values():
        uplink.heal()
    watch.wait_all_up(mtu_lab, START_S)


def test_that_every_path_is_measured_and_routes_take_the_least(lab: Lab, kind: str) -> None:
    report = _wait_known(lab, kind)
    sizes = {path.path: path.mtu for path in report.paths}
    fits = _fits(lab, kind)
    assert {size for path, size in sizes.items() if path.startswith("lte.")} == {fits}
    # 1,492 bytes take more than the TUN device.
    assert {size for path, size in sizes.items() if path.startswith("wired.")} == {WIRED_FITS[lab.backend.value]}
    page = lab.run("hospital-1", "curl", "-sf", "--max-time", str(patience(3)), "http://127.0.0.1:9273/metrics").stdout
    exported = re.findall(r'^cpe_agent_path_mtu_bytes\{.*path="(\S+?)".*\} (\S+)$', page, re.MULTILINE)
    assert {path: float(size) for path, size in exported} == sizes
    # The other way round too: a hub measures who dials it.
    over_ipv6 = OVER_IPV6_FITS[lab.backend.value]
    wait_until("cloud knows", partial(_knows, lab, "cloud", "10.105.0.10", over_ipv6), MEASURED_S)


@pytest.mark.parametrize("uplink", ["wired", "lte"])
def test_that_a_megabyte_passes_both_ways(lab: Lab, uplink: str, kind: str) -> None:
    _wait_known(lab, kind)
    other = "lte" if uplink == "wired" else "wired"
    lab.site("hospital-1").uplink(other).blackhole()
    watch.wait_for(lab, "hospital-1", f"all is on {uplink}", watch.carried("centre", uplink=uplink), MOVE_S)
    for address in (SERVER_ADDRESS, SERVER_ADDRESS_6):
        url = f"http://{address}:{BULK_PORT}"
        argv = ["curl", "-sf", "--max-time", str(patience(15)), "--noproxy", "*"]
        down = lab.run(HOST, *argv, "-o", "/dev/null", "-w", "%{size_download}", f"{url}/{MEGABYTE}")
        assert down.stdout == str(MEGABYTE)
        up = lab.run(HOST, *argv, "-T", "-", "-H", f"Content-Length: {MEGABYTE}", url + "/x", input="x" * MEGABYTE)
        assert up.stdout == str(MEGABYTE)


def test_that_a_host_learns_how_much_fits(lab: Lab, kind: str) -> None:
    _wait_known(lab, kind)
    fits = _fits(lab, kind)
    lab.run(HOST, "ip", "route", "flush", "cache")
    lab.run(HOST, "ping", "-M", "do", "-c", "1", "-W", "2", "-s", str(fits - 28), SERVER_ADDRESS)
    refused = lab.run(HOST, "ping", "-M", "do", "-c", "1", "-W", "2", "-s", "1444", SERVER_ADDRESS, check=False)
    # The branch's router says so itself, before anything enters the tunnel.
    assert f"From 10.101.0.1 icmp_seq=1 Frag needed and DF set (mtu = {fits})" in refused.stdout
    assert f"mtu {fits}" in lab.run(HOST, "ip", "route", "get", SERVER_ADDRESS).stdout
    lab.run(HOST, "ip", "route", "flush", "cache")
    too_long, learned = lab.run(HOST, sys.executable, "-S", "-c", UDP, SERVER_ADDRESS).stdout.split()
    assert int(learned) == fits
    assert int(too_long) == next(size for size in range(1300, 1473, 4) if size > fits)


def test_that_the_segment_size_is_clamped_both_ways(lab: Lab, kind: str) -> None:
    _wait_known(lab, kind)
    # Each host's own SYN says 1,460; what arrives on the other one's LAN is what the routers made of it.
    for far, source in ((SERVER, "10.101.0.10"), (HOST, SERVER_ADDRESS)):
        assert _segment_size(lab, far, source) == _fits(lab, kind) - 40


def test_that_ike_needs_no_large_packets(lab: Lab) -> None:
    router = lab.site("hospital-1").uplink("lte").router
    lab.run(router, "nft", "-f", "-", input=IKE_SEEN)
    site = lab.site("hospital-1")
    site.charon.kill()
    site.start_charon()
    watch.wait_all_up(lab, START_S, ["hospital-1"])
    listing = json.loads(lab.run(router, "nft", "-j", "list", "counters", "table", "ip", "lab_ike").stdout)
    seen = {item["counter"]["name"]: item["counter"]["packets"] for item in listing["nftables"] if "counter" in item}
    # Two hubs, each an IKE_SA_INIT in both directions; with such certificates an IKE_AUTH is three fragments or more.
    assert seen["seen"] >= 16 and seen["fragments"] >= 12 and seen["large"] == 0


def _enlarge_certificate(lab: Lab, site: str) -> None:
    """Give a site a certificate with the same contents and some 2,500 bytes more, as a chain of authorities has."""
    issuer = authorities.sites(lab.path(CONTROLLER_STATE))
    path = lab.path(f"/run/{site}/certificate.pem")
    small, *chain = x509.load_pem_x509_certificates(path.read_bytes())
    builder = (
        x509.CertificateBuilder()
        .issuer_name(small.issuer)
        .subject_name(small.subject)
        .public_key(load_key(lab.path(f"/run/{site}/key.pem").read_bytes()).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(small.not_valid_before_utc)
        .not_valid_after(small.not_valid_after_utc)
    )
    for extension in small.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    # An octet string, which nobody has to understand.
    content = bytes([4, 130, *_PADDING_BYTES.to_bytes(2, "big")]) + bytes(_PADDING_BYTES)
    padding = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), content)
    large = builder.add_extension(padding, critical=False).sign(issuer.key, hashes.SHA256())
    path.write_bytes(b"".join(certificate_pem(certificate) for certificate in (large, *chain)))


def _fits(lab: Lab, kind: str) -> int:
    return LTE_FITS[lab.backend.value][kind]


def _measured(report: Status) -> bool:
    return all(path.mtu is not None for path in report.paths)


def _wait_known(lab: Lab, kind: str) -> Status:
    """Until every path is measured, and routes know it. A failover needs no new route: the least of all paths holds, at
    both ends, for IPv6 too."""
    report = watch.wait_for(lab, "hospital-1", "every path is measured", _measured, MEASURED_S)
    for site, destination in (("hospital-1", SERVER_ADDRESS), ("hospital-1", "fd00:10::10"), ("centre", "10.101.0.10")):
        wait_until(f"{site} knows", partial(_knows, lab, site, destination, _fits(lab, kind)), MEASURED_S)
    return report


def _knows(lab: Lab, site: str, destination: str, size: int) -> bool:
    return _route_mtu(lab, site, destination) == size


def _route_mtu(lab: Lab, site: str, destination: str) -> int:
    """What the site's own kernel takes to fit on the way there; 0: no route says."""
    found = json.loads(lab.run(site, "ip", "-j", "-d", "route", "get", destination).stdout)[0]
    return int(next((metric["mtu"] for metric in found.get("metrics", []) if "mtu" in metric), 0))


def _segment_size(lab: Lab, far: str, source: str) -> int:
    """The segment size in the first SYN from `source` that reaches `far`."""
    log = lab.path(f"{LOGS}/syn.log")
    argv = [
        "timeout",
        str(patience(10)),
        "tcpdump",
        "-nlc",
        "1",
        "-i",
        "eth0",
        f"src host {source} and tcp[13] & 2 != 0",
    ]
    with open(log, "wb") as output:
        dump = lab.container.spawn(argv, namespace=far, stdout=output)
    wait_until("tcpdump listens", lambda: b"listening on" in log.read_bytes(), 5)
    lab.fetch(HOST, f"http://{SERVER_ADDRESS}/")
    assert dump.wait(10) == 0
    dump.close()
    found = re.search(rb"mss (\d+)", log.read_bytes())
    assert found is not None, log.read_bytes()
    return int(found[1])
