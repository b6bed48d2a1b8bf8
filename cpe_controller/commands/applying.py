"""How does a network get in force?

In: a network.yaml, or a change that was signed elsewhere. Out: what became of it. All of it goes into the audit log:
what was asked before anything is done, what came of it after.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from pathlib import Path

import msgspec

from cpe_agent.model import document_check
from cpe_controller import audit, setup
from cpe_controller.commands import Answer, Apply, Diff, Import, Plan
from cpe_controller.publish import NETWORK, Applied, Change, ChangeError, Draft, Published, commit, in_force, signed
from cpe_controller.setup import Setup
from cpe_controller.store import Store
from cpe_controller.wording import differences, introduction


def apply(state_dir: Path, store: Store, told: Setup, command: Apply, by: str) -> Answer:
    signer = setup.signer(state_dir)  # missing: say so before anything else
    allow = command.allow_mass_removal
    change = setup.planned(state_dir, store, told, command.text, command.source, allow_mass_removal=allow)
    return _commit(state_dir, store, signed(change, signer), by)


def plan(state_dir: Path, store: Store, told: Setup, command: Plan) -> Answer:
    allow = command.allow_mass_removal
    change = setup.planned(state_dir, store, told, command.text, command.source, allow_mass_removal=allow)
    return Answer((f"{len(change.drafts)} documents are to be signed by key {change.key_id}",), encode(change))


def diff(state_dir: Path, store: Store, told: Setup, command: Diff) -> Answer:
    change = setup.planned(state_dir, store, told, command.text, command.source)
    words = {site: _words(in_force(store, site), draft) for site, draft in change.drafts.items()}
    lines: list[str] = []
    for site, said in words.items():
        lines += [f"{site}: version {change.drafts[site].version}", *(f"  {line}" for line in said)]
    lines.append(f"{len(words)} sites would change, {len(change.unchanged)} would not")
    return Answer(tuple(lines), words)


def _words(before: Published | None, draft: Draft) -> list[str]:
    if not draft.raw:
        return ["is no longer in the network: its document is withdrawn"]
    if before is None:
        return introduction(document_check.decode(draft.raw))
    found = differences(document_check.decode(before.raw), document_check.decode(draft.raw))
    return found or ["the same content, signed anew: by another key, for a new epoch, or as half of its life is over"]


def take_in(state_dir: Path, store: Store, command: Import, by: str) -> Answer:
    return _commit(state_dir, store, decode(command.change), by)


def again(state_dir: Path, store: Store, told: Setup, by: str, *, allow_mass_removal: bool = False) -> Answer:
    """The network that is in force, with what was said of single sites since. Nothing, where none is in force."""
    entry = store.get(NETWORK)
    if entry is None:
        return Answer(())
    text = (entry.value or b"").decode()
    change = setup.planned(state_dir, store, told, text, "the network in force", allow_mass_removal=allow_mass_removal)
    return _commit(state_dir, store, signed(change, setup.signer(state_dir)), by)


def encode(change: Change) -> str:
    return msgspec.json.encode(change).decode()


def decode(text: str) -> Change:
    try:
        return msgspec.json.decode(text, type=Change)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ChangeError(f"that is no change of this controller's: {error}") from None


def _commit(state_dir: Path, store: Store, change: Change, by: str) -> Answer:
    digest = hashlib.sha256(change.text.encode()).hexdigest()
    about = {"network_sha256": digest, "sites": ", ".join(change.drafts)}
    audit.append(store, dt.datetime.now(dt.UTC), by, "apply", about)
    applied = commit(store, change, setup.signing_keys(state_dir))
    about = {
        "network_sha256": digest,
        "published": ", ".join(f"{site} {version}" for site, version in applied.published.items()),
        "withdrawn": ", ".join(applied.withdrawn),
    }
    audit.append(store, dt.datetime.now(dt.UTC), by, "applied", about)
    return told(applied)


def told(applied: Applied) -> Answer:
    lines = [f"{site}: version {version}" for site, version in applied.published.items()]
    lines += [f"{site}: withdrawn" for site in applied.withdrawn]
    counts = (len(applied.published), len(applied.unchanged), len(applied.withdrawn))
    lines.append("{} changed, {} unchanged, {} withdrawn".format(*counts))
    data = {
        "published": dict(applied.published),
        "unchanged": list(applied.unchanged),
        "withdrawn": list(applied.withdrawn),
    }
    return Answer(tuple(lines), data)
