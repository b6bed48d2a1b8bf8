"""The lab: a whole network of sites on one machine.

`topology` says what there is, `wiring` turns it into network namespaces, `init` is process 1 of a lab, `container`
talks to it, and `lab` is what tests use. Nothing is imported here, so that process 1 starts at once.
"""
