"""Which of this machine's own packets are routed once more, to come to the engine: chains of nf_tables. Pure.

Between hosts only what is led gets the mark. Anything else would be routed again for nothing, and worse: as soon as
a routing rule asks for ports, the kernel takes ports into that look-up, which then finds XFRM's policy, and looks for
one once more (``ip_route_me_harder``). So the packet would be encrypted twice.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from ipsec_gw.mirror.nftables import (
    META_MARK,
    NETWORK_HEADER,
    RETURN,
    RT_XFRM,
    TRANSPORT_HEADER,
    Chain,
    Expression,
    Pairs,
    Table,
    differs,
    equals,
    in_pairs,
    masked,
    meta,
    payload,
    route_key,
    set_mark,
)
from ipsec_gw.model.objects import Hosts, PortMatch, Selector

AGAIN_MARK = 0x8000_0000
"""Of own packets without a mark, while they are routed once more: a single bit, which the masks of others hardly have.
"""

HOSTS_TABLE = "ipsec-gw-hosts"
_LED = "led"

_HOOK_OUT, _MANGLE = 3, -150
_PROTOCOL, _SOURCE, _DESTINATION = 9, 12, 16
"""Offsets in an IPv4 header."""
_SOURCE_PORT, _DESTINATION_PORT = 0, 2
"""Offsets in the header of a protocol with ports."""

Rule = tuple[Expression, ...]


def again(marks: Iterable[int]) -> Chain:
    """Own packets with one of these marks that IPsec is to transform are routed once more."""
    return _chain(
        (meta(META_MARK), equals(_mark(mark)), route_key(RT_XFRM), equals(_YES), *set_mark(AGAIN_MARK))
        for mark in marks
    )


def hosts_table(led: Iterable[Hosts], exempted: Iterable[Selector]) -> Table:
    """Own packets between hosts that are led, but for what is exempted of those. Hosts are looked up, however many."""
    pairs = frozenset(hosts.local.packed + hosts.remote.packed for hosts in led)
    spared = sorted({one for one in exempted if one.of_hosts and b"".join(_packed(one)) in pairs}, key=str)
    rules: list[Rule] = [
        (route_key(RT_XFRM), differs(_YES), RETURN),
        (meta(META_MARK), differs(_mark(0)), RETURN),
        *((*_ends(one), *_narrowing(one), RETURN) for one in spared),
        (*in_pairs(_LED, (_SOURCE, _DESTINATION)), *set_mark(AGAIN_MARK)),
    ]
    return Table(HOSTS_TABLE, (_chain(rules if pairs else []),), version=4, sets=(Pairs(_LED, pairs),))


_YES = b"\1"


def _mark(mark: int) -> bytes:
    return struct.pack("=I", mark)


def _chain(rules: Iterable[Rule]) -> Chain:
    return Chain("again", "route", _HOOK_OUT, _MANGLE, tuple(rules))


def _packed(selector: Selector) -> tuple[bytes, bytes]:
    """The addresses that it is from and to."""
    return selector.source.network_address.packed, selector.destination.network_address.packed


def _ends(selector: Selector) -> Rule:
    source, destination = _packed(selector)
    return (*_is(_SOURCE, source), *_is(_DESTINATION, destination))


def _narrowing(selector: Selector) -> Iterator[Expression]:
    """What a selector asks for besides its ends."""
    if selector.protocol:
        yield from _is(_PROTOCOL, bytes((selector.protocol,)))
    for offset, match in ((_SOURCE_PORT, selector.source_port), (_DESTINATION_PORT, selector.destination_port)):
        if match.mask:
            yield from _port(offset, match)


def _is(offset: int, value: bytes) -> Rule:
    return payload(NETWORK_HEADER, offset, len(value)), equals(value)


def _port(offset: int, match: PortMatch) -> Rule:
    wanted, mask = (struct.pack(">H", number) for number in (match.port & match.mask, match.mask))
    return payload(TRANSPORT_HEADER, offset, len(mask)), masked(mask), equals(wanted)
