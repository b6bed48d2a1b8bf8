"""Another policy key: no site is ever offered a document that it does not believe."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cpe_agent.core import obey
from cpe_agent.model.document_check import decode
from cpe_controller import change, commands, setup
from cpe_controller.cli import main
from cpe_controller.commands import answering
from cpe_controller.reports import STATUS, Contact
from cpe_controller.setup import SetupError
from cpe_controller.signing import Signer
from tests.controller.conftest import EXAMPLE

SITES = ("centre", "cloud", "hospital-1", "van-1")


def _believed(state: Path, keys: dict[str, dict[str, str]]) -> None:
    """Every site is offered what it believes, with the agent's own eyes; it takes it, and says so."""
    with setup.opened(state) as (store, _):
        for site in SITES:
            published = change.in_force(store, site)
            assert published is not None
            obey.verify(published.raw, base64.b64decode(published.signature), published.key_id, keys[site])
            keys[site] = obey.signing_keys(decode(published.raw), {})
            took = (published.epoch, published.version)
            store.put(STATUS + site, msgspec.json.encode(Contact(0.0, took=took)))


def test_a_key_is_rotated(state: Path) -> None:
    setup.apply(state, EXAMPLE)
    keys = {site: {key.id: key.key for key in setup.signing_keys(state)} for site in SITES}
    _believed(state, keys)
    old = setup.signing_keys(state)[0]
    with pytest.raises(SetupError, match="no key is on its way"):
        answering.run(state, commands.Rotate("finish"), "tester")
    answering.run(state, commands.Rotate("start"), "tester")
    with pytest.raises(SetupError, match="on its way already"):
        answering.run(state, commands.Rotate("start"), "tester")
    with pytest.raises(SetupError, match="4 sites have not confirmed"):
        answering.run(state, commands.Rotate("finish"), "tester")
    _believed(state, keys)
    answering.run(state, commands.Rotate("finish"), "tester")
    _believed(state, keys)
    [new] = setup.signing_keys(state)
    assert new != old and all(set(known) == {new.id} for known in keys.values())
    assert setup.apply(state, EXAMPLE).published == {}
    assert not (state / "signing.next.key").exists()


def test_the_new_key_may_be_elsewhere(state: Path, tmp_path: Path) -> None:
    setup.apply(state, EXAMPLE)
    keys = {site: {key.id: key.key for key in setup.signing_keys(state)} for site in SITES}
    _believed(state, keys)
    key = Ed25519PrivateKey.generate()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "new.pub").write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    (tmp_path / "new.key").write_bytes(Signer.of(key).pem())
    where = ["--state", str(state)]
    assert main([*where, "rotate", "start", "--public", str(tmp_path / "new.key")]) == 1
    assert main([*where, "rotate", "start", "--public", str(tmp_path / "new.pub")]) == 0
    _believed(state, keys)
    (state / "signing.key").unlink()
    assert main([*where, "rotate", "finish"]) == 1  # nothing is signed yet; the next command is said
    assert main([*where, "apply", "--now", "--key", str(tmp_path / "new.key")]) == 0
    _believed(state, keys)
    assert all(set(known) == {Signer.of(key).public.id} for known in keys.values())
