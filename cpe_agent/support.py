"""What would somebody who is not here need, to find out what is wrong with this router?

In: the settings, good or not. Out: one .tar.gz with the report, logs, state, ruleset, SAs and routes, in which no key,
token or password is (`core.redact`). The daemon may run or not, and each part that cannot be had is named in the
manifest instead of ending the rest. Its size is bounded: a part that is too long loses its middle.
"""

from __future__ import annotations

import gzip
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import trio

from cpe_agent import __version__, app, comparison
from cpe_agent.core.redact import Secrets
from cpe_agent.edge import store
from cpe_agent.edge.outsiders import printed
from cpe_agent.listing import render_verification
from cpe_agent.ports import EdgeError
from cpe_agent.render import render
from cpe_agent.settings import Settings, SettingsError, load_settings, parse_settings

# A hub's document for 10,000 branches has 3 MB, its ruleset as much.
PART_MAX_BYTES = 4 * 1024 * 1024
WHOLE_MAX_BYTES = 32 * 1024 * 1024
LOG_LINES = 5000
# Of the state directory what is no secret by its nature; of all else only the names.
STATE_FILES = (
    store.DOCUMENT,
    store.PREVIOUS,
    store.PENDING,
    store.REJECTIONS,
    store.SIGNERS,
    store.ADDRESSES,
    store.INSTANCE,
    store.ENROLMENT,
    store.ORDER,
    store.CLOCK_FLOOR,
    store.DRAINED,
    store.USAGES,
    "drills.jsonl",
)
FILES_LISTED_MAX = 500
SECRET_MAX_BYTES = 256 * 1024
UNITS = ("cpe-agent.service", "cpe-agent-boot.service", "cpe-charon.service")

_CUT = b"\n[... the middle is left out ...]\n"


class Manifest(msgspec.Struct, frozen=True):
    """What is in the bundle, by name and size in bytes, and why something is not."""

    agent_version: str
    made: str
    parts: dict[str, int]
    missing: dict[str, str]


class Written(msgspec.Struct, frozen=True):
    path: str
    size_bytes: int
    manifest: Manifest


def bundle(config: Path, output: Path | None) -> Written:
    """Collect and write it: to `output`, else into this directory. Raises `EdgeError` if it cannot be written."""
    missing: dict[str, str] = {}
    try:
        settings = load_settings(config)
    except SettingsError as error:
        missing["settings"] = str(error)
        settings = parse_settings(config, b"")
    secrets = Secrets(_known_secrets(settings, config))
    parts: dict[str, bytes] = {}
    room = WHOLE_MAX_BYTES
    for name, made in _parts(settings, config):
        try:
            text = made()
        except (EdgeError, comparison.NoDocument, OSError) as error:
            missing[name] = secrets.redact(str(error))
            continue
        content = _shortened(secrets.redact(text))
        if secrets.within(content):
            missing[name] = "a secret was left in it: this is a bug, please report it"
        elif len(content) > room:
            missing[name] = "the bundle is full"
        else:
            parts[name] = content
            room -= len(content)
    made_at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    manifest = Manifest(__version__, made_at, {name: len(content) for name, content in parts.items()}, missing)
    stem = f"cpe-support-{settings.site or 'new'}-{made_at}"
    path = output if output is not None else Path(f"{stem}.tar.gz")
    packed = _packed(stem, {"manifest.json": _json(manifest).encode(), **parts})
    _write(path, packed)
    return Written(str(path.absolute()), len(packed), manifest)


def _parts(settings: Settings, config: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Most wanted first: what does not fit is at the end."""
    yield "status.txt", lambda: render(app.fetch_status(settings), rows_max=None)
    yield "status.json", lambda: _json(app.fetch_status(settings))
    yield "verify.txt", lambda: render_verification(comparison.verify(settings))
    yield "agent.yaml", lambda: _text(config)
    yield "living.json", lambda: _json(_living(comparison.settled(settings)))
    for name in STATE_FILES:
        if (settings.state_dir / name).exists():
            yield f"state/{name}", lambda path=settings.state_dir / name: _text(path)  # type: ignore[misc]
    yield "state/files.txt", lambda: _listed(settings.state_dir)
    yield "state/certificate.pem", lambda: _text(settings.certificate)
    units = [word for unit in UNITS for word in ("--unit", unit)]
    commands: dict[str, list[list[str]]] = {
        "logs/agent.txt": [["journalctl", "--no-pager", "-o", "short-iso-precise", "-n", str(LOG_LINES), *units]],
        "logs/kernel.txt": [["journalctl", "--no-pager", "-k", "-n", "1000"]],
        "network/links.txt": [["ip", "-s", "-d", "address"], ["ip", "neighbour"]],
        "network/rules.txt": [["ip", "-4", "rule"], ["ip", "-6", "rule"]],
        "network/routes.txt": [["ip", f"-{v}", "route", "show", "table", "all"] for v in (4, 6)],
        "network/nftables.txt": [["nft", "list", "ruleset"]],
        "ipsec/sas.txt": [["swanctl", "--list-sas", "--uri", f"unix://{settings.vici_socket}"]],
        "ipsec/stats.txt": [["swanctl", "--stats", "--uri", f"unix://{settings.vici_socket}"]],
        "ipsec/policies.txt": [["ip", "xfrm", "policy"]],
        # Without the word it would print the keys.
        "ipsec/states.txt": [["ip", "-s", "xfrm", "state", "list", "nokeys"]],
        "system.txt": [["uname", "-a"], ["uptime"], ["free"], ["df", "-h"], ["ss", "-lunt"], ["lsmod"]],
        "units.txt": [["systemctl", "status", "--no-pager", "--lines", "0", *UNITS], ["timedatectl"]],
    }
    for name, several in commands.items():
        yield name, lambda several=several: "\n".join(f"# {' '.join(one)}\n{printed(one)}" for one in several)  # type: ignore[misc]
    yield "strongswan.conf", lambda: _text(settings.run_dir / "strongswan.conf")


def _living(settings: Settings) -> comparison.Living:
    return trio.run(comparison.look, settings, comparison.stored_or_none(settings))


def _known_secrets(settings: Settings, config: Path) -> Iterator[str]:
    """The contents of every file here that holds a key or a token, and what agent.yaml says itself."""
    if settings.token:
        yield settings.token
    places = [settings.key, *([settings.token_file] if settings.token_file else [])]
    for directory in (settings.state_dir, config.parent):
        for pattern in ("*key*", "*/*key*", "*.p12", "*token*"):
            with suppress(OSError):
                places += sorted(directory.glob(pattern))[:FILES_LISTED_MAX]
    for path in dict.fromkeys(places):
        with suppress(OSError):
            if path.is_file():
                with path.open("rb") as file:
                    yield file.read(SECRET_MAX_BYTES).decode("utf-8", "replace")


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(2 * PART_MAX_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise EdgeError("support", str(path), error.strerror or str(error)) from None


def _listed(directory: Path) -> str:
    """Names, sizes, modes and times; also of what is not in the bundle."""
    lines = []
    for path in sorted(directory.rglob("*"))[:FILES_LISTED_MAX]:
        found = path.lstat()
        changed = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.st_mtime))
        lines.append(f"{found.st_mode:o} {found.st_uid} {found.st_size:>10} {changed} {path.relative_to(directory)}")
    return "".join(f"{line}\n" for line in lines)


def _json(value: object) -> str:
    # Keys that are no words (paths of tunnels, addresses) are written as such.
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=1).decode() + "\n"


def _shortened(text: str) -> bytes:
    """Its beginning and its end: of a log the end is what matters."""
    content = text.encode()
    if len(content) <= PART_MAX_BYTES:
        return content
    kept = PART_MAX_BYTES // 2 - len(_CUT)
    return content[:kept] + _CUT + content[-kept:]


def _packed(stem: str, parts: dict[str, bytes]) -> bytes:
    # Late: the daemon has this module too, and nothing to pack.
    import tarfile

    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for name, content in parts.items():
            entry = tarfile.TarInfo(f"{stem}/{name}")
            entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def _write(path: Path, content: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError as error:
        cause = f"{path} cannot be written: {error.strerror}; name another place with --output"
        raise EdgeError("support", "write", cause) from None
