"""What is in a controller's state directory?

    store.sqlite     the network, its addresses and its signed documents; `setup` below
    root, sites, server  .key and .pem: see authorities.py
    signing.key      signs documents; may be kept elsewhere, see `cpe-controller sign`
    signing.pub      the keys that sites believe, the one that signs first

Made once by `init_state`; private keys are readable by their owner only. What takes a directory opens it for one call.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from cpe_agent.model.document import NAME, SigningKey, Trust
from cpe_controller import audit, authorities, pki, standing, syntax
from cpe_controller.change import Change, plan, signed
from cpe_controller.enrolment import Vouching
from cpe_controller.fields import NetworkError
from cpe_controller.files import SetupError, read, save
from cpe_controller.hosts import host_flaw
from cpe_controller.network import Network
from cpe_controller.parse import parse
from cpe_controller.publish import Applied, commit
from cpe_controller.signing import Signer
from cpe_controller.store import Store, Write
from cpe_controller.store.sqlite import SqliteStore

__all__ = ["Setup", "SetupError", "apply", "init_state", "issue_site", "opened", "save_site", "signing_keys"]

STORE = "store.sqlite"
SETUP = "setup"
# What signs documents once a rotation is finished.
NEXT_KEY = "signing.next.key"


class Setup(msgspec.Struct, frozen=True):
    """What `init` was told, and the epoch, which a restore raises. `addresses` are where agents reach the server."""

    network: str
    addresses: tuple[str, ...]
    port: int
    epoch: int
    enrol_port: int = 0  # 0: the one after `port`

    @property
    def urls(self) -> tuple[str, ...]:
        return self._urls(self.port)

    @property
    def enrolment_urls(self) -> tuple[str, ...]:
        return self._urls(self.enrolment_port)

    @property
    def enrolment_port(self) -> int:
        return self.enrol_port or self.port + 1

    def _urls(self, port: int) -> tuple[str, ...]:
        return tuple(f"https://{f'[{host}]' if ':' in host else host}:{port}" for host in self.addresses)


def init_state(state_dir: Path, network: str, addresses: Sequence[str], port: int = 8443, enrol_port: int = 0) -> None:
    """Keys, certificates and an empty store for a new network. `addresses` are the server's host names and IPs."""
    setup = Setup(network, tuple(addresses), port, 1, enrol_port)
    _check_init(setup)
    _refuse_lost_store(state_dir)
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = SqliteStore(state_dir / STORE)
    except OSError as error:
        raise SetupError(f"{state_dir} cannot be made: {error.strerror}") from error
    try:
        if store.get(SETUP) is not None:
            raise SetupError(f"{state_dir} is in use already; use another directory, or this one as it is")
        for left in ("sites.pem", "server.pem"):  # of an init that was cut short: other keys' certificates
            (state_dir / left).unlink(missing_ok=True)
        authorities.make(state_dir, network, addresses, dt.datetime.now(dt.UTC))
        signer = Signer.new()
        save(state_dir / "signing.key", signer.pem(), 0o600)
        save_signing_keys(state_dir, (signer.public,))
        # Last: a directory without it was never finished, and init starts over.
        if store.cas([Write(SETUP, msgspec.json.encode(setup), expect=0)]) is None:
            raise SetupError(f"{state_dir} was set up by another init at the same time")
    finally:
        store.close()


def apply(state_dir: Path, network_yaml: str | Path, *, allow_mass_removal: bool = False) -> Applied:
    """Put a network.yaml (its text, or the path of its file) in force: new documents for the sites that it changes.

    Raises NetworkError (nothing has changed then), ApplyConflict, SetupError, StoreError.
    """
    with opened(state_dir) as (store, setup):
        change = planned(state_dir, store, setup, *text_of(network_yaml), allow_mass_removal=allow_mass_removal)
        return commit(store, signed(change, signer(state_dir)), signing_keys(state_dir))


def planned(
    state_dir: Path, store: Store, setup: Setup, text: str, source: str, *, allow_mass_removal: bool = False
) -> Change:
    """What applying this network.yaml would write. `source` is how errors call it. Raises NetworkError, SetupError."""
    keys = signing_keys(state_dir)
    return plan(
        store,
        network_of(setup, text, source),
        text,
        key_id=keys[0].id,
        trust=Trust(signing_keys=keys, cas=authorities.trusted(state_dir)),
        epoch=setup.epoch,
        now=dt.datetime.now(dt.UTC),
        orders=standing.orders(standing.everybodys(store), allow_mass_removal=allow_mass_removal),
    )


def network_of(setup: Setup, text: str, source: str) -> Network:
    """The network that this text describes, if it is the one that is set up here."""
    network = parse(text, source)
    refuse_another(setup, network)
    return replace(network, controllers=network.controllers or setup.urls)


def refuse_another(setup: Setup, network: Network) -> None:
    if network.name != setup.network:
        reason = f"is {network.name!r}, but this controller holds the network {setup.network!r}"
        raise network.error_at("network", reason)


def issue_site(state_dir: Path, site: str, by: str = "setup") -> tuple[bytes, bytes, bytes]:
    """A new key and certificate for a site, and the authorities that it is to trust: three PEMs. Whether a network has
    such a site is for who calls to ask."""
    if not NAME.match(site):
        raise SetupError(f"{site!r} is no site's name: use 1 to 40 of a-z, 0-9 and - (not first or last)")
    with opened(state_dir) as (store, setup):
        issuer = authorities.sites(state_dir)
        key, now = pki.new_key(), dt.datetime.now(dt.UTC)
        generation = standing.of(store, site).generation
        audit.append(store, now, by, "cert", {"site": site, "generation": str(generation)})
        certificate = pki.issue_site(issuer, setup.network, site, key.public_key(), now, generation)
    chain = pki.certificate_pem(certificate) + issuer.pem()
    return pki.key_pem(key), chain, "".join(authorities.trusted(state_dir)).encode()


def vouching(state_dir: Path, setup: Setup) -> Vouching:
    """What a new site is given."""
    return Vouching(
        network=setup.network,
        authority=authorities.sites(state_dir),
        cas=authorities.trusted(state_dir),
        signing_keys=signing_keys(state_dir),
        controllers=setup.urls,
    )


def signing_keys(state_dir: Path) -> tuple[SigningKey, ...]:
    """The public keys that sites are to believe; new documents are signed with the first."""
    path = state_dir / "signing.pub"
    try:
        return msgspec.json.decode(read(path), type=tuple[SigningKey, ...])
    except msgspec.MsgspecError as error:
        raise SetupError(f"{path} cannot be used: {error}") from error


def save_signing_keys(state_dir: Path, keys: Sequence[SigningKey]) -> None:
    save(state_dir / "signing.pub", msgspec.json.encode(keys), 0o644)


def signer(state_dir: Path, key: Path | None = None) -> Signer:
    """What signs documents; `key` is where it is kept, if it is not here."""
    path = key or state_dir / "signing.key"
    if key is None and (state_dir / NEXT_KEY).exists():
        # Since `rotate finish` sites expect the next key's signature; until then, the first one's.
        following = Signer.from_pem(read(state_dir / NEXT_KEY))
        if following.public == signing_keys(state_dir)[0]:
            save(path, following.pem(), 0o600)
            (state_dir / NEXT_KEY).unlink()
    if not path.exists():
        raise SetupError(
            f"{path} is not there, so nothing can be signed here: write what is to be signed to a file (apply "
            f"--unsigned FILE), sign it where the key is (sign FILE), and bring it back (import FILE)"
        )
    try:
        return Signer.from_pem(read(path))
    except ValueError as error:
        raise SetupError(f"{path} {error}") from error


def has_store(state_dir: Path) -> bool:
    """An empty file is none: SQLite would make a new store of it."""
    path = state_dir / STORE
    return path.exists() and path.stat().st_size > 0


@contextmanager
def opened(state_dir: Path) -> Iterator[tuple[Store, Setup]]:
    """The store of a finished state directory, and what is set up in it; closed at the end."""
    try:
        there = has_store(state_dir)
    except PermissionError:
        raise SetupError(
            f"{state_dir} is not for this user: run this as root, or as the controller's own user"
        ) from None
    if not there:
        _refuse_lost_store(state_dir)
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


def text_of(network_yaml: str | Path) -> tuple[str, str]:
    """The text, and how errors call it."""
    if isinstance(network_yaml, str):
        return network_yaml, "network.yaml"
    return read_network(network_yaml), str(network_yaml)


def read_network(path: Path) -> str:
    """The file's text. What cannot be read is a `NetworkError` of its own."""
    try:
        return syntax.decoded(path.read_bytes())
    except syntax.NoText as error:
        raise NetworkError(str(path), error.line, "", str(error)) from None
    except OSError as error:
        raise NetworkError(str(path), 0, "", f"cannot be read: {error.strerror}") from None


def make_place(directory: Path) -> None:
    """The directory, but not what it is in: that is most likely a typing error."""
    try:
        directory.mkdir(exist_ok=True)
    except FileNotFoundError:
        raise SetupError(f"{directory} cannot be made: {directory.parent} is not there; make that first") from None
    except OSError as error:
        raise SetupError(f"{directory} cannot be made: {error.strerror}") from error


def save_site(directory: Path, site: str, key: bytes, certificate: bytes, cas: bytes) -> tuple[Path, ...]:
    """What `issue_site` gave, as SITE.key, SITE.pem and root.pem."""
    make_place(directory)
    paths = (directory / f"{site}.key", directory / f"{site}.pem", directory / "root.pem")
    for path, data, mode in zip(paths, (key, certificate, cas), (0o600, 0o644, 0o644), strict=True):
        save(path, data, mode)
    return paths


def _refuse_lost_store(state_dir: Path) -> None:
    """Keys without a store are a network's that has lost it: an `init` that was cut short leaves none without one."""
    try:
        left = [] if has_store(state_dir) else sorted(state_dir.glob("*.key")) + sorted(state_dir.glob("*.pem"))
    except OSError as error:
        raise SetupError(f"{state_dir} cannot be read: {error.strerror}") from error
    if left:
        raise SetupError(
            f"{state_dir} holds the keys of a network ({', '.join(path.name for path in left)}), but its {STORE} is "
            f"lost; nothing was changed: put {STORE} back, or bring the controller back from a backup with: "
            f"cpe-controller --state {state_dir} restore FILE"
        )


def _check_init(setup: Setup) -> None:
    if not NAME.match(setup.network):
        raise SetupError(f"{setup.network!r} is no network's name: use 1 to 40 of a-z, 0-9 and - (not first or last)")
    if not setup.addresses:
        raise SetupError("name at least one address at which agents reach the controller")
    for address in setup.addresses:
        # `.cpe` names are sites': a server that had one could pass for a site.
        flaw = "ends as sites' names do; use another" if address.lower().endswith(".cpe") else host_flaw(address)
        if flaw:
            raise SetupError(f"--address: {address!r} {flaw}")
    for port in (setup.port, setup.enrolment_port):
        if not 1 <= port <= 65535:
            raise SetupError(f"{port} is no port; 1 to 65535 is possible")
    if setup.port == setup.enrolment_port:
        raise SetupError(f"port {setup.port} cannot be both: sites with a certificate and new ones need one each")
