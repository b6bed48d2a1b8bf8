"""A charon as a process, in memory."""

from __future__ import annotations

from cpe_agent.model.observed import CharonSigns
from cpe_agent.ports import EdgeError

WELL = CharonSigns(answers=True, listens=True)


class FakeCharonCare:
    """Shows `shown`. `granting`: who makes a wish gets a charon that is well. `full`: no wish can be put down."""

    def __init__(self, shown: CharonSigns = WELL) -> None:
        self.shown = shown
        self.granting = False
        self.full = False
        self.wishes = 0

    async def signs(self) -> CharonSigns:
        return self.shown

    def wish(self) -> None:
        if self.full:
            raise EdgeError("charon", "restart", "no space left on device")
        self.wishes += 1
        if self.granting:
            self.shown = WELL
