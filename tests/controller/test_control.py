"""Commands to a running controller: who may give them, what they do, and what the audit log says of it."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import httpx
import msgspec
import pytest

from cpe_agent.model.document_check import decode
from cpe_controller import audit, commands, control, publish, setup
from cpe_controller.change import Change
from cpe_controller.cli import main
from cpe_controller.commands import answering
from cpe_controller.setup import SetupError
from cpe_controller.signing import Signer
from tests.controller.conftest import EXAMPLE, Served, serving
from tests.controller.test_api import _lines

NOBODY = 65534


def _audit(state: Path) -> list[audit.Deed]:
    with setup.opened(state) as (store, _):
        found = audit.deeds(store)
        assert audit.flaw(found, audit.head(store)) == ""
    return found


def _in_force(state: Path, site: str) -> publish.Published | None:
    with setup.opened(state) as (store, _):
        return publish.in_force(store, site)


def test_commands_reach_the_running_controller(
    served: Served, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--state", str(tmp_path / "not-here"), "--socket", str(served.state / "control.sock")]
    changed = tmp_path / "network.yaml"
    changed.write_text(text.replace("failback_s: 60", "failback_s: 61"))
    assert main([*where, "apply", "--now", str(changed)]) == 0
    assert "4 changed" in capsys.readouterr().out
    with served.client("van-1") as client:
        assert decode(client.get("/v1/document").content).policy.failback_s == 61
    changed.write_text(text.replace("kind: wired", "kind: wierd", 1))
    assert main([*where, "apply", str(changed)]) == 2
    assert f"{changed}:" in capsys.readouterr().err
    asked, done, cert = _audit(served.state)
    assert (cert.what, cert.about["site"]) == ("cert", "van-1")
    assert (asked.what, asked.by, done.what) == ("apply", control.user_name(os.getuid()), "applied")
    assert "van-1 2" in done.about["published"]
    assert main([*where, "audit", "--check"]) == 0
    assert cert.hash in capsys.readouterr().out


ASK = """
import os, socket, sys
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(65534)
asker = socket.socket(socket.AF_UNIX)
asker.connect(sys.argv[1])
try:
    asker.sendall(b'{"command":"audit"}\\n')
except BrokenPipeError:
    pass  # refused before it was read; the words are waiting
print(asker.recv(99999).decode())
"""


def test_who_may_ask_is_for_the_group_to_say(state: Path) -> None:
    """The kernel's word about who asks counts, also for one who got past the socket's mode."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "control.sock"
        Path(directory).chmod(0o755)
        with serving(state, "--group", "games", socket=path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            path.chmod(0o666)
            for group, told in ((NOBODY, "may not ask: be root or in the group games"), (path.stat().st_gid, "answer")):
                argv = ["/usr/bin/python3", "-c", ASK, str(path), str(group)]
                done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
                assert told in done.stdout, done.stderr


def test_nonsense_is_answered(served: Served) -> None:
    for sent in (b"{}\n", b"\xff\n", b'{"command":"audit","more":1}\n', b"no end"):
        with socket.socket(socket.AF_UNIX) as asker:
            asker.connect(str(served.state / "control.sock"))
            asker.sendall(sent)
            asker.shutdown(socket.SHUT_WR)
            assert "that is no command" in json.loads(asker.recv(9999))["error"]


def test_two_controllers_do_not_share_a_socket(served: Served, tmp_path: Path) -> None:
    other = tmp_path / "other"
    setup.init_state(other, "blood", ["127.0.0.1"])
    where = ["--state", str(other), "--socket", str(served.state / "control.sock")]
    assert main([*where, "serve", "--port", "0"]) == 1
    assert main(["--state", str(other), "--socket", str(tmp_path), "serve", "--port", "0"]) == 1


def test_a_revoked_site_is_refused_at_once_and_its_peers_are_told(served: Served) -> None:
    with served.client("van-1") as client, client.stream("GET", "/v1/changes") as held:
        lines = _lines(held)
        assert next(lines) == {"epoch": 1, "version": 1}
        answer = control.ask(served.state / "control.sock", commands.Revoke("van-1"))
        assert answer is not None and answer.exit == 0
        assert all(line == {"heartbeat": True} for line in lines)  # the held stream ends
        for refused in (client.get("/v1/document"), client.get("/v1/changes"), client.post("/v1/certificate")):
            assert (refused.status_code, refused.json()["code"]) == (403, "revoked")
    assert _in_force(served.state, "van-1") is None
    for hub in ("centre", "cloud"):
        published = _in_force(served.state, hub)
        assert published is not None
        document = decode(published.raw)
        assert "van-1" not in document.peers and document.allow_mass_removal
        assert not any("van-1" in pair.id for pair in document.pairs)
    with pytest.raises(SetupError, match="revoked"):
        answering.run(served.state, commands.Token("van-1", 1), "tester")
    # It stays out whatever is applied.
    assert setup.apply(served.state, EXAMPLE).published == {}


def test_a_revoked_hub_is_no_longer_dialled(state: Path, text: str) -> None:
    setup.apply(state, text)
    answering.run(state, commands.Revoke("cloud"), "tester")
    published = _in_force(state, "hospital-1")
    assert published is not None
    document = decode(published.raw)
    assert set(document.peers) == {"centre"}
    assert {pair.peers for pair in document.pairs} == {("centre",)}


def test_a_replaced_site_has_another_name(served: Served) -> None:
    """The old box's certificate is good for months, and nobody takes it for the new one's."""
    with served.client("van-1") as old:
        assert old.get("/v1/document").status_code == 200
        answer = control.ask(served.state / "control.sock", commands.Replace("van-1", 24))
        assert answer is not None and answer.data["token"].startswith("cpe1.")
        assert old.get("/v1/document").json()["code"] == "revoked"
    published = _in_force(served.state, "centre")
    assert published is not None and decode(published.raw).peers["van-1"].identity == "g2.van-1.blood.cpe"
    with served.client("van-1") as new:  # as the token's enrolment would issue it
        assert new.get("/v1/document").status_code == 200
    answering.run(served.state, commands.Revoke("van-1"), "tester")
    answering.run(served.state, commands.Replace("van-1", 24), "tester")
    published = _in_force(served.state, "centre")
    assert published is not None and decode(published.raw).peers["van-1"].identity == "g3.van-1.blood.cpe"


def test_a_store_from_before_a_replacement_learns_of_it(served: Served, tmp_path: Path) -> None:
    answering.run(served.state, commands.Replace("van-1", 24), "tester")
    with served.client("van-1") as new:
        with setup.opened(served.state) as (store, _):
            store.put("sites/van-1", b"{}")
        stands = b"{}"
        while stands != b'{"generation":2}':  # until the server has seen the store change, and put it right
            assert new.get("/v1/document").status_code == 200
            with setup.opened(served.state) as (store, _):
                entry = store.get("sites/van-1")
                assert entry is not None
                stands = entry.value or b""


def test_the_policy_key_may_be_elsewhere(
    state: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Signed on another machine: with the file and the key, and no controller."""
    key = tmp_path / "offline.key"
    (state / "signing.key").rename(key)
    order, where = tmp_path / "order.json", ["--state", str(state)]
    with serving(state) as running:
        assert main([*where, "apply", str(EXAMPLE)]) == 1
        assert "--unsigned" in capsys.readouterr().err
        assert main([*where, "apply", str(EXAMPLE), "--unsigned", str(order)]) == 0
        assert main([*where, "import", str(order)]) == 1
        assert "not signed" in capsys.readouterr().err
        other = tmp_path / "other.key"
        other.write_bytes(Signer.new().pem())
        elsewhere = ["--state", str(tmp_path / "nothing")]
        assert main([*elsewhere, "sign", str(order), "--key", str(other)]) == 1
        assert main([*elsewhere, "sign", str(order), "--key", str(key)]) == 0
        change = msgspec.json.decode(order.read_bytes(), type=Change)
        draft = change.drafts["van-1"]
        forged = msgspec.structs.replace(draft, raw=draft.raw.replace(b"10.102.0.0", b"10.102.1.0"))
        bad = tmp_path / "bad.json"
        bad.write_bytes(msgspec.json.encode(msgspec.structs.replace(change, drafts=change.drafts | {"van-1": forged})))
        assert main([*where, "import", str(bad)]) == 1
        assert "wrong signature" in capsys.readouterr().err
        assert main([*where, "import", str(order)]) == 0
        capsys.readouterr()
        assert main([*where, "import", str(order)]) == 1  # only once: it is for the network that was in force
        assert "this change is in already" in capsys.readouterr().err
        with running.client("van-1") as client:
            assert client.get("/v1/document").status_code == 200
        changed = tmp_path / "network.yaml"
        changed.write_text(text.replace("failback_s: 60", "failback_s: 61"))
        assert main([*where, "apply", str(changed), "--key", str(key)]) == 0
        assert main([*where, "import", str(order)]) == 1
        assert "older than what is in force" in capsys.readouterr().err
        assert [deed.what for deed in _audit(state)][-2:] == ["apply", "applied"]  # what came too late is no deed
        # A stolen van is shut out of the API all the same, and it is said that its peers do not know yet.
        capsys.readouterr()
        assert main([*where, "revoke", "van-1"]) == 1
        assert "NOT told" in capsys.readouterr().out
        with running.client("van-1") as client:
            assert _refused(client)


def _refused(client: httpx.Client) -> bool:
    while client.get("/v1/document").status_code != 403:
        pass
    return True


def test_the_audit_log_shows_what_was_done_to_it(state: Path) -> None:
    for command in ("apply", "audit"):
        main(["--state", str(state), command, *([str(EXAMPLE)] if command == "apply" else [])])
    answering.run(state, commands.Token("van-1", 5), "tester")
    found = _audit(state)
    assert [(deed.number, deed.what) for deed in found] == [(1, "apply"), (2, "applied"), (3, "token")]
    newest = audit.Head(3, found[-1].hash)
    assert "altered" in audit.flaw([*found[:1], msgspec.structs.replace(found[1], by="x"), found[2]], newest)
    rehashed = msgspec.structs.replace(found[1], by="x").sealed()
    assert "does not follow" in audit.flaw([found[0], rehashed, found[2]], newest)
    assert "missing" in audit.flaw([found[0], found[2]], newest)
    assert "end is missing" in audit.flaw(found[:2], newest)
    with setup.opened(state) as (store, _):
        store.put("audit/000000000002", msgspec.json.encode(rehashed))
    assert main(["--state", str(state), "audit", "--check"]) == 1


def test_a_new_authority_for_sites_is_trusted_beside_the_old(state: Path, text: str, tmp_path: Path) -> None:
    setup.apply(state, text)
    root_key = tmp_path / "root.key"
    (state / "root.key").rename(root_key)
    with serving(state) as running:
        old = running.client("van-1")
    assert main(["--state", str(state), "renew"]) == 1
    assert main(["--state", str(state), "renew", "--root-key", str(root_key)]) == 0
    assert len(setup.apply(state, text).published) == 4  # peers are told of it
    with serving(state) as running:
        with old:
            assert old.get(f"{running.url}/v1/document").status_code == 200
        with running.client("van-1") as new:
            assert new.get("/v1/document").status_code == 200
