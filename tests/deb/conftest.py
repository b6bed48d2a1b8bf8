"""Only on demand: these download Debian packages and boot whole systems."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("CPE_DEB") else ["test_*.py"]
