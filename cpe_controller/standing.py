"""What did operators say of this one site, apart from the network?

In: the store. Out: a `Standing` per site, and `change`, which writes one. A site that nobody said anything of stands as
`Standing()`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping

import msgspec

from cpe_controller.compile import Orders
from cpe_controller.store import Entry, Store, Write

SITES = "sites/"


class Standing(msgspec.Struct, frozen=True, omit_defaults=True):
    """`generation` counts the boxes that have had the site's place; only the newest is let in, and none if `revoked`.
    `enrolled_at` is when that box got its certificate by a token."""

    generation: int = 1
    revoked: bool = False
    drained: bool = False
    enrolled_at: dt.datetime | None = None

    def admits(self, generation: int) -> bool:
        """A generation that we do not know yet is one of ours all the same (its certificate says so): the store was
        restored from a time before it."""
        return not self.revoked and generation >= self.generation


def read(entry: Entry | None) -> Standing:
    return Standing() if entry is None else msgspec.json.decode(entry.value or b"", type=Standing)


def of(store: Store, site: str) -> Standing:
    return read(store.get(SITES + site))


def everybodys(store: Store) -> dict[str, Standing]:
    return {entry.key.removeprefix(SITES): read(entry) for entry in store.list(SITES).entries}


def change(store: Store, site: str, how: Callable[[Standing], Standing]) -> Standing:
    """`how` is asked again whenever somebody else was faster."""
    while True:
        entry = store.get(SITES + site)
        new = how(read(entry))
        if store.cas([write(site, new, entry)]) is not None:
            return new


def write(site: str, standing: Standing, before: Entry | None) -> Write:
    return Write(SITES + site, msgspec.json.encode(standing), before.revision if before else 0)


def orders(standings: Mapping[str, Standing], *, allow_mass_removal: bool = False) -> Orders:
    """All of them as the compiler wants them."""
    return Orders(
        revoked=frozenset(site for site, one in standings.items() if one.revoked),
        drained=frozenset(site for site, one in standings.items() if one.drained),
        generations={site: one.generation for site, one in standings.items()},
        allow_mass_removal=allow_mass_removal,
    )
