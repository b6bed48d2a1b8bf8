"""Figures: what the product is measured by, each under a name that an issue gave it."""
