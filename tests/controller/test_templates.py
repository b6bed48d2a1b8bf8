"""Templates: the 300th hospital is three lines, and mistakes are found in the line in which they are."""

from __future__ import annotations

import pytest

from cpe_controller.fields import NetworkError
from cpe_controller.parse import parse

HOSPITAL = """  hospital-300:
    template: hospital
    lans: {ward: {subnet: 10.104.44.0/24}}
"""


def _with(text: str, more: str) -> str:
    return text.replace("branches:\n", f"branches:\n{more}", 1)


def test_the_300th_hospital_is_three_lines(text: str) -> None:
    assert HOSPITAL.count("\n") == 3
    [hospital, _, _] = parse(_with(text, HOSPITAL)).branches
    assert [(uplink.name, uplink.kind, uplink.priority) for uplink in hospital.uplinks] == [
        ("wired", "wired", 1),
        ("lte", "cellular", 2),
    ]
    [ward] = hospital.lans
    assert (ward.name, str(ward.subnet), ward.interface) == ("ward", "10.104.44.0/24", "lan0")


def test_what_a_site_says_itself_comes_before_its_template(text: str) -> None:
    own = """  hospital-300:
    template: hospital
    uplinks: {lte: {priority: 3, mtu: 1400}, dsl: {kind: wired, priority: 9}}
    lans: {ward: {subnet: 10.104.44.0/24, interface: eth7}}
"""
    [hospital, _, _] = parse(_with(text, own)).branches
    assert [(one.name, one.kind, one.priority, one.mtu) for one in hospital.uplinks] == [
        ("wired", "wired", 1, None),
        ("lte", "cellular", 3, 1400),
        ("dsl", "wired", 9, None),
    ]
    assert hospital.lans[0].interface == "eth7"


@pytest.mark.parametrize(
    ("old", "new", "at", "field", "words"),
    [
        ("template: hospital\n", "template: hospice\n", "template: hospice", "hospital-300.template", "use hospital"),
        ("{subnet: 10.104.44.0/24}", "{}", "lans: {ward: {}}", "hospital-300.lans.ward", "no 'subnet'"),
        ("{ward:", "{wart:", "ward: {interface: lan0}", "hospital-300.lans.ward", "no 'subnet'"),
        ("10.104.44.0/24", "10.101.0.0/24", "ward: {subnet: 10.101.0.0/24}", "hospital", "overlaps"),
        (
            "wired: {kind: wired, priority: 1}",
            "wired: {kind: wierd, priority: 1}",
            "kind: wierd",
            "uplinks.wired.kind",
            "use wired, cellular",
        ),
        (
            "    template: hospital\n    lans: {ward",
            "    template: hospital\n    template: x\n    lans: {ward",
            "template: x",
            "template",
            "written twice",
        ),
        ("44.0/24}}", "44.0/24}, ward: {subnet: 10.1.1.0/24}}", "ward: {subnet: 10.1.1", "ward", "written twice"),
        (
            "  hospital:\n    uplinks:",
            "  hospital:\n    template: x\n    uplinks:",
            "template: x",
            "template",
            "another",
        ),
    ],
)
def test_mistakes_are_found_where_they_are(text: str, old: str, new: str, at: str, field: str, words: str) -> None:
    told = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    wrong = _with(told, HOSPITAL).replace(old, new, 1)
    with pytest.raises(NetworkError) as error:
        parse(wrong)
    assert at in wrong.splitlines()[error.value.line - 1]
    assert field in error.value.field and words in error.value.reason
