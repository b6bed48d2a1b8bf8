"""cpe_agent: the daemon that makes a branch router part of the network its controller describes."""

__version__ = "0.1.0"
