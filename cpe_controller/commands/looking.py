"""How does the fleet fare, and how far is the rollout?

Only reads, but for what an operator tells the rollout: pause, resume, abort.
"""

from __future__ import annotations

import datetime as dt
import time

import msgspec

from cpe_controller import audit, reports, rolling, standing
from cpe_controller.change import DOCUMENTS, NETWORK, Published
from cpe_controller.commands import Answer, Roll, Status
from cpe_controller.files import SetupError
from cpe_controller.fleet import SiteStatus, State, counts, fleet
from cpe_controller.rollout import Phase, Rollout, confirmed, resumed
from cpe_controller.store import Store
from cpe_controller.wording import counted

_CONDITIONS_SHOWN = 3


def status(store: Store, command: Status) -> Answer:
    now = time.time()
    found = [one for one in statuses(store, now) if not command.sites or one.site in command.sites]
    known = {one.site for one in found}
    for site in command.sites:
        if site not in known:
            raise SetupError(f"{site} is in no network that was applied here, and has never called")
    shown = [one for one in found if not command.states or one.state.value in command.states]
    width = max([len(one.site) for one in shown] + [4])
    lines = [f"{'site':{width}}  {'state':9} {'document':>14}  {'paths':>6}  {'heard':>7}  agent"] if shown else []
    for one in shown:
        lines.append(_row(one, width, now))
        lines += [f"{'':{width}}    {said}" for said in _remarks(one, now)]
    totals = ", ".join(f"{number} {state.value}" for state, number in counts(found).items() if number)
    lines.append(f"{counted(len(found), 'site')}{': ' if totals else ''}{totals}")
    if store.get(NETWORK) is None:
        lines.append("no network was applied here yet; next: cpe-controller apply network.yaml")
    rollout, _ = rolling.load(store)
    if rollout is not None and not rollout.phase.over:
        lines += roll_lines(rollout, store)
    return Answer(tuple(lines), shown)


def statuses(store: Store, now: float) -> list[SiteStatus]:
    offered = {}
    for entry in store.list(DOCUMENTS).entries:
        published = Published.read(entry.value or b"")
        if published.raw:
            offered[entry.key.removeprefix(DOCUMENTS)] = (published.epoch, published.version)
    return fleet(offered, standing.everybodys(store), reports.stored(store), now)


def roll(store: Store, command: Roll, by: str) -> Answer:
    if command.do != "show":
        _refuse(store, command.do)
        audit.append(store, dt.datetime.now(dt.UTC), by, f"rollout {command.do}", {})
        _do(store, command.do, by)
    rollout, _ = rolling.load(store)
    if rollout is None:
        return Answer(("there is no rollout: what was applied last is offered to every site",))
    return Answer(tuple(roll_lines(rollout, store)), rollout)


def roll_lines(rollout: Rollout, store: Store) -> list[str]:
    contacts = reports.stored(store)
    released = list(rollout.released())
    head = f"rollout: {rollout.phase.value}, {len(released)} of {len(rollout.targets)} sites have their document, "
    head += f"{confirmed(rollout, contacts)} have confirmed"
    lines = [head + (f": {rollout.reason}" if rollout.reason else "")]
    for number, wave in enumerate(rollout.waves):
        at = "out" if number < rollout.wave else "now" if number == rollout.wave else "to come"
        sites = ", ".join(wave.sites) if len(wave.sites) <= 6 else f"{len(wave.sites)} sites"
        lines.append(f"  {wave.kind:6}  {at:8}  {sites}")
    if rollout.phase is Phase.HALTED:
        lines.append("  `rollout resume` goes on without those, `rollout abort` ends it, `rollback` takes it back")
    return lines


def _refuse(store: Store, do: str) -> None:
    """What is refused is nobody's deed, and not in the audit."""
    rollout, _ = rolling.load(store)
    if rollout is None or rollout.phase.over:
        raise SetupError("there is no rollout that is under way")
    _refuse_cut_short(rollout, do)


def _refuse_cut_short(rollout: Rollout, do: str) -> None:
    if rollout.phase is Phase.PREPARING and do != "abort":
        raise SetupError("its apply was cut short before the first wave; apply again")


def _do(store: Store, do: str, by: str) -> None:
    def told(rollout: Rollout) -> Rollout:
        _refuse_cut_short(rollout, do)
        if do == "resume":
            return resumed(rollout, reports.stored(store), time.time())
        phase, reason = (Phase.PAUSED, f"by {by}") if do == "pause" else (Phase.ABORTED, f"by {by}")
        return _with(rollout, phase, reason)

    if rolling.change(store, told) is None:
        raise SetupError("the rollout ended at this very moment")


def _with(rollout: Rollout, phase: Phase, reason: str) -> Rollout:
    return msgspec.structs.replace(rollout, phase=phase, reason=reason)


def _row(one: SiteStatus, width: int, now: float) -> str:
    document = one.applied or "none"
    if one.applied != one.offered:
        document += f" of {one.offered or 'none'}"
    elif one.applied and not one.confirmed:
        document += " (trying)"
    paths = f"{one.paths_up()}/{len(one.paths)}" if one.paths else "-"
    heard = "never" if one.last_contact is None else _ago(now - one.last_contact)
    row = f"{one.site:{width}}  {one.state.value:9} {document:>14}  {paths:>6}  {heard:>7}  {one.agent_version or '-'}"
    return row.rstrip()


def _remarks(one: SiteStatus, now: float) -> list[str]:
    said = [f"{each.type} {each.subject}: {each.reason}".replace(" :", ":") for each in one.conditions]
    remarks = said[:_CONDITIONS_SHOWN]
    if len(said) > _CONDITIONS_SHOWN:
        remarks.append(f"and {len(said) - _CONDITIONS_SHOWN} more conditions")
    if one.rejected:
        remarks.insert(0, one.rejected)
    if one.drained:
        remarks.append("drained: its branches are to leave it")
    if one.state is not State.REVOKED and one.certificate_until is not None and one.certificate_ends(now):
        left = (one.certificate_until - now) / 86400
        remarks.append(f"its certificate ends in {left:.0f} days, and it has not asked for a new one")
    return remarks


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
