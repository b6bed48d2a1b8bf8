"""Tests, the lab they run in, and the figures."""
