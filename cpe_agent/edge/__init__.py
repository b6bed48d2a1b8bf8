"""The outside world: charon, nftables, netlink, ICMP, the controller, the disk. Effects, no decisions."""
