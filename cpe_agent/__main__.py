"""Lets `python -m cpe_agent` stand for the `cpe-agent` command."""

from cpe_agent.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
