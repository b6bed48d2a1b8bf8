"""What can somebody do by hand to a living charon?

The changes of charon, as `mutations.Mutation`s, made over its own socket with strongSwan's own client.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import vici

from tests.lab.pace import patience
from tests.lab.site import RunningSite
from tests.scenarios.mutations import ANY, CENTRE_LAN, LAN, Mutation

_CHARON_S = 5.0


@contextmanager
def charon_of(site: RunningSite) -> Iterator[Any]:
    """A session with its charon, by strongSwan's own client."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(patience(_CHARON_S))
        connection.connect(str(site.outside / site.vici_socket.name))
        yield vici.Session(connection)


def _name(session: Any, stem: str) -> str:
    return next(str(name.decode()) for name in session.get_conns()["conns"] if name.decode().startswith(f"cpe-{stem}-"))


def _unload(stem: str) -> Callable[[RunningSite], None]:
    def do(site: RunningSite) -> None:
        with charon_of(site) as session:
            session.unload_conn({"name": _name(session, stem)})

    return do


def _load(name: str, children: dict[str, tuple[list[str], list[str]]]) -> Callable[[RunningSite], None]:
    """`name`: of the connection, or the stem of one that is there and is loaded anew with only these children."""

    def do(site: RunningSite) -> None:
        with charon_of(site) as session:
            loaded = name if name.startswith("cpe-") else _name(session, name)
            old: dict[str, Any] = next((c[loaded] for c in session.list_conns({"ike": loaded}) if loaded in c), {})
            local = [text.decode() for text in old.get("local_addrs", [b"127.0.0.1"])]
            remote = [text.decode() for text in old.get("remote_addrs", [b"127.0.0.1"])]
            section = {
                "version": "2", "local_addrs": local, "remote_addrs": remote,
                "local_port": "4500", "remote_port": "4500", "encap": "yes", "mobike": "no", "unique": "never",
                "proposals": ["aes256gcm16-prfsha384-ecp256"],
                "local": {"auth": "pubkey", "id": old.get("local-1", {}).get("id", b"nobody").decode()},
                "remote": {"auth": "pubkey", "id": old.get("remote-1", {}).get("id", b"nobody").decode()},
                "children": {
                    child: {"local_ts": local_ts, "remote_ts": remote_ts, "esp_proposals": ["aes256gcm16-ecp256"]}
                    for child, (local_ts, remote_ts) in children.items()
                },
            }  # fmt: skip
            session.load_conn({loaded: section})

    return do


def _initiate(stem: str, child: str) -> Callable[[RunningSite], None]:
    def do(site: RunningSite) -> None:
        with charon_of(site) as session:
            for _ in session.initiate({"ike": _name(session, stem), "child": child, "timeout": "4000"}):
                pass

    return do


def _terminate(stem: str, child: str = "") -> Callable[[RunningSite], None]:
    def do(site: RunningSite) -> None:
        with charon_of(site) as session:
            asked = {"ike": _name(session, stem), "timeout": "4000"} | ({"child": child} if child else {})
            for _ in session.terminate(asked):
                pass

    return do


def _forget_credentials(site: RunningSite) -> None:
    with charon_of(site) as session:
        session.clear_creds()


def _both(*steps: Callable[[RunningSite], None]) -> Callable[[RunningSite], None]:
    def do(site: RunningSite) -> None:
        for step in steps:
            step(site)

    return do


_SITE = "10.255.0.9/32"
_PROBE = (["10.255.0.11/32"], ["10.255.0.3/32", "10.255.0.4/32"])
_TRAFFIC = ([LAN, _SITE], [CENTRE_LAN])
_SHARED = ([LAN, _SITE], ["10.50.0.0/24"])

# They add up, one after the other; the agent mends them all.
CHARON = (
    Mutation(
        "carried twice",
        _initiate("lte.centre.wan", "traffic-centre"),
        {"sa": (0, 1)},
        "foreign bundle centre: carried on more than one path (lte.centre.wan, wired.centre.wan)",
    ),
    Mutation(
        "a bundle is dropped",
        _terminate("wired.cloud.wan", "traffic-cloud"),
        {"sa": (1, 0)},
        "missing bundle cloud: no CHILD_SA carries it",
    ),
    Mutation(
        "a probe is dropped",
        _terminate("wired.cloud.wan", "probe"),
        {"sa": (1, 0)},
        "missing path wired.cloud.wan: no probe CHILD_SA",
    ),
    Mutation(
        "an IKE_SA ends",
        _terminate("lte.cloud.wan"),
        {"ike": (1, 0), "sa": (ANY, 0)},
        "missing path lte.cloud.wan: no established IKE_SA",
    ),
    Mutation(
        "a connection is unloaded",
        _unload("wired.cloud.wan"),
        {"connection": (1, 0), "child": (ANY, 0)},
        "missing connection wired.cloud.wan",
    ),
    Mutation(
        "a connection of one's own",
        _load("cpe-guest", {"all": (["0.0.0.0/0"], ["0.0.0.0/0"])}),
        {"connection": (0, 1), "child": (0, 1)},
        "foreign connection cpe-guest is not in the document",
    ),
    Mutation(
        "a child of one's own",
        _load(
            "lte.centre.wan",
            {"probe": _PROBE, "traffic-centre": _TRAFFIC, "traffic-centre+cloud": _SHARED, "x": _SHARED},
        ),
        {"child": (0, 1)},
        "foreign connection lte.centre.wan, child x",
    ),
    Mutation(
        "other selectors",
        _load(
            "lte.centre.wan",
            {"probe": _PROBE, "traffic-centre": ([_SITE], [CENTRE_LAN]), "traffic-centre+cloud": _SHARED},
        ),
        {"child": (2, 1)},
        "altered connection lte.centre.wan, child traffic-centre: local selectors are 10.255.0.9/32, not 10.101.0.0/24",
    ),
    Mutation(
        "a CHILD_SA falls short",
        _both(_terminate("lte.centre.wan", "traffic-centre"), _initiate("lte.centre.wan", "traffic-centre")),
        # Made with settings that are not quite the agent's, so charon starts an IKE_SA of its own.
        {"ike": (0, 1), "sa": (1, 1)},
        "falls short of the document: 10.101.0.0/24",
    ),
    Mutation(
        "a CHILD_SA goes beyond",
        _both(
            # The hub has no part in the name, and agrees to what its traffic child has.
            _load("lte.centre.wan", {"probe": ([LAN], [CENTRE_LAN])}),
            _terminate("lte.centre.wan", "probe"),
            _initiate("lte.centre.wan", "probe"),
        ),
        {"child": (3, 1), "sa": (1, 1)},
        "goes beyond the document",
    ),
    Mutation("credentials go", _forget_credentials, {"key": (1, 0)}, "missing credentials"),
)
