"""Which IPsec does the kernel hold, and when does it change? Implements `IpsecPort`.

Out: everybody's SAs and policies (xfrm.py reads them, in a worker thread), and a wake-up for each burst of changes.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Callable, Iterable
from functools import partial
from typing import TypeVar

import trio

from cpe_agent.edge import xfrm
from cpe_agent.model.observed import KernelIpsec, KernelPolicy, KernelSa
from cpe_agent.ports import EdgeError

# One yield stands for at most this many messages, so that a flood cannot hold the event loop.
_BURST = 1000

T = TypeVar("T")


class KernelIpsecPort:
    """`IpsecPort` on the network namespace of this process."""

    async def read(self) -> KernelIpsec:
        """Everybody's SAs of ESP in UDP, and policies."""
        return await _in_thread("read", xfrm.ipsec)

    async def delete(self, sas: Iterable[KernelSa], policies: Iterable[KernelPolicy]) -> None:
        """What is gone already is no error."""
        await _in_thread("delete", partial(_delete, tuple(sas), tuple(policies)))

    async def changes(self) -> AsyncGenerator[None, None]:
        """Yields once when it has subscribed, then after each burst of changes, charon's included."""
        try:
            netlink = xfrm.subscribed((xfrm.GROUP_SA, xfrm.GROUP_POLICY))
        except OSError as error:
            raise EdgeError("ipsec", "watch", str(error.strerror)) from error
        if netlink is None:
            raise EdgeError("ipsec", "watch", "this kernel has no IPsec")
        with netlink:
            yield
            while True:
                await trio.lowlevel.wait_readable(netlink)
                for _ in range(_BURST):
                    try:
                        netlink.recv(1)
                    except BlockingIOError:
                        break
                    except OSError as error:
                        # Messages were lost, which is a change like any other.
                        if error.errno != errno.ENOBUFS:
                            raise EdgeError("ipsec", "watch", str(error.strerror)) from error
                yield


async def _in_thread(op: str, work: Callable[[], T]) -> T:
    try:
        return await trio.to_thread.run_sync(work)
    except OSError as error:
        raise EdgeError("ipsec", op, error.strerror or str(error)) from error


def _delete(sas: tuple[KernelSa, ...], policies: tuple[KernelPolicy, ...]) -> None:
    for sa in sas:
        xfrm.delete_sa(sa)
    for policy in policies:
        xfrm.delete_policy(policy)
