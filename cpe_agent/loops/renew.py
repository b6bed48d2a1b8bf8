"""Is this site's certificate young enough, and of the right authority? Else a new one is asked for, with a new key.

The new key and certificate are whole on the disk before anybody uses them; then charon and the controller's channel
take them up. Tunnels that live are left alone: they meet the new certificate when they are replaced.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable, Sequence

import trio

from cpe_agent.core.backoff import backoff_s
from cpe_agent.core.certificate import Life, renews_at_s
from cpe_agent.log import get_logger
from cpe_agent.loops.cells import Cells
from cpe_agent.loops.clock import FlooredClock
from cpe_agent.ports import ControllerPort, CredentialsPort, EdgeError

log = get_logger()

LOOK_S = 3600.0
RETRY_FIRST_S = 120.0
RETRY_MAX_S = 6 * 3600.0


class Renewer:
    """The one writer of the certificate Cell. `credentials` None: they are not ours to renew. `load`: reads the files
    and gives what is there now to who uses it. `vouched`: whether the certificate is of the authority that is to stay
    when another is on its way out; raises `EdgeError` for files that cannot be read."""

    def __init__(
        self,
        cells: Cells,
        port: ControllerPort,
        credentials: CredentialsPort | None,
        clock: FlooredClock,
        load: Callable[[], Life],
        ways: Callable[[], Sequence[str]],
        vouched: Callable[[], bool] = lambda: True,
    ) -> None:
        self._cells = cells
        self._port = port
        self._credentials = credentials
        self._clock = clock
        self._load = load
        self._ways = ways
        self._vouched = vouched

    async def run(self) -> None:
        """For ever."""
        failures = 0
        while True:
            life = self._cells.certificate.value
            wait_s = LOOK_S * random.uniform(0.5, 1.0)
            if life is not None and self._credentials is not None and not self._good(life):
                if await self._renew(self._credentials):
                    failures = 0
                    continue
                failures += 1
                wait_s = backoff_s(failures, RETRY_FIRST_S, RETRY_MAX_S, random.random())
            await trio.sleep(wait_s)

    def _good(self, life: Life) -> bool:
        if self._clock.now_s() >= renews_at_s(life):
            return False
        try:
            return self._vouched()
        except EdgeError as error:
            # Files that cannot be read now are no reason to ask for others.
            log.error("renewal_failed", cause=error.cause)
            return True

    async def _renew(self, credentials: CredentialsPort) -> bool:
        try:
            csr = credentials.next_csr()
            renewed = None
            failure: EdgeError | None = None
            for local_address in self._ways():
                try:
                    renewed = await self._port.renew(local_address, csr)
                    break
                except EdgeError as error:
                    failure = error
            if renewed is None:
                log.warning("renewal_failed", cause=failure.cause if failure else "there is no way out")
                return False
            credentials.replace(renewed.certificate, "\n".join(renewed.cas))
            life = self._load()
        except EdgeError as error:
            log.error("renewal_failed", cause=error.cause)
            return False
        young = self._good(life)
        self._cells.certificate.set(life)
        log.info("certificate_renewed", state=f"valid until {_day(life)}")
        # A controller that gives old ones must not be asked in a loop.
        return young


def _day(life: Life) -> str:
    return dt.datetime.fromtimestamp(life.not_after_s, dt.UTC).date().isoformat()
