"""apply: what gets a new version, what does not, and what is left when it fails."""

from __future__ import annotations

import datetime as dt
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cpe_agent.model.document import Document, Trust
from cpe_agent.model.document_check import decode
from cpe_controller import authorities, pki, publish, setup
from cpe_controller.cli import main
from cpe_controller.fields import NetworkError
from cpe_controller.parse import parse
from cpe_controller.publish import DOCUMENTS, ApplyConflict, Published
from cpe_controller.signing import Signer, verify
from cpe_controller.store import Store, Write
from cpe_controller.store.sqlite import SqliteStore
from tests.controller.conftest import EXAMPLE

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
AID_POST = """branches:
  aid-post:
    uplinks: {lte: {kind: cellular}}
    lans: {desk: {subnet: 10.99.0.0/24, interface: lan0}}
"""


def _published(state: Path) -> dict[str, Published]:
    with setup.opened(state) as (store, _):
        entries = store.list(DOCUMENTS).entries
    return {entry.key.removeprefix(DOCUMENTS): Published.read(entry.value or b"") for entry in entries}


def _document(published: Published) -> Document:
    document = decode(published.raw)
    assert document.order == (published.epoch, published.version)
    return document


def test_documents_are_signed_by_the_key_that_sites_trust(state: Path, text: str) -> None:
    assert setup.apply(state, text).published == {"centre": 1, "cloud": 1, "hospital-1": 1, "van-1": 1}
    [key] = setup.signing_keys(state)
    for site, published in _published(state).items():
        document = _document(published)
        assert document.site == site
        assert document.trust == Trust(signing_keys=(key,), cas=authorities.trusted(state))
        assert published.key_id == key.id and verify(key, published.raw, published.signature)


def test_only_what_changed_gets_a_new_version(state: Path, text: str) -> None:
    setup.apply(state, text)
    before = _published(state)
    again = setup.apply(state, f"# a comment\n{text}")
    assert (again.published, len(again.unchanged)) == ({}, 4)
    assert _published(state) == before

    one = setup.apply(state, text.replace("lte: {kind: cellular, priority: 2}", "lte: {kind: cellular, priority: 3}"))
    assert one.published == {"hospital-1": 2}
    grown = setup.apply(state, text.replace("branches:\n", AID_POST, 1))
    assert grown.published == {"centre": 2, "cloud": 2, "aid-post": 1, "hospital-1": 3}
    assert grown.unchanged == ("van-1",)


def test_a_site_that_comes_back_does_not_go_backwards(state: Path, text: str) -> None:
    grown = text.replace("branches:\n", AID_POST, 1).replace("from: branches", "from: [hospital-1, van-1]")
    setup.apply(state, grown)
    gone = setup.apply(state, text.replace("from: branches", "from: [hospital-1, van-1]"))
    assert gone.withdrawn == ("aid-post",)
    assert "aid-post" not in _document(_published(state)["centre"]).peers
    assert _published(state)["aid-post"].raw == b""
    assert setup.apply(state, grown).published["aid-post"] == 3


def test_a_bad_network_changes_nothing(state: Path, text: str) -> None:
    setup.apply(state, text)
    before = _published(state)
    for wrong in (text.replace("priority: 1", "priority: no", 1), text.replace("network: blood", "network: other")):
        with pytest.raises(NetworkError):
            setup.apply(state, wrong)
    assert _published(state) == before


def _publish(store: Store, text: str, signer: Signer, *, epoch: int = 1, now: dt.datetime = NOW) -> publish.Applied:
    return publish.publish(store, parse(text), text, signer=signer, trust=Trust(), epoch=epoch, now=now)


def test_documents_are_renewed_at_half_of_their_life(tmp_path: Path, text: str) -> None:
    store, signer = SqliteStore(tmp_path / "store"), Signer.new()
    _publish(store, text, signer)
    assert not _publish(store, text, signer, now=NOW + dt.timedelta(days=44)).published
    assert set(_publish(store, text, signer, now=NOW + dt.timedelta(days=46)).published.values()) == {2}
    assert set(_publish(store, text, Signer.new(), now=NOW + dt.timedelta(days=47)).published.values()) == {3}
    restored = _publish(store, text, signer, epoch=2, now=NOW + dt.timedelta(days=48))
    assert set(restored.published.values()) == {4}
    store.close()


class _Interrupted(SqliteStore):
    """Does something else before the n-th transaction."""

    def __init__(self, path: Path, at: int, action: Any) -> None:
        super().__init__(path)
        self._at, self._action = at, action

    def cas(self, *arguments: Any) -> int | None:
        self._at -= 1
        if self._at == 0:
            self._action()
        return super().cas(*arguments)


def _large(text: str) -> str:
    """So many branches that an apply takes several transactions."""
    more = "".join(
        f"  b{n}:\n    uplinks: {{a: {{kind: wired}}}}\n    lans: {{l: {{subnet: 10.103.{n}.0/24, interface: l}}}}\n"
        for n in range(120)
    )
    return text.replace("branches:\n", f"branches:\n{more}", 1)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_of_two_applies_at_once_the_later_to_start_wins(tmp_path: Path, text: str, at: int) -> None:
    signer = Signer.new()
    other = SqliteStore(tmp_path / "store")
    store = _Interrupted(tmp_path / "store", at, lambda: _publish(other, text, signer))
    with pytest.raises(ApplyConflict):
        _publish(store, _large(text), signer)
    _publish(other, text, signer)
    sites = {entry.key for entry in other.list(DOCUMENTS).entries if Published.read(entry.value or b"").raw}
    assert sites == {DOCUMENTS + site for site in ("centre", "cloud", "hospital-1", "van-1")}
    store.close()
    other.close()


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_apply_that_was_cut_short_is_completed_by_the_next(tmp_path: Path, text: str, at: int) -> None:
    def die() -> None:
        raise KeyboardInterrupt

    signer = Signer.new()
    store = _Interrupted(tmp_path / "store", at, die)
    with pytest.raises(KeyboardInterrupt):
        _publish(store, _large(text), signer)
    _publish(store, _large(text), signer)
    documents = {entry.key: decode(Published.read(entry.value or b"").raw) for entry in store.list(DOCUMENTS).entries}
    assert len(documents) == 124
    assert len(documents[DOCUMENTS + "centre"].peers) == 123
    store.close()


def test_private_keys_are_their_owners_only(state: Path) -> None:
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    for name in ("root.key", "server.key", "signing.key", "store.sqlite"):
        assert stat.S_IMODE((state / name).stat().st_mode) == 0o600


def test_a_servers_certificate_is_renewed_with_its_key(state: Path) -> None:
    with setup.opened(state) as (_, told):
        key, old = (state / "server.key").read_bytes(), (state / "server.pem").read_bytes()

        def look(days: int) -> None:
            now = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
            authorities.server_files(state, told.network, told.addresses, now)

        look(pki.ONLINE_DAYS // 2 - 2)
        assert (state / "server.pem").read_bytes() == old
        root_key = (state / "root.key").read_bytes()
        (state / "root.key").unlink()  # offline: then it waits for `renew`
        look(pki.ONLINE_DAYS // 2 + 2)
        assert (state / "server.pem").read_bytes() == old
        (state / "root.key").write_bytes(root_key)
        look(pki.ONLINE_DAYS // 2 + 2)
        assert (state / "server.pem").read_bytes() != old
        assert (state / "server.key").read_bytes() == key


def test_controllers_are_where_the_server_is_unless_the_file_says(state: Path, text: str) -> None:
    line = next(line for line in text.splitlines() if line.startswith("controllers:"))
    setup.apply(state, text.replace(line, ""))
    assert _document(_published(state)["van-1"]).controllers == ("https://127.0.0.1:8443", "https://localhost:8443")
    told = setup.Setup("blood", ("2001:db8::1",), 443, 1)
    assert told.urls == ("https://[2001:db8::1]:443",)
    assert replace(parse(text)).controllers == ("https://198.51.100.202:8443",)


def test_the_commands(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = ["--state", str(tmp_path / "state")]
    bad = tmp_path / "bad.yaml"
    bad.write_text(text.replace("kind: wired", "kind: wierd", 1))
    assert main([*state, "apply", str(EXAMPLE)]) == 1
    assert "init" in capsys.readouterr().err
    assert main([*state, "init", "--name", "blood", "--address", "127.0.0.1"]) == 0
    assert main([*state, "init", "--name", "blood", "--address", "127.0.0.1"]) == 1
    assert main([*state, "check", str(EXAMPLE)]) == 0
    assert main([*state, "apply", str(EXAMPLE)]) == 0
    assert "4 changed" in capsys.readouterr().out
    for command in ("check", "apply"):
        assert main([*state, command, str(bad)]) == 2
        assert f"{bad}:" in (error := capsys.readouterr().err) and "use wired, cellular" in error
    assert main([*state, "check", str(tmp_path / "none.yaml")]) == 2
    assert main([*state, "cert", "van-1", "--out", str(tmp_path / "out")]) == 0
    assert stat.S_IMODE((tmp_path / "out" / "van-1.key").stat().st_mode) == 0o600
    for site, out, says in (
        ("van 1", "out", "in no network"),
        ("nosuch", "new", "in no network"),
        ("van-1", "none/out", "none is not there"),
    ):
        capsys.readouterr()
        assert main([*state, "cert", site, "--out", str(tmp_path / out)]) == 1
        assert says in capsys.readouterr().err
    assert main([*state, "revoke", "van-1"]) == 0
    assert main([*state, "cert", "van-1", "--out", str(tmp_path / "new")]) == 1
    assert "cpe-controller replace van-1" in capsys.readouterr().err
    assert not (tmp_path / "new").exists() and not (tmp_path / "none").exists()
    assert main([*state, "serve", "--listen", "192.0.2.1"]) == 1
    assert "cannot listen" in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        main(["serve", "--port", "70000"])
    assert usage.value.code == 64


@pytest.mark.parametrize(
    "address",
    [
        "centre.blood.cpe",
        "centre.blood.CPE",
        "a b",
        "",
        "-x",
        "a..b",
        "x" * 64,
        "999.1.1.1",
        "0.0.0.0",
        "x.example:8443",
    ],
)
def test_the_server_has_a_name_of_its_own(tmp_path: Path, address: str) -> None:
    with pytest.raises(setup.SetupError, match=r"--address: .*(write one|use another)"):
        setup.init_state(tmp_path / "state", "blood", [address])
    assert not (tmp_path / "state").exists()


def test_an_init_that_was_cut_short_starts_over(tmp_path: Path) -> None:
    state = tmp_path / "state"
    setup.init_state(state, "blood", ["127.0.0.1"])
    store = SqliteStore(state / setup.STORE)
    assert store.cas([Write(setup.SETUP, None)]) is not None
    store.close()
    with pytest.raises(setup.SetupError, match="never finished"):
        setup.apply(state, EXAMPLE)
    setup.init_state(state, "blood", ["127.0.0.1"])
    assert setup.apply(state, EXAMPLE).published
    assert msgspec.structs.asdict(setup.Setup("a", (), 1, 1))["epoch"] == 1


def test_a_lost_store_costs_no_key(state: Path, tmp_path: Path) -> None:
    """The root's key cannot be made again: every box would have to enrol anew."""
    where = ["--state", str(state)]
    assert main([*where, "backup", str(tmp_path / "backup")]) == 0
    for path in state.glob(f"{setup.STORE}*"):
        path.unlink()
    keys = {path.name: path.read_bytes() for path in state.iterdir()}
    for lost in ("gone", "empty"):
        if lost == "empty":
            (state / setup.STORE).touch()
        with pytest.raises(setup.SetupError, match=r"store\.sqlite is lost; .* restore FILE"):
            setup.init_state(state, "blood", ["127.0.0.1"])
        with pytest.raises(setup.SetupError, match=r"store\.sqlite is lost"):
            setup.apply(state, EXAMPLE)
    assert {path.name: path.read_bytes() for path in state.iterdir()} == keys | {setup.STORE: b""}
    # As it says: the backup mends it in place.
    assert main([*where, "restore", str(tmp_path / "backup")]) == 0
    assert (state / "root.key").read_bytes() == keys["root.key"]
    assert setup.apply(state, EXAMPLE).published


def test_a_restore_writes_over_no_other_key(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--state", str(state), "backup", str(tmp_path / "backup")]) == 0
    other = tmp_path / "other"
    setup.init_state(other, "blood", ["127.0.0.1"])
    for path in other.glob(f"{setup.STORE}*"):
        path.unlink()
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    assert main(["--state", str(other), "restore", str(tmp_path / "backup")]) == 1
    assert "not the one of this backup; restore into another directory" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before


def test_check_says_what_apply_would(
    state: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "network.yaml"
    file.write_text(text)
    assert main(["--state", str(state), "check", str(file)]) == 0
    assert "good: 2 hubs, 2 branches, 6 pairs" in capsys.readouterr().out
    file.write_text(text.replace("network: blood ", "network: blodd "))
    for command in ("check", "diff", "apply"):
        assert main(["--state", str(state), command, str(file)]) == 2
        assert f"{file}:5: network: is 'blodd', but this controller holds" in capsys.readouterr().err
    # Without a controller at hand the name is as good as any.
    assert main(["--state", str(tmp_path / "none"), "check", str(file)]) == 0
    assert not (tmp_path / "none").exists()
    file.write_text(text.partition("permits:")[0])
    assert main(["--state", str(state), "check", str(file)]) == 0
    assert "0 pairs\nbut nobody may talk" in capsys.readouterr().out
