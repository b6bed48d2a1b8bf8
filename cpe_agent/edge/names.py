"""Where is a controller of this name, also on the day that the DNS is dead?

In: a host name. Out: nothing to say (the DNS knows it, and whoever connects asks it again), or the addresses that it
had last. These are kept in the state directory: a power cut and a stale resolv.conf together must not lock a box out.
Which machine answers there is proven by its certificate, which names the host, not the address.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import httpx
import trio

from cpe_agent.ports import EdgeError, StorePort

# A resolver whose servers are gone takes tens of seconds to say so.
LOOK_UP_S = 3.0
ADDRESSES_MAX = 8
HOSTS_MAX = 16


class NameUnknown(httpx.ConnectError):
    """The DNS does not know a name, or does not answer."""


LookUp = Callable[[str], Awaitable[Sequence[str]]]


async def look_up(host: str) -> Sequence[str]:
    """By the system's resolver. Raises OSError."""
    found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Names:
    """Remembers what names stood for; `store` None: until the process ends."""

    def __init__(self, store: StorePort | None = None, look_up: LookUp = look_up) -> None:
        self._store = store
        self._look_up = look_up
        self._known: dict[str, tuple[str, ...]] = {}
        if store is not None:
            with suppress(EdgeError):
                self._known = dict(store.load_addresses())

    async def last_known(self, host: str) -> tuple[str, ...]:
        """() if the DNS knows `host`, or if it is an address; else the addresses that it had last. Raises
        NameUnknown if there are none."""
        if _is_address(host):
            return ()
        why = f"no answer within {LOOK_UP_S:g} s"
        with trio.move_on_after(LOOK_UP_S):
            try:
                self._remember(host, tuple(await self._look_up(host))[:ADDRESSES_MAX])
            except (OSError, UnicodeError) as error:
                why = str(error.args[-1]) if error.args else str(error)
            else:
                return ()
        if host not in self._known:
            raise NameUnknown(f"the DNS does not know {host} ({why}), and no address of it is known from before")
        return self._known[host]

    def _remember(self, host: str, addresses: tuple[str, ...]) -> None:
        if not addresses or set(self._known.get(host, ())) == set(addresses):
            return
        self._known = dict([*self._known.items(), (host, addresses)][-HOSTS_MAX:])
        if self._store is not None:
            # Without a disk it is remembered until the process ends.
            with suppress(EdgeError):
                self._store.save_addresses(self._known)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
