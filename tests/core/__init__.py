"""Decisions, by tables and properties."""
