"""What if something else than a controller answers where the controller was?

Stand-alone: takes the controller's own certificate, so that its sites believe it, and gives every request the same
answer: `500`, `html` (a page, with 200), `empty` (JSON's type and no body), `mute` (none at all).
"""

from __future__ import annotations

import argparse
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = b"<!DOCTYPE html><html><body>Welcome to our hotel. Please log in.</body></html>"
ANSWERS = {
    "500": (500, "text/plain", b"Internal Server Error"),
    "html": (200, "text/html", PAGE),
    "empty": (200, "application/json", b""),
    "mute": None,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("answer", choices=ANSWERS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True)
    told = parser.parse_args()
    answer = ANSWERS[told.answer]

    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_request(self) -> None:
            if answer is None:
                threading.Event().wait()
            else:
                status, kind, body = answer
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)
            self.close_connection = True

        do_GET = do_POST = handle_request

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(told.state / "server.pem", told.state / "server.key")
    server = ThreadingHTTPServer(("", told.port), Answering)
    server.daemon_threads = True
    # A client that stops in the middle of the handshake must not keep all others waiting.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
