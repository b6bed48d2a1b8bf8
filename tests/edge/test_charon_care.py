"""A real charon that answers, hangs, has gone, or has somebody else in its place, in a network namespace of its own."""

from __future__ import annotations

import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from cpe_agent.edge.charon_care import WISH, CharonCare
from cpe_agent.model.observed import CharonSigns
from cpe_agent.ports import EdgeError
from tests.edge.charon_bed import CHARON, NO_CHARON, Host
from tests.lab.pace import patience

pytestmark = pytest.mark.skipif(NO_CHARON, reason="needs root, charon-systemd and /dev/net/tun")

LONGEST_S, LOOKS = 15.0, 300
# As a system's own: it wants UDP 500 and 4500.
FOREIGN = """\
charon-systemd {{
    load_modular = no
    load = random nonce openssl pem pkcs1 pkcs8 x509 pubkey constraints kdf kernel-netlink socket-default vici
    plugins {{
        vici {{
            socket = unix://{vici}
        }}
    }}
}}
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    running = Host("site", tmp_path)
    yield running
    running.close()


@contextmanager
def _foreign(host: Host) -> Iterator[Path]:
    """A charon of somebody else's, while the block lasts; yields its command socket."""
    vici = host.directory / "charon.vici"
    conf = host.directory / "foreign.conf"
    conf.write_text(FOREIGN.format(vici=vici))
    command = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/proc/{host.pid}/ns/net", CHARON]
    with subprocess.Popen(command, env={"STRONGSWAN_CONF": str(conf)}, stderr=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + patience(10)
        while not vici.exists():
            assert running.poll() is None and time.monotonic() < deadline, "the other charon did not start"
            time.sleep(0.01)
        yield vici
        running.terminate()
        running.wait(patience(10))


@contextmanager
def _care(host: Host) -> Iterator[CharonCare]:
    care = CharonCare(host.vici, host.directory, Path(f"/proc/{host.pid}/net"))
    try:
        yield care
    finally:
        care.close()


async def _shows(care: CharonCare, expected: CharonSigns) -> None:
    """A charon that was just started, stopped or ended takes a moment."""
    for _ in range(LOOKS):
        if await care.signs() == expected:
            return
        await trio.sleep(patience(LONGEST_S) / LOOKS)
    assert await care.signs() == expected


async def test_one_that_is_well_one_that_hangs_and_one_that_has_gone(host: Host) -> None:
    with _care(host) as care:
        assert await care.signs() == CharonSigns(answers=False, listens=False)
        host.start_charon()
        await _shows(care, CharonSigns(answers=True, listens=True))
        assert host._charon is not None
        host._charon.send_signal(signal.SIGSTOP)
        await _shows(care, CharonSigns(answers=False, listens=True))
        host._charon.send_signal(signal.SIGCONT)
        await _shows(care, CharonSigns(answers=True, listens=True))
        host.kill_charon()
        await _shows(care, CharonSigns(answers=False, listens=False))


async def test_that_a_foreign_one_is_named_and_ours_then_lacks_the_port(host: Host) -> None:
    with _care(host) as care:
        with _foreign(host) as vici:
            host.start_charon()
            await _shows(care, CharonSigns(answers=True, listens=True, strangers=("UDP 500", str(vici))))
        # Ours came second: the port was taken, and it does not try again.
        await _shows(care, CharonSigns(answers=True, listens=False))


async def test_that_a_foreign_one_that_came_second_is_named_too(host: Host) -> None:
    host.start_charon()
    with _care(host) as care:
        await _shows(care, CharonSigns(answers=True, listens=True))
        with _foreign(host) as vici:
            await _shows(care, CharonSigns(answers=True, listens=True, strangers=("UDP 500", str(vici))))
        await _shows(care, CharonSigns(answers=True, listens=True))


def test_that_a_wish_is_an_empty_file_of_the_agents_alone(tmp_path: Path) -> None:
    care = CharonCare(tmp_path / "vici", tmp_path)
    care.wish()
    care.wish()
    wish = tmp_path / WISH
    assert wish.read_bytes() == b"" and stat.S_IMODE(wish.stat().st_mode) == 0o600
    with pytest.raises(EdgeError, match="charon: restart"):
        CharonCare(tmp_path / "vici", tmp_path / "nowhere").wish()


def test_that_root_waits_for_the_same_file() -> None:
    units = Path(__file__).parents[2] / "systemd"
    wish = f"/run/cpe-agent/{WISH}"
    assert f"PathExists={wish}\n" in (units / "cpe-charon-restart.path").read_text()
    assert f"rm -f {wish}\n" in (units / "cpe-charon-restart.service").read_text()
