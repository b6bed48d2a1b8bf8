"""A page that says who served it. Stand-alone: runs on a server host of the lab."""

from __future__ import annotations

import argparse
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--site", required=True)
    parser.add_argument("--port", type=int, default=80)
    arguments = parser.parse_args()
    page = f"This is {arguments.host} at {arguments.site}.\n".encode()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6

        def server_bind(self) -> None:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            # The parent class would ask the DNS for its own name, and wait for an answer that never comes.
            TCPServer.server_bind(self)
            self.server_name, self.server_port = arguments.host, arguments.port

    server = Server(("::", arguments.port), Page)
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
