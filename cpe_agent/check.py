"""Is this a good agent.yaml, or a good document, for this site?

In: a file, or nothing: then the settings in force and everything that they name. Out: what was found good, in words, or
an error that names the file, the field and what mends it. Nothing is changed, and nobody is asked but the disk and the
kernel's list of links.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import msgspec
import trio

from cpe_agent import comparison
from cpe_agent.core.compile import Site, compile_dataplane
from cpe_agent.edge.identity import load_identity
from cpe_agent.edge.ipsec import resolve
from cpe_agent.edge.netlink import Netlink
from cpe_agent.model.document import MAX_BYTES, DocumentError
from cpe_agent.model.document_check import decode
from cpe_agent.ports import EdgeError
from cpe_agent.settings import Settings, load_settings

SETTINGS_ENDINGS = (".yaml", ".yml")


class Checked(msgspec.Struct, frozen=True):
    """What is good, one line each; `notes`: what stands in the way here and now, and is no fault of the file."""

    good: tuple[str, ...]
    notes: tuple[str, ...] = ()


class Wrong(Exception):
    """A file that is not good; the words name the file, the field and the mend."""


def check_file(file: Path, settings: Settings) -> Checked:
    """An agent.yaml (by its ending), else a document, which nobody needs to have signed. Raises `SettingsError`,
    `Wrong`, OSError, `EdgeError`."""
    if file.suffix in SETTINGS_ENDINGS:
        return check_settings(file, load_settings(file))
    with file.open("rb") as opened:
        content = opened.read(MAX_BYTES + 1)
    try:
        document = decode(content)
        settings = comparison.settled(settings)
        if document.site != settings.site:
            raise DocumentError("site", f"is {document.site!r}, and this is {settings.site!r}: take this site's own")
    except DocumentError as error:
        raise Wrong(f"{file}: {error}") from None
    except comparison.NoDocument as error:
        raise Wrong(f"{file} cannot be judged: {error}") from None
    identity = load_identity(settings.certificate, settings.key)
    links = trio.run(Netlink().links)
    try:
        _, obstacles = compile_dataplane(document, links, Site(identity.name, resolve(settings.backend)))
    except DocumentError as error:
        raise Wrong(f"{file}: {error}") from None
    notes = [f"{condition.type} {condition.subject}: {condition.reason}" for condition in obstacles]
    in_force = comparison.stored_or_none(settings)
    if in_force is not None and (why := comparison.objection(content, settings.site, in_force)):
        notes.append(f"the agent would refuse it now: {why}")
    said = f"{len(document.uplinks)} uplinks, {len(document.peers)} peers, {len(document.pairs)} pairs"
    return Checked((f"{file}: a good document for {document.site}: {said}.",), tuple(notes))


def check_settings(path: Path, settings: Settings) -> Checked:
    """What `path` says, and what is in the files that it names. Raises `Wrong`, `EdgeError`."""
    good = [f"{path}: good." if path.exists() else f"{path}: is not there, and need not be: all settings are defaults."]
    if settings.enrols:
        try:
            settings = comparison.settled(settings)
        except comparison.NoDocument as error:
            return Checked((*good,), (str(error),))
    for name, directory in (("state_dir", settings.state_dir), ("run_dir", settings.run_dir)):
        if directory.exists() and not directory.is_dir():
            raise Wrong(f"{path}: {name}: {directory} is no directory: remove it, or name another")
    try:
        identity = load_identity(settings.certificate, settings.key)
        comparison.authorities(settings, ())
    except EdgeError as error:
        raise Wrong(f"{path}: {error.cause}") from None
    days = (identity.not_after - dt.datetime.now(dt.UTC)).days
    good.append(f"{settings.certificate}: proves to be {identity.name}, for {days} days more, and {settings.key} fits.")
    try:
        document = comparison.stored_document(settings)
    except comparison.NoDocument as error:
        return Checked(tuple(good), (f"{error}.",))
    order = f"{document.epoch}.{document.version}"
    good.append(f"{settings.state_dir}: document {order} for {document.site} is there, and its signature is good.")
    return Checked(tuple(good))
