"""How do the answers of commands read to a person at a terminal?

In: what became of a command. Out: a few sentences, at most 80 columns wide.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from cpe_agent.check import Checked
from cpe_agent.model.condition import DrainAnswer, RollbackAnswer
from cpe_agent.support import Written


def drain_words(answer: DrainAnswer) -> str:
    if answer.drained:
        said = "is drained now" if answer.changed else "was drained already"
        lines = [f"This hub {said}: its ready addresses do not answer, and branches move what another hub can serve."]
        lines.append("Tunnels stay up, and what only this hub serves goes on. `cpe-agent undrain` takes it back.")
    else:
        said = "is no longer drained" if answer.changed else "was not drained"
        lines = [f"This hub {said}{': it serves' if answer.serving else ', but does not serve yet'}."]
        lines += [f"In the way: {reason}." for reason in answer.in_the_way]
    if answer.warning:
        lines.append(f"Warning: {answer.warning}.")
    return _filled(lines)


def rollback_words(answer: RollbackAnswer) -> str:
    left, in_force = (".".join(map(str, order)) for order in (answer.left, answer.in_force))
    lines = [f"Document {in_force} is in force again, and {left} is given up here."]
    lines.append("Peers that it had removed stay away. The next newer document of the controller is obeyed again.")
    if answer.warning:
        lines.append(f"Warning: a restart of the agent would forget it: {answer.warning}.")
    return _filled(lines)


def checked_words(found: Checked) -> str:
    """What is good, and what stands in the way all the same."""
    return "".join(f"{line}\n" for line in (*found.good, *(f"Note: {note}" for note in found.notes)))


def bundle_words(written: Written) -> str:
    """Where it is, and what is not in it."""
    parts, missing = written.manifest.parts, written.manifest.missing
    lines = [f"Written, {written.size_bytes / 1000:.0f} kB with {len(parts)} parts:", written.path]
    lines += [f"Not in it: {name}: {reason}" for name, reason in sorted(missing.items())]
    lines.append("Keys, tokens and passwords were left out. It tells addresses and names of the network.")
    return _filled(lines)


def _filled(lines: Iterable[str]) -> str:
    # A path that somebody copies stays in one piece, however long.
    filled = (textwrap.fill(line, 80, break_on_hyphens=False, break_long_words=False) for line in lines)
    return "".join(f"{line}\n" for line in filled)
