"""What is in a controller's state directory?

    store.sqlite   the network, its addresses and its signed documents; `setup` below
    root.key/.pem  the certificate authority
    server.key/.pem  the server's own certificate
    signing.key    signs documents

Made once by `init_state`; private keys are readable by their owner only. What takes a directory opens it for one call.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from cryptography import x509

from cpe_agent.model.document import NAME, SigningKey, Trust
from cpe_controller import pki
from cpe_controller.fields import NetworkError
from cpe_controller.parse import parse
from cpe_controller.publish import Applied, publish
from cpe_controller.signing import Signer
from cpe_controller.store import Store, Write
from cpe_controller.store.sqlite import SqliteStore

STORE = "store.sqlite"
SETUP = "setup"

_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z"
)


class SetupError(Exception):
    """A state directory that cannot be made or used; the text says why and what to do."""


class Setup(msgspec.Struct, frozen=True):
    """What `init` was told, and the epoch, which a restore raises. `addresses` are where agents reach the server."""

    network: str
    addresses: tuple[str, ...]
    port: int
    epoch: int

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(f"https://{f'[{host}]' if ':' in host else host}:{self.port}" for host in self.addresses)


@dataclass(frozen=True)
class ServerFiles:
    """What the server's TLS needs, as files."""

    certificate: Path
    key: Path
    root: Path


def init_state(state_dir: Path, network: str, addresses: Sequence[str], port: int = 8443) -> None:
    """Keys, certificates and an empty store for a new network. `addresses` are the server's host names and IPs."""
    _check_init(network, addresses, port)
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = SqliteStore(state_dir / STORE)
    except OSError as error:
        raise SetupError(f"{state_dir} cannot be made: {error.strerror}") from error
    try:
        if store.get(SETUP) is not None:
            raise SetupError(f"{state_dir} is in use already; use another directory, or this one as it is")
        now = dt.datetime.now(dt.UTC)
        root = pki.new_authority(network, now)
        _save(state_dir / "root.key", pki.key_pem(root.key), 0o600)
        _save(state_dir / "root.pem", root.pem(), 0o644)
        _save(state_dir / "signing.key", Signer.new().pem(), 0o600)
        setup = Setup(network, tuple(addresses), port, epoch=1)
        _new_server_certificate(state_dir, root, setup, now)
        # Last: a directory without it was never finished, and init starts over.
        if store.cas([Write(SETUP, msgspec.json.encode(setup), expect=0)]) is None:
            raise SetupError(f"{state_dir} was set up by another init at the same time")
    finally:
        store.close()


def apply(state_dir: Path, network_yaml: str | Path) -> Applied:
    """Put a network.yaml (its text, or the path of its file) in force: new documents for the sites that it changes.

    Raises NetworkError (nothing has changed then), ApplyConflict, SetupError, StoreError.
    """
    source = str(network_yaml) if isinstance(network_yaml, Path) else "network.yaml"
    text = read_network(network_yaml) if isinstance(network_yaml, Path) else network_yaml
    network = parse(text, source)
    with opened(state_dir) as (store, setup):
        if network.name != setup.network:
            line = network.lines["network"]
            reason = f"is {network.name!r}, but {state_dir} holds the network {setup.network!r}"
            raise NetworkError(source, line, "network", reason)
        network = replace(network, controllers=network.controllers or setup.urls)
        signer = _signer(state_dir)
        root = _read(state_dir / "root.pem").decode()
        return publish(
            store,
            network,
            text,
            signer=signer,
            trust=Trust(signing_keys=(signer.public,), cas=(root,)),
            epoch=setup.epoch,
            now=dt.datetime.now(dt.UTC),
        )


def issue_site(state_dir: Path, site: str) -> tuple[bytes, bytes, bytes]:
    """A new key and certificate for a site, and the root that it is to trust: three PEMs."""
    if not NAME.match(site):
        raise SetupError(f"{site!r} is no site's name: use 1 to 40 of a-z, 0-9 and - (not first or last)")
    with opened(state_dir) as (_, setup):
        root = _root(state_dir)
        key = pki.new_key()
        certificate = pki.issue_site(root, setup.network, site, key.public_key(), dt.datetime.now(dt.UTC))
    return pki.key_pem(key), pki.certificate_pem(certificate), root.pem()


def signing_keys(state_dir: Path) -> tuple[SigningKey, ...]:
    """The public keys that a new site is to trust."""
    return (_signer(state_dir).public,)


@contextmanager
def opened(state_dir: Path) -> Iterator[tuple[Store, Setup]]:
    """The store of a finished state directory, and what is set up in it; closed at the end."""
    try:
        there = (state_dir / STORE).exists()
    except PermissionError:
        raise SetupError(f"{state_dir} is not for this user; run as root or as the controller's own user") from None
    if not there:
        how = f"cpe-controller --state {state_dir} init --name NETWORK --address HOST"
        raise SetupError(f"{state_dir} holds no controller; make one with: {how}")
    store = SqliteStore(state_dir / STORE)
    try:
        entry = store.get(SETUP)
        if entry is None:
            raise SetupError(f"{state_dir} was never finished; run: cpe-controller --state {state_dir} init")
        yield store, msgspec.json.decode(entry.value or b"", type=Setup)
    finally:
        store.close()


def server_files(state_dir: Path, setup: Setup) -> ServerFiles:
    """The server's certificate, a new one if half of the old one's life is over."""
    files = ServerFiles(state_dir / "server.pem", state_dir / "server.key", state_dir / "root.pem")
    now = dt.datetime.now(dt.UTC)
    if pki.half_spent(x509.load_pem_x509_certificate(_read(files.certificate)), now):
        _new_server_certificate(state_dir, _root(state_dir), setup, now)
    return files


def read_network(path: Path) -> str:
    """The file's text. What cannot be read is a `NetworkError` of its own."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise NetworkError(str(path), 1, "", f"is no UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise NetworkError(str(path), 1, "", f"cannot be read: {error.strerror}") from None


def save_site(directory: Path, site: str, key: bytes, certificate: bytes, root: bytes) -> tuple[Path, ...]:
    """What `issue_site` gave, as SITE.key, SITE.pem and root.pem."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"{directory} cannot be made: {error.strerror}") from error
    paths = (directory / f"{site}.key", directory / f"{site}.pem", directory / "root.pem")
    for path, data, mode in zip(paths, (key, certificate, root), (0o600, 0o644, 0o644), strict=True):
        _save(path, data, mode)
    return paths


def _check_init(network: str, addresses: Sequence[str], port: int) -> None:
    if not NAME.match(network):
        raise SetupError(f"{network!r} is no network's name: use 1 to 40 of a-z, 0-9 and - (not first or last)")
    if not addresses:
        raise SetupError("name at least one address at which agents reach the controller")
    for address in addresses:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            # `.cpe` names are sites': a server that had one could pass for a site.
            if not _HOST_NAME.match(address) or address.endswith(".cpe"):
                raise SetupError(f"{address!r} is no IP address or host name that a server can have") from None
    if not 1 <= port <= 65535:
        raise SetupError(f"{port} is no port; 1 to 65535 is possible")


def _new_server_certificate(state_dir: Path, root: pki.Authority, setup: Setup, now: dt.datetime) -> None:
    """The key stays when the certificate is renewed: whatever a crash leaves behind, the two belong together."""
    path = state_dir / "server.key"
    key = pki.load_key(_read(path)) if (state_dir / "server.pem").exists() and path.exists() else pki.new_key()
    certificate = pki.issue_server(root, setup.network, setup.addresses, key.public_key(), now)
    _save(path, pki.key_pem(key), 0o600)
    _save(state_dir / "server.pem", pki.certificate_pem(certificate), 0o644)


def _root(state_dir: Path) -> pki.Authority:
    try:
        key = pki.load_key(_read(state_dir / "root.key"))
        return pki.Authority(key, x509.load_pem_x509_certificate(_read(state_dir / "root.pem")))
    except ValueError as error:
        raise SetupError(f"the root in {state_dir} cannot be used: {error}") from error


def _signer(state_dir: Path) -> Signer:
    path = state_dir / "signing.key"
    try:
        return Signer.from_pem(_read(path))
    except ValueError as error:
        raise SetupError(f"{path} cannot be used: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from error


def _save(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all, and never for a moment readable by more than `mode` says."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}") from error
