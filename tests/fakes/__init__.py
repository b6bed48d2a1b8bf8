"""The outside world in memory, one module per port; tests/edge/ holds each to the contract of the real one."""
