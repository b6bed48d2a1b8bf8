"""Another policy key, or root: no site is ever offered a document, or a certificate, that it does not believe."""

from __future__ import annotations

import base64
import ssl
import time
from pathlib import Path

import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cpe_agent.core import obey
from cpe_agent.model.document_check import decode
from cpe_controller import authorities, change, commands, setup
from cpe_controller.cli import main
from cpe_controller.commands import answering
from cpe_controller.reports import STATUS, Contact
from cpe_controller.setup import SetupError
from cpe_controller.signing import Signer
from tests.controller.conftest import EXAMPLE, serving

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


class TestRoot:
    """Another root: at every step each end of each connection has a certificate that the other believes."""

    def sites_took(self, state: Path, until: float) -> None:
        """Every site has confirmed what it is offered, and calls with a certificate that ends then."""
        with setup.opened(state) as (store, _):
            for site in SITES:
                published = change.in_force(store, site)
                assert published is not None
                took = (published.epoch, published.version)
                contact = Contact(0.0, took=took, certificate_until=until)
                store.put(STATUS + site, msgspec.json.encode(contact))

    def test_from_start_to_retirement(self, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
        setup.apply(state, EXAMPLE)
        old_root, old_chain = authorities.root_pem(state), authorities.sites(state).pem().decode()
        where = ["--state", str(state), "rotate-root"]
        self.sites_took(state, 0.0)
        assert main([*where, "finish"]) == 1 and "begin with" in capsys.readouterr().err
        assert main([*where, "retire"]) == 1 and "only one root" in capsys.readouterr().err

        assert main([*where, "start"]) == 0
        assert main([*where, "start"]) == 1 and "on its way already" in capsys.readouterr().err
        assert authorities.root_pem(state) == old_root, "it vouches until the others believe the new one"
        new_root = authorities.next_root_pem(state)
        assert {old_root, new_root} < set(_cas(state)) and _cas(state)[0] == old_root
        assert main([*where, "finish"]) == 1 and "4 sites have not confirmed" in capsys.readouterr().err

        self.sites_took(state, 0.0)
        key = state.parent / "elsewhere.key"
        (state / "root.next.key").rename(key)
        assert main([*where, "finish"]) == 1 and "bring the new root's key back" in capsys.readouterr().err
        assert main([*where, "finish", "--root-key", str(key)]) == 0
        assert authorities.root_pem(state) == new_root and _cas(state)[0] == new_root
        assert {old_root, old_chain} < set(_cas(state)), "the old root's certificates go on being believed"
        server = x509.load_pem_x509_certificate((state / "server.pem").read_bytes())
        server.verify_directly_issued_by(x509.load_pem_x509_certificate(new_root.encode()))
        assert not (state / "root.key").exists() and not (state / "root.next.pem").exists()
        assert main([*where, "retire"]) == 1 and "4 sites have not fetched" in capsys.readouterr().err

        self.sites_took(state, time.time() + 200 * 86_400 + 60)
        assert main([*where, "retire"]) == 0
        assert old_root not in _cas(state) and old_chain not in _cas(state) and len(_cas(state)) == 2
        assert main(["--state", str(state), "audit", "--check"]) == 0

    def test_the_server_believes_both_and_new_boxes_pin_the_new_one(self, state: Path) -> None:
        setup.apply(state, EXAMPLE)
        self.sites_took(state, 0.0)
        with serving(state) as running:
            old = running.client("van-1")
        believed = authorities.root_pem(state)
        for do in ("start", "finish"):
            assert main(["--state", str(state), "rotate-root", do]) == 0
            self.sites_took(state, 0.0)
        pin = authorities.pin(state)
        with serving(state) as running:
            # The old certificate is let in; but who believes only the old root does not believe the server.
            with old, pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                old.get(f"{running.url}/v1/document")
            context = ssl.create_default_context(cadata=believed + authorities.root_pem(state))
            context.load_cert_chain(state.parent / "sites/van-1.pem", state.parent / "sites/van-1.key")
            with httpx.Client(verify=context, trust_env=False) as both:
                assert both.get(f"{running.url}/v1/document").status_code == 200
            with running.client("van-1") as new:
                assert new.get("/v1/document").status_code == 200
            with httpx.Client(verify=False, trust_env=False) as box:
                root = x509.load_pem_x509_certificate(box.get(f"{running.enrolment_url}/v1/ca").content)
                assert root.fingerprint(hashes.SHA256()).hex() == pin

    def test_what_was_cut_short_is_done_again(self, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        setup.apply(state, EXAMPLE)
        assert main(["--state", str(state), "rotate-root", "start"]) == 0
        self.sites_took(state, 0.0)

        def cut_short(*_: object) -> None:
            raise SetupError("the power went")

        with monkeypatch.context() as patch:
            patch.setattr(authorities, "renew", cut_short)
            assert main(["--state", str(state), "rotate-root", "finish"]) == 1
        assert len(setup.apply(state, EXAMPLE).published) == 4
        self.sites_took(state, 0.0)
        assert main(["--state", str(state), "rotate-root", "finish"]) == 0
        assert authorities.root(state).pem().decode() == authorities.root_pem(state) == _cas(state)[0]
        assert len(_cas(state)) == 4

    def test_not_while_a_rollout_is_under_way(self, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
        setup.apply(state, EXAMPLE)
        self.sites_took(state, 0.0)
        text = EXAMPLE.read_text().replace("failback_s: 60", "failback_s: 61")
        answering.run(state, commands.Apply(text, "x"), "tester")
        assert main(["--state", str(state), "rotate-root", "start"]) == 1
        assert "a rollout is not through" in capsys.readouterr().err
        with pytest.raises(SetupError, match="a rollout is not through"):
            answering.run(state, commands.Rotate("start"), "tester")


def _cas(state: Path) -> tuple[str, ...]:
    """Whom every site is told to believe."""
    with setup.opened(state) as (store, _):
        found = {site: change.in_force(store, site) for site in SITES}
        told = {decode(published.raw).trust.cas for published in found.values() if published is not None}
    [cas] = told
    return cas


def test_a_site_that_has_no_box_yet_is_not_waited_for(state: Path) -> None:
    setup.apply(state, EXAMPLE)
    for do in ("start", "finish"):
        assert main(["--state", str(state), "rotate-root", do]) == 0
        answering.run(state, commands.Rotate(do), "tester")
