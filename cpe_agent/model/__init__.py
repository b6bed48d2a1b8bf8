"""Frozen data: what was asked (document), what should be (dataplane), what is (observed), how it fares (condition)."""
