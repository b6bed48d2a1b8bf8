"""How does the network get another policy key, with no site left behind?

Two steps, as long as it takes apart. `start`: every site's document, signed by the old key, says that the new one is
believed too. `finish`, when all of them have confirmed that: documents are signed by the new key, and the old one is
believed no longer.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from cpe_agent.model.document import SigningKey
from cpe_agent.model.document_check import decode
from cpe_controller import audit, behind, rolling, setup
from cpe_controller.commands import Answer, Rotate, applying
from cpe_controller.files import SetupError, save
from cpe_controller.setup import NEXT_KEY, Setup
from cpe_controller.signing import Signer, public_key
from cpe_controller.store import Store


def rotate(state_dir: Path, store: Store, told: Setup, command: Rotate, by: str) -> Answer:
    keys = setup.signing_keys(state_dir)
    if command.do == "start":
        return _start(state_dir, store, told, keys, command.public, by)
    return _finish(state_dir, store, told, keys, command.leave_behind, by)


def _start(
    state_dir: Path, store: Store, told: Setup, keys: tuple[SigningKey, ...], public: str | None, by: str
) -> Answer:
    if len(keys) > 1:
        raise SetupError(f"key {keys[1].id} is on its way already; finish that first")
    if not rolling.settled(store):
        raise SetupError("a rollout is not through: let it end, or apply again, and then rotate")
    if public is not None:
        try:
            new = public_key(public.encode())
        except ValueError as error:
            raise SetupError(f"that is no public key: {error}") from error
    else:
        signer = Signer.new()
        # The key first: what sites are told to believe must not be lost.
        save(state_dir / NEXT_KEY, signer.pem(), 0o600)
        new = signer.public
    audit.append(store, dt.datetime.now(dt.UTC), by, "rotate start", {"key": new.id})
    setup.save_signing_keys(state_dir, (*keys, new))
    answer = applying.again(state_dir, store, told, by)
    said = f"sites learn of key {new.id}; when all have confirmed: cpe-controller rotate finish"
    return Answer((*answer.lines, said), {"key": new.id})


def _finish(
    state_dir: Path, store: Store, told: Setup, keys: tuple[SigningKey, ...], leave_behind: bool, by: str
) -> Answer:
    if len(keys) < 2:
        raise SetupError("no key is on its way; begin with: cpe-controller rotate start")
    new = keys[1]
    late = behind.sites(store, _unaware(new))
    behind.refuse(late, leave_behind, f"confirmed that they believe key {new.id}, and would obey nobody")
    audit.append(store, dt.datetime.now(dt.UTC), by, "rotate finish", {"key": new.id, "behind": ", ".join(late)})
    setup.save_signing_keys(state_dir, (new,))
    answer = applying.again(state_dir, store, told, by)
    return Answer((*answer.lines, f"documents are signed by key {new.id}; the old one is believed no longer"), {})


def _unaware(new: SigningKey) -> behind.Behind:
    """What a site confirmed last is no document that says so."""
    return lambda published, contact: (
        new not in decode(published.raw).trust.signing_keys or not behind.confirmed(published, contact)
    )
