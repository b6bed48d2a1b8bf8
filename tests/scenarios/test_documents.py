"""Is a bad document refused by the real agent, said so, and without effect on what runs?"""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cpe_agent.model.condition import Status
from tests.lab import watch
from tests.lab.lab import Lab
from tests.scenarios.looking import ask_status, at_rest, data_plane
from tests.scenarios.publishing import publish, served

SITE = "hospital-1"
REFUSED_S = 5.0

LONG_AGO, YESTERYEAR = "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"

Fields = dict[str, Any]


def _changed(document: Fields, edit: Callable[[Fields], object]) -> Fields:
    changed = copy.deepcopy(document)
    edit(changed)
    return changed


@pytest.fixture
def good(lab: Lab) -> Iterator[Fields]:
    """What is in force; at the end a newer version of it is, so that no refusal is left standing."""
    document = served(lab, SITE)
    yield document
    # What was refused may have been announced as the version after this.
    version = document["version"] + 2
    publish(lab, SITE, document | {"version": version}, version)
    watch.wait_for(lab, SITE, "the good document is in force", lambda r: r.document_version == version, REFUSED_S)
    assert "DocumentRejected" not in {c.type for c in watch.status(lab, SITE).conditions}


# What is wrong -> (how it is made, the field that the refusal must name, words of the reason).
BAD: dict[str, tuple[Callable[[Fields], object], str, str]] = {
    "unknown field": (lambda d: d["lans"][0].update(colour="red"), "lans[0]", "colour"),
    "no network": (lambda d: d["pairs"][0].update(remote="10.10.0.300/24"), "pairs[0].remote", "10.10.0.300/24"),
    "another site's": (lambda d: d.update(site="van-1"), "site", "van-1"),
    "of an older epoch": (lambda d: d.update(epoch=0), "version", "not newer"),
    "an older version": (
        lambda d: d.update(version=d["version"] - 1, policy=d["policy"] | {"failback_s": 99}),
        "version",
        "not newer",
    ),
    "no peers": (lambda d: d.update(peers={}, pairs=[]), "peers", "allow_mass_removal"),
    "most pairs gone": (lambda d: d.update(pairs=d["pairs"][:1]), "pairs", "allow_mass_removal"),
    "expired": (lambda d: d.update(issued_at=LONG_AGO, expires_at=YESTERYEAR), "expires_at", "has passed"),
}


@pytest.mark.parametrize("name", BAD)
def test_that_a_bad_document_is_refused(lab: Lab, good: Fields, name: str) -> None:
    edit, field, words = BAD[name]
    version = good["version"] + 1
    document = _changed(good | {"version": version}, edit)
    _assert_refused(lab, lambda: publish(lab, SITE, document, version), f"{field}: ", words)


def test_that_what_is_not_json_is_refused(lab: Lab, good: Fields) -> None:
    version = good["version"] + 1
    _assert_refused(lab, lambda: publish(lab, SITE, b"<html>hello</html>", version), "", "is not JSON")


def test_that_a_wrong_signature_is_refused(lab: Lab, good: Fields) -> None:
    version = good["version"] + 1
    signature = base64.b64encode(bytes(64)).decode()
    document = good | {"version": version, "pairs": []}
    _assert_refused(
        lab, lambda: publish(lab, SITE, document, version, signature=signature), "signature: ", "does not fit"
    )


def _assert_refused(lab: Lab, serve: Callable[[], None], field: str, words: str) -> None:
    before = at_rest(lab, SITE)
    obeyed = watch.status(lab, SITE).document_version
    with lab.flow("hospital-1-host", "centre-server") as flow:
        flow.wait_flowing(5)
        serve()
        refused = watch.wait_for(lab, SITE, f"it refuses a document: {field}{words}", _rejects, REFUSED_S)
        shown = ask_status(lab, SITE)
        assert flow.stop().lost == 0
    reason = next(c.reason for c in refused.conditions if c.type == "DocumentRejected")
    assert field in reason and words in reason
    assert shown.status == 1 and "DocumentRejected" in shown.stdout
    # A terminal's width may have broken the line anywhere between words.
    assert f"{field}{words}".split()[0] in shown.stdout
    assert refused.document_version == obeyed
    assert data_plane(lab, SITE) == before


def _rejects(report: Status) -> bool:
    return any(condition.type == "DocumentRejected" for condition in report.conditions)
