"""A lost controller, and a vCPE from nothing."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import yaml

from cpe_agent.model.document_check import decode
from cpe_controller import audit, change, commands, setup
from cpe_controller.cli import main
from cpe_controller.commands import answering
from tests.controller.conftest import serving


def _orders(state: Path) -> dict[str, tuple[int, int]]:
    found = {}
    with setup.opened(state) as (store, _):
        for site in ("centre", "cloud", "hospital-1", "van-1"):
            published = change.in_force(store, site)
            assert published is not None
            found[site] = decode(published.raw).order
    return found


def test_a_restore_strands_no_site(state: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup.apply(state, text)
    kept = tmp_path / "backup.tar.gz"
    with serving(state) as running, running.client("van-1") as client:
        assert main(["--state", str(state), "backup", str(kept)]) == 0
        assert kept.stat().st_mode & 0o777 == 0o600
        # What sites get after the backup is lost with the machine.
        for failback in (61, 62, 63):
            setup.apply(state, text.replace("failback_s: 60", f"failback_s: {failback}"))
        answer = client.get("/v1/document")
    newest = max(_orders(state).values())
    with tarfile.open(kept) as tar:
        assert "root.key" not in tar.getnames()

    orders = []
    for name in ("first", "second"):  # the same backup, twice: the later restore is the newer
        restored = tmp_path / name
        assert main(["--state", str(restored), "restore", str(kept)]) == 0
        assert "4 changed" in capsys.readouterr().out
        orders.append(_orders(restored))
        assert min(orders[-1].values()) > newest
        with setup.opened(restored) as (store, _):
            assert audit.flaw(audit.deeds(store), audit.head(store)) == ""
        with serving(restored) as running, running.client("van-1", issuer=state) as client:
            again = client.get("/v1/document", headers={"If-None-Match": answer.headers["etag"]})
            assert again.status_code == 200  # the old certificate, and a newer document
    with setup.opened(tmp_path / "first") as (_, first), setup.opened(tmp_path / "second") as (_, second):
        assert second.epoch >= first.epoch > 1_700_000_000
    assert main(["--state", str(tmp_path / "second"), "restore", str(kept)]) == 1
    assert "holds a controller" in capsys.readouterr().err


def test_what_is_no_backup_is_not_restored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.tar.gz"
    for content in (None, b"", b"no tar"):
        if content is not None:
            bad.write_bytes(content)
        assert main(["--state", str(tmp_path / "state"), "restore", str(bad)]) == 1
        assert ("cannot be read: No such" if content is None else "no backup of ours, or") in capsys.readouterr().err
    (tmp_path / "evil").write_text("x")
    with tarfile.open(bad, "w:gz") as tar:
        tar.add(tmp_path / "evil", arcname="../evil")
    assert main(["--state", str(tmp_path / "state"), "restore", str(bad)]) == 1
    assert "no backup of ours" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_a_restore_without_the_policy_key_says_what_to_do(
    state: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup.apply(state, text)
    key = tmp_path / "signing.key"
    (state / "signing.key").rename(key)
    kept, restored = tmp_path / "backup", tmp_path / "restored"
    assert main(["--state", str(state), "backup", str(kept)]) == 0
    assert main(["--state", str(restored), "restore", str(kept)]) == 1
    assert "NOT signed for this epoch" in capsys.readouterr().out
    assert main(["--state", str(restored), "apply", "--now", "--key", str(key)]) == 0
    assert "4 changed" in capsys.readouterr().out


def test_a_cloud_image_is_told_all_it_needs(state: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    setup.apply(state, text)
    where = ["--state", str(state), "cloud-init", "cloud"]
    assert main(where) == 0
    told = capsys.readouterr().out
    assert told.startswith("#cloud-config\n")
    said = yaml.safe_load(told)
    [settings] = said["write_files"]
    assert settings["path"] == "/etc/cpe-agent/agent.yaml" and settings["permissions"] == "0640"
    assert yaml.safe_load(settings["content"])["token"].startswith("cpe1.")
    assert said["packages"] == ["cpe-agent"] and said["runcmd"][-1][:3] == ["systemctl", "enable", "--now"]

    url, digest = "https://example.org/cpe-agent.deb;reboot", "0a" * 32
    with pytest.raises(SystemExit):
        main([*where, "--deb", url])
    assert main([*where, "--deb", url, "--sha256", digest]) == 0
    fetch, install = yaml.safe_load(capsys.readouterr().out.partition("#cloud-config\n")[2])["runcmd"]
    assert fetch[0] == "curl" and fetch[-1] == url  # as one word, that no shell reads
    assert digest in install and url not in install
    with pytest.raises(SystemExit):
        main([*where, "--deb", "http://example.org/x.deb", "--sha256", digest])
    with pytest.raises(setup.SetupError, match="no network"):
        answering.run(state, commands.Token("nobody", 1), "tester")
