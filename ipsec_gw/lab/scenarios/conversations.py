"""Conversations as checks of a report: they come about, and those who talk look as they should."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import closing
from typing import Any

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.talk import SECONDS, Address, Attempt, Heard, ping, tcp, udp
from ipsec_gw.lab.traffic import Host, TrafficError, until

SIZES = (1, 64, 511, 1200, 1372)
"""Payloads of single datagrams that need no fragments, in a tunnel over a 1500-byte WAN neither."""

TCP_BYTES = 300_000
REACHED = "payloads come back unchanged"


async def judged(
    lab: Lab, name: str, expected: str, work: Coroutine[Any, Any, Heard], right: Callable[[Heard], bool]
) -> None:
    """Check a conversation, and how it looked."""
    expected = f"{REACHED}, {expected}"
    try:
        heard = await work
    except TrafficError as error:
        lab.check(name, False, expected, error)
    else:
        measured = f"{REACHED}, the server sees {heard.peer}, path MTU {heard.mtu}"
        lab.check(name, right(heard), expected, measured)


async def both(
    lab: Lab, name: str, client: Host, called: tuple[Host, int], seen: tuple[Address, ...], what: str
) -> None:
    """Check TCP and UDP to a port of a host that is to see them come from one of some addresses, ``what`` in words."""
    host, port = called
    target = (host.address, port)
    talks = (
        ("TCP", tcp(client, target, host, port, size=TCP_BYTES, seed=port)),
        ("UDP", udp(client, target, host, port, sizes=SIZES, seed=port)),
    )
    for protocol, talk in talks:
        expected = f"the server sees {what}"
        await judged(lab, f"{name}, {protocol}", expected, talk, lambda heard: heard.peer in seen)


async def answers_ping(lab: Lab, name: str, client: Host, called: Host, identifier: int) -> None:
    """Check that an ICMP echo is answered."""
    try:
        measured = await ping(client, called.address, identifier=identifier, size=64)
        lab.check(name, True, "answered", measured)
    except TrafficError as error:
        lab.check(name, False, "answered", error)


async def refused(lab: Lab, name: str, client: Host, called: tuple[Address, int]) -> None:
    """Check that TCP and UDP to a port where nobody listens are refused at once, as a host does it."""
    expected = "TCP ECONNREFUSED, UDP ECONNREFUSED"
    with closing(Attempt(client, *called)) as attempt:
        try:
            await until(lambda: attempt.refused, SECONDS, "both are refused")
        except TrafficError as error:
            lab.note(f"{name}: {error}")
        lab.check(name, str(attempt) == expected, expected, attempt)


async def finds_mtu(lab: Lab, name: str, wanted: int, discovery: Coroutine[Any, Any, int]) -> None:
    """Check the path MTU that datagrams find out."""
    try:
        found: object = await discovery
    except TrafficError as error:
        found = error
    lab.check(name, found == wanted, f"{wanted} bytes, which come over whole", found)
