"""The wire format and what it refuses."""
