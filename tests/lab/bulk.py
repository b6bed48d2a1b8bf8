"""Gives and takes bytes by the megabyte. Stand-alone: runs on a server host of the lab.

GET /N answers with N bytes; PUT takes what comes and answers with how many bytes that were. `--rate` is how many bytes
it gives in a second, at most; without it, and from SIGUSR1 on, as many as pass.
"""

from __future__ import annotations

import argparse
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer

BYTES_MAX = 100_000_000
PIECE_S = 0.02


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=int, default=0)
    arguments = parser.parse_args()
    piece = int(arguments.rate * PIECE_S) or BYTES_MAX
    hurry = threading.Event()
    if not arguments.rate:
        hurry.set()
    signal.signal(signal.SIGUSR1, lambda _number, _frame: hurry.set())

    class Bulk(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(bytes(min(int(self.path[1:]), BYTES_MAX)))

        def do_PUT(self) -> None:
            left = int(self.headers["Content-Length"])
            taken = 0
            while left and (data := self.rfile.read(min(left, 65536))):
                left -= len(data)
                taken += len(data)
            self._answer(str(taken).encode())

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for first in range(0, len(body), piece):
                began_s = time.monotonic()
                self.wfile.write(body[first : first + piece])
                hurry.wait(max(0.0, began_s + PIECE_S - time.monotonic()))

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6

        def server_bind(self) -> None:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            # The parent class would ask the DNS for its own name, and wait for an answer that never comes.
            TCPServer.server_bind(self)
            self.server_name, self.server_port = "bulk", arguments.port

    server = Server(("::", arguments.port), Bulk)
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
