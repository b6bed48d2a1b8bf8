"""What does the agent see of the links in a namespace? Its own reader, run there."""

from __future__ import annotations

import sys

import msgspec

from cpe_agent.edge.linkwatch import read_links
from cpe_agent.edge.rtnetlink import IPRoute
from cpe_agent.model.observed import Links
from tests.lab.container import Container


def seen(container: Container, namespace: str) -> Links:
    said = container.run([sys.executable, "-m", "tests.edge.links_seen"], namespace=namespace).stdout
    return msgspec.json.decode(said, type=Links)


if __name__ == "__main__":
    with IPRoute() as kernel:
        sys.stdout.buffer.write(msgspec.json.encode(read_links(kernel)))
