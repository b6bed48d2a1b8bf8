"""What does a site's kernel and charon hold, read without any of the product's code?

Runs `nft -j`, `ip -j` and `swanctl --raw` in the site's namespace and parses their output itself. Out: facts, counted,
each a kind and a text; counters, handles and other things that change by themselves are left out. Two readings are
compared by what was lost and what was gained.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from tests.lab.site import RunningSite

Fact = tuple[str, str]
Facts = Counter[Fact]

_TABLE = "cpe_agent"
_PASSING = frozenset({"handle", "packets", "bytes"})
_TOKEN = re.compile(r"[{}\[\]=]|[^\s{}\[\]=]+")


def changed(before: Facts, after: Facts) -> dict[str, tuple[int, int]]:
    """(lost, gained) by kind; kinds of which nothing changed are left out."""
    found: dict[str, tuple[int, int]] = {}
    for kind in sorted({kind for kind, _ in before | after}):
        lost = sum(count for (k, _), count in (before - after).items() if k == kind)
        gained = sum(count for (k, _), count in (after - before).items() if k == kind)
        if lost or gained:
            found[kind] = (lost, gained)
    return found


def nftables(site: RunningSite) -> Facts:
    """Kinds: table, chain (with policy), order (of a chain's rules), rule, set, element, object."""
    facts: Facts = Counter()
    order: dict[str, list[str]] = {}
    for entry in table(site):
        ((kind, found),) = entry.items()
        if kind == "table":
            facts["table", _text(found)] += 1
        elif kind == "chain":
            facts["chain", _text(found)] += 1
            order.setdefault(found["name"], [])
        elif kind == "rule":
            rule = _text({"expr": found["expr"], "comment": found.get("comment", "")})
            facts["rule", f"{found['chain']}: {rule}"] += 1
            order.setdefault(found["chain"], []).append(rule)
        elif kind == "set":
            for element in found.pop("elem", []):
                facts["element", f"{found['name']}: {_text(element)}"] += 1
            facts["set", _text(found)] += 1
        else:
            facts["object", f"{kind} {_text(found)}"] += 1
    for name, rules in order.items():
        facts["order", f"{name}: {rules}"] += 1
    return facts


def table(site: RunningSite) -> list[dict[str, Any]]:
    """The product's table as `nft -j` lists it; empty if there is none."""
    listed = site.run("nft", "-j", "list", "ruleset")
    entries: list[dict[str, Any]] = json.loads(listed.stdout)["nftables"]
    return [e for e in entries if any(_TABLE in (f.get("table"), f.get("name")) for f in e.values())]


def routing(site: RunningSite) -> Facts:
    """Kinds: route, rule, address (on lo), forwarding, policy (of the kernel's IPsec, those that only block)."""
    facts: Facts = Counter()
    for version in ("-4", "-6"):
        for route in _json(site, "ip", "-j", "-d", version, "route", "show", "table", "all"):
            # What the kernel adds by itself says nothing, and comes and goes.
            if route.get("protocol") != "kernel":
                facts["route", _text(route)] += 1
        for rule in _json(site, "ip", "-j", "-d", version, "rule", "show"):
            facts["rule", f"{version} {_text(rule)}"] += 1
    for link in _json(site, "ip", "-j", "addr", "show", "dev", "lo"):
        for address in link.get("addr_info", []):
            facts["address", f"{address['local']}/{address['prefixlen']}"] += 1
    for version, name in (("4", "ipv4/ip_forward"), ("6", "ipv6/conf/all/forwarding")):
        facts["forwarding", f"{version} {site.run('cat', f'/proc/sys/net/{name}').stdout.strip()}"] += 1
    facts.update(("policy", policy) for policy in _block_policies(site))
    return facts


def charon(site: RunningSite) -> Facts:
    """Kinds: connection, child (of a connection), ike (an established IKE_SA), sa (an installed CHILD_SA), key."""
    facts: Facts = Counter()
    for name, connection in _events(site, "--list-conns"):
        facts["connection", name] += 1
        for child, config in connection["children"].items():
            facts["child", f"{name} {child} {config['mode']} {config['local-ts']} {config['remote-ts']}"] += 1
    for name, ike in _events(site, "--list-sas"):
        if ike["state"] == "ESTABLISHED":
            facts["ike", f"{name} {ike['uniqueid']}"] += 1
            for child in ike.get("child-sas", {}).values():
                if child["state"] == "INSTALLED":
                    facts["sa", f"{name} {child['name']} {child['local-ts']} {child['remote-ts']}"] += 1
    for certificate in _raw(site, "--list-certs"):
        if certificate.get("has_privkey") == "yes":
            facts["key", str(certificate["data"])] += 1
    return facts


def _block_policies(site: RunningSite) -> list[str]:
    """As "src A dst B dir out action block priority N ptype main"."""
    lines = site.run("ip", "xfrm", "policy", "list", "action", "block", check=False).stdout.splitlines()
    heads = [number for number, line in enumerate(lines) if line.startswith("src ")]
    return [" ".join(" ".join(lines[number : number + 2]).split()) for number in heads]


def _json(site: RunningSite, *argv: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(site.run(*argv).stdout or "[]")
    return found


def _text(found: object) -> str:
    return json.dumps(_lasting(found), sort_keys=True)


def _lasting(found: object) -> object:
    if isinstance(found, dict):
        return {key: _lasting(value) for key, value in found.items() if key not in _PASSING}
    if isinstance(found, list):
        return [_lasting(value) for value in found]
    return found


def _events(site: RunningSite, what: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name, section) for event in _raw(site, what) for name, section in event.items()]


def _raw(site: RunningSite, what: str) -> list[dict[str, Any]]:
    """swanctl's raw lines, as in `list-conn event {name {key=value list=[a b] section {...}}}`."""
    listed = site.run("swanctl", what, "--raw", "--uri", f"unix://{site.vici_socket}").stdout
    found = []
    for line in listed.splitlines():
        head, brace, rest = line.partition(" event {")
        if brace and " " not in head:
            # A value may hold spaces (a key's class, a time): it goes on until the next thing with a = or a brace.
            section, _ = _section(_TOKEN.findall(rest), 0)
            found.append(section)
    return found


def _section(tokens: list[str], at: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    while tokens[at] != "}":
        name, sign = tokens[at], tokens[at + 1]
        if sign == "{":
            found[name], at = _section(tokens, at + 2)
        elif sign == "=" and tokens[at + 2] == "[":
            end = tokens.index("]", at)
            found[name], at = sorted(tokens[at + 3 : end]), end + 1
        elif sign == "=":
            value, at = [], at + 2
            while tokens[at] != "}" and tokens[at + 1] not in ("=", "{"):
                value.append(tokens[at])
                at += 1
            found[name] = " ".join(value)
        else:
            raise ValueError(f"not understood: {' '.join(tokens[at : at + 3])}")
    return found, at + 1
