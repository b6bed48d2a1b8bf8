"""`verify` and `plan`: what they say, and what they exit with, where no network is needed."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cpe_agent import cli, comparison
from cpe_agent.core.preview import Operation, Preview, Stage
from cpe_agent.edge.store import FileStore
from cpe_agent.listing import render_preview, render_verification
from cpe_agent.model.difference import Difference, Kind, Verification
from cpe_agent.model.document import SIGNATURE_CONTEXT, encode
from cpe_agent.ports import EdgeError, SignedDocument
from cpe_agent.settings import Settings
from tests.core.documents import branch

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = base64.b64encode(KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
RAW = encode(branch())
SIGNED = SignedDocument(RAW, KEY.sign(SIGNATURE_CONTEXT + RAW), "a")

DIFFERENCES = (
    Difference("rules", Kind.MISSING, "chain forward, rule 3: counter drop"),
    Difference("rules", Kind.FOREIGN, "set friends"),
    Difference("tunnels", Kind.ALTERED, "evil \x1b[2Jname"),
)
FOUND = Verification("hospital-1", 1, 7, False, DIFFERENCES)
IN_SYNC = Verification("hospital-1", 1, 7, True, ())
PLANNED = Preview(
    "hospital-1",
    1,
    8,
    2,
    (
        Operation(Stage.CLOSE_RULES, "delete 1 element from set lans", ("lan0",)),
        Operation(Stage.TUNNELS, "start probe on wired.centre.a"),
    ),
    ("lte: there is no interface wwan0",),
)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "agent.yaml"
    path.write_text(
        f"site: hospital-1\ncontrollers: [https://controller.example:8443]\nsigning_keys: {{a: {PUBLIC}}}\n"
        f"state_dir: {tmp_path}/state\nrun_dir: {tmp_path}/run\nca: {tmp_path}/ca.pem\n"
    )
    return str(path)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "state")


class TestVerify:
    @pytest.mark.parametrize(("found", "code"), [(IN_SYNC, 0), (FOUND, 1)])
    def test_exit_status(
        self,
        config: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        found: Verification,
        code: int,
    ) -> None:
        monkeypatch.setattr(comparison, "verify", lambda settings: found)
        assert cli.main(["verify", "-c", config]) == code
        assert capsys.readouterr() == (render_verification(found), "")
        assert cli.main(["verify", "--json", "-c", config]) == code
        report = json.loads(capsys.readouterr().out)
        assert (report["in_sync"], len(report["differences"])) == (found.in_sync, len(found.differences))

    def test_words(self) -> None:
        assert render_verification(IN_SYNC) == "hospital-1: in sync with document 1.7.\n"
        assert render_verification(FOUND).splitlines() == [
            "hospital-1: 3 differences from document 1.7.",
            "",
            "rules",
            "  missing  chain forward, rule 3: counter drop",
            "  foreign  set friends",
            "",
            "tunnels",
            "  altered  evil ?[2Jname",
        ]

    def test_without_a_document(self, config: str, capsys: pytest.CaptureFixture[str], store: FileStore) -> None:
        assert self._refused(config, capsys) == "this site has never accepted a document"
        assert cli.main(["plan", "-c", config]) == 3
        assert capsys.readouterr().err == "cpe-agent: nothing to plan: this site has never accepted a document.\n"

    def test_with_a_document_that_is_not_to_be_believed(
        self, config: str, capsys: pytest.CaptureFixture[str], store: FileStore, tmp_path: Path
    ) -> None:
        store.save_document(SignedDocument(RAW.replace(b"10.10.0.0", b"10.66.0.0"), SIGNED.signature, "a"))
        assert "signature: does not fit the document" in self._refused(config, capsys)
        store.save_document(SignedDocument(RAW, SIGNED.signature, "b"))
        assert "by key 'b', which this site does not trust" in self._refused(config, capsys)
        store.save_document(SIGNED)
        file = tmp_path / "state" / "document"
        file.write_bytes(file.read_bytes()[:-1])
        assert "is damaged" in self._refused(config, capsys)

    def test_a_kernel_that_cannot_be_read(
        self, config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def refuse(settings: Settings) -> Verification:
            raise EdgeError("nftables", "list", "Operation not permitted")

        monkeypatch.setattr(comparison, "verify", refuse)
        assert self._refused(config, capsys) == "nftables: list: Operation not permitted"

    @staticmethod
    def _refused(config: str, capsys: pytest.CaptureFixture[str]) -> str:
        """Why it cannot verify. `look` would fail differently: there is no identity."""
        code = cli.main(["verify", "-c", config])
        printed = capsys.readouterr()
        assert (code, printed.out) == (3, "")
        return printed.err.removeprefix("cpe-agent: cannot verify: ").removesuffix(".\n")


class TestPlan:
    def test_words(self) -> None:
        assert render_preview(PLANNED).splitlines() == [
            "hospital-1: 2 operations for document 1.8.",
            "",
            "close rules",
            "  delete 1 element from set lans",
            "    lan0",
            "",
            "tunnels",
            "  start probe on wired.centre.a",
            "",
            "notes",
            "  lte: there is no interface wwan0",
        ]

    def test_of_a_file(
        self, config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        file = tmp_path / "next.json"
        file.write_bytes(RAW)
        asked: list[bytes | None] = []

        def plan(settings: Settings, candidate: bytes | None) -> Preview:
            asked.append(candidate)
            return PLANNED

        monkeypatch.setattr(comparison, "plan", plan)
        assert cli.main(["plan", str(file), "-c", config]) == 0
        assert cli.main(["plan", "--json", "-c", config]) == 0
        assert asked == [RAW, None]
        text, _, report = capsys.readouterr().out.partition("{")
        assert text == render_preview(PLANNED)
        assert json.loads("{" + report)["operations"][0]["stage"] == "close rules"

    @pytest.mark.parametrize(
        ("content", "code", "words"),
        [
            (RAW.replace(b'"remote":"10.10.0.0/24"', b'"remote":"10.10.0.300/24"'), 65, "pairs[0].remote: "),
            (RAW.replace(b'"site":"hospital-1"', b'"site":"van-1"'), 65, "site: is 'van-1'; this is 'hospital-1'"),
            (b"{", 65, "is not JSON"),
            (None, 66, "cannot be read: No such file or directory"),
        ],
    )
    def test_of_a_file_that_is_none(
        self,
        config: str,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        content: bytes | None,
        code: int,
        words: str,
    ) -> None:
        file = tmp_path / "next.json"
        if content is not None:
            file.write_bytes(content)
        assert cli.main(["plan", str(file), "-c", config]) == code
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(f"cpe-agent: {file}") and words in printed.err
