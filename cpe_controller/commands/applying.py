"""How does a network get in force?

In: a network.yaml, a change that was signed elsewhere, or a number in the history. Out: what became of it. All of it
goes into the audit log: what was asked before anything is done, what came of it after.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from cpe_agent.model import document_check
from cpe_agent.model.document import DocumentError
from cpe_agent.model.removal import refuse_mass_removal
from cpe_controller import amend, audit, reports, rolling, setup, standing
from cpe_controller.change import DOCUMENTS, NETWORK, Change, ChangeError, Draft, Published, in_force, signed
from cpe_controller.commands import Answer, Apply, Diff, Import, Plan, Rollback
from cpe_controller.files import SetupError
from cpe_controller.publish import WAITING, Applied, Past, commit, history
from cpe_controller.setup import Setup
from cpe_controller.store import Store
from cpe_controller.wording import counted, differences, introduction

IN_FORCE = "the network in force"


def apply(state_dir: Path, store: Store, told: Setup, command: Apply, by: str) -> Answer:
    signer = setup.signer(state_dir)  # missing: say so before anything else
    allow = command.allow_mass_removal
    change = setup.planned(state_dir, store, told, command.text, command.source, allow_mass_removal=allow)
    answer = _commit(state_dir, store, signed(change, signer), by, now=command.now)
    return msgspec.structs.replace(answer, lines=(*answer.lines, *_boxes(store, change)))


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
    lines.append(f"{counted(len(words), 'site')} would change, {len(change.unchanged)} would not")
    if refusing := tuple(site for site, draft in change.drafts.items() if _refused(in_force(store, site), draft)):
        lines.append(
            f"{_some(refusing)} would REFUSE this, as it takes most of the pairs away; if that is meant: apply "
            f"--allow-mass-removal"
        )
    return Answer(tuple(lines), words)


def take_in(state_dir: Path, store: Store, command: Import, by: str) -> Answer:
    change = decode(command.change)
    _refuse_late(store, change)
    return _commit(state_dir, store, change, by, now=command.now, what="import")


def rollback(state_dir: Path, store: Store, told: Setup, command: Rollback, by: str) -> Answer:
    """Older content, as a new version: nothing ever goes backwards."""
    past = history(store)
    if command.list:
        data = {number: [one.at, one.by, one.what, one.sites] for number, one in past.items()}
        return Answer(_listed(past), data)
    number = command.number
    if number is None:
        current = _in_force(store).encode()
        number = next((number for number in reversed(past) if past[number].text != current), None)
        if number is None:
            raise SetupError(
                "there is no other network to go back to: every one in the history is the same as the one in force "
                "(what was said of single sites is taken back by itself: undrain, replace)"
            )
    if number not in past:
        raise SetupError(f"there is no network number {number}; `cpe-controller rollback --list` shows those there are")
    audit.append(store, dt.datetime.now(dt.UTC), by, "rollback", {"to": str(number)})
    change = setup.planned(
        state_dir, store, told, past[number].text.decode(), f"network number {number}", allow_mass_removal=True
    )
    change = signed(change, setup.signer(state_dir))
    answer = _commit(state_dir, store, change, by, now=command.now, what=f"rollback to {number}")
    return Answer((f"back to network number {number}", *answer.lines), answer.data)


def again(
    state_dir: Path, store: Store, told: Setup, by: str, *, allow_mass_removal: bool = False, what: str = "sign anew"
) -> Answer:
    """What is in force, with what was said of single sites since, to all sites at once. Nothing, where none is in
    force. `what` was done is for the history."""
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
    answer = _commit(state_dir, store, signed(change, signer), by, now=True, what=what)
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


def _refused(before: Published | None, draft: Draft) -> bool:
    """Whether the site, which has the document before, would not take this one."""
    if before is None or not draft.raw:
        return False
    try:
        refuse_mass_removal(document_check.decode(draft.raw), document_check.decode(before.raw))
    except DocumentError:
        return True
    return False


def _words(before: Published | None, draft: Draft) -> list[str]:
    if not draft.raw:
        return ["is no longer in the network: its document is withdrawn"]
    if before is None:
        return introduction(document_check.decode(draft.raw))
    found = differences(document_check.decode(before.raw), document_check.decode(draft.raw))
    return found or ["the same content, signed anew: by another key, for a new epoch, or as half of its life is over"]


def _refuse_late(store: Store, change: Change) -> None:
    """A change is for the network that was in force when it was made."""
    entry = store.get(NETWORK)
    if (entry.revision if entry else 0) == change.network_after:
        return
    if entry and entry.value == change.text.encode() and all(_has(store, *draft) for draft in change.drafts.items()):
        raise ChangeError("this change is in already; `cpe-controller rollout` shows how far it is")
    raise ChangeError(
        "this change is older than what is in force: something was applied, or said of a site, after it was made; make "
        "it anew (apply --unsigned FILE) and sign that"
    )


def _has(store: Store, site: str, draft: Draft) -> bool:
    """Whether the site is offered this document, or waits for it."""
    for place in (DOCUMENTS, WAITING):
        entry = store.get(place + site)
        if entry is not None:
            published = Published.read(entry.value or b"")
            if (published.version, published.raw) == (draft.version, draft.raw):
                return True
    return False


def _listed(past: Mapping[int, Past]) -> tuple[str, ...]:
    """The newest is in force; others that are the same network are nothing to go back to."""
    if not past:
        return ("no network was applied here yet",)
    newest = max(past)
    lines = [f"{'number':>6}  {'when (UTC)':19}  {'who':12}  {'what':16}  sites changed"]
    for number, one in past.items():
        same = one.text == past[newest].text
        mark = "  in force" if number == newest else "  the same network" if same else ""
        sites = "-" if one.sites < 0 else str(one.sites)
        at = one.at.astimezone(dt.UTC)
        lines.append(f"{number:6}  {at:%Y-%m-%d %H:%M:%S}  {one.by:12}  {one.what or 'apply':16}  {sites:>5}{mark}")
    return tuple(lines)


def _commit(state_dir: Path, store: Store, change: Change, by: str, *, now: bool, what: str = "apply") -> Answer:
    digest = hashlib.sha256(change.text.encode()).hexdigest()
    about = {"network_sha256": digest, "sites": ", ".join(change.drafts)}
    audit.append(store, dt.datetime.now(dt.UTC), by, "apply", about)
    contacts = None if now else reports.stored(store)
    applied = commit(store, change, setup.signing_keys(state_dir), by, contacts, what)
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


def _boxes(store: Store, change: Change) -> list[str]:
    """What is left to do for sites that are new: a box each."""
    stands, contacts = standing.everybodys(store), reports.stored(store)
    new = [site for site, draft in change.drafts.items() if draft.raw and draft.after == 0 and site not in contacts]
    waiting = tuple(site for site in new if stands.get(site, standing.Standing()).enrolled_at is None)
    if not waiting:
        return []
    return [f"without a box yet: {_some(waiting)}; next, for each: cpe-controller token SITE"]


def _some(sites: tuple[str, ...]) -> str:
    return ", ".join(sites) if len(sites) <= 4 else f"{', '.join(sites[:3])} and {len(sites) - 3} more"
