"""The support bundle: no secret in any part of it, whatever it is made from; and what can be had without an agent."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cpe_agent import cli, exits, support
from cpe_agent.edge.outsiders import printed
from cpe_agent.ports import EdgeError


def key_pem() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


KEY, OLD_KEY, FOREIGN_KEY = key_pem(), key_pem(), key_pem()
SECRET = "Zq3v9TfLw0aKxYb7mNcE2hJd5sGu8RpQ"
TOKEN = "cpe1." + base64.urlsafe_b64encode(json.dumps({"secret": SECRET}).encode()).decode().rstrip("=")
PSK, SA_KEY = "correct-horse-battery-staple", "0x00112233445566778899aabbccddeeff"

# Whatever a person or a program may leave in a log.
LOG = f"""\
Nov 24 06:00:01 hospital-1 cpe-agent[7]: {{"event":"path_up","path":"wired.centre.a"}}
Nov 24 06:00:02 hospital-1 cpe-agent[7]: oops: {json.dumps(KEY)}
Nov 24 06:00:03 hospital-1 cpe-agent[7]: typed: cpe-agent enroll {TOKEN}
Nov 24 06:00:04 hospital-1 charon[8]: {base64.b64decode("".join(KEY.splitlines()[1:-1])).hex(" ")}
Nov 24 06:00:05 hospital-1 wpa: psk="{PSK}" {FOREIGN_KEY}
"""
STATES = f"src 192.0.2.10 dst 198.51.100.10\n\tproto esp spi 0xc0ffee01\n\taead rfc4106(gcm(aes)) {SA_KEY} 128\n"
TOOLS = {
    "journalctl": LOG,
    "ip": STATES,
    "nft": 'table inet cpe_agent { comment "x" }\n',
    "swanctl": "cpe-wired.centre.a: #1, ESTABLISHED, IKEv2\n",
}


@pytest.fixture
def router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A router without an agent: files with secrets planted everywhere, and tools that tell some more."""
    state, tools = tmp_path / "state", tmp_path / "tools"
    for directory in (state / "identity", tools, tmp_path / "run"):
        directory.mkdir(parents=True)
    (tmp_path / "agent.yaml").write_text(
        f"state_dir: {state}\nrun_dir: {tmp_path}/run\nvici_socket: {tmp_path}/vici\ntoken: {TOKEN}\n# {PSK} is the "
        f"wifi password: {PSK}\n"
    )
    (state / "identity" / "key.pem").write_text(KEY)
    (state / "identity-old.key").write_text(OLD_KEY)
    (state / "enrolment.json").write_text(json.dumps({"site": "hospital-1", "note": OLD_KEY}))
    (state / "drills.jsonl").write_text('{"number":1}\n')
    (state / "anything-else").write_text(KEY)
    (tmp_path / "run" / "strongswan.conf").write_text(f'charon {{ secret = "{PSK}" }}\n')
    for name, says in TOOLS.items():
        (tools / name).write_text(f"#!/bin/sh\ncat <<'END'\n{says}END\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def unpacked(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name.partition("/")[2]: (tar.extractfile(m) or io.BytesIO()).read() for m in tar.getmembers()}


def made(router: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, bytes], bytes]:
    path = router / "bundle.tar.gz"
    assert cli.main(["support-bundle", "-c", str(router / "agent.yaml"), "-o", str(path)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("Written, ") and str(path) in said.out.splitlines() and said.err == ""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return unpacked(path), gzip.decompress(path.read_bytes())


def test_no_secret_is_anywhere_in_it(router: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts, whole = made(router, capsys)
    for name in ("logs/agent.txt", "ipsec/states.txt", "agent.yaml", "state/enrolment.json", "strongswan.conf"):
        assert b"[removed]" in parts[name], "the secrets were there to be found"
    hidden = [SECRET, TOKEN, TOKEN[5:30], PSK, SA_KEY[2:]]
    for pem in (KEY, OLD_KEY, FOREIGN_KEY):
        body = "".join(pem.splitlines()[1:-1])
        raw = base64.b64decode(body)
        hidden += [line for line in pem.splitlines() if "-----" not in line]
        # The part of it that is the key itself, in any form.
        hidden += [body[44:84], raw[33:65].hex(), raw[33:65].hex(" "), raw[33:65].hex().upper()]
        assert raw[33:65] not in whole
    assert [secret for secret in hidden if secret.encode() in whole] == []
    assert b"PRIVATE KEY" not in whole


def test_it_tells_what_helps_and_what_could_not_be_had(router: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts, _ = made(router, capsys)
    assert b'"path_up"' in parts["logs/agent.txt"]
    assert b"table inet cpe_agent" in parts["network/nftables.txt"]
    assert b"ESTABLISHED" in parts["ipsec/sas.txt"]
    assert b"spi 0xc0ffee01" in parts["ipsec/states.txt"]
    assert parts["state/drills.jsonl"] == b'{"number":1}\n'
    listed = parts["state/files.txt"].decode()
    assert "identity/key.pem" in listed and "anything-else" in listed
    manifest = json.loads(parts["manifest.json"])
    assert manifest["parts"] == {name: len(content) for name, content in parts.items() if name != "manifest.json"}
    assert "no agent is running" in manifest["missing"]["status.txt"]
    assert set(manifest["missing"]) >= {"status.txt", "status.json", "verify.txt", "living.json"}


def test_broken_settings_do_not_stop_it(router: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (router / "agent.yaml").write_text(f"sight: x\ntoken: {TOKEN}\n")
    parts, whole = made(router, capsys)
    assert "there is no such setting" in json.loads(parts["manifest.json"])["missing"]["settings"]
    assert SECRET.encode() not in whole and TOKEN.encode() not in whole
    assert b"sight: x" in parts["agent.yaml"]


def test_its_size_is_bounded(router: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(support, "PART_MAX_BYTES", 2000)
    monkeypatch.setattr(support, "WHOLE_MAX_BYTES", 5000)
    (router / "tools" / "journalctl").write_text("#!/bin/sh\nseq 1 100000\n")
    parts, _ = made(router, capsys)
    log = parts["logs/agent.txt"]
    assert len(log) <= 2000 and log.startswith(b"# journalctl") and log.endswith(b"99999\n100000\n")
    manifest = json.loads(parts["manifest.json"])
    assert sum(manifest["parts"].values()) <= 5000
    assert "the bundle is full" in manifest["missing"].values()


def test_a_file_that_is_there_is_not_written_over(router: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (router / "x").write_text("mine")
    assert cli.main(["support-bundle", "-c", str(router / "agent.yaml"), "-o", str(router / "x")]) == exits.CANNOT_WRITE
    assert "cannot be written: File exists; name another place with --output" in capsys.readouterr().err
    assert (router / "x").read_text() == "mine"


def test_by_default_it_is_here_and_named_by_site_and_time(router: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["support-bundle", "-c", str(router / "agent.yaml"), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    (file,) = router.glob("cpe-support-new-*.tar.gz")
    assert written["path"] == str(file) and written["size_bytes"] == file.stat().st_size


class TestOutsiders:
    def test_what_a_tool_prints(self) -> None:
        assert printed(["echo", "x"]) == "x\n"
        assert printed(["sh", "-c", "echo x; echo y >&2; exit 3"]) == "x\n\n[errors]\ny\n"

    @pytest.mark.parametrize(
        ("command", "timeout_s", "words"),
        [
            (["no-such-tool"], 30, "is not installed"),
            (["sh", "-c", "echo refused >&2; exit 1"], 30, "refused"),
            (["sleep", "30"], 0.2, "took longer than 0.2 s"),
        ],
    )
    def test_why_there_is_nothing(self, command: list[str], timeout_s: float, words: str) -> None:
        with pytest.raises(EdgeError, match=words):
            printed(command, timeout_s=timeout_s)
