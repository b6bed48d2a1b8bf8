"""What the whole network does in trouble: real charons, real agents, the real controller, in one lab."""
