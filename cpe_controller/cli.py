"""What do you want done?

The only place that prints and sets exit codes: 0 done, 1 it could not be done, 2 what was asked or written is wrong.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from collections.abc import Sequence
from pathlib import Path

from cpe_controller import setup
from cpe_controller.compile import rehearse
from cpe_controller.fields import NetworkError
from cpe_controller.parse import parse
from cpe_controller.publish import Applied, ApplyConflict
from cpe_controller.serve import serve
from cpe_controller.store import StoreError

DEFAULT_STATE = Path("/var/lib/cpe-controller")
# An agent that hears nothing for three of them looks for another way.
HEARTBEAT_S = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    told = _parser().parse_args(arguments)
    try:
        _run(told)
    except NetworkError as error:
        print(f"cpe-controller: {error}", file=sys.stderr)
        return 2
    except (setup.SetupError, StoreError, ApplyConflict) as error:
        print(f"cpe-controller: {error}", file=sys.stderr)
        return 1
    return 0


def _run(told: argparse.Namespace) -> None:
    if told.command == "init":
        setup.init_state(told.state, told.name, told.address, told.port)
        print(f"network {told.name} is set up in {told.state}; next: apply a network.yaml, then serve")
    elif told.command == "check":
        network = parse(setup.read_network(told.file), str(told.file))
        documents = rehearse(network, dt.datetime.now(dt.UTC))
        pairs = sum(len(documents[branch.name].pairs) for branch in network.branches)
        print(f"{told.file}: good: {len(network.hubs)} hubs, {len(network.branches)} branches, {pairs} pairs")
    elif told.command == "apply":
        _print_applied(setup.apply(told.state, told.file))
    elif told.command == "cert":
        pems = setup.issue_site(told.state, told.site)
        for path in setup.save_site(told.out, told.site, *pems):
            print(path)
    else:
        serve(told.state, told.listen, told.port, told.heartbeat_s, _print_ready)


def _print_applied(applied: Applied) -> None:
    for site, version in applied.published.items():
        print(f"{site}: version {version}")
    for site in applied.withdrawn:
        print(f"{site}: withdrawn")
    print(f"{len(applied.published)} changed, {len(applied.unchanged)} unchanged, {len(applied.withdrawn)} withdrawn")


def _print_ready(url: str) -> None:
    print(f"listening on {url}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cpe-controller", description="Hands every site its signed document.")
    parser.add_argument("--state", type=Path, default=DEFAULT_STATE, metavar="DIR", help=f"default {DEFAULT_STATE}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="make the keys and the store of a new network")
    init.add_argument("--name", required=True, metavar="NETWORK", help="the network's name, as in network.yaml")
    init.add_argument("--address", required=True, nargs="+", metavar="HOST", help="where agents reach it: names or IPs")
    init.add_argument("--port", type=_port, default=8443, help="default 8443")

    check = commands.add_parser("check", help="is this network.yaml good? changes nothing")
    check.add_argument("file", type=Path, metavar="network.yaml")

    apply = commands.add_parser("apply", help="put a network.yaml in force")
    apply.add_argument("file", type=Path, metavar="network.yaml")

    serve = commands.add_parser("serve", help="hand out documents until told to end")
    serve.add_argument("--listen", metavar="ADDRESS", help="default every address")
    serve.add_argument("--port", type=_port, help="default the one of init; 0 takes any that is free")
    serve.add_argument("--heartbeat-s", type=_seconds, default=HEARTBEAT_S, metavar="S", help="default 10")

    cert = commands.add_parser("cert", help="a new key and certificate for a site")
    cert.add_argument("site", metavar="SITE")
    cert.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where to put SITE.key, SITE.pem, root.pem"
    )
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port")
    return port


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.05 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: 0.05 to 3600 is possible")
    return seconds
