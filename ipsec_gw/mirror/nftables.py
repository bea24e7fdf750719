"""Tables of nf_tables, whole: put in place in one transaction, compared, removed (``linux/netfilter/nf_tables.h``).

Only what the gateway's own tables need: base chains, rules of meta, rt, payload, bitwise, comparison, lookup and
immediate expressions, and sets of pairs of addresses. The program ``nft`` is not needed, ``nft list ruleset`` shows the
result.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.netlink import (
    HEADER,
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    attribute,
    attributes,
    error_code,
    messages,
)

_SUBSYSTEM = 10 << 8
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE, _GET_RULE = 0, 2, 3, 6, 7
_NEW_SET, _NEW_ELEMENTS, _GET_ELEMENTS, _DELETE_ELEMENTS = 9, 12, 13, 14
_CREATE, _APPEND = 0x400, 0x800
_NESTED = 0x8000
_FAMILY = struct.Struct(">BBH")
_RECEIVE_BYTES, _ANSWER_SECONDS = 1 << 16, 5.0
_SEND_BYTES = 1 << 23
"""A transaction is one message to the socket."""
_SO_SNDBUFFORCE = 32
"""``asm-generic/socket.h``; beyond the limit of ``net.core.wmem_max``, which CAP_NET_ADMIN may."""
_NFPROTO_IPV4, _NFPROTO_IPV6 = 2, 10
_NFT_REG_1, _NFT_REG32_00 = 1, 8
"""Two names for the same place; the second is of 32 bits, and others follow it."""
_TABLE_NAME, _CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_TYPE = 1, 1, 3, 4, 7
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS, _RULE_USERDATA = 1, 2, 4, 7
_SET_TABLE, _SET_NAME, _SET_KEY_TYPE, _SET_KEY_BYTES, _SET_ID = 1, 2, 4, 5, 10
_ELEMENTS_TABLE, _ELEMENTS_SET, _ELEMENTS = 1, 2, 3
_TWO_ADDRESSES = 7 << 6 | 7
"""How nft(8) numbers the type ``ipv4_addr . ipv4_addr``."""
_ADDRESS_BYTES = 4
_ELEMENTS_AT_A_TIME = 2048
"""The attribute that they are in has 64 KiB at most."""
_READINGS = 8
"""The kernel resizes a set that grew (``lib/rhashtable.c``) after the transaction; a dump of that moment lacks some."""


@dataclass(frozen=True, slots=True)
class Expression:
    """One step of a rule, as the kernel names it, with its encoded attributes."""

    name: str
    attributes: bytes


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain: its type, hook and priority (``netfilter.h``, ``netfilter_ipv6.h``), and its rules."""

    name: str
    kind: str
    hook: int
    priority: int
    rules: tuple[tuple[Expression, ...], ...]


@dataclass(frozen=True, slots=True)
class Pairs:
    """A set of pairs of IPv4 addresses, packed one behind the other."""

    name: str
    pairs: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the family ip6, or of ip (``version`` 4)."""

    name: str
    chains: tuple[Chain, ...]
    version: int = 6
    sets: tuple[Pairs, ...] = ()

    @property
    def has_rules(self) -> bool:
        """Whether it does anything."""
        return any(chain.rules for chain in self.chains)

    @property
    def family(self) -> int:
        """Its number."""
        return {4: _NFPROTO_IPV4, 6: _NFPROTO_IPV6}[self.version]

    def recipe(self, chain: Chain, number: int) -> bytes:
        """What tells a rule of this table from one of an older version; kept in the kernel with the rule."""
        return hashlib.sha256(repr((chain, number)).encode()).digest()[:16]


def _be32(value: int) -> bytes:
    return struct.pack(">I", value)


def _nested(kind: int, value: bytes) -> bytes:
    return attribute(kind | _NESTED, value)


META_MARK, META_IIFNAME = 3, 6
RT_XFRM = 4
"""Keys of :func:`meta` and :func:`route_key`."""


def meta(key: int) -> Expression:
    """Load a property of the packet."""
    return Expression("meta", attribute(1, _be32(_NFT_REG_1)) + attribute(2, _be32(key)))


def set_mark(mark: int) -> tuple[Expression, Expression]:
    """Give the packet this mark."""
    value = attribute(1, struct.pack("=I", mark))
    return (
        Expression("immediate", attribute(1, _be32(_NFT_REG_1)) + _nested(2, value)),
        Expression("meta", attribute(2, _be32(META_MARK)) + attribute(3, _be32(_NFT_REG_1))),
    )


def route_key(key: int) -> Expression:
    """Load a property of the route that the packet has: with RT_XFRM one byte, whether IPsec is to transform it."""
    return Expression("rt", attribute(1, _be32(_NFT_REG_1)) + attribute(2, _be32(key)))


NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
"""What :func:`payload` counts from."""


def payload(base: int, offset: int, length: int) -> Expression:
    """Load bytes of the packet. A fragment without that header fits no rule that asks for it."""
    return _load(_NFT_REG_1, base, offset, length)


def _load(*asked: int) -> Expression:
    return Expression("payload", b"".join(attribute(kind, _be32(value)) for kind, value in enumerate(asked, start=1)))


def in_pairs(name: str, offsets: tuple[int, int]) -> tuple[Expression, ...]:
    """Go on only if the addresses at these places of the network header are a pair of that set."""
    loads = [(_NFT_REG32_00 + number, NETWORK_HEADER, place, _ADDRESS_BYTES) for number, place in enumerate(offsets)]
    found = attribute(1, _text(name)) + attribute(2, _be32(_NFT_REG32_00))
    return (*(_load(*load) for load in loads), Expression("lookup", found))


def masked(mask: bytes) -> Expression:
    """Leave these bits of what was loaded."""
    numbers = (_NFT_REG_1, _NFT_REG_1, len(mask))
    fields = b"".join(attribute(kind, _be32(value)) for kind, value in enumerate(numbers, start=1))
    bits = (_nested(kind, attribute(1, value)) for kind, value in ((4, mask), (5, bytes(len(mask)))))
    return Expression("bitwise", fields + b"".join(bits))


def equals(value: bytes) -> Expression:
    """Go on only if what was loaded is this."""
    return _compared(0, value)


def differs(value: bytes) -> Expression:
    """Go on only if what was loaded is something else."""
    return _compared(1, value)


def _compared(how: int, value: bytes) -> Expression:
    data = _nested(3, attribute(1, value))
    return Expression("cmp", attribute(1, _be32(_NFT_REG_1)) + attribute(2, _be32(how)) + data)


_VERDICT_RETURN = -5 & 0xFFFFFFFF
RETURN = Expression("immediate", attribute(1, _be32(0)) + _nested(2, _nested(2, attribute(1, _be32(_VERDICT_RETURN)))))
"""Go no further in this chain: what follows does not concern the packet."""


class NfTables:
    """A conversation with the kernel's nf_tables in this network namespace. Raises IpsecGwError if it has none."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
            self._socket.bind((0, 0))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BYTES)
        except OSError as error:
            raise _refused(error.errno or 0) from None
        self._socket.settimeout(_ANSWER_SECONDS)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def put(self, table: Table) -> None:
        """Put the table in place, in the place of one with its name, in one step."""
        parts = [(_NEW_TABLE, _CREATE, _name(table)), (_DELETE_TABLE, 0, _name(table)), *_messages_of(table)]
        self._commit(table.family, parts)

    def remove(self, table: Table) -> None:
        """Take a table away, with all that is in it. One that is not there is fine."""
        self._commit(table.family, [(_NEW_TABLE, _CREATE, _name(table)), (_DELETE_TABLE, 0, _name(table))])

    def holds(self, table: Table) -> bool:
        """Whether all rules of the table are in place, and no others in it; and so what is in its sets."""
        return self.has_rules(table) and all(self._has_pairs(table, one) for one in table.sets)

    def has_rules(self, table: Table) -> bool:
        """Whether all rules of the table are in place, and no others in it."""
        wanted = [(chain.name, table.recipe(chain, n)) for chain in table.chains for n in range(len(chain.rules))]
        return sorted(self._rules(table)) == sorted(wanted)

    def alter(self, table: Table, former: Table) -> None:
        """Change what is in the sets of a table, whose rules are in place, from what it was before."""
        parts: list[tuple[int, int, bytes]] = []
        for before, after in zip(former.sets, table.sets, strict=True):
            parts += _elements(_DELETE_ELEMENTS, 0, table, before.name, before.pairs - after.pairs)
            parts += _elements(_NEW_ELEMENTS, _CREATE, table, after.name, after.pairs - before.pairs)
        if parts:
            self._commit(table.family, parts)

    def _has_pairs(self, table: Table, which: Pairs) -> bool:
        for _ in range(_READINGS):
            found = self._pairs(table, which)
            if not found < which.pairs:
                return found == which.pairs
        return False

    def _pairs(self, table: Table, which: Pairs) -> frozenset[bytes]:
        body = attribute(_ELEMENTS_TABLE, _text(table.name)) + attribute(_ELEMENTS_SET, _text(which.name))
        self._send([self._message(_SUBSYSTEM | _GET_ELEMENTS, NLM_F_DUMP, body, table.family)])
        found = set()
        for answer in self._answers():
            listed = _attributes(answer[HEADER.size + _FAMILY.size :]).get(_ELEMENTS, b"")
            for element in _list(listed):
                found.add(_attributes(_attributes(element).get(1, b"")).get(1, b""))
        return frozenset(found)

    def _rules(self, table: Table) -> Iterator[tuple[str, bytes]]:
        body = attribute(_RULE_TABLE, _text(table.name))
        self._send([self._message(_SUBSYSTEM | _GET_RULE, NLM_F_DUMP, body, table.family)])
        for answer in self._answers():
            found = _attributes(answer[HEADER.size + _FAMILY.size :])
            if found.get(_RULE_TABLE) == _text(table.name):
                chain = found.get(_RULE_CHAIN, b"").rstrip(b"\0").decode("utf-8", "replace")
                yield chain, found.get(_RULE_USERDATA, b"")

    def _commit(self, family: int, parts: Sequence[tuple[int, int, bytes]]) -> None:
        """One transaction: all of it or nothing."""
        begin = self._message(_BATCH_BEGIN, 0, b"", resource=_SUBSYSTEM >> 8)
        bodies = [self._message(_SUBSYSTEM | kind, flags, body, family) for kind, flags, body in parts[:-1]]
        kind, flags, body = parts[-1]
        bodies.append(self._message(_SUBSYSTEM | kind, flags | NLM_F_ACK, body, family))
        last = self._sequence
        end = self._message(_BATCH_END, 0, b"", resource=_SUBSYSTEM >> 8)
        self._send([begin, *bodies, end])
        self._answers_to(last)

    def _message(self, kind: int, flags: int, body: bytes, family: int = 0, resource: int = 0) -> bytes:
        self._sequence += 1
        content = _FAMILY.pack(family, 0, resource) + body
        return HEADER.pack(HEADER.size + len(content), kind, NLM_F_REQUEST | flags, self._sequence, 0) + content

    def _send(self, messages: list[bytes]) -> None:
        try:
            self._socket.send(b"".join(messages))
        except OSError as error:
            raise _refused(error.errno or 0) from None

    def _answers_to(self, last: int) -> None:
        """Wait for the acknowledgement of the batch's last part; an error of any part comes before it."""
        while True:
            for kind, sequence, raw in self._receive():
                if kind == NLMSG_ERROR:
                    if code := _code(raw):
                        raise _refused(code)
                    if sequence == last:
                        return

    def _answers(self) -> Iterator[bytes]:
        while True:
            for kind, sequence, raw in self._receive():
                if sequence != self._sequence:
                    continue
                if kind in {NLMSG_ERROR, NLMSG_DONE}:
                    if code := _code(raw):
                        raise _refused(code)
                    return
                yield raw

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        try:
            datagram = self._socket.recv(_RECEIVE_BYTES)
        except OSError as error:  # a time-out is one
            raise _refused(error.errno or errno.ETIMEDOUT) from None
        with _readable():
            yield from messages(datagram)


class Tables:
    """The kernel's tables, each change by itself."""

    def keep(self, table: Table) -> None:
        """In place, and one without rules not there at all. Raises IpsecGwError."""
        with contextlib.closing(NfTables()) as kernel:
            if not table.has_rules:
                kernel.remove(table)
            elif not kernel.holds(table):
                kernel.put(table)

    def change(self, table: Table, former: Table) -> None:
        """The same, of one that was as ``former`` when it was last seen to: what is in its sets is not looked at, and
        only what differs there is told to the kernel. Raises IpsecGwError.
        """
        with contextlib.closing(NfTables()) as kernel:
            if table.has_rules and table.chains == former.chains and kernel.has_rules(table):
                kernel.alter(table, former)
                return
        self.keep(table)


def _messages_of(table: Table) -> Iterator[tuple[int, int, bytes]]:
    yield _NEW_TABLE, _CREATE, _name(table)
    for number, one in enumerate(table.sets, start=1):
        body = attribute(_SET_TABLE, _text(table.name)) + attribute(_SET_NAME, _text(one.name))
        numbers = ((_SET_KEY_TYPE, _TWO_ADDRESSES), (_SET_KEY_BYTES, 2 * _ADDRESS_BYTES), (_SET_ID, number))
        yield _NEW_SET, _CREATE, body + b"".join(attribute(kind, _be32(value)) for kind, value in numbers)
        yield from _elements(_NEW_ELEMENTS, _CREATE, table, one.name, one.pairs)
    for chain in table.chains:
        hook = attribute(1, _be32(chain.hook)) + attribute(2, struct.pack(">i", chain.priority))
        body = attribute(_CHAIN_TABLE, _text(table.name)) + attribute(_CHAIN_NAME, _text(chain.name))
        yield _NEW_CHAIN, _CREATE, body + _nested(_CHAIN_HOOK, hook) + attribute(_CHAIN_TYPE, _text(chain.kind))
        for number, rule in enumerate(chain.rules):
            listed = b"".join(_nested(1, attribute(1, _text(e.name)) + _nested(2, e.attributes)) for e in rule)
            body = attribute(_RULE_TABLE, _text(table.name)) + attribute(_RULE_CHAIN, _text(chain.name))
            body += _nested(_RULE_EXPRESSIONS, listed) + attribute(_RULE_USERDATA, table.recipe(chain, number))
            yield _NEW_RULE, _CREATE | _APPEND, body


def _elements(
    kind: int, flags: int, table: Table, name: str, pairs: frozenset[bytes]
) -> Iterator[tuple[int, int, bytes]]:
    whole = attribute(_ELEMENTS_TABLE, _text(table.name)) + attribute(_ELEMENTS_SET, _text(name))
    ordered = sorted(pairs)
    for start in range(0, len(ordered), _ELEMENTS_AT_A_TIME):
        some = ordered[start : start + _ELEMENTS_AT_A_TIME]
        listed = b"".join(_nested(1, _nested(1, attribute(1, pair))) for pair in some)
        yield kind, flags, whole + _nested(_ELEMENTS, listed)


def _name(table: Table) -> bytes:
    return attribute(_TABLE_NAME, _text(table.name))


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


def _attributes(raw: bytes) -> dict[int, bytes]:
    with _readable():
        return {kind & ~_NESTED: value for kind, value in attributes(raw)}


def _list(raw: bytes) -> list[bytes]:
    with _readable():
        return [value for _, value in attributes(raw)]


def _code(raw: bytes) -> int:
    with _readable():
        return error_code(raw)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except ValueError:
        raise _refused(errno.EBADMSG) from None


def _refused(code: int) -> IpsecGwError:
    return IpsecGwError(f"nf_tables: {os.strerror(code)} - is the module nf_tables there? see `nft list ruleset`")
