"""What agent.yaml may say, and what is said about an agent.yaml that may not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpe_agent.model.document import SigningKey
from cpe_agent.model.enrolment import Enrolment
from cpe_agent.settings import MAX_BYTES, HostPort, Settings, SettingsError, load_settings, parse_settings

EXAMPLE = Path(__file__).parent.parent / "configs" / "agent.yaml"
KEY = "O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik="
PATH = Path("/etc/cpe-agent/agent.yaml")
LEAST = f"site: van-1\ncontrollers: [https://c.example]\nsigning_keys: {{a: {KEY}}}\n"


def parse(text: str) -> Settings:
    return parse_settings(PATH, text.encode())


def refusal(text: str | bytes) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        parse_settings(PATH, text if isinstance(text, bytes) else text.encode())
    assert str(caught.value).startswith((f"{PATH}: ", f"{PATH}:{caught.value.line}: "))
    return caught.value


def test_the_example_shows_the_defaults() -> None:
    settings = load_settings(EXAMPLE)
    assert settings == Settings(
        site="hospital-1",
        controllers=("https://controller.example:8443",),
        signing_keys=(SigningKey("2026-a", KEY),),
        state_dir=Path("/var/lib/cpe-agent"),
        run_dir=Path("/run/cpe-agent"),
        ca=Path("/etc/cpe-agent/ca.pem"),
        certificate=Path("/var/lib/cpe-agent/identity.pem"),
        key=Path("/var/lib/cpe-agent/identity.key"),
        vici_socket=Path("/run/cpe-charon/vici"),
        backend="auto",
        metrics=HostPort("127.0.0.1", 9273),
        log="json",
        log_level="info",
    )


def test_what_the_example_comments_out_is_right_too() -> None:
    lines = EXAMPLE.read_text().splitlines()
    keys = [line.removeprefix("# ") for line in lines if line.startswith("# ") and line.split()[1].endswith(":")]
    keys = [line for line in keys if line.partition(":")[0] in Settings.__struct_fields__]
    written = {line.partition(":")[0] for line in keys}
    by_enrolment = {"enrols", "token", "token_file"}
    assert written == set(Settings.__struct_fields__) - {"site", "controllers", "signing_keys"} - by_enrolment
    assert parse("\n".join(lines + keys)) == load_settings(EXAMPLE)


@pytest.mark.parametrize("text", ["", "# nothing\n", "site: van-1\n", "controllers: [https://c.example]\n"])
def test_what_is_not_said_comes_by_enrolment(text: str) -> None:
    settings = parse(text + "state_dir: /srv/agent\n")
    assert settings.enrols
    assert settings.certificate == Path("/srv/agent/identity/certificate.pem")
    assert (settings.key.name, settings.ca.name) == ("key.pem", "ca.pem")
    key = SigningKey("b", KEY)
    enrolled = settings.enrolled(Enrolment("van-1", "net", ("https://enrolled.example",), (key,)))
    assert (enrolled.site, enrolled.signing_keys) == ("van-1", (key,))
    said = settings.controllers or ("https://enrolled.example",)
    assert enrolled.controllers == said, "what is written goes before"


def test_a_token_makes_a_box_enrol() -> None:
    settings = parse(LEAST + "token: cpe1.eyJ9\n")
    assert settings.enrols and settings.token == "cpe1.eyJ9" and settings.site == "van-1"
    settings = parse(LEAST + "token_file: /run/token\n")
    assert settings.enrols and settings.token_file == Path("/run/token")
    assert not parse(LEAST).enrols


def test_certificate_and_key_follow_the_state_directory() -> None:
    settings = parse(LEAST + "state_dir: /srv/agent\nkey: /etc/agent.key\n")
    assert settings.certificate == Path("/srv/agent/identity.pem")
    assert settings.key == Path("/etc/agent.key")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("127.0.0.1:9273", HostPort("127.0.0.1", 9273)),
        ("'[::1]:9273'", HostPort("::1", 9273)),
        ("'[2001:db8::1]:9273'", HostPort("2001:db8::1", 9273)),
        ("10.255.0.9:9273", HostPort("10.255.0.9", 9273)),
        ("'[::1]:1'", HostPort("::1", 1)),
        ("localhost:65535", HostPort("localhost", 65535)),
        ("null", None),
    ],
)
def test_metrics(written: str, meant: HostPort | None) -> None:
    assert parse(LEAST + f"metrics: {written}\n").metrics == meant


def test_a_controllers_trailing_slash_means_nothing() -> None:
    text = LEAST.replace("https://c.example", "https://c.example/, 'https://[2001:db8::1]:8443/sdwan/'")
    assert parse(text).controllers == ("https://c.example", "https://[2001:db8::1]:8443/sdwan")


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        ("metrics: ':9273'", "metrics", "write 127.0.0.1:9273"),
        ("metrics: 127.0.0.1:0", "metrics", "no address and port"),
        ("metrics: 127.0.0.1:65536", "metrics", "no address and port"),
        ("metrics: ::1:9273", "metrics", "[::1]:9273"),
        ("metrics: 9273", "metrics", "is a number where text belongs; write it as metrics: 127.0.0.1:9273"),
        ("metrics: 10.101.0.1:9100", "metrics", "the firewall lets nobody in to port 9100: write port 9273"),
        ("metrics: 0.0.0.0:80", "metrics", "an address of this machine alone"),
        ("state_dir: state", "state_dir", "begin it with /"),
        ("ca: ca.pem", "ca", "begin it with /"),
        ("key: ''", "key", "begin it with /"),
        ("backend: esp", "backend", "'esp' is none of what is possible; write one of auto, kernel, userland"),
        ("log: syslog", "log", "'syslog' is none of what is possible"),
        ("log_level: 3", "log_level", "is a number where text belongs; write one of debug"),
        ("uplinks: []", "uplinks", "there is no such setting; the settings are site, "),
        ("controler: []", "controler", "there is no such setting; do you mean controllers?"),
        ("site: other", "site", "is there twice"),
    ],
)
def test_a_wrong_line_is_named(line: str, field: str, words: str) -> None:
    error = refusal(LEAST + line + "\n")
    assert (error.field, error.line) == (field, 4)
    assert words in error.reason


@pytest.mark.parametrize(
    ("old", "new", "field", "words"),
    [
        ("site: van-1", "token: cpe2.eyJ9", "token", "a token begins with cpe1."),
        ("site: van-1", "token: cpe1.e\ntoken_file: /run/token", "token_file", "write one of the two"),
        ("site: van-1", "token: cpe1.e\nca: /etc/ca.pem", "ca", "comes by enrolment"),
        ("site: van-1", "token_file: token", "token_file", "no absolute path"),
        ("van-1", "Van 1", "site", "is no name"),
        ("van-1", "2026", "site", "is a number where text belongs"),
        ("[https://c.example]", "[]", "controllers", "is empty; write it as controllers: [https://"),
        (
            "[https://c.example]",
            "https://c.example",
            "controllers",
            "is text where a list belongs; write it as controllers: [",
        ),
        ("https://c.example", "http://c.example", "controllers[0]", "is no https URL"),
        ("https://c.example", "https://", "controllers[0]", "is no https URL"),
        ("https://c.example", "https://c.example:x", "controllers[0]", "is no URL"),
        ("https://c.example", "'https://c.example, https://d'", "controllers[0]", "is no https URL"),
        ("https://c.example", "https://a, https://u:p@c.example", "controllers[1]", "without user"),
        ("https://c.example", "'https://c.example?x=1'", "controllers[0]", "without user, ? or #"),
        (f"{{a: {KEY}}}", "{}", "signing_keys", "is empty"),
        (KEY, KEY[:-4], "signing_keys.a", "base64 of its 32 bytes"),
        (KEY, "'!'", "signing_keys.a", "base64 of its 32 bytes"),
        (f"a: {KEY}", f"a: {KEY}, a: {KEY}", "a", "twice"),
    ],
)
def test_a_wrong_value_is_named(old: str, new: str, field: str, words: str) -> None:
    assert old in LEAST
    error = refusal(LEAST.replace(old, new))
    assert error.field == field
    assert words in error.reason


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"site: [\n", "is not YAML"),
        (b"a: b: c\n", "not allowed here"),
        (b"site:\tvan-1\n\tca: /x\n", "a tab is there: use spaces"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"site: \x00", "is not YAML"),
        (b"- site\n", "is a list where a mapping belongs; the settings are"),
        (b"site: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        (b"a: {[1, 2]: 3}\n", "unhashable"),
    ],
)
def test_a_file_that_is_something_else(content: bytes, words: str) -> None:
    assert words in refusal(content).reason


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=rf"{tmp_path}/agent\.yaml: is not there: name one"):
        load_settings(tmp_path / "agent.yaml")
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        load_settings(tmp_path)
    (tmp_path / "long").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(SettingsError, match="longer than"):
        load_settings(tmp_path / "long")


def test_a_new_box_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpe-agent" / "agent.yaml"
    monkeypatch.setattr("cpe_agent.settings.DEFAULT_PATH", path)
    assert load_settings(path) == parse_settings(path, b"")
    assert load_settings(path).enrols
    path.parent.mkdir()
    path.mkdir()
    with pytest.raises(SettingsError, match="Is a directory"):
        load_settings(path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# first\nsite: van-1\ncontrollers:\n  - https://a.example\n  - http://b.example\n", 5),
        (f"site: van-1\nsigning_keys:\n  a: {KEY}\n  b: {KEY[4:]}\n", 4),
        ("controllers: [https://a.example,\n 3]\n", 2),
        (b"# \xc3\xa9\nsite: \xe9\n", 2),
        ("site: a\n# \0\n", 2),
        ("site: van-1\n\n\nkey: [\n  - {\n", 5),
    ],
)
def test_the_line_is_said(text: str | bytes, line: int) -> None:
    error = refusal(text)
    assert error.line == line and str(error).startswith(f"{PATH}:{line}: ")


@given(st.binary(max_size=100) | st.text(max_size=100).map(lambda text: (LEAST + text).encode("utf-8", "ignore")))
def test_nothing_but_settings_or_a_settings_error(content: bytes) -> None:
    try:
        parse_settings(PATH, content)
    except SettingsError as error:
        assert error.reason
