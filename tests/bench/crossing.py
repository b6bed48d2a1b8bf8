"""Do packets cross a router while its rules change?

A host behind `lan0` and one behind `ipsec0` (a veth by the name of charon's TUN, so that the rules take it for the
tunnel), each in a network namespace of its own, and this process's namespace as the router between them. Both send
numbered datagrams at a steady rate, each to the other, and count what arrives.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from socket import AF_INET, SOCK_DGRAM, SOL_SOCKET, socket
from typing import TypeVar

T = TypeVar("T")

OUT_PORT, IN_PORT = 7000, 7001

_CLONE_NEWNET = 0x40000000
_BUFFER_BYTES = 8 << 20
_DRAIN_S = 0.5


class Host:
    """A network namespace with one interface; sockets are made inside it and used from anywhere."""

    def __init__(self, address: str, gateway: str, interface: str) -> None:
        self.address = address
        self._interface = interface
        self._namespace = _in_thread(_new_namespace)
        mine = f"/proc/{os.getpid()}/fd/{self._namespace}"
        for command in (
            f"ip link add {interface} type veth peer name eth0 netns {mine}",
            f"ip address add {gateway}/24 dev {interface}",
            f"ip link set {interface} up",
            f"nsenter --net={mine} ip address add {address}/24 dev eth0",
            f"nsenter --net={mine} ip link set eth0 up",
            f"nsenter --net={mine} ip route add default via {gateway}",
        ):
            subprocess.run(command.split(), check=True)

    def close(self) -> None:
        subprocess.run(["ip", "link", "delete", self._interface], check=True)
        os.close(self._namespace)

    def bound(self, port: int) -> socket:
        """A UDP socket of this host's."""
        found = _in_thread(lambda: self._bind(port))
        found.setsockopt(SOL_SOCKET, 33, _BUFFER_BYTES)  # SO_RCVBUFFORCE
        found.settimeout(0.1)
        return found

    def _bind(self, port: int) -> socket:
        _enter(self._namespace)
        found = socket(AF_INET, SOCK_DGRAM)
        found.bind((self.address, port))
        return found


class Crossing:
    """Two flows through this namespace, begun one on each side."""

    def __init__(self, inside: str, inside_gateway: str, outside: str, outside_gateway: str, rate: int) -> None:
        self._hosts = inner, outer = Host(inside, inside_gateway, "lan0"), Host(outside, outside_gateway, "ipsec0")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        self._flows = (Flow(inner, outer, OUT_PORT, rate), Flow(outer, inner, IN_PORT, rate))

    def close(self) -> None:
        """Take the hosts away."""
        for host in self._hosts:
            host.close()

    @property
    def lost(self) -> int:
        return sum(flow.sent - flow.received for flow in self._flows)

    def told(self) -> str:
        return "; ".join(f"{flow.sent} sent, {flow.received} received" for flow in self._flows)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Packets flow inside the block, and have arrived or are lost behind it. Raises if none arrive at all."""
        ending = threading.Event()
        threads = [threading.Thread(target=flow.run, args=(ending,)) for flow in self._flows]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ending.set()
            for thread in threads:
                thread.join()
        if not all(flow.received for flow in self._flows):
            raise RuntimeError(f"nothing was measured: no packet crossed ({self.told()})")


class Flow:
    """Datagrams from one host to the other's port."""

    def __init__(self, source: Host, target: Host, port: int, rate: int) -> None:
        self.sent = 0
        self.received = 0
        self._to = (target.address, port)
        self._from = source.bound(0)
        self._at = target.bound(port)
        self._interval_s = 1 / rate

    def run(self, ending: threading.Event) -> None:
        counting = threading.Thread(target=self._count, args=(ending,))
        counting.start()
        due = time.monotonic()
        while not ending.is_set():
            self._from.sendto(self.sent.to_bytes(4, "big"), self._to)
            self.sent += 1
            due += self._interval_s
            time.sleep(max(0.0, due - time.monotonic()))
        counting.join()

    def _count(self, ending: threading.Event) -> None:
        quiet_since = time.monotonic()
        while not ending.is_set() or time.monotonic() < quiet_since + _DRAIN_S:
            try:
                self._at.recv(64)
            except TimeoutError:
                continue
            self.received += 1
            quiet_since = time.monotonic()


def _new_namespace() -> int:
    _call("unshare", _CLONE_NEWNET)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _enter(namespace: int) -> None:
    _call("setns", namespace, _CLONE_NEWNET)


def _call(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _in_thread(work: Callable[[], T]) -> T:
    """In a thread that ends with it: whatever namespace it goes to, nobody else is there."""
    with ThreadPoolExecutor(1) as one:
        return one.submit(work).result()
