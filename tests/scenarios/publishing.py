"""Puts a document into the running controller as its `apply` never would.

Stand-alone (`python -m`), because the store must be opened inside the lab: one `Order` as JSON on stdin. The signature
is the controller's own unless one is given. `served` and `publish` are what tests call, outside.
"""

from __future__ import annotations

import copy
import datetime as dt
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from cpe_agent.model.condition import Status
from cpe_controller import setup
from cpe_controller.publish import DOCUMENTS, Published
from cpe_controller.signing import Signer
from tests.lab.lab import CONTROLLER_STATE, Lab

NOBODY = "198.51.100.77"


class Order(msgspec.Struct, frozen=True):
    """What is to be served to `site`; `raw` None asks what is served now. `epoch` and `version` are announced."""

    site: str
    raw: bytes | None = None
    epoch: int = 0
    version: int = 0
    signature: str | None = None


def served(lab: Lab, site: str) -> dict[str, Any]:
    """The document that the controller serves to `site`."""
    document: dict[str, Any] = json.loads(_run(lab, Order(site)).raw)
    return document


def publish(
    lab: Lab, site: str, document: dict[str, Any] | bytes, version: int, *, epoch: int = 1, signature: str | None = None
) -> None:
    """Serve this, whatever it is, announced as (`epoch`, `version`)."""
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    _run(lab, Order(site, raw, epoch, version, signature))


def cut_off(document: dict[str, Any], hub: str, confirm_s: int) -> dict[str, Any]:
    """The next version of a branch's document, with an address for `hub` at which nobody answers."""
    wrong = copy.deepcopy(document) | {"version": document["version"] + 1}
    wrong["policy"]["confirm_s"] = confirm_s
    for endpoint in wrong["peers"][hub]["endpoints"]:
        endpoint["address"] = NOBODY
    return wrong


def given_up(version: int) -> Callable[[Status], bool]:
    """Is `version` in force again, and a newer one given up?"""

    def predicate(report: Status) -> bool:
        return report.document_version == version and "DocumentReverted" in {c.type for c in report.conditions}

    return predicate


def _run(lab: Lab, order: Order) -> Published:
    argv = [sys.executable, "-m", "tests.scenarios.publishing"]
    completed = lab.run(lab.network.controller, *argv, input=msgspec.json.encode(order).decode())
    return msgspec.json.decode(completed.stdout, type=Published)


def _inside(order: Order) -> Published:
    signer = Signer.from_pem((Path(CONTROLLER_STATE) / "signing.key").read_bytes())
    with setup.opened(Path(CONTROLLER_STATE)) as (store, _):
        if order.raw is not None:
            signature = signer.sign(order.raw) if order.signature is None else order.signature
            now = dt.datetime.now(dt.UTC)
            published = Published(order.epoch, order.version, now, signer.public.id, signature, order.raw)
            store.put(DOCUMENTS + order.site, published.stored())
        entry = store.get(DOCUMENTS + order.site)
        assert entry is not None, f"there is no document for {order.site}"
        return Published.read(entry.value or b"")


if __name__ == "__main__":
    print(msgspec.json.encode(_inside(msgspec.json.decode(sys.stdin.read(), type=Order))).decode())
