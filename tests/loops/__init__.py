"""The loops over fakes, on a simulated clock: scripts of events and the operations that they must lead to."""
