"""Does a stranger's knock tell open, closed and silent doors apart?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.lab import knock
from tests.lab.container import wait_until
from tests.lab.lab import Lab

SCRIPT = Path(knock.__file__)
# A responder of a few lines: answers the first message at UDP 4500 with its own header, marked as a response.
RESPONDER = """
import socket
door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
door.bind(("", 4500))
print("ready", flush=True)
data, peer = door.recvfrom(4096)
message = bytearray(data)
message[4 + 19] |= 0x20
door.sendto(message, peer)
"""


def _knock(lab: Lab, sender: str, to: str, *doors: str, seconds: float = 0.6) -> dict[str, str]:
    argv = [sys.executable, "-S", str(SCRIPT), "--to", to, "--seconds", str(seconds), *doors]
    found = json.loads(lab.run(sender, *argv).stdout)
    answered: dict[str, str] = found["answered"]
    return answered


def test_open_and_closed_doors_answer(bare_lab: Lab) -> None:
    log = bare_lab.path("/run/responder.log")
    with open(log, "wb") as stdout:
        responder = bare_lab.container.spawn(
            [sys.executable, "-c", RESPONDER], namespace="centre-server", stdout=stdout
        )
    wait_until("the responder is there", lambda: log.read_bytes().startswith(b"ready"), 10)
    # Over as soon as all have answered.
    answered = _knock(bare_lab, "centre", "10.10.0.10", "--tcp", "80", "81", "--udp", "4500", "500", seconds=15)
    assert answered == {
        "icmp": "echo reply",
        "tcp/80": "connection accepted",
        "tcp/81": "Connection refused",
        "udp/4500": "IKE_SA_INIT response",
        "udp/500": "Connection refused",
    }
    assert responder.wait(5) == 0


def test_silent_doors_do_not(bare_lab: Lab) -> None:
    rules = "table ip silent { chain input { type filter hook input priority 0; iifname wan drop; }; }"
    bare_lab.run("centre", "nft", "-f", "-", input=rules)
    try:
        doors = ("--tcp", "22", "8443", "--udp", "500", "4500")
        assert _knock(bare_lab, "outside", "198.51.100.10", *doors) == {}
    finally:
        bare_lab.run("centre", "nft", "delete", "table", "ip", "silent")
