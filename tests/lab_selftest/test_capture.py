"""Does a recording tell what really passed a wire?"""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from tests.lab import recorder
from tests.lab.capture import Wire, parse
from tests.lab.recorder import RECORD

WIRE = Wire("net-van-1-lte", "cpe")
A, B = socket.inet_aton("10.102.0.10"), socket.inet_aton("203.0.113.202")
UDP = struct.pack("!HHHH", 5000, 7009, 8, 0)


def ipv4(fragment: int = 0) -> bytes:
    return struct.pack("!BBHHHBBH", 0x45, 0, 28, 1, fragment, 64, socket.IPPROTO_UDP, 0) + A + B + UDP


def test_that_packets_are_read_back() -> None:
    a6, b6 = (socket.inet_pton(socket.AF_INET6, text) for text in ("fd00:102::10", "2001:db8::1"))
    ipv6 = struct.pack("!IHBB", 6 << 28, 8, socket.IPPROTO_UDP, 64) + a6 + b6 + UDP
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + bytes(6) + A + bytes(6) + B
    data = b"".join(
        RECORD.pack(at_ns, sent_here, protocol, head)
        for at_ns, sent_here, protocol, head in (
            (1, False, 0x0800, ipv4()),
            (2, True, 0x0800, ipv4()),
            (3, False, 0x0800, ipv4(fragment=3)),
            (4, False, 0x86DD, ipv6),
            (5, False, 0x0806, arp),
            (6, False, 0x88CC, bytes(20)),  # LLDP
        )
    )
    found = [(p.at_ns, p.from_site, str(p.source), str(p.to), p.protocol, p.port) for p in parse(WIRE, data)]
    assert found == [
        (1, True, "10.102.0.10", "203.0.113.202", 17, 7009),
        (2, False, "10.102.0.10", "203.0.113.202", 17, 7009),
        (3, True, "10.102.0.10", "203.0.113.202", 17, None),
        (4, True, "fd00:102::10", "2001:db8::1", 17, 7009),
        (5, True, "10.102.0.10", "203.0.113.202", None, None),
    ]


def test_that_a_packet_has_the_time_at_which_it_passed(tmp_path: Path) -> None:
    """Also if the recorder stands still for a while, as on a busy machine."""
    file = tmp_path / "packets"
    argv = [sys.executable, "-S", recorder.__file__, "--interface", "lo", "--to", str(file), "--most", "1000"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as running:
        try:
            assert running.stdout is not None and running.stdout.readline() == b'{"ready": true}\n'
            running.send_signal(signal.SIGSTOP)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                began_ns = time.monotonic_ns()
                sender.sendto(b"now", ("127.0.0.1", 7009))
                sent_ns = time.monotonic_ns()
            time.sleep(0.5)
            running.send_signal(signal.SIGCONT)
            running.send_signal(signal.SIGTERM)
            assert running.wait(10) == 0
        finally:
            running.kill()
    passed = [packet.at_ns for packet in parse(Wire("here", "lo"), file.read_bytes()) if packet.port == 7009]
    # It leaves the interface and comes in by it. Clocks are read one after the other, hence a moment's grace.
    assert len(passed) == 2 and all(began_ns - 10**8 <= at_ns <= sent_ns + 10**8 for at_ns in passed)
