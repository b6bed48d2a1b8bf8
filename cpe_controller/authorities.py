"""Which authorities has this state directory, and what may each do?

    root.pem, root.key      vouches for the two below; a new site pins it. Its key is for `init` and `renew` only: take
                            it away after init and keep it offline. Behind it, after a rotation, those before it.
    root.next.pem, .key     the root that is to take its place, once every site has confirmed that it believes it
    sites.pem, sites.key    vouches for sites, and can vouch for nothing else: what faces the web has this key and no
                            other. The newest comes first; older ones are behind it, as long as certificates of theirs
                            live.
    server.pem, server.key  the server's own, from the root itself, so that whoever gets sites.key is still no
                            controller

In: the directory. Out: certificates and keys, or a `SetupError`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from cpe_controller import pki
from cpe_controller.files import SetupError, read, save

# What takes the root's place when its rotation is finished.
NEXT_KEY, NEXT_CERTIFICATE = "root.next.key", "root.next.pem"


@dataclass(frozen=True)
class ServerFiles:
    """What the server's TLS needs, as files."""

    certificate: Path
    key: Path
    root: Path
    sites: Path


def make(state_dir: Path, network: str, addresses: Sequence[str], now: dt.datetime) -> None:
    """A new root, and what it vouches for."""
    root = pki.new_authority(network, now)
    save(state_dir / "root.key", pki.key_pem(root.key), 0o600)
    save(state_dir / "root.pem", root.pem(), 0o644)
    renew(state_dir, root, network, addresses, now)


def start_rotation(state_dir: Path, network: str, now: dt.datetime) -> None:
    """A root that sites are to believe beside the one that they know."""
    if (state_dir / NEXT_CERTIFICATE).exists():
        raise SetupError("another root is on its way already; finish that first")
    root = pki.new_authority(network, now, called=f"root {now:%Y-%m-%d} {pki.some_number()}")
    # The key first: what sites are told to believe must not be lost.
    save(state_dir / NEXT_KEY, pki.key_pem(root.key), 0o600)
    save(state_dir / NEXT_CERTIFICATE, root.pem(), 0o644)


def finish_rotation(
    state_dir: Path, key: Path | None, network: str, addresses: Sequence[str], now: dt.datetime
) -> None:
    """The next root vouches from now on; the one before it goes on being believed. What is cut short is done again."""
    path = key or state_dir / NEXT_KEY
    if not path.exists():
        raise SetupError(f"{path} is not there: bring the new root's key back for this command (--root-key FILE)")
    root = _authority(path, state_dir / NEXT_CERTIFICATE)
    older = [one for one in _certificates(state_dir / "root.pem") if one != root.certificate]
    save(state_dir / "root.pem", b"".join([root.pem(), *map(pki.certificate_pem, older)]), 0o644)
    renew(state_dir, root, network, addresses, now)
    if key is None:
        save(state_dir / "root.key", pki.key_pem(root.key), 0o600)
        path.unlink()
    else:
        # The old root's, if it lies here, is nobody's key any more.
        (state_dir / "root.key").unlink(missing_ok=True)
    (state_dir / NEXT_CERTIFICATE).unlink()


def retire(state_dir: Path) -> None:
    """Only the newest root is believed from now on, and what it vouches for."""
    root = _certificates(state_dir / "root.pem")[0]
    kept = [one for one in _certificates(state_dir / "sites.pem") if one.issuer == root.subject]
    save(state_dir / "sites.pem", b"".join(map(pki.certificate_pem, kept)), 0o644)
    save(state_dir / "root.pem", pki.certificate_pem(root), 0o644)


def renewed_since(state_dir: Path) -> dt.datetime:
    """Since when certificates of sites have been the newest root's, if there is an older one still."""
    root, *older = _certificates(state_dir / "root.pem")
    if not older:
        raise SetupError("there is only one root")
    theirs = [one for one in _certificates(state_dir / "sites.pem") if one.issuer == root.subject]
    return min(one.not_valid_before_utc for one in theirs) + pki.BACKDATED


def renew(state_dir: Path, root: pki.Authority, network: str, addresses: Sequence[str], now: dt.datetime) -> None:
    """A new authority for sites and a new certificate for the server. Older authorities stay trusted until they end."""
    try:
        older = list(x509.load_pem_x509_certificates((state_dir / "sites.pem").read_bytes()))
    except FileNotFoundError:
        older = []
    sites = pki.new_sites_authority(root, network, now)
    living = [pki.certificate_pem(one) for one in older if one.not_valid_after_utc > now]
    # The key first: an old certificate with a new key is refused at load, and `renew` again mends it.
    save(state_dir / "sites.key", pki.key_pem(sites.key), 0o600)
    save(state_dir / "sites.pem", b"".join([sites.pem(), *living]), 0o644)
    new_server_certificate(state_dir, root, network, addresses, now)


def new_server_certificate(
    state_dir: Path, root: pki.Authority, network: str, addresses: Sequence[str], now: dt.datetime
) -> None:
    """The key stays when the certificate is renewed: whatever a crash leaves behind, the two belong together."""
    path = state_dir / "server.key"
    key = pki.load_key(read(path)) if (state_dir / "server.pem").exists() and path.exists() else pki.new_key()
    certificate = pki.issue_server(root, network, addresses, key.public_key(), now)
    save(path, pki.key_pem(key), 0o600)
    save(state_dir / "server.pem", pki.certificate_pem(certificate), 0o644)


def server_files(state_dir: Path, network: str, addresses: Sequence[str], now: dt.datetime) -> ServerFiles:
    """The server's certificate. Past half of its life it is renewed, if the root's key is here."""
    files = ServerFiles(*(state_dir / name for name in ("server.pem", "server.key", "root.pem", "sites.pem")))
    spent = pki.half_spent(_certificates(files.certificate)[0], now)
    if spent and (state_dir / "root.key").exists():
        new_server_certificate(state_dir, root(state_dir), network, addresses, now)
    return files


def root(state_dir: Path, key: Path | None = None) -> pki.Authority:
    """The root with its key, which may have been brought from elsewhere."""
    path = key or state_dir / "root.key"
    if not path.exists():
        raise SetupError(f"{path} is not there: bring the root's key back for this command (--root-key FILE)")
    return _authority(path, state_dir / "root.pem")


def sites(state_dir: Path) -> pki.Authority:
    """What issues sites' certificates."""
    return _authority(state_dir / "sites.key", state_dir / "sites.pem")


def root_pem(state_dir: Path) -> str:
    return pki.certificate_pem(_certificates(state_dir / "root.pem")[0]).decode()


def next_root_pem(state_dir: Path) -> str:
    """Of the root that is to come."""
    if not (state_dir / NEXT_CERTIFICATE).exists():
        raise SetupError("no root is on its way; begin with: cpe-controller rotate-root start")
    return pki.certificate_pem(_certificates(state_dir / NEXT_CERTIFICATE)[0]).decode()


def trusted(state_dir: Path) -> tuple[str, ...]:
    """The roots and every authority of sites that still vouches for one, as PEMs: the root that vouches first."""
    names = ["root.pem", *([NEXT_CERTIFICATE] if (state_dir / NEXT_CERTIFICATE).exists() else []), "sites.pem"]
    found = [pki.certificate_pem(one).decode() for name in names for one in _certificates(state_dir / name)]
    return tuple(dict.fromkeys(found))


def pin(state_dir: Path) -> str:
    """By which a new box knows the root: the SHA-256 of its DER, in hex."""
    return pki.fingerprint(_certificates(state_dir / "root.pem")[0])


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return pki.certificates(read(path))
    except ValueError as error:
        raise SetupError(f"{path} {error}") from error


def _authority(key: Path, certificate: Path) -> pki.Authority:
    try:
        private = pki.load_key(read(key))
    except ValueError as error:
        raise SetupError(f"{key} {error}") from error
    loaded = pki.Authority(private, _certificates(certificate)[0])
    if loaded.key.public_key() != loaded.certificate.public_key():
        raise SetupError(
            f"{key} is not the key of {certificate}; run `cpe-controller renew`, or put the right one there"
        )
    return loaded
