"""Answers "what differs?" again and again, in a site's namespace, with the product's own code.

`cpe-agent verify` does the same once, and spends most of its time on starting Python. Every connection to the socket is
given one report, as JSON.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import msgspec
import trio

from cpe_agent import comparison
from cpe_agent.settings import load_settings


def main(config: str, path: str) -> None:
    settings = load_settings(Path(config))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection:
                document = comparison.stored_document(settings)
                report = comparison.compare(document, trio.run(comparison.look, settings, document))
                connection.sendall(msgspec.json.encode(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
