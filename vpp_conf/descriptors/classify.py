"""Selector checks and the way around the FIB's TTL decrement (``vnet/classify``, ``vnet/ip/ip_punt_drop.h``).

Decrypted packets must fit the selectors of their tunnel and leave with the TTL they came with. Both are had by an
input classifier on the interface: a packet whose source and destination fit goes to ``ip4-punt``, where a redirect
sends it on (a redirected packet counts as locally originated, so no TTL is taken); any other is dropped and counted
by ``ip4-inacl``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address

from ipsec_gw.model.objects import Selector
from vpp_conf.api import VppApi
from vpp_conf.descriptors.base import NO_INDEX, Descriptor, Reference, to_path

INPUT_NODE = "ip4-inacl"
PUNT_NODE = "ip4-punt"

VECTOR_BYTES = 16
HEADER_VECTORS = 2
"""Two vectors of 16 bytes cover source (12..15) and destination (16..19) of the IPv4 header."""

SOURCE_OFFSET = 12
CURRENT_DATA = 1
"""``CLASSIFY_FLAG_USE_CURR_DATA``: match from where the IP header is now, not from the start of the buffer."""

DENY = 0
"""``ACL_NEXT_INDEX_DENY``."""

TABLE_BYTES = 64 * 1024


async def punt_next_index(api: VppApi) -> int:
    """The arc from the input classifier to ``ip4-punt``; asking again gives the same number."""
    return int((await api.call("add_node_next", node_name=INPUT_NODE, next_name=PUNT_NODE)).next_index)


@dataclass(frozen=True, slots=True)
class Check:
    """Which packets pass an interface's input: ``selectors`` (source, destination), or all if there are none.

    ``tables`` are VPP's classifier tables in the order of the chain.
    """

    sw_if_index: int
    selectors: frozenset[Selector]
    punt_index: int
    tables: tuple[int, ...] = field(default=(), compare=False)


class CheckDescriptor(Descriptor[Check]):
    """Input checks of interfaces."""

    kind = "check"

    async def create(self, value: Check) -> Check:
        tables = await self._make_tables(value)
        made = Check(value.sw_if_index, value.selectors, value.punt_index, tables)
        try:
            await self._attach(value.sw_if_index, tables[0], is_add=True)
        except BaseException:
            await self._drop_tables(tables)
            raise
        return made

    async def update(self, old: Check, new: Check) -> Check:
        """New tables are in place before the old ones go; VPP takes the new chain over the old one at once."""
        if self.equal(old, new):
            return old
        tables = await self._make_tables(new)
        await self._attach(old.sw_if_index, old.tables[0], is_add=False)
        await self._attach(new.sw_if_index, tables[0], is_add=True)
        await self._drop_tables(old.tables)
        return Check(new.sw_if_index, new.selectors, new.punt_index, tables)

    async def delete(self, value: Check) -> None:
        await self._attach(value.sw_if_index, value.tables[0], is_add=False)
        await self._drop_tables(value.tables)

    async def retrieve(self) -> tuple[Check, ...]:
        """VPP tells tables per interface only one by one: see :meth:`tables_of`."""
        return ()

    async def tables_of(self, sw_if_index: int) -> tuple[int, ...]:
        """The chain of tables on an interface's IPv4 input."""
        reply = await self._api.call("classify_table_by_interface", sw_if_index=sw_if_index)
        chain: list[int] = []
        index = reply.ip4_table_id
        while index != NO_INDEX:
            chain.append(index)
            index = (await self._api.call("classify_table_info", table_id=index)).next_table_index
        return tuple(chain)

    def depends_on(self, value: Check) -> tuple[Reference, ...]:
        return (Reference("interface", value.sw_if_index), Reference("redirect", value.sw_if_index))

    async def _make_tables(self, value: Check) -> tuple[int, ...]:
        """One table per pair of prefix lengths, chained; without selectors one empty table that lets all pass."""
        shapes = sorted({(s.source.prefixlen, s.destination.prefixlen) for s in value.selectors}, reverse=True)
        made: list[int] = []
        try:
            if not shapes:
                made.append(await self._add_table(bytes(HEADER_VECTORS * VECTOR_BYTES), NO_INDEX, value.punt_index))
            for shape in reversed(shapes):
                following = made[0] if made else NO_INDEX
                members = [s for s in value.selectors if (s.source.prefixlen, s.destination.prefixlen) == shape]
                mask = _header(members[0].source.netmask.packed, members[0].destination.netmask.packed)
                made.insert(0, await self._add_table(mask, following, DENY))
                for member in members:
                    match = _header(member.source.network_address.packed, member.destination.network_address.packed)
                    await self._add_session(made[0], match, value.punt_index)
        except BaseException:
            await self._drop_tables(tuple(made))
            raise
        return tuple(made)

    async def _add_table(self, mask: bytes, following: int, miss: int) -> int:
        reply = await self._api.call(
            "classify_add_del_table",
            is_add=True,
            del_chain=False,
            table_index=NO_INDEX,
            nbuckets=2,
            memory_size=TABLE_BYTES,
            skip_n_vectors=0,
            match_n_vectors=HEADER_VECTORS,
            next_table_index=following,
            miss_next_index=miss,
            current_data_flag=CURRENT_DATA,
            current_data_offset=0,
            mask_len=len(mask),
            mask=mask,
        )
        return int(reply.new_table_index)

    async def _add_session(self, table: int, match: bytes, hit: int) -> None:
        await self._api.call(
            "classify_add_del_session",
            is_add=True,
            table_index=table,
            hit_next_index=hit,
            opaque_index=NO_INDEX,
            advance=0,
            action=0,
            metadata=0,
            match_len=len(match),
            match=match,
        )

    async def _attach(self, sw_if_index: int, table: int, *, is_add: bool) -> None:
        await self._api.call(
            "input_acl_set_interface",
            sw_if_index=sw_if_index,
            ip4_table_index=table,
            ip6_table_index=NO_INDEX,
            l2_table_index=NO_INDEX,
            is_add=is_add,
        )

    async def _drop_tables(self, tables: tuple[int, ...]) -> None:
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
    """Where punted packets of an interface go: out of another one by a next hop, or into a FIB ``table``."""

    rx_sw_if_index: int
    tx_sw_if_index: int = NO_INDEX
    next_hop: IPv4Address | None = None
    table: int = 0


class RedirectDescriptor(Descriptor[Redirect]):
    """Punt redirects. VPP does not notice a second one for the same interface: never create twice."""

    kind = "redirect"

    async def create(self, value: Redirect) -> Redirect:
        await self._add_del(value, is_add=True)
        return value

    async def delete(self, value: Redirect) -> None:
        await self._add_del(value, is_add=False)

    async def retrieve(self) -> tuple[Redirect, ...]:
        details = await self._api.dump("ip_punt_redirect_v2_dump", sw_if_index=NO_INDEX, af=0)
        return tuple(Redirect(detail.punt.rx_sw_if_index, detail.punt.paths[0].sw_if_index) for detail in details)

    def depends_on(self, value: Redirect) -> tuple[Reference, ...]:
        if value.next_hop is None:
            return (Reference("interface", value.rx_sw_if_index),)
        return (Reference("interface", value.rx_sw_if_index), Reference("neighbour", value.next_hop))

    async def _add_del(self, value: Redirect, *, is_add: bool) -> None:
        await self._api.call(
            "add_del_ip_punt_redirect_v2",
            is_add=is_add,
            punt={
                "rx_sw_if_index": value.rx_sw_if_index,
                "af": 0,
                "n_paths": 1,
                "paths": [to_path(4, value.tx_sw_if_index, value.next_hop, value.table)],
            },
        )


def _header(source: bytes, destination: bytes) -> bytes:
    """The two vectors of an IPv4 header with these bytes at its addresses and zeros elsewhere."""
    return (bytes(SOURCE_OFFSET) + source + destination).ljust(HEADER_VECTORS * VECTOR_BYTES, b"\0")
