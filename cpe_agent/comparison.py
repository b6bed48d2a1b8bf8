"""Does what lives here match the document on the disk, and what would another document change?

For the commands that compare for themselves, beside a daemon or without one. In: settings, and from there the disk, the
kernel and charon, which are only read. Out: `Verification`, `Preview`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import trio

from cpe_agent.core import kernel_ipsec, obey
from cpe_agent.core.budget import Budget
from cpe_agent.core.compile import Site
from cpe_agent.core.expected import expected
from cpe_agent.core.metering import budgets, counted
from cpe_agent.core.preview import Preview, preview
from cpe_agent.core.verify import TUNNELS
from cpe_agent.core.verify import verify as find_differences
from cpe_agent.core.wanted_ruleset import pair_elements
from cpe_agent.edge import ipsec
from cpe_agent.edge.charon import CharonTunnels
from cpe_agent.edge.identity import Identity, load_identity
from cpe_agent.edge.ipsecwatch import KernelIpsecPort
from cpe_agent.edge.netlink import Netlink
from cpe_agent.edge.nftables import NftablesFirewall
from cpe_agent.edge.store import FileStore
from cpe_agent.loops.clock import FlooredClock
from cpe_agent.loops.stored import NO_CLOCK, read_stored
from cpe_agent.model.condition import Condition
from cpe_agent.model.dataplane import Backend, Dataplane, Routes, Ruleset
from cpe_agent.model.difference import Difference, Verification
from cpe_agent.model.document import Document, DocumentError
from cpe_agent.model.document_check import decode
from cpe_agent.model.observed import Charon, KernelIpsec, Link, LinkCounters, Links
from cpe_agent.model.usage import Usage
from cpe_agent.ports import EdgeError
from cpe_agent.settings import Settings


class Living(msgspec.Struct, frozen=True):
    """What the kernel and charon hold now. `charon` None: it does not answer, and `charon_error` says why.
    `usages`: of the uplinks, as stored; `now_s`: the wall clock."""

    backend: Backend
    identity: str
    links: Links
    ruleset: Ruleset | None
    routes: Routes
    strangers: tuple[str, ...]
    charon: Charon | None
    charon_error: str
    drained: bool
    usages: dict[str, Usage]
    counters: LinkCounters
    now_s: float
    ipsec: KernelIpsec | None = None  # kernel backend

    def expected(self, document: Document) -> tuple[Dataplane, tuple[Condition, ...]]:
        """What must be here for `document`, and what is in the way. Raises `DocumentError`."""
        site = Site(self.identity, self.backend)
        usages = counted(self.usages, document, self.links, self.counters, self.now_s)
        spent = {name for name, level in budgets(usages, document).items() if level is Budget.SPENT}
        return expected(document, self.links, site, self.drained, self.routes, self.ruleset, self.charon, spent)


class NoDocument(Exception):
    """There is no document that this site could be compared with; the words say why."""


def verify(settings: Settings) -> Verification:
    """Compare the kernel and charon with the last good document, now; the daemon may run or not.

    Raises `NoDocument`, and `EdgeError` if kernel or credentials cannot be read.
    """
    settings = settled(settings)
    document = stored_document(settings)
    return compare(document, trio.run(look, settings, document))


def compare(document: Document, living: Living) -> Verification:
    """What differs from `document`, which is in force, in what was looked at. Raises `NoDocument`."""
    # Who has lost the tunnels' device lacks the routes into it: they are wanted all the same.
    device = living.backend.device
    links = Links({device: Link(device, True), **living.links.by_name})
    try:
        wanted, obstacles = msgspec.structs.replace(living, links=links).expected(document)
    except DocumentError as error:
        raise NoDocument(f"the stored document cannot be carried out here: {error}") from None
    found = find_differences(
        wanted, obstacles, living.ruleset, living.routes, living.charon, living.charon_error, living.strangers
    )
    if living.charon is not None and living.ipsec is not None:
        disagreements = kernel_ipsec.differences(document, living.charon, living.ipsec)
        found += tuple(Difference(TUNNELS, kind, what) for kind, what in disagreements)
    return Verification(document.site, document.epoch, document.version, not found, found)


def plan(settings: Settings, candidate: bytes | None) -> Preview:
    """What the next pass would change or, with `candidate` (a document; nobody needs to have signed it), what would
    change if it were put in force. Raises `DocumentError`, and what `verify` raises."""
    settings = settled(settings)
    old: Document | None
    if candidate is None:
        document = old = stored_document(settings)
    else:
        document = decode(candidate)
        if document.site != settings.site:
            raise DocumentError("site", f"is {document.site!r}; this is {settings.site!r}")
        old = stored_or_none(settings)
    living = trio.run(look, settings, old)
    wanted, obstacles = living.expected(document)
    pair_of = {**(pair_elements(old) if old else {}), **pair_elements(document)}
    operations = preview(
        wanted, living.ruleset, living.routes, living.charon, pair_of, to_the_end=candidate is not None
    )
    notes = [f"{condition.subject}: {condition.reason}" for condition in obstacles]
    if candidate is not None and old is not None and (why := objection(candidate, settings.site, old)):
        notes.append(f"the agent would refuse this document: {why}")
    if living.charon is None:
        notes.append(f"nothing is known of the tunnels: charon does not answer: {living.charon_error}")
    return Preview(settings.site, document.epoch, document.version, len(operations), operations, tuple(notes))


def objection(candidate: bytes, site: str, in_force: Document) -> str:
    """Why the agent would refuse this document after the one in force; "" if it would not. Nobody needs to have signed
    it, and the time of day is left out."""
    try:
        obey.obey(candidate, site, None, in_force, NO_CLOCK)
    except DocumentError as error:
        return str(error)
    return ""


def settled(settings: Settings) -> Settings:
    """With what this box was told when it was enrolled. Raises `NoDocument` if it never was."""
    if not settings.enrols:
        return settings
    try:
        enrolment = FileStore(settings.state_dir).load_enrolment()
    except EdgeError as error:
        raise NoDocument(error.cause) from None
    if enrolment is None:
        raise NoDocument("this box belongs to no site yet: run `cpe-agent enroll TOKEN`")
    return settings.enrolled(enrolment)


def stored_document(settings: Settings) -> Document:
    """The document in force by what is on the disk, verified again; without its pairs if its time has run out and it
    asks for that. Raises `NoDocument`."""
    store = FileStore(settings.state_dir)
    stored = read_stored(store, settings.site, signing_keys(settings))
    document = stored.in_force()
    if document is not None:
        clock = FlooredClock(store)
        clock.load()
        return obey.in_time(document, clock.now())
    for trouble in stored.troubles:
        if isinstance(trouble, EdgeError):
            raise NoDocument(trouble.cause)
        raise NoDocument(f"the stored document is refused: {trouble}")
    raise NoDocument("this site has never accepted a document")


def stored_or_none(settings: Settings) -> Document | None:
    """Likewise; None if there is none."""
    try:
        return stored_document(settings)
    except NoDocument:
        return None


async def look(settings: Settings, document: Document | None) -> Living:
    """Read the kernel and charon themselves; `document` says whose certificates are believed. Raises `EdgeError`, but
    for a charon that does not answer."""
    identity = load_identity(settings.certificate, settings.key)
    backend = ipsec.resolve(settings.backend)
    charon = charon_port(settings, identity, backend, document.trust.cas if document is not None else ())
    netlink = Netlink()
    links, ruleset, routes = await netlink.links(), await NftablesFirewall().read(), await netlink.read()
    strangers, counters = await netlink.strangers(), await netlink.counters()
    try:
        usages = FileStore(settings.state_dir).load_usages()
    except EdgeError:
        # As the daemon does: a damaged file is as good as none.
        usages = {}
    ipsec_held = await KernelIpsecPort().read() if backend is Backend.KERNEL else None
    try:
        held: Charon | None = await charon.read()
        why = ""
    except EdgeError as error:
        held, why = None, error.cause
    finally:
        charon.close()
    return Living(
        backend,
        identity.name,
        links,
        ruleset,
        routes,
        strangers,
        held,
        why,
        _drained(settings),
        usages,
        counters,
        time.time(),
        ipsec_held,
    )


def charon_port(settings: Settings, identity: Identity, backend: Backend, cas: Sequence[str] = ()) -> CharonTunnels:
    """This site's charon. Raises `EdgeError` for credentials that cannot be read."""
    pem = authorities(settings, cas)
    return CharonTunnels(settings.vici_socket, identity.chain_pem, identity.key_pem, pem, backend)


def authorities(settings: Settings, cas: Sequence[str]) -> bytes:
    """Who vouches for peers (PEM): those that the document names, else those that came with the box. Raises
    `EdgeError`."""
    if cas:
        return "\n".join(cas).encode()
    try:
        return settings.ca.read_bytes()
    except OSError as error:
        cause = f"{settings.ca}: {error.strerror}; name the authority's certificate as ca in agent.yaml"
        raise EdgeError("identity", "read ca", cause) from None


def signing_keys(settings: Settings) -> dict[str, str]:
    """Those that agent.yaml, or enrolment, trusts, by id."""
    return {key.id: key.key for key in settings.signing_keys}


def _drained(settings: Settings) -> bool:
    try:
        return FileStore(settings.state_dir).load_drained()
    except EdgeError:
        return True  # as the daemon takes it
