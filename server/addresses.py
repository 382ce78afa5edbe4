"""Which addresses a picture may be fetched from: those of the public internet, and no others.

Python's `is_global` alone lets several through that lead back inside: NAT64, 6to4, IPv4-compatible
and site-local addresses, and multicast.
"""

from __future__ import annotations

import ipaddress
from ipaddress import ip_network

from mlx_qwenvl.errors import FetchError
from mlx_qwenvl.inputs.connect import IPAddress

# What the internet routes to one host. Everything else is refused without being named: loopback,
# mapped, compatible, NAT64 (64:ff9b::/96, 64:ff9b:1::/48), unique local, link-local, site-local,
# multicast.
ROUTED_V6 = ip_network("2000::/3")
REFUSED_V6 = (
    ip_network("2001::/23"),  # Teredo, which holds an IPv4 address, benchmarks, ORCHID
    ip_network("2001:db8::/32"),  # documentation
    ip_network("2002::/16"),  # 6to4, which holds an IPv4 address
    ip_network("3fff::/20"),  # documentation
)
REFUSED_V4 = (
    ip_network("100.64.0.0/10"),  # carriers' own, with a cloud's metadata in it
    ip_network("168.63.129.16/32"),  # a cloud's metadata under a public address
    ip_network("192.0.0.0/24"),  # protocol assignments, with a cloud's metadata in it
    ip_network("192.88.99.0/24"),  # relays of 6to4
    ip_network("198.18.0.0/15"),  # benchmarks
)


def check_public(address: IPAddress) -> None:
    """Refuse an address that is not one host's on the public internet.

    Raises:
        FetchError: The message does not hold the address: what a name means in here is nobody's
            business.
    """
    if not is_public(address):
        raise FetchError("the host is not on the public internet")


def is_public(address: IPAddress) -> bool:
    """Whether an address is one host's on the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        routed = address in ROUTED_V6 and not any(address in net for net in REFUSED_V6)
        return routed and address.is_global
    kept = address.is_multicast or address.is_reserved or address.is_private
    return address.is_global and not kept and not any(address in net for net in REFUSED_V4)
