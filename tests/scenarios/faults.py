"""What can happen to a living site of the lab, by somebody's hand, by a crash, or by its provider?

Each `Fault` does one thing, undoes what nobody but its doer can (a cable, a provider, a supervisor), and says what the
agent has then to mend by itself, and how soon. Chance is the caller's, so that a run can be had again.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import vici

from cpe_agent.core.verify import RULES
from cpe_agent.edge.ipsec import resolve
from cpe_agent.model.condition import Status
from cpe_agent.model.dataplane import Backend
from tests.lab import provision, watch
from tests.lab.container import LabError
from tests.lab.forbidden import network_yaml
from tests.lab.lab import Lab
from tests.lab.pace import BACKEND
from tests.lab.site import RunningSite
from tests.scenarios import oracle
from tests.scenarios.charon_mutations import charon_of

EVENT_MS = 1000.0  # noticed by an event, mended at once
# charon tells nobody of what is loaded, unloaded or cleared: that is found at the next glance, a second later at most.
LOOK_MS = 2_500.0
DIAL_MS = 45_000.0  # an IKE_SA has to be dialled again, perhaps after a wait
_METRIC_RETURN, _CHARONS_TABLE, _OWN_TABLE = 20000, "991", "15502"
_AGENT_S = 20.0
_AWAY_S = 0.7  # long enough for probes to notice
_TRIAL_S = 60.0
# What is taken away may have gone by itself since it was seen: an earlier fault is still being made good.
_GONE = ("No such file or directory", "No such process", "Cannot assign requested address", "table does not exist")

Reader = Callable[[RunningSite], oracle.Facts]


@dataclass(frozen=True)
class Fault:
    """`mends_ms`: within this the kernel and charon hold again what they held. `spares`: not somebody else's things."""

    name: str
    do: Callable[[Lab, RunningSite, random.Random], None]
    reads: Reader
    mends_ms: float
    spares: bool = True
    weight: float = 1.0

    def __str__(self) -> str:
        return self.name


def firewall(site: RunningSite) -> oracle.Facts:
    """Without the sets that fill by themselves with who dials us now, and empty themselves by time."""
    return _kept(oracle.nftables(site), lambda kind, text: kind != "element" or '"expires"' not in text)


def routing(site: RunningSite) -> oracle.Facts:
    """Without what comes and goes with the tunnels: charon's own routes, a hub's return routes, and the way of the
    router's own packets, which follows the paths half a second later."""
    return _kept(_routing(site), lambda kind, text: kind != "route" or not _goes_with_tunnels(json.loads(text)))


def _goes_with_tunnels(route: dict[str, Any]) -> bool:
    return route.get("metric") == _METRIC_RETURN or str(route.get("table")) == _OWN_TABLE


def loaded(site: RunningSite) -> oracle.Facts:
    """What charon was given."""
    return _kept(oracle.charon(site), lambda kind, _text: kind in ("connection", "child", "key"))


def everything(site: RunningSite) -> oracle.Facts:
    """Also the SAs. What a dialler leaves over at a hub, until the hub cleans up, is no difference."""
    found = firewall(site) + _routing(site)
    for kind, text in oracle.charon(site):
        found[kind, text.split()[0] if kind == "ike" else text] = 1
    return found


def _routing(site: RunningSite) -> oracle.Facts:
    facts = oracle.routing(site)
    found: oracle.Facts = type(facts)()
    for (kind, text), count in facts.items():
        if kind == "route":
            route = json.loads(text)
            if str(route.get("table")) == _CHARONS_TABLE:
                continue
            # The size that a path is measured to have, and a carrier that comes back a moment later.
            route.pop("metrics", None)
            route["flags"] = [flag for flag in route.get("flags", []) if flag != "linkdown"]
            text = json.dumps(route, sort_keys=True)
        found[kind, text] += count
    return found


def _kept(facts: oracle.Facts, is_kept: Callable[[str, str], bool]) -> oracle.Facts:
    return type(facts)({fact: count for fact, count in facts.items() if is_kept(*fact)})


def _nft(text: str) -> Callable[[Lab, RunningSite, random.Random], None]:
    return lambda _lab, site, _chance: _ignore(site.run("nft", text))


def _ignore(_completed: object) -> None:
    """A command's output that says nothing."""


def _take_away(site: RunningSite, *argv: str) -> None:
    done = site.run(*argv, check=False)
    if done.status and not any(words in done.stderr for words in _GONE):
        raise LabError(f"{' '.join(argv)} at {site.name}: {done.stderr.strip()}")


def _delete_a_rule(_lab: Lab, site: RunningSite, chance: random.Random) -> None:
    rules = [entry["rule"] for entry in oracle.table(site) if "rule" in entry]
    rule = chance.choice(rules)
    _take_away(site, "nft", f"delete rule inet cpe_agent {rule['chain']} handle {rule['handle']}")


def _accept_somewhere(_lab: Lab, site: RunningSite, chance: random.Random) -> None:
    chain = chance.choice(["forward", "input", "lan_to_tunnel", "tunnel_to_lan"])
    site.run("nft", f"{chance.choice(['insert', 'add'])} rule inet cpe_agent {chain} accept")


def _delete_an_element(_lab: Lab, site: RunningSite, chance: random.Random) -> None:
    name = chance.choice(["lans", "uplinks"])
    (found,) = [e["set"] for e in oracle.table(site) if e.get("set", {}).get("name") == name]
    element = chance.choice(sorted(found["elem"]))
    _take_away(site, "nft", f'delete element inet cpe_agent {name} {{ "{element}" }}')


def _empty_pairs(_lab: Lab, site: RunningSite, _chance: random.Random) -> None:
    pairs = "local_pairs4" if site.topology.role == "branch" else "remote_pairs4"
    site.run("nft", f"flush set inet cpe_agent {pairs}")


def _delete_ip_rules(_lab: Lab, site: RunningSite, chance: random.Random) -> None:
    rules = _own_rules(site)
    for rule in chance.sample(rules, chance.randint(1, len(rules))):
        argv = ["ip", "rule", "del", "priority", str(rule["priority"]), "table", str(rule["table"])]
        if "iif" in rule:
            argv += ["iif", str(rule["iif"])]
        if rule["src"] != "all":
            argv += ["from", str(rule["src"])]
        _take_away(site, *argv)


def _flush_a_table(_lab: Lab, site: RunningSite, chance: random.Random) -> None:
    # Of ours that hold something: to flush an empty one is an error to iproute2, and OWN is empty while no path is up.
    tables = {str(route["table"]) for route in _listed(site, "route", "show", "table", "all", "protocol", "155")}
    _take_away(site, "ip", "route", "flush", "table", chance.choice(sorted(tables - {"main", "254"})))


def _delete_addresses(_lab: Lab, site: RunningSite, chance: random.Random) -> None:
    (lo,) = _listed(site, "addr", "show", "dev", "lo")
    addresses = [str(a["local"]) for a in lo["addr_info"] if str(a["local"]).startswith("10.255.")]  # type: ignore[attr-defined]
    _take_away(site, "ip", "addr", "del", f"{chance.choice(addresses)}/32", "dev", "lo")


def _own_rules(site: RunningSite) -> list[dict[str, object]]:
    return [rule for rule in _listed(site, "rule") if rule.get("protocol") == "155"]


def _listed(site: RunningSite, *what: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(site.run("ip", "-4", "-j", "-d", *what).stdout)
    return found


def _forwarding_off(_lab: Lab, site: RunningSite, _chance: random.Random) -> None:
    site.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=0")


def _kill_charon(_lab: Lab, site: RunningSite, _chance: random.Random) -> None:
    site.charon.kill()
    site.start_charon()


def _kill_agent(lab: Lab, site: RunningSite, _chance: random.Random) -> None:
    _end_agent(lab, site)
    _start_agent(lab, site)


def _end_agent(lab: Lab, site: RunningSite) -> None:
    """Not under a document that is on trial: the second such end would have it given up for good."""
    watch.wait_for(lab, site.name, "has nothing on trial", lambda report: report.document_confirmed, _TRIAL_S)
    site.agent.kill()


def _start_agent(lab: Lab, site: RunningSite) -> None:
    """Returns when it has seen to the firewall: before that nobody notices an event, and the next fault may take the
    other lock away."""
    site.agent.start()
    watch.wait_for(lab, site.name, "has its rules", _has_rules, _AGENT_S)


def _has_rules(report: Status) -> bool:
    return any(target.name == RULES and target.in_sync for target in report.targets)


def _kill_agent_and_flush(lab: Lab, site: RunningSite, chance: random.Random) -> None:
    _end_agent(lab, site)
    site.run("nft", "delete", "table", "inet", "cpe_agent")
    _flush_a_table(lab, site, chance)
    _start_agent(lab, site)


def _unload(_lab: Lab, site: RunningSite, chance: random.Random) -> None:
    with charon_of(site) as session:
        names = sorted(name.decode() for name in session.get_conns()["conns"] if name.startswith(b"cpe-"))
        # It was started a moment ago, and was given none yet; or this one was just replaced.
        if names:
            with contextlib.suppress(vici.exception.CommandException):
                session.unload_conn({"name": chance.choice(names)})


def _load_a_stranger(_lab: Lab, site: RunningSite, chance: random.Random) -> None:
    anything = {"local_ts": ["0.0.0.0/0"], "remote_ts": ["0.0.0.0/0"]}
    with charon_of(site) as session:
        stray = {"local_addrs": ["%any"], "remote_addrs": ["%any"], "children": {"all": anything}}
        session.load_conn({f"cpe-stray-{chance.randrange(1000)}": stray})


def _clear_credentials(_lab: Lab, site: RunningSite, _chance: random.Random) -> None:
    with charon_of(site) as session:
        session.clear_creds()


def _terminate_ike(_lab: Lab, site: RunningSite, chance: random.Random) -> None:
    with charon_of(site) as session:
        found = [sa["uniqueid"] for sas in session.list_sas() for sa in sas.values()]
        _terminate(session, "ike-id", found, chance)


def _terminate_child(_lab: Lab, site: RunningSite, chance: random.Random) -> None:
    with charon_of(site) as session:
        children = [sa["child-sas"].values() for sas in session.list_sas() for sa in sas.values()]
        _terminate(session, "child-id", [child["uniqueid"] for found in children for child in found], chance)


def _terminate(session: Any, kind: str, ids: list[bytes], chance: random.Random) -> None:
    if ids:
        # It may end by itself meanwhile, as what an earlier fault has left behind does.
        with contextlib.suppress(vici.exception.CommandException):
            for _ in session.terminate({kind: chance.choice(sorted(ids)), "timeout": "2000"}):
                pass


def _cut(_lab: Lab, site: RunningSite, chance: random.Random) -> None:
    uplink = site.uplink(chance.choice(sorted(site.uplinks)))
    uplink.cut()
    time.sleep(_AWAY_S)
    uplink.restore()


def _blackhole(_lab: Lab, site: RunningSite, chance: random.Random) -> None:
    uplink = site.uplink(chance.choice(sorted(site.uplinks)))
    uplink.blackhole()
    time.sleep(_AWAY_S)
    uplink.heal()


def _readdress(_lab: Lab, site: RunningSite, chance: random.Random) -> None:
    """To another address of the same network, and back, as two leases would."""
    uplink = site.uplink(chance.choice(sorted(site.uplinks)))
    old = uplink.address
    uplink.readdress(f"{old.ip + 1}/{old.network.prefixlen}", str(uplink.gateway))
    time.sleep(_AWAY_S)
    uplink.readdress(str(old), str(uplink.gateway))


def _rename(_lab: Lab, site: RunningSite, chance: random.Random) -> None:
    """And back; its default route, which goes with the link, comes again as from a DHCP client."""
    name = chance.choice(sorted(site.uplinks))
    default = site.run("ip", "route", "show", "default", "dev", name).stdout.split()
    for old, new in ((name, "renamed0"), ("renamed0", name)):
        site.run("ip", "link", "set", old, "down")
        site.run("ip", "link", "set", old, "name", new)
        site.run("ip", "link", "set", new, "up")
        time.sleep(_AWAY_S)
    metric = default[default.index("metric") + 1]
    site.run("ip", "route", "add", "default", "via", default[2], "dev", name, "metric", metric)


def _bounce_tunnel_device(_lab: Lab, site: RunningSite, _chance: random.Random) -> None:
    site.run("ip", "link", "set", site.ipsec.device, "down")
    site.run("ip", "link", "set", site.ipsec.device, "up")


def _flush_ipsec(what: str) -> Callable[[Lab, RunningSite, random.Random], None]:
    return lambda _lab, site, _chance: _ignore(site.run("ip", "xfrm", what, "flush"))


def _open_by_policy(_lab: Lab, site: RunningSite, _chance: random.Random) -> None:
    site.run("ip", "xfrm", "policy", "add", "src", "0.0.0.0/0", "dst", "10.0.0.0/8", "dir", "out", "priority", "5")


def _delete_a_block(_lab: Lab, site: RunningSite, chance: random.Random) -> None:
    policies = sorted(text for kind, text in oracle.routing(site) if kind == "policy")
    site.run("ip", "xfrm", "policy", "del", *chance.choice(policies).split()[:6])


def _another_document(lab: Lab, _site: RunningSite, _chance: random.Random) -> None:
    """Without one service, and at once the first again. Returns when all have rules for that: it takes a second until a
    document is offered, and the next fault is not to be measured by it."""
    provision.apply(lab, network_yaml(lab.network, services_without_permit=1))
    for name, version in provision.apply(lab, provision.network_yaml(lab.network)).items():
        watch.wait_for(lab, name, "has its rules by the newest document", partial(_obeys, version), DIAL_MS / 1000)


def _obeys(version: int, report: Status) -> bool:
    return (report.document_version or 0) >= version and _has_rules(report)


FAULTS: tuple[Fault, ...] = (
    Fault("flush ruleset", _nft("flush ruleset"), firewall, EVENT_MS, spares=False),
    Fault("delete table", _nft("delete table inet cpe_agent"), firewall, EVENT_MS),
    Fault("flush table", _nft("flush table inet cpe_agent"), firewall, EVENT_MS),
    Fault("delete a rule", _delete_a_rule, firewall, EVENT_MS),
    Fault("accept somewhere", _accept_somewhere, firewall, EVENT_MS),
    Fault("delete an element", _delete_an_element, firewall, EVENT_MS),
    Fault("empty the pairs", _empty_pairs, firewall, EVENT_MS),
    Fault("add a LAN", _nft('add element inet cpe_agent lans { "eth7" }'), firewall, EVENT_MS),
    Fault("delete ip rules", _delete_ip_rules, routing, EVENT_MS),
    Fault("flush a routing table", _flush_a_table, routing, EVENT_MS),
    Fault("delete an address", _delete_addresses, routing, EVENT_MS),
    Fault("forwarding off", _forwarding_off, routing, EVENT_MS),
    Fault("bounce the tunnel device", _bounce_tunnel_device, routing, EVENT_MS),
    Fault("unload a connection", _unload, loaded, LOOK_MS),
    Fault("load a stray connection", _load_a_stranger, loaded, LOOK_MS),
    Fault("clear credentials", _clear_credentials, loaded, LOOK_MS),
    Fault("kill the agent", _kill_agent, everything, DIAL_MS, weight=0.3),
    Fault("kill the agent and flush", _kill_agent_and_flush, everything, DIAL_MS, weight=0.3),
    Fault("terminate a CHILD_SA", _terminate_child, everything, DIAL_MS, weight=0.3),
    Fault("terminate an IKE_SA", _terminate_ike, everything, DIAL_MS, weight=0.3),
    Fault("kill charon", _kill_charon, everything, DIAL_MS, spares=False, weight=0.3),
    Fault("cut an uplink", _cut, everything, DIAL_MS, weight=0.3),
    Fault("blackhole an uplink", _blackhole, everything, DIAL_MS, weight=0.3),
    Fault("re-address an uplink", _readdress, everything, DIAL_MS, weight=0.3),
    Fault("rename an uplink", _rename, everything, DIAL_MS, weight=0.3),
    Fault("another document", _another_document, everything, DIAL_MS, weight=0.3),
)

if resolve(BACKEND) is Backend.KERNEL:
    FAULTS = (
        *FAULTS,
        Fault("flush IPsec policies", _flush_ipsec("policy"), everything, DIAL_MS, spares=False),
        Fault("flush IPsec states", _flush_ipsec("state"), everything, DIAL_MS, spares=False),
        Fault("open by an IPsec policy", _open_by_policy, everything, DIAL_MS),
        Fault("delete a policy that shuts", _delete_a_block, routing, EVENT_MS),
    )

READERS: tuple[Reader, ...] = (firewall, routing, loaded, everything)
