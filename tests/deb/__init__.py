"""The Debian packages, built and installed: run by `make test-deb`, since each takes minutes."""
