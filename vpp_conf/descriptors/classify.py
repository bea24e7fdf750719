"""Selector checks and the way around the FIB's TTL decrement (``vnet/classify``, ``vnet/ip/ip_punt_drop.h``).

Decrypted packets must fit the selectors of their tunnel and leave with the TTL (or hop limit) they came with. Both are
had by an input classifier on the interface: a packet whose source and destination fit goes to ``ip4-punt`` or
``ip6-punt``, where a redirect sends it on (a redirected packet counts as locally originated, so no TTL is taken); any
other is dropped and counted by ``ip4-inacl`` or ``ip6-inacl``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from ipsec_gw.model.ids import IpAddress
from ipsec_gw.model.objects import Selector
from vpp_conf.api import VppApi
from vpp_conf.descriptors.base import NO_INDEX, Descriptor, Reference, to_path

VECTOR_BYTES = 16
VERSIONS = (4, 6)

CURRENT_DATA = 1
"""``CLASSIFY_FLAG_USE_CURR_DATA``: match from where the IP header is now, not from the start of the buffer."""

DENY = 0
"""``ACL_NEXT_INDEX_DENY``."""

CARRY_ON = 0xFFFF
"""Next index of what goes on along the feature arc: VPP keeps 16 bits of it."""

SET_IP4_FIB = 1
"""``CLASSIFY_API_ACTION_SET_IP4_FIB_INDEX``."""

TABLE_BYTES = 64 * 1024
ROOMY_BYTES, ROOMY_BUCKETS = 16 << 20, 4096
"""Address space: VPP touches no more of it than sessions take."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a classifier sees of an IP header: where its parts are, and how many vectors hold them and the ports."""

    source_offset: int
    protocol_offset: int
    ports_offset: int
    vectors: int

    def bytes_of(self, source: bytes, destination: bytes, protocol: int = 0, ports: bytes = b"") -> bytearray:
        """The vectors with these bytes at their places and zeros elsewhere."""
        found = bytearray(self.vectors * VECTOR_BYTES)
        found[self.source_offset : self.source_offset + len(source + destination)] = source + destination
        found[self.protocol_offset] = protocol
        found[self.ports_offset : self.ports_offset + len(ports)] = ports
        return found


HEADERS = {
    4: Header(source_offset=12, protocol_offset=9, ports_offset=20, vectors=2),
    6: Header(source_offset=8, protocol_offset=6, ports_offset=40, vectors=3),
}

_LENGTH_MASK, _LENGTH = 0x0F, 5
"""Of an IPv4 header without options, in units of 4 bytes."""

FRAGMENT_MASK = b"\x3f\xff"
"""More fragments and the offset (IPv4, bytes 6 and 7): a fragment has no ports."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Mask and match of a classifier session."""

    mask: bytes
    match: bytes


def rule_of(selector: Selector) -> Rule:
    """The session for an inbound selector. All IPv4 headers are of one length: :meth:`CheckDescriptor.drop_options`."""
    header = HEADERS[selector.source.version]
    ports = (selector.source_port, selector.destination_port)
    mask = header.bytes_of(
        selector.source.netmask.packed,
        selector.destination.netmask.packed,
        0xFF if selector.protocol else 0,
        b"".join(port.mask.to_bytes(2, "big") for port in ports),
    )
    addresses = selector.source.network_address.packed, selector.destination.network_address.packed
    match = header.bytes_of(
        *addresses, selector.protocol, b"".join((port.port & port.mask).to_bytes(2, "big") for port in ports)
    )
    if selector.ported and selector.source.version == VERSIONS[0]:
        mask[6:8] = FRAGMENT_MASK
    return Rule(bytes(mask), bytes(match))


@dataclass(frozen=True, slots=True)
class Pair:
    """A number of VPP's for each IP version."""

    ip4: int
    ip6: int

    def of(self, version: int) -> int:
        """The one of this version."""
        return self.ip4 if version == 4 else self.ip6


async def punt_next_indices(api: VppApi) -> Pair:
    """The arcs from the input classifiers to the punt nodes; asking again gives the same numbers."""
    arcs = [
        int((await api.call("add_node_next", node_name=f"ip{v}-inacl", next_name=f"ip{v}-punt")).next_index)
        for v in VERSIONS
    ]
    return Pair(*arcs)


@dataclass(frozen=True, slots=True)
class Chains:
    """Classifier tables of an interface in the order of the chain, by IP version."""

    ip4: tuple[int, ...] = ()
    ip6: tuple[int, ...] = ()

    def of(self, version: int) -> tuple[int, ...]:
        """Those of this version."""
        return self.ip4 if version == 4 else self.ip6

    @property
    def whole(self) -> bool:
        """Nothing passes unseen."""
        return bool(self.ip4 and self.ip6)


@dataclass(frozen=True, slots=True)
class Diversion:
    """IPv4 packets that fit ``match`` under ``mask`` go to this next index of the classifier's node, without
    ``advance`` bytes at their beginning. Whoever looks there for their FIB finds ``table``, which VPP does not tell.
    """

    mask: bytes
    match: bytes
    following: int
    advance: int = 0
    table: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Check:
    """Which packets pass an interface's input: those that fit one of ``selectors`` and none of ``exceptions``, as they
    come in. Of those, ``diversions`` have some.

    ``shut`` are tables that let nothing pass, shared by all interfaces: they stand for an IP version without selectors.
    None: whatever no selector is there for passes.
    """

    sw_if_index: int
    selectors: frozenset[Selector]
    punts: Pair
    shut: Pair | None
    chains: Chains = field(default=Chains(), compare=False)
    exceptions: frozenset[Selector] = frozenset()
    diversions: frozenset[Diversion] = frozenset()


class CheckDescriptor(Descriptor[Check]):
    """Input checks of interfaces."""

    kind = "check"

    async def create(self, value: Check) -> Check:
        made = await self._with_tables(value)
        try:
            await self.attach(made, is_add=True)
        except BaseException:
            await self._drop_tables(made)
            raise
        return made

    async def update(self, old: Check, new: Check) -> Check:
        """The new tables are ready before the old ones go: VPP takes none where there are some, without a word. What
        comes in that moment is not delivered.
        """
        if self.equal(old, new):
            return old
        made = await self._with_tables(new)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._drop_tables, made)
            await self.attach(old, is_add=False)
            undo.push_async_callback(self.attach, old, is_add=True)
            await self.attach(made, is_add=True)
            undo.pop_all()
        await self._drop_tables(old)
        return made

    async def delete(self, value: Check) -> None:
        await self.attach(value, is_add=False)
        await self._drop_tables(value)

    async def retrieve(self) -> tuple[Check, ...]:
        """VPP tells tables per interface only one by one: see :meth:`chains_of`."""
        return ()

    async def chains_of(self, sw_if_index: int) -> Chains:
        """The chains of tables on an interface's input."""
        reply = await self._api.call("classify_table_by_interface", sw_if_index=sw_if_index)
        return Chains(await self._chain(reply.ip4_table_id), await self._chain(reply.ip6_table_id))

    async def diversions_of(self, chains: Chains, mask: bytes) -> frozenset[Diversion]:
        """Those of this mask, without FIB tables."""
        found: list[Diversion] = []
        for table in chains.ip4:
            if bytes((await self._api.call("classify_table_info", table_id=table)).mask) == mask:
                sessions = await self._api.dump("classify_session_dump", table_id=table)
                found += [Diversion(mask, bytes(one.match), one.hit_next_index, one.advance) for one in sessions]
        return frozenset(found)

    async def shut_tables(self, sw_if_index: int) -> Pair:
        """Tables that let nothing pass, made if this interface does not have them yet."""
        held = await self.chains_of(sw_if_index)
        if not held.whole:
            tables = [await self.add_table(bytes(HEADERS[v].bytes_of(b"", b"")), NO_INDEX, DENY) for v in VERSIONS]
            held = Chains((tables[0],), (tables[1],))
            await self.attach(Check(sw_if_index, frozenset(), Pair(0, 0), None, held), is_add=True)
        return Pair(held.ip4[0], held.ip6[0])

    async def drop_options(self) -> None:
        """Drop IPv4 packets with options that are to be punted: VPP takes them to ``ip4-punt`` before the input
        features of their interface, so that no selector is asked (``ip4_input.c``, ``ip4_options.c``).
        """
        if (await self._api.call("punt_acl_get")).ip4_table_index != NO_INDEX:
            return  # of an earlier life
        header = HEADERS[VERSIONS[0]]
        mask, match = header.bytes_of(b"", b""), header.bytes_of(b"", b"")
        mask[0], match[0] = _LENGTH_MASK, _LENGTH
        table = await self.add_table(bytes(mask), NO_INDEX, DENY)
        try:
            await self.add_session(table, bytes(match), NO_INDEX)
            await self._api.call("punt_acl_add_del", ip4_table_index=table, ip6_table_index=NO_INDEX, is_add=True)
        except BaseException:
            await self.drop([table])
            raise

    def depends_on(self, value: Check) -> tuple[Reference, ...]:
        return (Reference("interface", value.sw_if_index), Reference("redirect", value.sw_if_index))

    async def _chain(self, first: int) -> tuple[int, ...]:
        chain: list[int] = []
        index = first
        while index != NO_INDEX:
            chain.append(index)
            index = (await self._api.call("classify_table_info", table_id=index)).next_table_index
        return tuple(chain)

    async def _with_tables(self, value: Check) -> Check:
        """The check with tables for both IP versions."""
        ip4 = await self._make_chain(value, 4)
        try:
            ip6 = await self._make_chain(value, 6)
        except BaseException:
            await self._drop_tables(replace(value, chains=Chains(ip4)))
            raise
        return replace(value, chains=Chains(ip4, ip6))

    async def _make_chain(self, value: Check, version: int) -> tuple[int, ...]:
        """One table per mask, chained, those of exceptions first, then those of diversions; without selectors the shut
        one, or one that lets all pass.
        """
        header, hit = HEADERS[version], value.punts.of(version)
        if not any(s.source.version == version for s in value.selectors):
            if value.shut is not None:
                return (value.shut.of(version),)
            return (await self.add_table(bytes(header.bytes_of(b"", b"")), NO_INDEX, hit),)
        rules = rules_of(value, version)
        made: list[int] = []
        try:
            # From the end of the chain to its beginning.
            for turn, mask in sorted({(turn, rule.mask) for turn, rule in rules}, reverse=True):
                made.insert(0, await self.add_table(mask, made[0] if made else NO_INDEX, DENY))
                for rule in (rule for its, rule in rules if (its, rule.mask) == (turn, mask)):
                    await self.add_session(made[0], rule.match, rule.following, rule.advance, rule.table)
        except BaseException:
            await self._drop_tables(replace(value, chains=Chains(tuple(made)), shut=None))
            raise
        return tuple(made)

    async def add_table(self, mask: bytes, following: int, miss: int, *, roomy: bool = False) -> int:
        """A table of this mask and what is asked after it; a ``roomy`` one for tens of thousands of sessions."""
        reply = await self._api.call(
            "classify_add_del_table",
            is_add=True,
            del_chain=False,
            table_index=NO_INDEX,
            nbuckets=ROOMY_BUCKETS if roomy else 2,
            memory_size=ROOMY_BYTES if roomy else TABLE_BYTES,
            skip_n_vectors=0,
            match_n_vectors=len(mask) // VECTOR_BYTES,
            next_table_index=following,
            miss_next_index=miss,
            current_data_flag=CURRENT_DATA,
            current_data_offset=0,
            mask_len=len(mask),
            mask=mask,
        )
        return int(reply.new_table_index)

    async def follow(self, table: int, following: int) -> None:
        """Have another table asked after this one, ``NO_INDEX`` for none."""
        await self._api.call(
            "classify_add_del_table",
            is_add=True,
            del_chain=False,
            table_index=table,
            nbuckets=0,
            memory_size=0,
            skip_n_vectors=0,
            match_n_vectors=0,
            next_table_index=following,
            miss_next_index=0,
            current_data_flag=CURRENT_DATA,
            current_data_offset=0,
            mask_len=0,
            mask=b"",
        )

    async def add_session(
        self, table: int, match: bytes, hit: int, advance: int = 0, fib_table: int | None = None
    ) -> None:
        """What fits goes to this next index, ``advance`` bytes shorter and looked up in that FIB table, if one is
        named; over one that is there already it takes its place.
        """
        await self._session(table, match, hit, advance, fib_table, is_add=True)

    async def delete_session(self, table: int, match: bytes) -> None:
        """Raises EngineError if it is not there."""
        await self._session(table, match, 0, is_add=False)

    async def _session(
        self, table: int, match: bytes, hit: int, advance: int = 0, fib_table: int | None = None, *, is_add: bool
    ) -> None:
        await self._api.call(
            "classify_add_del_session",
            is_add=is_add,
            table_index=table,
            hit_next_index=hit,
            opaque_index=NO_INDEX,
            advance=advance,
            action=0 if fib_table is None else SET_IP4_FIB,
            metadata=fib_table or 0,
            match_len=len(match),
            match=match,
        )

    async def attach(self, value: Check, *, is_add: bool) -> None:
        """The tables of a check to its interface, or detach them. What was made half may lack a chain."""
        if value.chains == Chains():
            return
        await self._api.call(
            "input_acl_set_interface",
            sw_if_index=value.sw_if_index,
            ip4_table_index=next(iter(value.chains.ip4), NO_INDEX),
            ip6_table_index=next(iter(value.chains.ip6), NO_INDEX),
            l2_table_index=NO_INDEX,
            is_add=is_add,
        )

    async def _drop_tables(self, value: Check) -> None:
        """Those that no other interface has."""
        if value.diversions:
            await self.empty(value.chains)
        for version in VERSIONS:
            shared = () if value.shut is None else (value.shut.of(version),)
            await self.drop([table for table in value.chains.of(version) if table not in shared])

    async def empty(self, chains: Chains) -> None:
        """Delete the sessions of the IPv4 tables: only so VPP lets go of FIB tables that they name."""
        for table in chains.ip4:
            for session in await self._api.dump("classify_session_dump", table_id=table):
                await self.delete_session(table, bytes(session.match))

    async def drop(self, tables: Sequence[int]) -> None:
        """Delete tables that nothing leads to."""
        for table in tables:
            await self._api.call(
                "classify_add_del_table",
                is_add=False,
                del_chain=False,
                table_index=table,
                match_n_vectors=0,
                mask_len=0,
                mask=b"",
            )


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where punted packets of an interface and IP ``version`` go: out of another one by a next hop, or into a FIB
    ``table``.
    """

    rx_sw_if_index: int
    version: int
    tx_sw_if_index: int = NO_INDEX
    next_hop: IpAddress | None = None
    table: int = 0


class RedirectDescriptor(Descriptor[Redirect]):
    """Punt redirects. VPP does not notice a second one for the same interface: never create twice."""

    kind = "redirect"

    async def create(self, value: Redirect) -> Redirect:
        path = to_path(value.version, value.tx_sw_if_index, value.next_hop, value.table)
        await self._add_del(value, [path], is_add=True)
        return value

    async def delete(self, value: Redirect) -> None:
        """There is one for an interface, so no path is told: VPP refuses one by an interface that is gone already."""
        await self._add_del(value, [], is_add=False)

    async def retrieve(self) -> tuple[Redirect, ...]:
        """Without next hops and tables."""
        found: list[Redirect] = []
        for version in VERSIONS:
            details = await self._api.dump("ip_punt_redirect_v2_dump", sw_if_index=NO_INDEX, af=_af(version))
            found += [
                Redirect(detail.punt.rx_sw_if_index, version, detail.punt.paths[0].sw_if_index) for detail in details
            ]
        return tuple(found)

    def depends_on(self, value: Redirect) -> tuple[Reference, ...]:
        if value.next_hop is None:
            return (Reference("interface", value.rx_sw_if_index),)
        return (Reference("interface", value.rx_sw_if_index), Reference("neighbour", value.next_hop))

    async def _add_del(self, value: Redirect, paths: list[dict[str, Any]], *, is_add: bool) -> None:
        await self._api.call(
            "add_del_ip_punt_redirect_v2",
            is_add=is_add,
            punt={
                "rx_sw_if_index": value.rx_sw_if_index,
                "af": _af(value.version),
                "n_paths": len(paths),
                "paths": paths,
            },
        )


def rules_of(value: Check, version: int) -> list[tuple[int, Diversion]]:
    """Where packets of an IP version go, each with its turn: what is asked first has the lowest."""
    diversions = value.diversions if version == VERSIONS[0] else frozenset()
    return [
        *((0, one) for one in _to(value.exceptions, version, DENY)),
        *((1, one) for one in diversions),
        *((2, one) for one in _to(value.selectors, version, value.punts.of(version))),
    ]


def _to(selectors: Iterable[Selector], version: int, following: int) -> list[Diversion]:
    rules = (rule_of(one) for one in selectors if one.source.version == version)
    return [Diversion(rule.mask, rule.match, following) for rule in rules]


def _af(version: int) -> int:
    """``vl_api_address_family_t``."""
    return 0 if version == 4 else 1
