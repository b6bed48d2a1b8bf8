"""How do time servers get to systemd-timesyncd, which is not the agent's?

By a file in a directory of the agent's own that everybody may read. The package links it into timesyncd.conf.d
(cpe-agent.tmpfiles), and root's cpe-agent-time.path starts timesyncd anew when the file changes. Where there is no such
directory, somebody else sees to the clock, and nothing is done.
"""

from __future__ import annotations

from pathlib import Path

from cpe_agent.edge.files import write_whole
from cpe_agent.ports import EdgeError

FILE = "timesyncd.conf"


class TimesyncdFile:
    """A `TimeServersPort`."""

    def __init__(self, run_dir: Path) -> None:
        # Beside the run directory, which only the agent may enter.
        self.path = run_dir.with_name(f"{run_dir.name}-time") / FILE

    def use(self, settings: str) -> bool:
        """Raises `EdgeError`."""
        if not self.path.parent.is_dir():
            return False
        try:
            if self.path.exists() and self.path.read_text() == settings:
                return False
            write_whole(self.path, settings.encode(), 0o644)
        except OSError as error:
            raise EdgeError("clock", "time servers", f"{self.path}: {error.strerror}") from None
        return True
