"""Waits that the agent draws at random are the same in every run of a test."""

from __future__ import annotations

import random

import pytest


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(1)
