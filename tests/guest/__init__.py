"""A guest: this machine's files under Debian's own kernel, which has ESP, in an emulated computer.

`image` makes what is booted out of Debian packages, `first.sh` and `second.sh` are what the guest's process 1 does,
`launch` runs one command in it, and `kernel_tests` decides whether the tests of the kernel backend need it.
"""
