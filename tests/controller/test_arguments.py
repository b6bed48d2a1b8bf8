"""What can be typed: options where one puts them, and complaints in words that are not the program's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cpe_agent import __version__
from cpe_controller import arguments, setup
from cpe_controller.cli import main
from cpe_controller.pki import key_pem, new_key
from cpe_controller.signing import Signer
from tests.controller.conftest import EXAMPLE


@pytest.mark.parametrize(
    "typed", ["--state /x --socket /y status", "status --state /x --socket /y", "--state /x status --socket /y"]
)
def test_where_the_controller_is_may_be_said_anywhere(typed: str) -> None:
    told = arguments.read(typed.split())
    assert (told.command, told.state, told.socket) == ("status", Path("/x"), Path("/y"))
    assert arguments.read(["status", "--state", "/x"]).socket == Path("/x/control.sock")
    assert arguments.read(["status"]).socket == arguments.DEFAULT_SOCKET


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert (left.value.code, capsys.readouterr().out) == (0, f"cpe-controller {__version__}\n")


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("serve --port x", "'x' is no port: write a number up to 65535"),
        ("serve --port 70000", "'70000' is no port"),
        ("serve --heartbeat-s soon", "'soon': 0.05 to 3600"),
        ("token van-1 --hours many", "'many' is no whole number"),
        ("rollback first", "'first' is no whole number"),
        ("rotate", "required: start|finish"),
        ("rotate-root", "required: start|finish|retire"),
        ("apply", "apply needs a network.yaml"),
        ("cloud-init van-1 --deb https://x/y.deb", "--deb and --sha256 belong together"),
    ],
)
def test_what_is_not_understood_is_said_in_plain_words(
    typed: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(typed.split())
    said = capsys.readouterr().err
    assert left.value.code == arguments.USAGE == 64
    assert says in said and " _" not in said


def test_every_command_says_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    parser = arguments._parser()
    commands = next(action for action in parser._actions if action.dest == "command").choices
    assert commands is not None
    for name in commands:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        about = capsys.readouterr().out.split("\n\n")[1]
        assert about[0].isupper() and about.endswith("."), name


def test_a_socket_that_was_named_must_answer(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error must not go around the controller that runs."""
    setup.apply(state, EXAMPLE)
    assert main(["--state", str(state), "status"]) == 0
    assert main(["--state", str(state), "--socket", str(tmp_path / "x.sock"), "status"]) == 1
    assert f"nobody answers at {tmp_path / 'x.sock'}" in capsys.readouterr().err


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be somebody else")
def test_another_user_is_told_to_be_root(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup.apply(state, EXAMPLE)
    state.parent.chmod(0o700)
    os.seteuid(65534)
    try:
        assert main(["--state", str(state), "status"]) == 1
        with pytest.raises(setup.SetupError, match="run this as root"), setup.opened(state):
            pass
    finally:
        os.seteuid(0)
    assert "run this as root" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no key", "is no private key: it begins with -----BEGIN PRIVATE KEY-----"),
        (key_pem(new_key()), "is no Ed25519 key"),
        (None, "is not there"),
    ],
)
def test_a_bad_key_is_named_in_our_words(
    state: Path, tmp_path: Path, content: bytes | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "some.key"
    if content is not None:
        key.write_bytes(content)
    assert main(["--state", str(state), "apply", str(EXAMPLE), "--key", str(key)]) == 1
    said = capsys.readouterr().err
    assert f"{key} {says}" in said and "http" not in said
    (state / "root.key").write_bytes(Signer.new().pem())
    (state / "sites.pem").write_bytes(b"no certificate")
    assert main(["--state", str(state), "renew"]) == 1
    assert "root.key is no P-256 key" in capsys.readouterr().err
    assert main(["--state", str(state), "apply", str(EXAMPLE)]) == 1
    assert "sites.pem is no certificate: it begins with" in capsys.readouterr().err


def test_a_backup_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--state", str(tmp_path / "new"), "restore", str(tmp_path / "nofile")]) == 1
    assert (
        capsys.readouterr().err == f"cpe-controller: {tmp_path / 'nofile'} cannot be read: No such file or directory\n"
    )
