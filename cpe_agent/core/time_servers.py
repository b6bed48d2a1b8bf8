"""Which time servers does the router ask, in the words of systemd-timesyncd?

Pure: from a document's `management.time_servers` to a whole drop-in (timesyncd.conf(5)). An empty list takes nothing
away: Debian's own servers, and those of a DHCP, stay.
"""

from __future__ import annotations

from collections.abc import Sequence

_HEAD = "# Written by cpe_agent as its document says; changes made here are lost.\n"


def drop_in(servers: Sequence[str]) -> str:
    """The text of it."""
    if not servers:
        return f"{_HEAD}# The document names no time servers.\n"
    # The empty one forgets what files before this one have listed.
    return f"{_HEAD}[Time]\nNTP=\nNTP={' '.join(servers)}\n"
