"""How does table `inet cpe_agent` get into the kernel, and how is it read back?

In: operations and rulesets as text. Out: the same text, so that what was applied compares equal to what is read. One
libnftables context in one worker thread at a time: libnftables lets go of the GIL, but a context is not thread-safe.

Everything of ours is read from ONE listing, so what is read was true at one moment. It is the text listing, because
JSON takes three times as long for 10,000 elements and has the rules in a form that nobody writes. No other table is
ever listed or touched.

What was listed is kept with nftables' generation, which every transaction of anybody's raises by one, and is the answer
while the generation stays. Our own edits of elements are made to what is kept, too, when the generation has gone up by
one exactly: then nobody else was there in between, because an edit of ours that nftables accepts always raises it
(elements are created, not added: to add what somebody has just added raises nothing). After anything else it is listed.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol, TypeVar, assert_never

import msgspec
import nftables
import trio

from cpe_agent.edge.nftables_listing import SWAPPED, parse_counters, parse_table, renamed, unswapped
from cpe_agent.edge.nftables_news import TARGET, Generation, concerns_us, subscription
from cpe_agent.model.dataplane import TABLE, NftChain, NftSet, Ruleset
from cpe_agent.model.ops import AddElements, DeleteElements, DeleteTable, FirewallOp, ReplaceSet, ReplaceTable
from cpe_agent.ports import EdgeError

T = TypeVar("T")

# libnftables prints protocols by libc's getprotobynumber(), which has one buffer for the whole process: two listings at
# once would put pieces of /etc/protocols into each other's elements.
_LIBC_NAMES = threading.Lock()

_ABSENT = "No such file or directory"
_EXISTS = "File exists"
# What cannot end its place in a command: inside quotes nft knows no escapes, and a final * is a wildcard to it.
_PLAIN = re.compile(r"[0-9A-Fa-f.:/-]+")
_INTERFACE = re.compile(r"[^\"*\x00-\x20\x7f]{1,15}")
# The cached ruleset is the kernel's word plus what we did to it. That this is still what a listing says is looked at so
# often all the same; a listing of 10,000 elements costs 0.2 s of processor time.
LIST_AGAIN_S = 300.0


class _Libnftables(Protocol):
    """What is used of apt's nftables module, which has no types."""

    def cmd(self, cmdline: str) -> tuple[int, str, str]: ...

    def set_stateless_output(self, val: bool) -> bool: ...


class _Kept(NamedTuple):
    """What our table was found to be (None: absent), up to which generation that holds, and when it was listed."""

    generation: int
    listed_s: float
    ruleset: Ruleset | None


class NftablesFirewall:
    """A `FirewallPort`. It has no resources before its first call, and keeps a few netlink sockets from then on."""

    def __init__(self) -> None:
        self._one_at_a_time = trio.CapacityLimiter(1)
        # A context keeps what its last command had to know of the table. After a listing of 10,000 elements it takes
        # 20 ms and more to forget them, for which no edit is to wait: listings have a context of their own.
        self._editing: _Libnftables | None = None
        self._listing: _Libnftables | None = None
        self._generation = Generation()
        # Sets that live under another name than their own, as last read or written.
        self._living: dict[str, str] = {}
        self._kept: _Kept | None = None

    async def read(self) -> Ruleset | None:
        """Our table in canonical form, with whatever others have put into it; None if there is none."""
        return await self._in_thread(self._read, trio.current_time())

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
        with subscription() as news:
            yield
            while True:
                await trio.lowlevel.wait_readable(news)
                if concerns_us(news):
                    yield

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        # Not abandoned on cancellation: a transaction that has begun is waited for.
        return await trio.to_thread.run_sync(_alone, work, *arguments, limiter=self._one_at_a_time)

    def _read(self, now_s: float) -> Ruleset | None:
        before, kept = self._generation.now(), self._kept
        if kept is not None and kept.generation == before and now_s < kept.listed_s + LIST_AGAIN_S:
            return kept.ruleset
        listed = self._list(True, parse_table)
        ruleset, self._living = unswapped(listed) if listed is not None else (None, {})
        # What changed while it was listed may be in there or not.
        self._kept = _Kept(before, now_s, ruleset) if self._generation.now() == before else None
        return ruleset

    def _list(self, stateless: bool, parse: Callable[[str], T]) -> T | None:
        if self._listing is None:
            self._listing = _new_context()
        self._listing.set_stateless_output(stateless)
        code, listing, complaint = self._listing.cmd(f"list table inet {TABLE}")
        if code == 0:
            return parse(listing)
        if _ABSENT in complaint:
            return None
        raise EdgeError(TARGET, "list", _cause(complaint))

    def _apply(self, ops: tuple[FirewallOp, ...]) -> None:
        doing = ", ".join(map(_in_words, ops))
        try:
            create, add = (_commands(verb, ops, self._living) for verb in ("create", "add"))
        except ValueError as error:
            raise EdgeError(TARGET, doing, str(error)) from None
        if not create:
            return
        before, kept, self._kept = self._generation.now(), self._kept, None
        try:
            self._commit(create, doing)
        except EdgeError as refused:
            if add == create or _EXISTS not in refused.cause:
                raise
            # Somebody has added the same. That is no error, but what else they did is not known.
            kept = None
            self._commit(add, doing)
        if any(isinstance(op, (ReplaceTable, DeleteTable)) for op in ops):
            self._living = {}
        elif kept is not None and kept.ruleset is not None and self._was_alone(before, kept.generation):
            edited = _edited(kept.ruleset, ops)
            self._kept = None if edited is None else _Kept(before + 1, kept.listed_s, edited)

    def _was_alone(self, before: int, kept: int) -> bool:
        """Was the last transaction, of ours, the only one since the table was known?"""
        return before == kept and self._generation.now() == before + 1

    def _swap(self, op: ReplaceSet) -> None:
        """Measured: in one transaction about a millisecond of listed traffic is lost, in three nothing."""
        doing = _in_words(op)
        self._kept = None
        name = op.new.name
        old = self._living.get(name, name)
        new = name if old != name else name + SWAPPED
        living = {**self._living, name: new}
        chains = [renamed(chain, living) for chain in op.chains]
        try:
            block = _set_block(msgspec.structs.replace(op.new, name=new))
            self._commit("\n".join([f"table inet {TABLE} {{", *block, "}"]), doing)
        except ValueError as error:
            raise EdgeError(TARGET, doing, str(error)) from None
        moves = [line for chain in chains for line in _refilled(chain)]
        try:
            self._commit("\n".join(moves), doing)
        except EdgeError:
            self._commit(f"delete set inet {TABLE} {new}", doing)
            raise
        self._living = {plain: name for plain, name in living.items() if plain != name}
        self._commit(f"delete set inet {TABLE} {old}", doing)

    def _commit(self, commands: str, doing: str) -> None:
        if self._editing is None:
            self._editing = _new_context()
        code, _, complaint = self._editing.cmd(commands)
        if code != 0:
            raise EdgeError(TARGET, doing, _cause(complaint))


def _alone(work: Callable[..., T], *arguments: object) -> T:
    with _LIBC_NAMES:
        return work(*arguments)


def _edited(ruleset: Ruleset, ops: Iterable[FirewallOp]) -> Ruleset | None:
    """The ruleset after `ops`; None if these are more than edits of elements that were known."""
    sets = {nft_set.name: nft_set for nft_set in ruleset.sets}
    for op in ops:
        if not isinstance(op, (AddElements, DeleteElements)) or op.set_name not in sets:
            return None
        elements = sets[op.set_name].elements
        if isinstance(op, DeleteElements) and not op.elements <= elements:
            return None
        elements = elements | op.elements if isinstance(op, AddElements) else elements - op.elements
        sets[op.set_name] = msgspec.structs.replace(sets[op.set_name], elements=elements)
    return Ruleset(tuple(sets[nft_set.name] for nft_set in ruleset.sets), ruleset.chains)


def _new_context() -> _Libnftables:
    before = _open_sockets()
    try:
        context: _Libnftables = nftables.Nftables()
    except OSError as error:
        raise EdgeError(TARGET, "load libnftables", str(error)) from error
    # Otherwise programs that we start would inherit it. What other threads open meanwhile has the flag already.
    for descriptor, _ in _open_sockets() - before:
        with suppress(OSError):  # another thread's, closed meanwhile
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


def _commands(verb: str, ops: Iterable[FirewallOp], living: Mapping[str, str]) -> str:
    """`verb`: how elements are added. To `create` one that is there is an error, to `add` it is not."""
    return "\n".join(filter(None, (_command(verb, op, living) for op in ops)))


def _command(verb: str, op: FirewallOp, living: Mapping[str, str]) -> str:
    match op:
        case AddElements():
            return _element_command(verb, op, living)
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
