"""Can somebody on the internet be called by this?

In: what was written as an address or a host name. Out: why it is none, in words that end with the mend; "" if it is
one. A name whose last part is a number is none: resolvers read 999.1.1.1 and 3221225994 as addresses, and each differs.
"""

from __future__ import annotations

import ipaddress
import re

_NAME = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
_NUMBER = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\Z")
THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def host_flaw(text: str) -> str:
    """Of an address or a host name of any machine."""
    try:
        return "has a zone; write an address without %" if "%" in text else _nobody(ipaddress.ip_address(text))
    except ValueError:
        pass
    if _NUMBER.match(text.lower().rpartition(".")[2]):
        return "is no IP address; write one, as in 203.0.113.10"
    if not _NAME.match(text.lower()):
        return "is no address or host name; write one without a port, as in 203.0.113.10 or hub.example"
    return ""


def dialled_flaw(text: str) -> str:
    """Of what a machine elsewhere is to dial."""
    if flaw := host_flaw(text):
        return flaw
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "is this machine itself; write the public name" if text.lower() == "localhost" else ""
    if address.is_loopback or address.is_link_local:
        return "cannot be dialled from elsewhere; write the public address"
    return ""


def _nobody(address: _Address) -> str:
    if isinstance(address, ipaddress.IPv4Address):
        void = address in THIS_NETWORK or address.is_multicast or address.is_reserved
    else:
        void = address.is_unspecified or address.is_multicast or address.ipv4_mapped is not None
    return "is no single machine's address; write one, as in 203.0.113.10" if void else ""
