"""What did the operator set on this router?

In: /etc/cpe-agent/agent.yaml, which need not be there. Out: frozen `Settings`, defaults filled in, or a `SettingsError`
that names file, field and mend. It holds what the agent needs to reach its controller and to believe it; everything
else is in the document. The files that it names are not looked at: who opens them says what is wrong with them.
"""

from __future__ import annotations

import base64
import difflib
import ipaddress
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import msgspec
import yaml

from cpe_agent.model.document import METRICS_PORT, NAME, SigningKey
from cpe_agent.model.enrolment import TOKEN_PREFIX, Enrolment

DEFAULT_PATH = Path("/etc/cpe-agent/agent.yaml")
# What YAML has, as people call it.
_KINDS = {
    "str": "text",
    "int": "a number",
    "float": "a number",
    "bool": "yes or no",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}
# How those look that are no path.
_LOOKS = {
    "site": "hospital-1",
    "controllers": "[https://controller.example:8443]",
    "signing_keys": "{2026-a: BASE64}",
    "token": "cpe1.eyJu...",
    "metrics": "127.0.0.1:9273",
}
# A hundred times what a full one has.
MAX_BYTES = 256 * 1024

SIGNING_KEY_BYTES = 32


class SettingsError(Exception):
    """Settings that cannot be used: `field` ("" for the whole file) and `reason`, which says what to write instead.
    `line` counts from 1; 0: there is none, or it is not known."""

    def __init__(self, path: Path, field: str, reason: str, line: int = 0) -> None:
        where = f"{path}:{line}" if line else f"{path}"
        super().__init__(f"{where}: {field}: {reason}" if field else f"{where}: {reason}")
        self.path = path
        self.field = field
        self.reason = reason
        self.line = line


class HostPort(msgspec.Struct, frozen=True):
    """Where to listen. `host` is an address (an IPv6 one without brackets) or a name."""

    host: str
    port: int


class Settings(msgspec.Struct, frozen=True):
    """One router's own settings. `signing_keys` vouch for the first document; later ones come in documents. `metrics`
    None: none are served. `enrols`: who we are is not all said here; what is missing ("" and ()) comes by enrolment,
    for which `token` and `token_file` are looked at."""

    site: str
    controllers: tuple[str, ...]
    signing_keys: tuple[SigningKey, ...]
    state_dir: Path
    run_dir: Path
    ca: Path
    certificate: Path
    key: Path
    vici_socket: Path
    backend: Literal["auto", "kernel", "userland"]
    metrics: HostPort | None
    log: Literal["json", "console"]
    log_level: Literal["debug", "info", "warning", "error"]
    enrols: bool = False
    token: str | None = None
    token_file: Path | None = None

    def enrolled(self, enrolment: Enrolment) -> Settings:
        """With what came by enrolment where this says nothing."""
        return msgspec.structs.replace(
            self,
            site=self.site or enrolment.site,
            controllers=self.controllers or enrolment.controllers,
            signing_keys=self.signing_keys or enrolment.signing_keys,
        )


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file as it is written; None is a default that depends on another field."""

    site: str | None = None
    controllers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] | None = None
    signing_keys: Annotated[dict[str, str], msgspec.Meta(min_length=1)] | None = None
    token: str | None = None
    token_file: str | None = None
    state_dir: str = "/var/lib/cpe-agent"
    run_dir: str = "/run/cpe-agent"
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    vici_socket: str = "/run/cpe-charon/vici"
    backend: Literal["auto", "kernel", "userland"] = "auto"
    metrics: str | None = "127.0.0.1:9273"
    log: Literal["json", "console"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def load_settings(path: Path = DEFAULT_PATH) -> Settings:
    """The settings in `path`; nobody has to write the default one. Raises SettingsError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        if path == DEFAULT_PATH:
            # A new box has none, and what it needs comes by enrolment.
            return parse_settings(path, b"")
        mend = f"name one that is, or leave -c out: {DEFAULT_PATH} is read then, if it is there"
        raise SettingsError(path, "", f"is not there: {mend}") from None
    except OSError as error:
        raise SettingsError(path, "", f"cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise SettingsError(path, "", f"is longer than {MAX_BYTES} bytes: it cannot be the right file")
    return parse_settings(path, content)


def parse_settings(path: Path, content: bytes) -> Settings:
    """`content` as the settings of `path`, which is only for the errors."""
    try:
        return _settings(path, _file(path, _parse_yaml(path, content)))
    except SettingsError as error:
        line = error.line or line_of(content, error.field)
        raise SettingsError(path, error.field, error.reason, line) from None


def _file(path: Path, written: object) -> _File:
    if isinstance(written, dict):
        for name in written:
            if name not in _File.__struct_fields__:
                close = difflib.get_close_matches(str(name), _File.__struct_fields__, 1)
                mend = f"do you mean {close[0]}?" if close else _mend("")
                raise SettingsError(path, str(name), f"there is no such setting; {mend}")
    try:
        return msgspec.convert(written, _File)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at ")
        field = where.strip("`").removeprefix("$").removeprefix(".")
        raise SettingsError(path, field, f"{_in_words(reason)}; {_mend(field)}") from None


def _settings(path: Path, parsed: _File) -> Settings:
    if parsed.site is not None and not NAME.match(parsed.site):
        raise SettingsError(
            path, "site", f"{parsed.site!r} is no name: use 1 to 40 of a-z, 0-9 and - (not first or last)"
        )
    state_dir = _absolute(path, "state_dir", parsed.state_dir)
    token, token_file = _token(path, parsed)
    said = (parsed.site, parsed.controllers, parsed.signing_keys)
    enrols = token is not None or token_file is not None or None in said
    # What enrolment puts there, or what somebody has put there.
    identity, ca = state_dir / "identity", Path("/etc/cpe-agent/ca.pem")
    places = (
        (identity / "certificate.pem", identity / "key.pem", identity / "ca.pem")
        if enrols
        else (state_dir / "identity.pem", state_dir / "identity.key", ca)
    )
    return Settings(
        site=parsed.site or "",
        controllers=tuple(_url(path, f"controllers[{i}]", url) for i, url in enumerate(parsed.controllers or ())),
        signing_keys=tuple(_signing_key(path, key_id, key) for key_id, key in (parsed.signing_keys or {}).items()),
        state_dir=state_dir,
        run_dir=_absolute(path, "run_dir", parsed.run_dir),
        ca=_absolute(path, "ca", parsed.ca, places[2]),
        certificate=_absolute(path, "certificate", parsed.certificate, places[0]),
        key=_absolute(path, "key", parsed.key, places[1]),
        enrols=enrols,
        token=token,
        token_file=token_file,
        vici_socket=_absolute(path, "vici_socket", parsed.vici_socket),
        backend=parsed.backend,
        metrics=None if parsed.metrics is None else _host_port(path, "metrics", parsed.metrics),
        log=parsed.log,
        log_level=parsed.log_level,
    )


def _token(path: Path, parsed: _File) -> tuple[str | None, Path | None]:
    if parsed.token is not None and parsed.token_file is not None:
        raise SettingsError(path, "token_file", "there is a token as well: write one of the two")
    if parsed.token is not None and not "".join(parsed.token.split()).startswith(TOKEN_PREFIX):
        raise SettingsError(path, "token", f"a token begins with {TOKEN_PREFIX}: copy the whole of it")
    for field in ("ca", "certificate", "key"):
        if (parsed.token or parsed.token_file) and getattr(parsed, field) is not None:
            raise SettingsError(path, field, "comes by enrolment: leave it out, or the token")
    return parsed.token, None if parsed.token_file is None else _absolute(path, "token_file", parsed.token_file)


def _in_words(reason: str) -> str:
    """What msgspec says, without its names of types."""
    if found := re.match(r"Expected `([^`]*)`, got `(\w+)`", reason):
        wanted = " or ".join(_KINDS.get(kind, kind) for kind in found[1].split(" | ") if kind != "null")
        return f"is {_KINDS.get(found[2], found[2])} where {wanted} belongs"
    if found := re.match(r"Invalid enum value ('.*')", reason):
        return f"{found[1]} is none of what is possible"
    return "is empty" if "length >= 1" in reason else reason


def _mend(field: str) -> str:
    """What to write instead: the choices of the field, how it looks, or the names of all settings."""
    name = re.split(r"[\[.]", field)[0]
    kind = get_type_hints(_File).get(name)
    if get_origin(kind) is Literal:
        return f"write one of {', '.join(get_args(kind))}"
    if name in _File.__struct_fields__:
        return f"write it as {name}: {_LOOKS.get(name, '/an/absolute/path')}"
    return f"the settings are {', '.join(_File.__struct_fields__)}"


def line_of(content: bytes, field: str) -> int:
    """Where `field` (such as controllers[1] or signing_keys.a) is in this YAML, or what is nearest round it; from 1, 0
    if it is nowhere."""
    try:
        node = yaml.compose(content, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return 0
    line = 0
    for part in re.findall(r"\[(?:\d+|\.\.\.)\]|[^.\[\]]+", field):
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if getattr(key, "value", None) == part]
            if not found:
                break
            key, node = found[-1]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and part[1:-1].isdigit() and int(part[1:-1]) < len(node.value):
            node = node.value[int(part[1:-1])]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _parse_yaml(path: Path, content: bytes) -> object:
    try:
        # YAML lets a later key silently win over an earlier one; here that is always a mistake.
        for node in _mappings(yaml.compose(content, Loader=yaml.SafeLoader)):
            seen: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise SettingsError(path, key.value, "is there twice: take one out", line)
                seen.add(key.value)
        parsed = yaml.safe_load(content)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        tab = "; a tab is there: use spaces" if "\\t" in str(error.problem) else ""
        raise SettingsError(path, "", f"is not YAML: {error.problem or error.context}{tab}", line) from None
    except yaml.reader.ReaderError as error:
        line = content[: error.position].count(b"\n") + 1
        what = "a character that YAML forbids is in it" if error.encoding == "unicode" else "it is not UTF-8"
        raise SettingsError(path, "", f"is not YAML: {what}: save it as plain text in UTF-8", line) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingsError(path, "", f"is not YAML: {error}") from None
    # A box that enrols needs no settings at all.
    return {} if parsed is None else parsed


def _mappings(node: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _mappings(value)


def _absolute(path: Path, field: str, text: str | None, default: Path = Path("/")) -> Path:
    if text is None:
        return default
    if not text.startswith("/"):
        raise SettingsError(path, field, f"{text!r} is no absolute path: begin it with /")
    return Path(text)


def _url(path: Path, field: str, text: str) -> str:
    mend = "write it as https://controller.example:8443"
    try:
        url = urllib.parse.urlsplit(text)
        port = url.port
    except ValueError as error:
        raise SettingsError(path, field, f"{text!r} is no URL ({error}): {mend}") from None
    if url.scheme != "https" or not url.hostname or port == 0 or not re.fullmatch(r"[!-~]+", text):
        raise SettingsError(path, field, f"{text!r} is no https URL: {mend}")
    if url.query or url.fragment or url.username is not None or url.password is not None:
        raise SettingsError(path, field, f"{text!r} must be a plain address, without user, ? or #: {mend}")
    return text.rstrip("/")


def _signing_key(path: Path, key_id: str, text: str) -> SigningKey:
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        key = b""
    if len(key) != SIGNING_KEY_BYTES:
        raise SettingsError(
            path,
            f"signing_keys.{key_id}",
            f"{text!r} is no Ed25519 public key: write the base64 of its {SIGNING_KEY_BYTES} bytes (44 characters)",
        )
    return SigningKey(id=key_id, key=text)


def _host_port(path: Path, field: str, text: str) -> HostPort:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):([0-9]{1,5})", text)
    if not match or not 1 <= int(match[3]) <= 65535:
        raise SettingsError(path, field, f"{text!r} is no address and port: write 127.0.0.1:9273 or [::1]:9273")
    found = HostPort(host=match[1] or match[2], port=int(match[3]))
    if found.port != METRICS_PORT and not _is_loopback(found.host):
        mend = f"write port {METRICS_PORT}, or an address of this machine alone"
        raise SettingsError(path, field, f"the firewall lets nobody in to port {found.port}: {mend}")
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
