"""Decisions: pure and synchronous. Time is an argument; what is to be done is returned, never done."""
