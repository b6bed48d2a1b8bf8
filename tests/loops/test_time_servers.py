"""Does every document's list of time servers get to whoever sets the clock?"""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from cpe_agent.edge.timesyncd import FILE, TimesyncdFile
from cpe_agent.loops.cells import Cells
from cpe_agent.loops.time_servers import RETRY_S, hand_over_time_servers
from cpe_agent.model.document import Management
from cpe_agent.ports import EdgeError
from tests.loops.documents import branch


class _Clock:
    """In memory; refuses while it is `full`."""

    def __init__(self) -> None:
        self.full = False
        self.settings: list[str] = []

    def use(self, settings: str) -> bool:
        if self.full:
            raise EdgeError("clock", "time servers", "no space left on device")
        self.settings.append(settings)
        return True


async def test_that_each_document_is_handed_over_and_a_refusal_is_tried_again(autojump_clock: MockClock) -> None:
    cells, clock = Cells(), _Clock()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hand_over_time_servers, cells, clock)
        await trio.sleep(1)
        assert clock.settings == []
        document = branch()
        cells.document.set(document)
        await trio.sleep(1)
        assert len(clock.settings) == 1 and "NTP=" not in clock.settings[0]
        clock.full = True
        cells.document.set(msgspec.structs.replace(document, management=Management(time_servers=("10.10.0.5",))))
        await trio.sleep(1)
        clock.full = False
        await trio.sleep(RETRY_S)
        assert len(clock.settings) == 2 and clock.settings[1].endswith("NTP=10.10.0.5\n")
        nursery.cancel_scope.cancel()


def test_that_a_file_is_written_once_for_all_to_read(tmp_path: Path) -> None:
    port = TimesyncdFile(tmp_path / "cpe-agent")
    assert not port.use("[Time]\n")
    assert list(tmp_path.iterdir()) == []
    directory = tmp_path / "cpe-agent-time"
    directory.mkdir()
    assert port.use("[Time]\n") and not port.use("[Time]\n") and port.use("[Time]\nNTP=\n")
    file = directory / FILE
    assert file.read_text() == "[Time]\nNTP=\n" and stat.S_IMODE(file.stat().st_mode) == 0o644
    file.unlink()
    file.mkdir()
    with pytest.raises(EdgeError, match="clock: time servers"):
        port.use("[Time]\n")


def test_that_the_package_leads_timesyncd_to_it() -> None:
    units = Path(__file__).parents[2] / "systemd"
    path = f"/run/cpe-agent-time/{FILE}"
    assert TimesyncdFile(Path("/run/cpe-agent")).path == Path(path)
    lines = [line.split() for line in (units / "cpe-agent.tmpfiles").read_text().splitlines() if line[0] != "#"]
    assert ["d", "/run/cpe-agent-time", "0755", "cpe-agent", "cpe-agent", "-"] in lines
    assert ["L+", "/run/systemd/timesyncd.conf.d/60-cpe-agent.conf", "-", "-", "-", "-", path] in lines
    assert f"PathChanged={path}\n" in (units / "cpe-agent-time.path").read_text()
    assert "ReadWritePaths=-/run/cpe-agent-time\n" in (units / "cpe-agent.service").read_text()
