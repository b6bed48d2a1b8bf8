"""How does the agent speak, and in which words?

One event a line on stderr, as JSON or for people. What may be said is listed here, `EVENTS` and `FIELDS`; a test holds
every log call in the code and docs/EVENTS.md to it. An event is a noun and a verb in the past, fixed text; whatever
varies goes into fields, in the units that their names end in. Where stderr is systemd's journal, each line begins with
its priority, which the journal takes off again: `journalctl -u cpe-agent -p warning` has what somebody should look at.

`python -m cpe_agent.log > docs/EVENTS.md` writes the page anew.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

# Event name -> what has happened. In the order in which an operator meets them.
EVENTS: Mapping[str, str] = MappingProxyType(
    {
        "agent_started": "The agent runs; it adopts what it finds in the kernel and in charon.",
        "agent_stopped": "The agent ends as it was told to. Tunnels and rules stay.",
        "enrolment_failed": "This box was not let in by its controller; it is tried again.",
        "site_enrolled": "This box has a key, a certificate and a site now.",
        "certificate_renewed": "The controller gave this site a new certificate, for a new key; both are in use.",
        "renewal_failed": "A new certificate was asked for and not given; it is tried again. The old one goes on.",
        "controller_connected": "The controller answers, and tells of changes.",
        "controller_lost": "The controller does not answer any more. The network runs without it.",
        "controller_polled": "Something between here and the controller cuts streams: changes are polled for instead.",
        "document_loaded": "The last good document was read from the disk and verified.",
        "document_accepted": "A document is obeyed from now on.",
        "document_confirmed": "All that worked before works under the new document too; it is the last good one now.",
        "document_reverted": "A document was given up, and the one before it is in force again.",
        "document_acquitted": "What a document was given up for is missing without it too: it may be taken up again.",
        "document_expired": "The document's time has run out, and it says that nobody may talk then.",
        "document_rejected": "A document is refused. The one before it stays.",
        "authorities_refused": "The document names authorities that cannot be used; those before it stay.",
        "charon_connected": "charon answers.",
        "charon_lost": "charon does not answer any more.",
        "charon_restart_asked": "charon is of no use as it runs; root's unit was asked to start it anew.",
        "tunnel_initiated": "charon was asked to bring up an IKE_SA or a CHILD_SA.",
        "tunnel_terminated": "charon was asked to end an IKE_SA or a CHILD_SA.",
        "path_up": "Probes over a path are answered, steadily enough to use it.",
        "path_down": "Probes over a path are not answered any more.",
        "path_measured": "The largest packet that a path carries was found, or has changed.",
        "packets_handed_over": "What came for a CHILD_SA before charon had installed it was given to charon once more.",
        "ipsec_broken": "The kernel has lost SAs or policies of charon's; these IKE_SAs are set up anew.",
        "ipsec_pruned": "SAs that a killed charon has left in the kernel were deleted, or policies that are nobody's.",
        "bundle_moved": "A bundle's traffic goes over another path.",
        "own_way_changed": "The router's own traffic leaves by another uplink (empty: the kernel's default route).",
        "budget_month_began": "An uplink's budget month is another one.",
        "budget_changed": "A metered uplink is near its monthly bytes, has used them up, or may be used again.",
        "servers_tried": "A bundle's probed servers are asked on another hub's path; no traffic moves.",
        "servers_judged": "Behind which hubs a bundle's servers fail, while they answer behind another, has changed.",
        "time_servers_changed": "systemd-timesyncd is given the time servers of the document (empty: its own).",
        "link_changed": "An interface, its addresses, its carrier or its gateway changed.",
        "hub_drained": "An operator has drained this hub (its ready addresses answer no more), or undrained it.",
        "drill_began": "An uplink or a hub is taken out of use for a drill.",
        "drill_ended": "It was put back, and the drill written down.",
        "readiness_changed": "This hub became willing to serve, or is no longer.",
        "store_failed": "A file of the state directory could not be read or written.",
        "task_retried": "Something failed in the outside world and will be tried again after a pause.",
        "target_repaired": "Kernel or charon was not as wanted, and now is.",
        "target_failed": "Kernel or charon would not take a change; it will be tried again.",
        "target_recovered": "A target that had failed takes changes again.",
        "forwarding_changed": "The kernel's forwarding between interfaces was switched.",
        "condition_raised": "A condition became true.",
        "condition_cleared": "A condition is true no more.",
        "library_spoke": "A library had something to say in its own words.",
    }
)  # fmt: skip

# Field name -> what it holds. `event`, `level` and `timestamp` are in every line.
FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "event": "One of the events above.",
        "level": "debug, info, warning, error or critical.",
        "timestamp": "When, in UTC, ISO 8601. The clock may be wrong; the order of lines is not.",
        "exception": "A traceback. Always a bug of ours.",
        "agent_version": "The agent's version.",
        "address": "An IP address, or address and port.",
        "backend": "kernel or userland: who encrypts.",
        "bundle": "A bundle's name.",
        "cause": "What the outside world said, in words.",
        "condition": "A condition's type.",
        "count": "How many.",
        "epoch": "The document's epoch.",
        "field": "The field of the document that is wrong; empty for the whole.",
        "from_path": "The path that carried it before; null for none.",
        "ike_sas": "How many IKE_SAs.",
        "interface": "A network interface by name.",
        "library": "Whose words they are: the name of a Python logger.",
        "local_address": "Our address that a connection goes out by; empty for the kernel's choice.",
        "month": "The first day of a budget month.",
        "mtu": "The largest packet, in bytes, inside the tunnel.",
        "op": "The operation that was tried.",
        "ops": "How many operations it took.",
        "path": "A path: uplink.peer.endpoint.",
        "peer": "A peer's site name.",
        "policies": "How many IPsec policies of the kernel.",
        "reason": "Why the agent decided so, as one word or a short sentence.",
        "rtt_ms": "Round-trip time in milliseconds.",
        "sas": "How many SAs of the kernel.",
        "site": "This site's name.",
        "state": "The new state.",
        "subject": "What a condition is about: a path, a bundle, an uplink, a target.",
        "target": "What refused or was changed: charon, nftables, netlink, controller, store, and so on.",
        "text": "Words of somebody else's: a library's, or names that a document lists.",
        "to_path": "The path that carries it now; null for none.",
        "unique_id": "charon's own number for an IKE_SA.",
        "uplink": "An uplink's name.",
        "version": "The document's version.",
    }
)  # fmt: skip

# What syslog calls the levels: sd-daemon(3).
PRIORITIES: Mapping[str, int] = MappingProxyType({"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2})

# Everything at INFO is theirs to tell a developer, not ours to tell an operator.
LIBRARY_LEVEL = logging.WARNING


def configure(form: Literal["json", "console"] = "json", level: str = "info", stream: TextIO | None = None) -> None:
    """Set up structlog, and the loggers of libraries with it, for the whole process. Can be called again."""
    output = sys.stderr if stream is None else stream
    shape: list[Processor]
    if form == "json":
        shape = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        shape = [structlog.dev.ConsoleRenderer(colors=output.isatty())]
    if _is_journal(output):
        shape = [*shape[:-1], _with_priority(shape[-1])]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *shape,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(output),
        # Loggers are made when modules are imported, before this: they must not settle on an older set-up.
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=LIBRARY_LEVEL, handlers=[_Library()], force=True)


def _is_journal(output: TextIO) -> bool:
    """systemd says in the environment which file its journal is at."""
    with suppress(OSError, ValueError):
        found = os.fstat(output.fileno())
        return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
    return False


def _with_priority(renderer: Processor) -> Processor:
    """The same, each line with its priority in front: a traceback for people has several."""

    def render(logger: WrappedLogger, name: str, event: EventDict) -> str:
        prefix = f"<{PRIORITIES[event['level']]}>"
        return "\n".join(prefix + line for line in str(renderer(logger, name, event)).splitlines())

    return render


def get_logger() -> FilteringBoundLogger:
    """The logger; bind it to a module's name `log`, which is what the test of the vocabulary looks for."""
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


@contextmanager
def errors_only() -> Iterator[None]:
    """In this block, at a shell: whoever typed the command is told in words, and of the log sees only errors."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("error"),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def events_page() -> str:
    """docs/EVENTS.md."""
    parts = [
        "# What the agent logs",
        "",
        "One event a line, on stderr. Written by `python -m cpe_agent.log` from the vocabulary in `cpe_agent/log.py`.",
        "",
        "Under systemd stderr is the journal, and each event has its priority there, by its `level`: debug 7, info 6,",
        "warning 4, error 3, critical 2. `journalctl -u cpe-agent -p warning` has what somebody should look at, and",
        "`journalctl -u cpe-agent -o cat | jq 'select(.event == \"bundle_moved\")'` picks events by their fields.",
        "",
        "## Events",
        "",
        "| event | what has happened |",
        "|---|---|",
        *(f"| `{name}` | {meaning} |" for name, meaning in EVENTS.items()),
        "",
        "## Fields",
        "",
        "An event has those that apply. A unit is the end of the name.",
        "",
        "| field | what it holds |",
        "|---|---|",
        *(f"| `{name}` | {meaning} |" for name, meaning in FIELDS.items()),
        "",
    ]
    return "\n".join(parts)


class _Library(logging.Handler):
    """Says what comes through the standard library's logging in our form."""

    def emit(self, record: logging.LogRecord) -> None:
        get_logger().log(
            record.levelno, "library_spoke", library=record.name, text=record.getMessage(), exc_info=record.exc_info
        )


if __name__ == "__main__":
    sys.stdout.write(events_page())
