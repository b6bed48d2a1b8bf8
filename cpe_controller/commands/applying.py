"""How does a network get in force?

In: a network.yaml, a change that was signed elsewhere, or a number in the history. Out: what became of it. All of it
goes into the audit log: what was asked before anything is done, what came of it after.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from pathlib import Path

import msgspec

from cpe_agent.model import document_check
from cpe_controller import amend, audit, reports, rolling, setup, standing
from cpe_controller.change import NETWORK, Change, ChangeError, Draft, Published, in_force, signed
from cpe_controller.commands import Answer, Apply, Diff, Import, Plan, Rollback
from cpe_controller.files import SetupError
from cpe_controller.publish import Applied, commit, history
from cpe_controller.setup import Setup
from cpe_controller.store import Store
from cpe_controller.wording import differences, introduction

IN_FORCE = "the network in force"


def apply(state_dir: Path, store: Store, told: Setup, command: Apply, by: str) -> Answer:
    signer = setup.signer(state_dir)  # missing: say so before anything else
    allow = command.allow_mass_removal
    change = setup.planned(state_dir, store, told, command.text, command.source, allow_mass_removal=allow)
    return _commit(state_dir, store, signed(change, signer), by, now=command.now)


def plan(state_dir: Path, store: Store, told: Setup, command: Plan) -> Answer:
    allow = command.allow_mass_removal
    text, source = command.text, command.source
    if text is None:
        text, source = _in_force(store), IN_FORCE
    change = setup.planned(state_dir, store, told, text, source, allow_mass_removal=allow)
    return Answer((f"{len(change.drafts)} documents are to be signed by key {change.key_id}",), encode(change))


def diff(state_dir: Path, store: Store, told: Setup, command: Diff) -> Answer:
    change = setup.planned(state_dir, store, told, command.text, command.source)
    words = {site: _words(in_force(store, site), draft) for site, draft in change.drafts.items()}
    lines: list[str] = []
    for site, said in words.items():
        lines += [f"{site}: version {change.drafts[site].version}", *(f"  {line}" for line in said)]
    lines.append(f"{len(words)} sites would change, {len(change.unchanged)} would not")
    return Answer(tuple(lines), words)


def take_in(state_dir: Path, store: Store, command: Import, by: str) -> Answer:
    return _commit(state_dir, store, decode(command.change), by, now=command.now)


def rollback(state_dir: Path, store: Store, told: Setup, command: Rollback, by: str) -> Answer:
    """Older content, as a new version: nothing ever goes backwards."""
    past = history(store)
    if command.list:
        lines = [
            f"{number:6}  {one.at:%Y-%m-%d %H:%M:%S}  {one.by:16}  {hashlib.sha256(one.text).hexdigest()[:12]}"
            for number, one in past.items()
        ]
        return Answer(tuple(lines), {number: [one.at, one.by] for number, one in past.items()})
    number = command.number
    if number is None:
        current = _in_force(store).encode()
        number = next((number for number in reversed(past) if past[number].text != current), None)
        if number is None:
            raise SetupError("there is no other network to go back to")
    if number not in past:
        raise SetupError(f"there is no network number {number}; `cpe-controller rollback --list` shows those there are")
    audit.append(store, dt.datetime.now(dt.UTC), by, "rollback", {"to": str(number)})
    change = setup.planned(
        state_dir, store, told, past[number].text.decode(), f"network number {number}", allow_mass_removal=True
    )
    answer = _commit(state_dir, store, signed(change, setup.signer(state_dir)), by, now=command.now)
    return Answer((f"back to network number {number}", *answer.lines), answer.data)


def again(state_dir: Path, store: Store, told: Setup, by: str, *, allow_mass_removal: bool = False) -> Answer:
    """What is in force, with what was said of single sites since, to all sites at once. Nothing, where none is in
    force."""
    if store.get(NETWORK) is None:
        return Answer(())
    text, signer = _in_force(store), setup.signer(state_dir)
    before: tuple[str, ...] = ()
    if rolling.settled(store):
        change = setup.planned(state_dir, store, told, text, IN_FORCE, allow_mass_removal=allow_mass_removal)
    else:
        if rolling.abort(store, "something was said of single sites meanwhile"):
            before = ("the rollout was aborted: sites keep what they have; apply again to go on",)
        orders = standing.orders(standing.everybodys(store), allow_mass_removal=allow_mass_removal)
        network = setup.network_of(told, text, IN_FORCE)
        now = dt.datetime.now(dt.UTC)
        change = amend.plan(store, network, orders, key_id=signer.public.id, epoch=told.epoch, now=now)
    answer = _commit(state_dir, store, signed(change, signer), by, now=True)
    return Answer((*before, *answer.lines), answer.data)


def encode(change: Change) -> str:
    return msgspec.json.encode(change).decode()


def decode(text: str) -> Change:
    try:
        return msgspec.json.decode(text, type=Change)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ChangeError(f"that is no change of this controller's: {error}") from None


def _in_force(store: Store) -> str:
    entry = store.get(NETWORK)
    if entry is None:
        raise SetupError("no network was applied here yet")
    return (entry.value or b"").decode()


def _words(before: Published | None, draft: Draft) -> list[str]:
    if not draft.raw:
        return ["is no longer in the network: its document is withdrawn"]
    if before is None:
        return introduction(document_check.decode(draft.raw))
    found = differences(document_check.decode(before.raw), document_check.decode(draft.raw))
    return found or ["the same content, signed anew: by another key, for a new epoch, or as half of its life is over"]


def _commit(state_dir: Path, store: Store, change: Change, by: str, *, now: bool) -> Answer:
    digest = hashlib.sha256(change.text.encode()).hexdigest()
    about = {"network_sha256": digest, "sites": ", ".join(change.drafts)}
    audit.append(store, dt.datetime.now(dt.UTC), by, "apply", about)
    contacts = None if now else reports.stored(store)
    applied = commit(store, change, setup.signing_keys(state_dir), by, contacts)
    about = {
        "network_sha256": digest,
        "published": ", ".join(f"{site} {version}" for site, version in applied.published.items()),
        "withdrawn": ", ".join(applied.withdrawn),
        "waves": "; ".join(f"{wave.kind} {', '.join(wave.sites)}" for wave in applied.waves),
    }
    audit.append(store, dt.datetime.now(dt.UTC), by, "applied", about)
    return _told(applied)


def _told(applied: Applied) -> Answer:
    lines = [f"{site}: version {version}" for site, version in applied.published.items()]
    lines += [f"{site}: withdrawn" for site in applied.withdrawn]
    counts = (len(applied.published), len(applied.unchanged), len(applied.withdrawn))
    lines.append("{} changed, {} unchanged, {} withdrawn".format(*counts))
    if applied.waves:
        waves = " -> ".join(f"{wave.kind} ({_some(wave.sites)})" for wave in applied.waves)
        lines.append(f"in waves: {waves}; `cpe-controller rollout` shows how far it is")
    data = {
        "published": dict(applied.published),
        "unchanged": list(applied.unchanged),
        "withdrawn": list(applied.withdrawn),
        "waves": list(applied.waves),
    }
    return Answer(tuple(lines), data)


def _some(sites: tuple[str, ...]) -> str:
    return ", ".join(sites) if len(sites) <= 4 else f"{', '.join(sites[:3])} and {len(sites) - 3} more"
