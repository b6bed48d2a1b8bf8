"""Does the agent's charon answer, has somebody UDP 4500, and which other IKE daemons run in this network namespace?

Asked over a connection of its own, so that a listing of thousands does not look like silence. The kernel's lists of
sockets say the rest: our charon never has UDP 500 (edge.ipsec), whoever has it is somebody else; and IKE daemons listen
for commands on sockets with well-known names. Nobody's processes are looked into: charon is root's, the agent is not.

A wish is a file in the run directory, which root's cpe-charon-restart.path waits for and its service takes away.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cpe_agent.edge.vici import ViciClient
from cpe_agent.model.observed import CharonSigns
from cpe_agent.ports import EdgeError

WISH = "restart-charon"
# charon answers this in a millisecond, however much it holds.
ANSWER_S = 5.0
IKE_PORT, NAT_T_PORT = 500, 4500

_COMMAND_SOCKETS = ("charon.vici", "charon.ctl", "pluto.ctl")
_LISTENING = "00010000"


class CharonCare:
    """A `CharonCarePort`. `proc_net`: where the kernel lists the sockets of our network namespace."""

    def __init__(self, vici_socket: Path, run_dir: Path, proc_net: Path = Path("/proc/self/net")) -> None:
        self._vici = ViciClient(vici_socket, timeout_s=ANSWER_S)
        self._ours = vici_socket
        self._wish = run_dir / WISH
        self._proc_net = proc_net

    async def signs(self) -> CharonSigns:
        try:
            await self._vici.request("version")
            answers = True
        except EdgeError:
            answers = False
        ports = frozenset(self._udp_ports())
        strangers = [f"UDP {IKE_PORT}"] if IKE_PORT in ports else []
        strangers += [path for path in self._command_sockets() if path != str(self._ours)]
        return CharonSigns(answers, NAT_T_PORT in ports, tuple(strangers))

    def wish(self) -> None:
        """Raises `EdgeError`."""
        try:
            self._wish.touch(mode=0o600)
        except OSError as error:
            raise EdgeError("charon", "restart", f"{self._wish} cannot be made: {error.strerror}") from None

    def close(self) -> None:
        self._vici.close()

    def _udp_ports(self) -> Iterator[int]:
        for name in ("udp", "udp6"):
            for line in self._lines(name):
                yield int(line.split()[1].rpartition(":")[2], 16)

    def _command_sockets(self) -> Iterator[str]:
        """Paths, those that somebody listens on."""
        for line in self._lines("unix"):
            words = line.split(maxsplit=7)
            if len(words) == 8 and words[3] == _LISTENING and words[7].rpartition("/")[2] in _COMMAND_SOCKETS:
                yield words[7]

    def _lines(self, name: str) -> list[str]:
        try:
            return (self._proc_net / name).read_text(errors="replace").splitlines()[1:]
        except OSError:
            # A kernel without IPv6 has no list of it.
            return []
