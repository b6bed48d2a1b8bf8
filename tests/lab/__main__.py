"""`python -m tests.lab up` leaves a lab up until Ctrl-C; `python -m tests.lab exec NAME -- COMMAND` looks inside."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tests.lab.commands import BIN, put
from tests.lab.container import REPOSITORY, LabError
from tests.lab.lab import Lab
from tests.lab.provision import network_yaml, probed, provision
from tests.lab.running import find


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description="A whole network on this machine.")
    parser.add_argument("--name", default="lab", help="of several labs, which (default: lab)")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring the network up until Ctrl-C")
    up.add_argument("--bare", action="store_true", help="only the network: no controller, charon or agents")
    look = commands.add_parser("exec", help="run a command in a site, host or router of a running lab")
    look.add_argument("namespace")
    look.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    arguments = parser.parse_args(argv)
    if os.geteuid() != 0:
        print("A lab is made of network namespaces: run this as root.", file=sys.stderr)
        return 1
    try:
        if arguments.command == "up":
            return _up(arguments.name, bare=arguments.bare)
        return _exec(arguments.name, arguments.namespace, [word for word in arguments.argv if word != "--"])
    except LabError as error:
        print(f"lab {arguments.name}: {error}", file=sys.stderr)
        return 1


def _up(name: str, *, bare: bool) -> int:
    if find(name) is not None:
        raise LabError("is up already; end it first, or: .venv/bin/python -m tests.lab --name OTHER up")
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    with Lab(name=name, say=print) as lab:
        if not bare:
            provision(lab, probed(network_yaml(lab.network)))
            lab.start()
            put(lab.container)
        print(_how_to_look_inside(lab), flush=True)
        ended.wait()
        print("\nending the lab")
    return 0


def _exec(name: str, namespace: str, argv: list[str]) -> int:
    pid = find(name)
    if pid is None:
        raise LabError("is not up: make lab")
    names = sorted(path.name for path in Path(f"/proc/{pid}/root/run/netns").iterdir())
    if namespace not in names:
        raise LabError(f"has no {namespace!r}; it has {', '.join(names)}")
    inside = ["ip", "netns", "exec", namespace, *(argv or [os.environ.get("SHELL", "sh")])]
    # There the commands know which site they are typed at; and other programs of the virtual environment are there too.
    path = f"{BIN}:{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    env = os.environ | {"PATH": path, "SITE": namespace}
    os.execvpe("nsenter", ["nsenter", f"--target={pid}", "-m", "-p", "-n", f"--wdns={REPOSITORY}", "--", *inside], env)


def _folded(label: str, words: list[str]) -> str:
    indent = " " * 11
    return textwrap.fill(", ".join(words), 80, initial_indent=f"  {label}:".ljust(11), subsequent_indent=indent)


def _how_to_look_inside(lab: Lab) -> str:
    this = f"{os.path.relpath(sys.executable)} -m tests.lab" + ("" if lab.name == "lab" else f" --name {lab.name}")
    public = {
        f"{site.name} {uplink.name}": lab.network.public_address(site.name, uplink.name)
        for site in lab.network.sites
        for uplink in site.uplinks
    }
    hosts = {host.name: host.address for host in lab.network.hosts}
    return "\n".join(
        [
            "",
            "The lab is up.",
            _folded("sites", [f"{name} ({address})" for name, address in public.items()]),
            _folded("hosts", [f"{name} ({address})" for name, address in hosts.items()]),
            _folded("routers", ["core", "cgnat", "cloud-nat", *(f"net-{name.replace(' ', '-')}" for name in public)]),
            f"  files:   {lab.path('/run')}",
            "",
            "Look inside, from another terminal:",
            f"  {this} exec hospital-1 -- cpe-agent status",
            f"  {this} exec hospital-1 -- cpe-agent verify",
            f"  {this} exec hospital-1 -- cpe-agent drill uplink wired",
            f"  {this} exec centre -- cpe-agent drain    (or undrain)",
            f"  {this} exec controller -- cpe-controller status",
            f"  {this} exec van-1 -- swanctl --list-sas",
            f"  {this} exec van-1 -- ip route show table all proto 155",
            f"  {this} exec van-1 -- nft list ruleset",
            f"  {this} exec van-1 -- curl http://127.0.0.1:9273/metrics",
            f"  {this} exec hospital-1-host -- curl http://10.50.0.10/",
            f"  {this} exec net-hospital-1-wired -- tcpdump -ni cpe",
            f"  {this} exec hospital-1        (a shell)",
            "",
            "Ctrl-C ends it, and leaves nothing behind.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
