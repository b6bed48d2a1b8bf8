"""How do differences and planned operations read to a person at a terminal?

In: a `Verification` or a `Preview`. Out: text, in groups, one line each; nothing is left out or shortened, since a line
that is missing here is one that nobody looks for. What comes from outside may hold anything and is printed harmless.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cpe_agent.core.preview import Preview
from cpe_agent.model.difference import Verification
from cpe_agent.model.drill import DrillRecord

_KIND_WIDTH = len("missing")


def render_verification(found: Verification) -> str:
    """All differences by target, or one line if there are none."""
    document = f"document {found.document_epoch}.{found.document_version}"
    if not found.differences:
        return f"{found.site}: in sync with {document}.\n"
    lines = [f"{found.site}: {_count(len(found.differences), 'difference')} from {document}."]
    target = ""
    for difference in found.differences:
        if difference.target != target:
            target = difference.target
            lines += ["", target]
        lines.append(f"  {difference.kind.value.ljust(_KIND_WIDTH)}  {_clean(difference.what)}")
    return _text(lines)


def render_preview(planned: Preview) -> str:
    """All operations by stage, in their order."""
    document = f"document {planned.document_epoch}.{planned.document_version}"
    if planned.operations:
        lines = [f"{planned.site}: {_count(planned.count, 'operation')} for {document}."]
    else:
        lines = [f"{planned.site}: nothing to change for {document}."]
    stage = None
    for operation in planned.operations:
        if operation.stage is not stage:
            stage = operation.stage
            lines += ["", stage.value]
        lines.append(f"  {_clean(operation.what)}")
        lines += [f"    {_clean(detail)}" for detail in operation.details]
    if planned.notes:
        lines += ["", "notes", *(f"  {_clean(note)}" for note in planned.notes)]
    return _text(lines)


def render_drills(records: Sequence[DrillRecord]) -> str:
    """Every record, in the order of writing."""
    if not records:
        return "There was no drill yet.\n"
    lines: list[str] = []
    for record in records:
        words = f": {record.words}" if record.words else ""
        lines.append(f"{record.number}  {record.date}  {record.kind} {record.name}  {record.outcome}{_clean(words)}")
        for move in record.moves:
            left = "did not leave" if move.left_s is None else f"left to {move.to_path} in {move.left_s:.2f} s"
            back = "is not back" if move.back_s is None else f"back in {move.back_s:.2f} s"
            lines.append(f"     {_clean(move.bundle)}: {_clean(left)}, {back}")
        for stream in record.streams:
            outage = f"longest outage {stream.outage_ms:g} ms"
            lines.append(f"     {_clean(stream.bundle)}: {stream.lost} of {stream.sent} echoes lost, {outage}")
        if record.unmeasured:
            lines.append(f"     not measured, no echo probe: {_clean(', '.join(record.unmeasured))}")
        if record.staying:
            lines.append(f"     stayed, nothing else serves them: {_clean(', '.join(record.staying))}")
    return _text(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
