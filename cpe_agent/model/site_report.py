"""What does a site tell its controller of itself?

The wire format of `POST /v1/status`; times are RFC 3339.
"""

from __future__ import annotations

import datetime as dt

import msgspec


class Box(msgspec.Struct, frozen=True):
    """This machine: `instance` for ever, `boot_id` until its kernel starts again."""

    instance: str
    boot_id: str


class Applied(msgspec.Struct, frozen=True):
    """The document in force, and since when."""

    epoch: int
    version: int
    at: dt.datetime


class Refused(msgspec.Struct, frozen=True):
    """A document that is not in force, and why not. `reverted`: it was, for a while."""

    epoch: int
    version: int
    reason: str
    reverted: bool


class ReportedCondition(msgspec.Struct, frozen=True):
    type: str
    subject: str
    reason: str
    severity: str
    since: dt.datetime


class ReportedPath(msgspec.Struct, frozen=True):
    path: str
    state: str


class SiteReport(msgspec.Struct, frozen=True):
    """`instance` is this box, for ever; `boot_id` its kernel's, until it starts again. `serving`: a hub is willing to
    serve, a branch has its bundles carried."""

    instance: str
    boot_id: str
    agent_version: str
    schemas: tuple[int, ...]
    applied: Applied | None
    confirmed: bool
    rejected: Refused | None
    conditions: tuple[ReportedCondition, ...]
    paths: tuple[ReportedPath, ...]
    serving: bool
