"""The commands, as a shell calls them."""
