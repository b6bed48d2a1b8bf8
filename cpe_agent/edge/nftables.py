"""How does table `inet cpe_agent` get into the kernel, and how is it read back?

In: operations and rulesets as text. Out: the same text, so that what was applied compares equal to what is read. One
libnftables context in one worker thread at a time: libnftables lets go of the GIL, but a context is not thread-safe.

Everything of ours is read from ONE listing, so what is read was true at one moment. It is the text listing, because
JSON takes three times as long for 10,000 elements and has the rules in a form that nobody writes. No other table is
ever listed or touched.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar, assert_never

import msgspec
import nftables
import trio

from cpe_agent.edge.nftables_listing import SWAPPED, parse_counters, parse_table, renamed, unswapped
from cpe_agent.model.dataplane import TABLE, NftChain, NftSet, Ruleset
from cpe_agent.model.ops import AddElements, DeleteElements, DeleteTable, FirewallOp, ReplaceSet, ReplaceTable
from cpe_agent.ports import EdgeError

T = TypeVar("T")

_TARGET = "nftables"
_ABSENT = "No such file or directory"
# What cannot end its place in a command: inside quotes nft knows no escapes, and a final * is a wildcard to it.
_PLAIN = re.compile(r"[0-9A-Fa-f.:/-]+")
_INTERFACE = re.compile(r"[^\"*\x00-\x20\x7f]{1,15}")

_NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NFNLGRP_NFTABLES = 7
_SO_RCVBUFFORCE = 33
# Holds what the kernel tells about a new table of some 10,000 elements; anything longer arrives as ENOBUFS.
_RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
_DATAGRAM_BYTES = 256 * 1024
# Read in one go at most: somebody who never stops changing things must not keep our event loop.
_BURST_DATAGRAMS = 1000

_NLMSG_HEADER = struct.Struct("=IHHII")
_NFGENMSG_BYTES = 4
_ATTRIBUTE = struct.Struct("=HH")
_NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_NEWGEN = 15
# NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE and so on: all of them are attribute 1.
_NFTA_TABLE = 1


class _Libnftables(Protocol):
    """What is used of apt's nftables module, which has no types."""

    def cmd(self, cmdline: str) -> tuple[int, str, str]: ...

    def set_stateless_output(self, val: bool) -> bool: ...


class NftablesFirewall:
    """A `FirewallPort`. It has no resources before its first call, and keeps one netlink socket from then on."""

    def __init__(self) -> None:
        self._one_at_a_time = trio.CapacityLimiter(1)
        self._context: _Libnftables | None = None
        # Sets that live under another name than their own, as last read or written.
        self._living: dict[str, str] = {}

    async def read(self) -> Ruleset | None:
        """Our table in canonical form, with whatever others have put into it; None if there is none."""
        found = await self._in_thread(self._list, True, parse_table)
        if found is None:
            return None
        ruleset, self._living = unswapped(found)
        return ruleset

    async def apply(self, ops: Sequence[FirewallOp]) -> None:
        """All of `ops` in one transaction: all or nothing; but a `ReplaceSet` takes three of its own, after the others.
        Raises `EdgeError` with nft's words."""
        swaps = [op for op in ops if isinstance(op, ReplaceSet)]
        rest = tuple(op for op in ops if not isinstance(op, ReplaceSet))
        if rest:
            await self._in_thread(self._apply, rest)
        for swap in swaps:
            await self._in_thread(self._swap, swap)

    async def counters(self) -> dict[str, tuple[int, int]]:
        """(packets, bytes) by "SET ELEMENT" and "drop REASON" (all rules of that reason); empty without a table."""
        return await self._in_thread(self._list, False, parse_counters) or {}

    async def changes(self) -> AsyncGenerator[None, None]:
        """Yields at once, when from now on no change is missed, then after each change to our table.

        Changes in quick succession come as one. Closing the iterator closes its socket.
        """
        with _subscription() as news:
            yield
            while True:
                await trio.lowlevel.wait_readable(news)
                if _concerns_us(news):
                    yield

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        # Not abandoned on cancellation: a transaction that has begun is waited for.
        return await trio.to_thread.run_sync(work, *arguments, limiter=self._one_at_a_time)

    def _libnftables(self) -> _Libnftables:
        if self._context is None:
            self._context = _new_context()
        return self._context

    def _list(self, stateless: bool, parse: Callable[[str], T]) -> T | None:
        context = self._libnftables()
        context.set_stateless_output(stateless)
        code, listing, complaint = context.cmd(f"list table inet {TABLE}")
        if code == 0:
            return parse(listing)
        if _ABSENT in complaint:
            return None
        raise EdgeError(_TARGET, "list", _cause(complaint))

    def _apply(self, ops: tuple[FirewallOp, ...]) -> None:
        doing = ", ".join(map(_in_words, ops))
        try:
            commands = "\n".join(_command(op, self._living) for op in ops)
        except ValueError as error:
            raise EdgeError(_TARGET, doing, str(error)) from None
        self._commit(commands, doing)
        if any(isinstance(op, (ReplaceTable, DeleteTable)) for op in ops):
            self._living = {}

    def _swap(self, op: ReplaceSet) -> None:
        """Measured: in one transaction about a millisecond of listed traffic is lost, in three nothing."""
        doing = _in_words(op)
        name = op.new.name
        old = self._living.get(name, name)
        new = name if old != name else name + SWAPPED
        living = {**self._living, name: new}
        chains = [renamed(chain, living) for chain in op.chains]
        try:
            block = _set_block(msgspec.structs.replace(op.new, name=new))
            self._commit("\n".join([f"table inet {TABLE} {{", *block, "}"]), doing)
        except ValueError as error:
            raise EdgeError(_TARGET, doing, str(error)) from None
        moves = [line for chain in chains for line in _refilled(chain)]
        try:
            self._commit("\n".join(moves), doing)
        except EdgeError:
            self._commit(f"delete set inet {TABLE} {new}", doing)
            raise
        self._living = {plain: name for plain, name in living.items() if plain != name}
        self._commit(f"delete set inet {TABLE} {old}", doing)

    def _commit(self, commands: str, doing: str) -> None:
        code, _, complaint = self._libnftables().cmd(commands)
        if code != 0:
            raise EdgeError(_TARGET, doing, _cause(complaint))


def _new_context() -> _Libnftables:
    before = _open_sockets()
    try:
        context: _Libnftables = nftables.Nftables()
    except OSError as error:
        raise EdgeError(_TARGET, "load libnftables", str(error)) from error
    # Otherwise programs that we start would inherit it. What other threads open meanwhile has the flag already.
    for descriptor, _ in _open_sockets() - before:
        fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    return context


def _open_sockets() -> set[tuple[int, str]]:
    """(descriptor, "socket:[inode]"): the number alone may have been something else's a moment ago."""
    sockets: set[tuple[int, str]] = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # what listed the directory is gone
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:"):
                sockets.add((int(name), target))
    return sockets


def _cause(complaint: str) -> str:
    """nft's complaint without the source lines and the arrows under them."""
    errors = [line.partition("Error: ")[2] for line in complaint.splitlines() if "Error: " in line]
    return "; ".join(dict.fromkeys(errors)) or complaint.strip() or "refused without a word"


def _in_words(op: FirewallOp) -> str:
    match op:
        case AddElements():
            return f"add {len(op.elements)} to {op.set_name}"
        case DeleteElements():
            return f"delete {len(op.elements)} from {op.set_name}"
        case ReplaceTable():
            return "replace the table"
        case ReplaceSet():
            return f"replace {op.new.name} by {len(op.new.elements)} elements"
        case DeleteTable():
            return "delete the table"
        case _:
            assert_never(op)


def _command(op: FirewallOp, living: Mapping[str, str]) -> str:
    match op:
        case AddElements():
            return _element_command("add", op, living)
        case DeleteElements():
            return _element_command("delete", op, living)
        case ReplaceTable():
            return "\n".join([*_DELETE_TABLE, f"table inet {TABLE} {{", *_table_body(op.ruleset), "}"])
        case DeleteTable():
            return "\n".join(_DELETE_TABLE)
        case ReplaceSet():
            raise AssertionError("takes transactions of its own")
        case _:
            assert_never(op)


# Adding what is there is no error, deleting what is not would be.
_DELETE_TABLE = (f"add table inet {TABLE}", f"delete table inet {TABLE}")


def _element_command(verb: str, op: AddElements | DeleteElements, living: Mapping[str, str]) -> str:
    if not op.elements:
        return ""
    name = living.get(op.set_name, op.set_name)
    return f"{verb} element inet {TABLE} {name} {{ {_elements(op.set_type, op.elements)} }}"


def _table_body(ruleset: Ruleset) -> Iterator[str]:
    for nft_set in ruleset.sets:
        yield from _set_block(nft_set)
    for chain in ruleset.chains:
        yield from _chain_block(chain)


def _set_block(nft_set: NftSet) -> Iterator[str]:
    yield f"set {nft_set.name} {{"
    yield f"type {nft_set.type}"
    if nft_set.flags:
        yield f"flags {nft_set.flags}"
    if nft_set.counter:
        yield "counter"
    if nft_set.elements:
        yield f"elements = {{ {_elements(nft_set.type, nft_set.elements)} }}"
    yield "}"


def _chain_block(chain: NftChain) -> Iterator[str]:
    yield f"chain {chain.name} {{"
    yield chain.hook
    yield from chain.rules
    yield "}"


def _refilled(chain: NftChain) -> Iterator[str]:
    """The chain's rules anew, within one transaction."""
    yield f"flush chain inet {TABLE} {chain.name}"
    for rule in chain.rules:
        yield f"add rule inet {TABLE} {chain.name} {rule}"


def _elements(set_type: str, elements: Iterable[str]) -> str:
    types = set_type.split(" . ")
    return ", ".join(_element(types, element) for element in elements)


def _element(types: list[str], element: str) -> str:
    parts = element.split(" . ")
    if len(parts) != len(types):
        raise ValueError(f"{element!r} is not of type {' . '.join(types)}")
    return " . ".join(map(_part, types, parts))


def _part(part_type: str, part: str) -> str:
    quoted = part_type == "ifname"
    if not (_INTERFACE if quoted else _PLAIN).fullmatch(part):
        raise ValueError(f"{part!r} is not an element of type {part_type}")
    return f'"{part}"' if quoted else part


@contextmanager
def _subscription() -> Iterator[socket.socket]:
    try:
        news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    except OSError as error:
        raise EdgeError(_TARGET, "watch", str(error)) from error
    with news:
        news.setblocking(False)
        try:
            news.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        except PermissionError:
            # Outside the initial user namespace. A smaller buffer says "everything may have changed" more often.
            news.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        try:
            news.bind((0, 0))
            news.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        except OSError as error:
            raise EdgeError(_TARGET, "watch", str(error)) from error
        yield news


def _concerns_us(news: socket.socket) -> bool:
    """Take what has been told so far; was any of it about our table?"""
    ours = False
    for _ in range(_BURST_DATAGRAMS):
        try:
            datagram = news.recv(_DATAGRAM_BYTES)
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise EdgeError(_TARGET, "watch", str(error)) from error
            ours = True  # something was lost, perhaps ours
        else:
            ours = ours or names_our_table(datagram)
    return ours


def names_our_table(datagram: bytes) -> bool:
    """Is one of the messages about our table, or not understood?"""
    offset = 0
    while offset + _NLMSG_HEADER.size <= len(datagram):
        length, kind, _, _, _ = _NLMSG_HEADER.unpack_from(datagram, offset)
        if length < _NLMSG_HEADER.size:
            return True
        # A new generation ends every transaction, whosever it was.
        if kind != _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_NEWGEN:
            body = datagram[offset + _NLMSG_HEADER.size + _NFGENMSG_BYTES : offset + length]
            if _table_name(body) in (TABLE, None):
                return True
        offset += length + 3 & ~3
    return False


def _table_name(attributes: bytes) -> str | None:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(attributes):
        length, kind = _ATTRIBUTE.unpack_from(attributes, offset)
        if length < _ATTRIBUTE.size:
            return None
        if kind == _NFTA_TABLE:
            return attributes[offset + _ATTRIBUTE.size : offset + length].rstrip(b"\0").decode(errors="replace")
        offset += length + 3 & ~3
    return None
