"""One bare lab for the tests that put it back as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.lab import Lab


@pytest.fixture(scope="package")
def bare_lab() -> Iterator[Lab]:
    """The network without controller, charon or agents."""
    with Lab(name="selftest") as lab:
        yield lab
