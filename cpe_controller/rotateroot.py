"""How does the network get another root, with no site left behind?

Three steps, as long as it takes apart. `start`: there is a new root, and every site's document says that it is believed
too. `finish`, when all have confirmed that: the new root vouches for the server and for who issues sites' certificates;
sites fetch themselves new ones. `retire`, when all have them: the old root is believed no longer. At every moment each
end of each connection has a certificate that the other believes.

Works on the state directory itself, like `renew`: the root's key is nothing that a running controller should have.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from cpe_agent.model.document_check import decode
from cpe_controller import audit, authorities, behind, pki, rolling
from cpe_controller.behind import Behind
from cpe_controller.commands import applying
from cpe_controller.files import SetupError
from cpe_controller.setup import Setup
from cpe_controller.store import Store

_RESTART = "restart the controller now: it holds the certificate that it started with"


def rotate_root(
    state_dir: Path, store: Store, told: Setup, do: str, key: Path | None, leave_behind: bool, by: str
) -> Sequence[str]:
    """What to tell the operator. Raises SetupError."""
    now = dt.datetime.now(dt.UTC)
    if not rolling.settled(store):
        raise SetupError("a rollout is not through: let it end, or apply again, and then rotate")
    if do == "start":
        authorities.start_rotation(state_dir, told.network, now)
        audit.append(store, now, by, "rotate-root start", {})
        lines = _spread(state_dir, store, told, by)
        place = state_dir / authorities.NEXT_KEY
        return (*lines, f"take {place} away; when all sites have confirmed: cpe-controller rotate-root finish")
    if do == "finish":
        late = behind.sites(store, _believing(authorities.next_root_pem(state_dir)))
        behind.refuse(late, leave_behind, "confirmed that they believe it, and would not know the controller")
        audit.append(store, now, by, "rotate-root finish", {})
        authorities.finish_rotation(state_dir, key, told.network, told.addresses, now)
        lines = _spread(state_dir, store, told, by)
        return (*lines, f"{_RESTART}; when all sites have new certificates: cpe-controller rotate-root retire")
    late = behind.sites(store, _unrenewed(authorities.renewed_since(state_dir)))
    behind.refuse(late, leave_behind, "fetched a certificate of the new root's (they ask within the hour)")
    audit.append(store, now, by, "rotate-root retire", {})
    authorities.retire(state_dir)
    return (*_spread(state_dir, store, told, by), "the old root is believed no longer", _RESTART)


def _spread(state_dir: Path, store: Store, told: Setup, by: str) -> Sequence[str]:
    try:
        return applying.again(state_dir, store, told, by).lines
    except SetupError as error:
        return (f"sites are NOT told yet: {error}",)


def _believing(root: str) -> Behind:
    """What a site confirmed last is no document that says so."""
    return lambda published, contact: (
        root not in decode(published.raw).trust.cas or not behind.confirmed(published, contact)
    )


def _unrenewed(since: dt.datetime) -> Behind:
    """A site's certificate was issued before that."""
    until = (since + dt.timedelta(days=pki.SITE_DAYS)).timestamp() - 1.0
    return lambda _, contact: contact is None or contact.certificate_until is None or contact.certificate_until < until
