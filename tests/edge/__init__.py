"""Tests of cpe_agent/edge/, against the real thing wherever there is one."""
