"""Are the examples in configs/ what the programs take? agent.yaml is judged by tests/test_settings.py, what is not
commented out of network.yaml by tests/controller, and the networkd files by systemd-networkd itself
(tests/docs/test_networkd.py).
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from cpe_agent.settings import HostPort, load_settings
from cpe_controller.parse import parse
from tests.docs.pages import ROOT

CONFIGS = ROOT / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*") if path.is_file())
# What pppd 2.4.9 and 2.5 understand, of what such a session needs.
PPPD_OPTIONS = frozenset(
    {
        "plugin",
        "user",
        "ifname",
        "defaultroute",
        "defaultroute-metric",
        "noipdefault",
        "usepeerdns",
        "persist",
        "maxfail",
        "holdoff",
        "lcp-echo-interval",
        "lcp-echo-failure",
        "mtu",
        "mru",
        "hide-password",
        "noauth",
    }
)


def test_a_hubs_settings() -> None:
    settings = load_settings(CONFIGS / "agent-hub.yaml")
    assert settings.enrols and settings.token_file == Path("/run/credentials/cpe-token")
    assert settings.metrics == HostPort("0.0.0.0", 9273)
    assert settings.backend == "kernel"


def test_what_network_yaml_comments_out_is_right_too() -> None:
    text = (CONFIGS / "network.yaml").read_text()
    # A commented line that is YAML begins with a key; prose does not.
    lines = [line[1:] for line in text.splitlines() if re.match(r"#\s+[a-z][a-z0-9_-]*: \S|#\s+[a-z]+:( *#.*)?$", line)]
    written = {line.strip().partition(":")[0]: line for line in lines}
    network = yaml.safe_load(text)
    top = text[text.index("# More that may be set") : text.index("# Hubs have")]
    more = yaml.safe_load("\n".join(line for line in lines if f"#{line}" in top))
    assert more.keys() == {"lifetime_days", "on_expiry", "ipsec", "classes", "rollout", "management"}
    assert more["classes"].keys() == {"voice", "backup", "telemetry"}
    network |= more
    hub, branch = network["hubs"]["centre"], network["branches"]["van-1"]
    hub |= {key: yaml.safe_load(written[key])[key] for key in ("drain", "hub_nat")}
    branch["uplinks"]["lte"] |= {key: yaml.safe_load(written[key])[key] for key in ("monthly_bytes", "budget_day")}
    branch["lans"] |= {key: yaml.safe_load(written[key])[key] for key in ("desk", "desk-6", "lab")}
    network["branches"] |= {"hospital-300": {"template": "hospital", **yaml.safe_load(written["lans"])}}
    permits = re.findall(r"^#( +- \{from: .*)$", text, re.MULTILINE)
    assert len(permits) == 2
    network["permits"] += yaml.safe_load("\n".join(permits))
    parsed = parse(yaml.safe_dump(network, sort_keys=False))
    assert {site.name for site in parsed.sites} >= {"hospital-300", "van-1", "centre"}


def test_a_pppoe_session() -> None:
    options = [line for line in (CONFIGS / "pppoe/uplink").read_text().splitlines() if line and line[0] != "#"]
    names = [line.split()[0] for line in options]
    assert {name for name in names if not name.startswith("nic-")} == PPPD_OPTIONS
    # The port is the one that networkd keeps without an address, and the session's the one that it leaves alone.
    [port] = [name.removeprefix("nic-") for name in names if name.startswith("nic-")]
    assert f"Name={port}" in (CONFIGS / "networkd/30-pppoe.network").read_text()
    assert "ifname ppp0" in options and "Name=ppp*" in (CONFIGS / "networkd/31-ppp.network").read_text()


def test_the_pppoe_unit(tmp_path: Path) -> None:
    text = (CONFIGS / "pppoe/cpe-pppoe.service").read_text()
    assert "pppd call uplink nodetach" in text
    unit = tmp_path / "cpe-pppoe.service"
    # The machine that tests run on need not have pppd.
    unit.write_text(text.replace("/usr/sbin/pppd", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_each_says_at_its_top_where_it_belongs(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    # The one is nowhere on a router, the other is imported by Grafana, and JSON has no comments.
    if path.name in ("network.yaml", "dashboard.json"):
        return
    place = re.match(r"# (/etc/[\w./-]+)", first)
    assert place is not None, first
    assert Path(place[1].rstrip(":")).name in {path.name, "agent.yaml"}


def test_every_example_is_spoken_of() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md")) + (ROOT / "README.md").read_text()
    assert all(f"configs/{path.name}" in pages for path in CONFIGS.iterdir())
