"""`check`: a good file is called good; of a bad one the file, the field and the mend are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography import x509

from cpe_agent import cli, exits
from cpe_agent.edge.netlink import Netlink
from cpe_agent.model.document import encode
from cpe_agent.model.observed import Link, LinkAddress, Links
from tests.edge.authority import Authority
from tests.loops.documents import branch

SETTINGS = """\
site: {site}
controllers: [https://controller.example:8443]
signing_keys: {{a: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}}
state_dir: {here}/state
run_dir: {here}/run
ca: {here}/ca.pem
certificate: {here}/own.pem
key: {here}/own.key
backend: userland
"""


@pytest.fixture
def router(tmp_path: Path) -> Path:
    """A site with settings and an identity, without a document."""
    document = branch()
    Authority(tmp_path, "ca").issue("own", x509.DNSName(document.site))
    (tmp_path / "state").mkdir()
    (tmp_path / "agent.yaml").write_text(SETTINGS.format(site=document.site, here=tmp_path))
    return tmp_path


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> None:
    async def links(self: Netlink) -> Links:
        address = (LinkAddress("192.0.2.10", 24),)
        return Links({name: Link(name, True, address, ("192.0.2.1",)) for name in ("wired",)})

    monkeypatch.setattr(Netlink, "links", links)


def check(router: Path, *arguments: str) -> int:
    return cli.main(["check", "-c", str(router / "agent.yaml"), *arguments])


def test_a_box_without_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "agent.yaml"
    assert check(tmp_path) == exits.CONFIGURATION, "one that was named must be there"
    monkeypatch.setattr("cpe_agent.settings.DEFAULT_PATH", path)
    capsys.readouterr()
    assert check(tmp_path) == 0
    assert f"{path}: is not there, and need not be" in capsys.readouterr().out


def test_what_is_in_force(router: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(router) == 0
    out = capsys.readouterr().out
    assert f"{router}/agent.yaml: good." in out and f"{router}/own.key fits." in out
    assert "Note: this site has never accepted a document." in out


def test_other_settings(router: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = router / "other.yaml"
    other.write_text((router / "agent.yaml").read_text() + "log_level: loud\n")
    assert check(router, str(other)) == exits.BAD_DATA
    said = capsys.readouterr().err
    assert said.startswith(f"cpe-agent: {other}:10: log_level: ") and "write one of debug, info" in said


def test_a_key_of_somebody_else(router: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, other = Authority(router, "others").issue("other")
    other.rename(router / "own.key")
    assert check(router) == exits.CONFIGURATION
    said = capsys.readouterr().err
    assert f"{router}/agent.yaml: {router}/own.key is not the key of {router}/own.pem: put the two" in said


def test_a_good_document(router: Path, links: None, capsys: pytest.CaptureFixture[str]) -> None:
    document = branch()
    (router / "document.json").write_bytes(encode(document))
    assert check(router, str(router / "document.json")) == 0
    out = capsys.readouterr().out
    assert f"document.json: a good document for {document.site}: " in out
    assert "Note: UplinkMissing lte: there is no interface lte" in out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"site": "van-9"}, "site: is 'van-9', and this is 'hospital-1': take this site's own"),
        ({"colour": "red"}, "colour"),
        ({"site_address": 5}, "site_address"),
        ({"pairs": [{"id": "x"}]}, "pairs[0]"),
    ],
)
def test_a_bad_document(
    router: Path, links: None, change: dict[str, object], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = router / "document.json"
    file.write_text(json.dumps(json.loads(encode(branch())) | change))
    assert check(router, str(file)) == exits.BAD_DATA
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"cpe-agent: {file}: ") and words in said.err
    assert said.err.count("\n") == 1


def test_a_file_that_is_not_there(router: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(router, str(router / "nothing.json")) == exits.NO_INPUT
    assert "nothing.json cannot be read: No such file" in capsys.readouterr().err


def test_a_new_box(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "agent.yaml").write_text(f"state_dir: {tmp_path}\n")
    assert check(tmp_path) == 0
    assert "run `cpe-agent enroll TOKEN`" in capsys.readouterr().out
