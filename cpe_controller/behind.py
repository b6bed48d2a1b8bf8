"""Which sites are not ready yet for what is to come, and may it come all the same?

In: the store, and what makes a site one that is behind. Out: their names, or a SetupError that names them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cpe_controller import reports, standing
from cpe_controller.change import DOCUMENTS, Published
from cpe_controller.files import SetupError
from cpe_controller.reports import Contact
from cpe_controller.store import Store

_SHOWN = 10

Behind = Callable[[Published, Contact | None], bool]


def sites(store: Store, behind: Behind) -> list[str]:
    """Those that are let in of which it holds. One that has no box yet is not behind: a new box is told all at once."""
    contacts, standings = reports.stored(store), standing.everybodys(store)
    found = []
    for entry in store.list(DOCUMENTS).entries:
        site, published = entry.key.removeprefix(DOCUMENTS), Published.read(entry.value or b"")
        contact, stands = contacts.get(site), standings.get(site, standing.Standing())
        if not published.raw or stands.revoked or (contact is None and stands.enrolled_at is None):
            continue
        if behind(published, contact):
            found.append(site)
    return found


def confirmed(published: Published, contact: Contact | None) -> bool:
    """Is what the site is offered what it confirmed last?"""
    return contact is not None and contact.took == (published.epoch, published.version)


def refuse(behind: Sequence[str], leave_behind: bool, what: str) -> None:
    """Raises SetupError if there are any and they are not given up; `what` they have not."""
    if behind and not leave_behind:
        some = ", ".join(behind[:_SHOWN]) + (f" and {len(behind) - _SHOWN} more" if len(behind) > _SHOWN else "")
        raise SetupError(
            f"{len(behind)} sites have not {what}: {some}; wait for them, or give them up with --leave-behind"
        )
