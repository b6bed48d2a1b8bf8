"""How does a new box become a site? Asks with a token until it is let in; what it is given is on the disk when it ends.

The key is made before the first question and kept, so that a lost answer can be asked for again. Tokens come from an
operator (`offer`), or from where `sources` looks; another one is tried at once.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from cpe_agent import __version__
from cpe_agent.core.enrolment import BY_CODE, Failure, Kind, TokenError, condition, parse_token, wait_s
from cpe_agent.log import get_logger
from cpe_agent.loops.bell import Bell
from cpe_agent.loops.clock import FlooredClock
from cpe_agent.model.condition import Condition
from cpe_agent.model.enrolment import Enrolment, EnrolmentRequest, Granted, Lying, Token
from cpe_agent.ports import CredentialsPort, EdgeError, EnrolmentError, EnrolmentPort, StorePort

log = get_logger()

# How often it is looked whether somebody has put a token somewhere.
LOOK_S = 2.0

_KINDS = {
    "unreachable": Kind.UNREACHABLE,
    "no_dns": Kind.NO_DNS,
    "captive": Kind.CAPTIVE,
    "clock": Kind.CLOCK,
    **BY_CODE,
}


class Enroller:
    """`sources`: the first token that lies somewhere. `failure`: why it is not let in yet."""

    def __init__(
        self,
        port: EnrolmentPort,
        credentials: CredentialsPort,
        store: StorePort,
        clock: FlooredClock,
        instance: str,
        sources: Callable[[], Lying],
    ) -> None:
        self.failure = Failure(Kind.NO_TOKEN, "this box belongs to no site yet")
        self._port = port
        self._credentials = credentials
        self._store = store
        self._clock = clock
        self._instance = instance
        self._sources = sources
        self._offered = ""
        self._roots: dict[str, str] = {}  # by pin
        self._bell = Bell()

    def conditions(self) -> tuple[Condition, ...]:
        """What `status` shows meanwhile."""
        return (condition(self.failure),)

    def offer(self, text: str) -> str:
        """An operator's token: it goes before all others, now. Returns its site. Raises TokenError."""
        site = parse_token(text).site
        self._offered = text
        self._bell.ring("token")
        return site

    async def run(self) -> Enrolment:
        """Until this box is let in."""
        failures = 0
        tried = ""
        again_at = 0.0
        while True:
            lying = Lying(self._offered) if self._offered else self._sources()
            text = lying.text
            now = trio.current_time()
            if text and (text != tried or now >= again_at):
                failures = failures + 1 if text == tried else 1
                tried = text
                enrolment = await self._try(lying)
                if enrolment is not None:
                    log.info("site_enrolled", site=enrolment.site)
                    return enrolment
                again_at = trio.current_time() + wait_s(self.failure, failures)
            elif not text:
                tried = ""
                why = f": {lying.where}" if lying.where else ""
                self._fail(Failure(Kind.NO_TOKEN, f"this box belongs to no site yet{why}"))
            await self._bell.wait(min(trio.current_time() + LOOK_S, again_at if again_at > now else now + LOOK_S))

    async def _try(self, lying: Lying) -> Enrolment | None:
        site = ""
        try:
            token = parse_token(lying.text)
            site = token.site
            return self._keep(token, await self._ask(token))
        except TokenError as error:
            self._fail(Failure(Kind.UNREADABLE, f"{lying.where}: {error}" if lying.where else str(error)))
        except EnrolmentError as error:
            kind = _KINDS.get(error.code, Kind.REFUSED)
            self._fail(Failure(kind, error.cause, error.retry_after_s, site))
        except EdgeError as error:
            self._fail(Failure(Kind.REFUSED, str(error), site=site))
        return None

    async def _ask(self, token: Token) -> Granted:
        """Of each address in turn; the last failure if all fail, but the first that is an answer ends it."""
        request = EnrolmentRequest(
            token.network, token.site, token.secret, self._credentials.next_csr(), __version__, self._instance
        )
        failure = EnrolmentError("unreachable", "the token has no address")
        for url in token.urls:
            url = url.rstrip("/")
            try:
                return await self._port.enroll(url, await self._root(url, token.pin), request)
            except EnrolmentError as error:
                failure = error
                if error.code in BY_CODE:
                    break
        raise failure

    async def _root(self, url: str, pin: str) -> str:
        """Fetched once: a busy controller that lets one question through must be asked the one that matters."""
        if pin not in self._roots:
            self._roots[pin] = await self._port.root(url, pin)
        return self._roots[pin]

    def _keep(self, token: Token, granted: Granted) -> Enrolment:
        """Raises EdgeError: then it is asked for again, with the same key."""
        if (granted.network, granted.site) != (token.network, token.site):
            found = f"{granted.site} of {granted.network}"
            raise EnrolmentError("refused", f"the controller takes this box for {found}, not {token.site}")
        enrolment = Enrolment(granted.site, granted.network, granted.controllers, granted.signing_keys)
        self._store.save_enrolment(enrolment)
        # Last, and at once: until then all is asked for again, with the same key.
        self._credentials.replace(granted.certificate, "\n".join(granted.cas))
        try:
            self._clock.lift(granted.now.timestamp())
        except EdgeError as error:
            log.error("store_failed", op=error.op, cause=error.cause)
        return enrolment

    def _fail(self, failure: Failure) -> None:
        if (failure.kind, failure.words) != (self.failure.kind, self.failure.words):
            log.warning("enrolment_failed", condition=failure.kind.value, reason=failure.words)
        self.failure = failure
