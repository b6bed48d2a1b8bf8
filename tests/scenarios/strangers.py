"""What does somebody else have in the kernel and charon of a site, which is none of the agent's business?

A table of nftables whose counter counts, a route in the main table and one in a table of its own, a rule, an address,
and a connection in the agent's charon. `move_in` brings what is not there; `possessions` says what is.
"""

from __future__ import annotations

import json

from tests.lab.site import RunningSite
from tests.scenarios.charon_mutations import charon_of

Possessions = dict[str, str]

CONNECTION = "guest"
_TABLE, _PROTOCOL, _ROUTES, _PRIORITY = "neighbour", "186", "777", "190"
_ADDRESS = "198.18.77.7/32"
_RULESET = f"""
table inet {_TABLE} {{
  counter seen {{}}
  set friends {{ type ipv4_addr; elements = {{ 192.0.2.77 }} }}
  chain watching {{
    type filter hook input priority -50; policy accept;
    counter name seen
    ip saddr @friends counter accept
  }}
}}
"""


def move_in(site: RunningSite) -> None:
    """Bring what is not there."""
    if site.run("nft", "list", "table", "inet", _TABLE, check=False).status:
        site.run("nft", _RULESET)
    site.run("ip", "addr", "replace", _ADDRESS, "dev", "lo")
    site.run("ip", "route", "replace", "198.18.1.0/24", "dev", "lo", "proto", _PROTOCOL)
    site.run("ip", "route", "replace", "198.18.2.0/24", "dev", "lo", "proto", _PROTOCOL, "table", _ROUTES)
    if not site.run("ip", "rule", "show", "priority", _PRIORITY).stdout:
        site.run("ip", "rule", "add", "priority", _PRIORITY, "to", "198.18.2.0/24", "table", _ROUTES)
    with charon_of(site) as session:
        if CONNECTION.encode() not in session.get_conns()["conns"]:
            child = {"local_ts": ["198.18.1.0/24"], "remote_ts": ["198.18.3.0/24"]}
            session.load_conn({CONNECTION: {"remote_addrs": ["192.0.2.77"], "children": {"net": child}}})


def possessions(site: RunningSite) -> Possessions:
    """As they are. The counter, which must never start again, is not among them: see `seen`."""
    table = site.run("nft", "--stateless", "list", "table", "inet", _TABLE).stdout
    with charon_of(site) as session:
        (connection,) = session.list_conns({"ike": CONNECTION})
    return {
        "table": table,
        "address": str(_ADDRESS in site.run("ip", "-o", "addr", "show", "dev", "lo").stdout),
        "route": site.run("ip", "route", "show", "198.18.1.0/24").stdout,
        "route of a table": site.run("ip", "route", "show", "table", _ROUTES).stdout,
        "rule": site.run("ip", "rule", "show", "priority", _PRIORITY).stdout,
        "connection": str(connection),
    }


def seen(site: RunningSite) -> int:
    """Packets that their rule has counted."""
    listed = json.loads(site.run("nft", "-j", "list", "counter", "inet", _TABLE, "seen").stdout)["nftables"]
    return sum(int(entry["counter"]["packets"]) for entry in listed if "counter" in entry)
