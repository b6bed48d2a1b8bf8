"""Lets `python -m cpe_controller` stand for the `cpe-controller` command."""

from cpe_controller.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
