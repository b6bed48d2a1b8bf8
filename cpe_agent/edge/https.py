"""How is one request sent to a controller, and is it our controller that answers?

In: a base URL, who must vouch for the server, a clock, and per request the local address to go out by. Out: an httpx
response whose body is still to be read, or a `ControllerError`. Chain and name of the server's certificate are checked
by OpenSSL; its time is checked here, because a box without a battery wakes up in 1970 and would believe nobody.
"""

from __future__ import annotations

import datetime as dt
import ssl
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import httpx
from cryptography import x509

from cpe_agent.edge.names import Names

# For connecting with TLS, and for each read of a document.
TIMEOUT_S = 5.0
# X509_V_FLAG_NO_CHECK_TIME, which Python's ssl does not name.
NO_CHECK_TIME = 0x200000

Now = Callable[[], float]


class Https:
    """Sends requests. `tls` is asked at every connection, so that a renewed certificate is used at once."""

    def __init__(
        self,
        tls: Callable[[], ssl.SSLContext],
        names: Names | None = None,
        now: Now = time.time,
        *,
        timeout_s: float = TIMEOUT_S,
        trust_env: bool = False,
        check_time: bool = True,
    ) -> None:
        self._tls = tls
        self._names = names or Names()
        self._now = now
        self._timeout_s = timeout_s
        self._trust_env = trust_env
        self._check = check_time

    async def send(
        self,
        stack: AsyncExitStack,
        url: str,
        headers: dict[str, str],
        *,
        local_address: str = "",
        read_timeout_s: float | None = None,
        content: bytes | None = None,
    ) -> httpx.Response:
        """A response whose body is still to be read; `stack` holds its connection. POST if there is `content`."""
        client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                verify=self._tls(), http2=False, local_address=local_address or None, trust_env=self._trust_env
            ),
            timeout=httpx.Timeout(self._timeout_s, read=read_timeout_s or self._timeout_s),
            trust_env=self._trust_env,
            # A signature is over exact bytes, and what is not compressed cannot explode.
            headers={"user-agent": "cpe-agent", "accept-encoding": "identity", **headers},
        )
        await stack.enter_async_context(client)
        method = "GET" if content is None else "POST"
        asked = httpx.URL(url)
        addresses = await self._names.last_known(asked.host)
        failure: httpx.ConnectError | httpx.ConnectTimeout | None = None
        for address in addresses or ("",):
            # By address only when the name cannot be asked for; TLS goes on asking for the name.
            target = asked.copy_with(host=address) if address else asked
            extensions = {"sni_hostname": asked.host} if address else {}
            host = {"host": asked.netloc.decode()} if address else {}
            request = client.stream(method, target, content=content, headers=host, extensions=extensions)
            try:
                response = await stack.enter_async_context(request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
                continue
            if self._check:
                self._check_time(response)
            return response
        assert failure is not None
        raise failure

    def _check_time(self, response: httpx.Response) -> None:
        """Raises ClockDoubtful if the server's certificate has expired. One that is not valid yet was issued all the
        same, by the authority that we trust: it is our clock that is behind."""
        tls = response.extensions["network_stream"].get_extra_info("ssl_object")
        der = tls.getpeercert(True) if tls is not None else None
        if der is None:
            raise httpx.ConnectError("the server showed no certificate")
        until = x509.load_der_x509_certificate(der).not_valid_after_utc
        now = dt.datetime.fromtimestamp(self._now(), dt.UTC)
        if now > until:
            mend = f"this router's clock says {now:%Y-%m-%d}: is it right?"
            raise ClockDoubtful(f"its certificate was valid until {until:%Y-%m-%d}, and {mend}")


class ClockDoubtful(httpx.ConnectError):
    """A certificate that is good but for its time: somebody's clock is wrong, or it was never renewed."""


def server_tls(cas_pem: str | None, ca_file: str | None = None) -> ssl.SSLContext:
    """Trusts these authorities (PEM) and no others. Raises ValueError, OSError if they cannot be used."""
    # With authorities of ours, the system's own are not loaded.
    context = ssl.create_default_context(cafile=ca_file, cadata=cas_pem)
    # Python 3.13's default, so that a certificate is as good or bad on every Debian.
    flags = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags = ssl.VerifyFlags(context.verify_flags | flags | NO_CHECK_TIME)
    return context
