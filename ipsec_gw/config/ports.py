"""Ports, protocols and ICMP types as they are written in the file."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ipsec_gw.config.problems import Refused
from ipsec_gw.model.firewall import Range

ICMP, IGMP, TCP, UDP, ICMP6 = 1, 2, 6, 17, 58

PROTOCOLS = {
    "icmp": ICMP,
    "igmp": IGMP,
    "ipip": 4,
    "tcp": TCP,
    "udp": UDP,
    "ipv6": 41,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": ICMP6,
    "ospf": 89,
    "pim": 103,
    "vrrp": 112,
    "sctp": 132,
}

_SPAN = re.compile(r"(\d{1,9})(?:\s*-\s*(\d{1,9}))?", re.ASCII)


def protocol_of(value: object) -> int:
    """The IP protocol number of a name or a number from 0 to 255. Raises Refused."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value <= 255:
            raise Refused(f"protocol {value} is outside 0-255", "write a protocol number of IANA's list or a name")
        return value
    number = PROTOCOLS.get(value) if isinstance(value, str) else None
    if number is None:
        raise Refused(f"unknown protocol {value!r}", f"write its number, or one of {', '.join(PROTOCOLS)}")
    return number


def span_of(value: object, what: str = "port", last: int = 65535, first: int = 0) -> Range:
    """``80``, ``"80"`` or ``"8000-8080"`` within ``first`` to ``last``. Raises Refused."""
    bounds = f"{first}-{last}"
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Refused(f"{value!r} is no {what}", f'write a number or "a-b" within {bounds}')
    found = _SPAN.fullmatch(value.strip()) if isinstance(value, str) else None
    if isinstance(value, str) and found is None:
        raise Refused(f"{value!r} is no {what} and no range of them", f'write a number or "a-b" within {bounds}')
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (int(value), int(value))
    if low > high:
        raise Refused(f"range {low}-{high} is reversed", f'write "{high}-{low}"')
    for number in (low, high):
        if not first <= number <= last:
            raise Refused(f"{what} {number} is outside {bounds}", f"write a {what} within {bounds}")
    return (low, high)


def merged(spans: Iterable[Range]) -> tuple[Range, ...]:
    """The same numbers in as few ranges as can be, in order."""
    whole: list[Range] = []
    for low, high in sorted(spans):
        if whole and low <= whole[-1][1] + 1:
            whole[-1] = (whole[-1][0], max(high, whole[-1][1]))
        else:
            whole.append((low, high))
    return tuple(whole)
