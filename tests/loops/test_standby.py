"""Does a standby cellular uplink stay within 30 MB a month to two hubs, as the controller sets it up?"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import msgspec
import trio
from trio.testing import MockClock

from cpe_agent.model.document import Document, Probing
from cpe_agent.model.observed import Links
from cpe_controller.compile import rehearse
from cpe_controller.parse import parse
from tests.loops.standby import MONTH_S, Wire, simulate
from tests.loops.world import LINKS

LIMIT = 30e6
DAY_S = 86400.0
EXAMPLE = Path(__file__).parents[2] / "configs" / "network.yaml"


def hospital() -> Document:
    """hospital-1 of the example. Its other uplink is asked as seldom as may be: that is not what is measured."""
    documents = rehearse(parse(EXAMPLE.read_text()), dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    found = documents["hospital-1"]
    wired = msgspec.structs.replace(found.uplinks["wired"], probe=Probing(600_000, 600_000))
    return msgspec.structs.replace(found, uplinks={**found.uplinks, "wired": wired})


def there() -> Links:
    return Links({link.name: link for link in LINKS})


async def test_a_month_of_standing_by(autojump_clock: MockClock) -> None:
    account = await simulate(hospital(), there(), "lte", MONTH_S, Wire())
    assert 10e6 < account.total <= LIMIT, account.spent
    assert account.spent["DPD"] == 0, "answered probes keep it silent"


async def test_a_modem_that_is_an_ethernet_interface_costs_no_more_either(autojump_clock: MockClock) -> None:
    account = await simulate(hospital(), there(), "lte", DAY_S, Wire(header=14))
    assert account.total * 30 <= LIMIT, account.spent


async def test_one_echo_a_round(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    document = hospital()
    account = await simulate(document, there(), "lte", DAY_S, Wire())
    seconds = trio.current_time() - began
    rounds = seconds / (document.uplinks["lte"].probe.standby_interval_ms / 1000)
    # Two paths, 108 bytes each way; the first rounds are quicker, until a verdict is found.
    assert 2 * rounds * 216 <= account.spent["probes"] <= 2 * (rounds + 3) * 216 * 1.01


async def test_what_a_busy_wire_loses_by_chance_costs_the_sim_card_nothing(autojump_clock: MockClock) -> None:
    document = hospital()
    wired = msgspec.structs.replace(document.uplinks["wired"], probe=Probing(100, 1000))
    document = msgspec.structs.replace(document, uplinks={**document.uplinks, "wired": wired})
    quiet = await simulate(document, there(), "lte", 1200.0, Wire())
    lossy = await simulate(document, there(), "lte", 1200.0, Wire(), losing=0.002)
    assert lossy.spent["probes"] <= quiet.spent["probes"] + 2 * 216


async def test_what_the_default_spares(autojump_clock: MockClock) -> None:
    """As a wired uplink is asked, the same link would cost many times as much: the model sees what it is to see."""
    document = hospital()
    eager = msgspec.structs.replace(document.uplinks["lte"], probe=Probing(100, 1000))
    asked = msgspec.structs.replace(document, uplinks={**document.uplinks, "lte": eager})
    account = await simulate(asked, there(), "lte", DAY_S / 24, Wire())
    assert account.total * 24 * 30 > 30 * LIMIT
