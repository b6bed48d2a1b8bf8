"""cpe_agent: the daemon that makes a branch router part of the network its controller describes."""

__version__ = "0.1.0"

# No clock that says less is right (2026-11-01, UTC). A release moves it on: a package has the day of its changelog.
BUILT_AT = 1_793_491_200.0
