"""Which box may have this site's place?

A token lets one in; `revoke` shuts the site out, `replace` gives its place to another box. What changes for the API is
in the store at once; what changes for the site's peers goes out in their documents.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import msgspec

from cpe_agent.model.document_check import decode
from cpe_controller import audit, authorities, rolling, setup, standing, tokens
from cpe_controller.change import DOCUMENTS, Published, in_force
from cpe_controller.commands import Answer, Drain, Replace, Revoke, Token, applying
from cpe_controller.files import SetupError
from cpe_controller.setup import Setup
from cpe_controller.standing import Standing
from cpe_controller.store import Store

HOURS_MAX = 24 * 90


def token(state_dir: Path, store: Store, told: Setup, command: Token, by: str) -> Answer:
    known(store, command.site)
    stands = standing.of(store, command.site)
    how = f"`cpe-controller replace {command.site}` gives its place to another box"
    if stands.revoked:
        raise SetupError(f"{command.site} is revoked; {how}")
    if stands.enrolled_at is not None:
        raise SetupError(f"{command.site} has enrolled ({stands.enrolled_at:%Y-%m-%d %H:%M} UTC); {how}")
    return _new_token(state_dir, store, told, command.site, stands, command.hours, by)


def certificate(state_dir: Path, store: Store, site: str, out: Path, by: str) -> tuple[Path, ...]:
    """The files of a site that cannot enrol, in `out`."""
    known(store, site)
    if standing.of(store, site).revoked:
        raise SetupError(f"{site} is revoked; `cpe-controller replace {site}` gives its place to another box")
    setup.make_place(out)
    return setup.save_site(out, site, *setup.issue_site(state_dir, site, by))


def revoke(state_dir: Path, store: Store, told: Setup, command: Revoke, by: str) -> Answer:
    known(store, command.site)
    audit.append(store, dt.datetime.now(dt.UTC), by, "revoke", {"site": command.site})
    standing.change(store, command.site, lambda now: msgspec.structs.replace(now, revoked=True))
    said = f"{command.site}: revoked; this controller refuses it from now on"
    return _with(said, state_dir, store, told, by, f"revoke {command.site}")


def replace(state_dir: Path, store: Store, told: Setup, command: Replace, by: str) -> Answer:
    known(store, command.site)
    audit.append(store, dt.datetime.now(dt.UTC), by, "replace", {"site": command.site})
    stands = standing.change(
        store, command.site, lambda now: Standing(generation=now.generation + 1, drained=now.drained)
    )
    fresh = _new_token(state_dir, store, told, command.site, stands, command.hours, by)
    said = f"{command.site}: a new box may take its place; the one that had it is refused from now on"
    published = _with(said, state_dir, store, told, by, f"replace {command.site}")
    lines = published.lines
    if not rolling.settled(store):
        lines = (
            *lines,
            "its peers take it in again with the next apply, if it was revoked before: a rollout was aborted",
        )
    return Answer((*lines, *fresh.lines), fresh.data, published.exit)


def drain(state_dir: Path, store: Store, told: Setup, command: Drain, by: str) -> Answer:
    published = in_force(store, command.site)
    if published is None or decode(published.raw).role != "hub":
        raise SetupError(f"{command.site} is no hub that has a document; only hubs are drained")
    others = [site for site in _hubs(store) if site != command.site and not standing.of(store, site).drained]
    if not command.back and not others:
        raise SetupError(f"{command.site} is the last hub that serves: undrain another first")
    deed = "undrain" if command.back else "drain"
    audit.append(store, dt.datetime.now(dt.UTC), by, deed, {"site": command.site})
    standing.change(store, command.site, lambda now: msgspec.structs.replace(now, drained=not command.back))
    said = "serves again" if command.back else "its branches are to leave it, make before break"
    return _with(f"{command.site}: {said}", state_dir, store, told, by, f"{deed} {command.site}")


def known(store: Store, site: str) -> None:
    """Raises SetupError if no network that was applied has this site."""
    if store.get(DOCUMENTS + site) is None:
        raise SetupError(f"{site} is in no network that was applied here; add it to network.yaml and apply that first")


def _hubs(store: Store) -> list[str]:
    entries = store.list(DOCUMENTS).entries
    found = [(entry.key.removeprefix(DOCUMENTS), Published.read(entry.value or b"").raw) for entry in entries]
    return [site for site, raw in found if raw and decode(raw).role == "hub"]


def _with(said: str, state_dir: Path, store: Store, told: Setup, by: str, what: str) -> Answer:
    """Tell the peers as well. That it cannot be done now takes nothing back."""
    try:
        published = applying.again(state_dir, store, told, by, allow_mass_removal=True, what=what)
    except SetupError as error:
        return Answer((said, f"its peers are NOT told yet, and still accept it: {error}"), exit=1)
    return Answer((said, *published.lines), published.data)


def _new_token(state_dir: Path, store: Store, told: Setup, site: str, stands: Standing, hours: int, by: str) -> Answer:
    """The newest token of a site is the only one."""
    if not 1 <= hours <= HOURS_MAX:
        raise SetupError(f"a token may live 1 to {HOURS_MAX} hours, not {hours}")
    now = dt.datetime.now(dt.UTC)
    fresh = tokens.new(told.network, site, told.enrolment_urls, authorities.pin(state_dir))
    expires_at = now + dt.timedelta(hours=hours)
    about = {"site": site, "expires": expires_at.isoformat(timespec="seconds")}
    audit.append(store, now, by, "token", about)
    for entry, record in tokens.of_site(store, site):
        if not record.key and not record.replaced:
            # If it is used at this very moment it is used: its box is the one then.
            store.cas([tokens.write(entry.key, msgspec.structs.replace(record, replaced=True), entry.revision)])
    store.cas([tokens.write(tokens.key_of(fresh.secret), tokens.Record(site, stands.generation, expires_at), 0)])
    lines = (fresh.text(), f"one box may enrol with it as {site} until {expires_at:%Y-%m-%d %H:%M} UTC")
    return Answer(lines, {"token": fresh.text(), **about})
