"""Security policy databases and their entries (``vnet/ipsec/ipsec.api``), for interfaces of our own.

With and without the fast path (``ipv4-outbound-spd-fast-path`` and the like of startup.conf), but not with flow caches:
that of inbound SPDs looks at addresses without the SPI, and takes the wrong SA during a rekey. In the fast path
``ipsec_spd_dump`` tells nothing: entries are read from what the CLI shows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import ip_address, ip_network

from ipsec_gw.model.ids import IpNetwork
from vpp_conf.descriptors.base import Descriptor, Reference, to_address

ANY_PROTOCOL = 255
"""``IPSEC_POLICY_PROTOCOL_ANY`` of ``spd_entry_v2``."""

ALL_PORTS = (0, 0xFFFF)
NO_SA = 0xFFFFFFFF
LOWEST_PRIORITY = 1
"""Higher ones are tried first, and what has none (0) never matches in the fast path."""

HIGHEST_PRIORITY = 1 << 22
"""Above those of all tunnels; what VPP is told has 8 bits more, and a sign."""


class Action(IntEnum):
    """``vl_api_ipsec_spd_action_t``."""

    BYPASS = 0
    DISCARD = 1
    PROTECT = 3


@dataclass(frozen=True, slots=True)
class Policy:
    """An entry of an SPD. Of those with one priority VPP tries the newest first, or one with a larger protocol number,
    which only the priority tells. An inbound one is found by the SPI of its SA and outer addresses, which ``local`` and
    ``remote`` are.
    """

    spd: int
    outbound: bool
    priority: int
    action: Action
    local: IpNetwork
    remote: IpNetwork
    sad_id: int = NO_SA
    protocol: int = ANY_PROTOCOL
    local_ports: tuple[int, int] = ALL_PORTS
    remote_ports: tuple[int, int] = ALL_PORTS


class PolicyDescriptor(Descriptor[Policy]):
    """Entries. VPP adds one twice if told twice, and deletes what is not there without a word."""

    kind = "policy"

    async def create(self, value: Policy) -> Policy:
        await self._add_del(value, is_add=True)
        return value

    async def delete(self, value: Policy) -> None:
        await self._add_del(value, is_add=False)

    async def retrieve(self) -> tuple[Policy, ...]:
        """Of all SPDs."""
        return parse_policies(await self._api.cli("show ipsec spd"))

    def depends_on(self, value: Policy) -> tuple[Reference, ...]:
        sas = () if value.sad_id == NO_SA else (Reference("sa", value.sad_id),)
        return (Reference("spd", value.spd), *sas)

    async def _add_del(self, value: Policy, *, is_add: bool) -> None:
        await self._api.call(
            "ipsec_spd_entry_add_del_v2",
            is_add=is_add,
            entry={
                "spd_id": value.spd,
                "priority": value.priority << _PROTOCOL_BITS | value.protocol % ANY_PROTOCOL,
                "is_outbound": value.outbound,
                "sa_id": value.sad_id,
                "policy": int(value.action),
                "protocol": value.protocol,
                "local_address_start": to_address(value.local[0]),
                "local_address_stop": to_address(value.local[-1]),
                "remote_address_start": to_address(value.remote[0]),
                "remote_address_stop": to_address(value.remote[-1]),
                "local_port_start": value.local_ports[0],
                "local_port_stop": value.local_ports[1],
                "remote_port_start": value.remote_ports[0],
                "remote_port_stop": value.remote_ports[1],
            },
        )


_PROTOCOL_BITS = 8
"""Of a priority: VPP's CLI shows protocols by names of its own."""

_SHOWN_SPD = re.compile(r"^spd (\d+)\s*$", re.MULTILINE)
_SHOWN_ENDS = "".join(
    rf"\s+{side} addr range (?P<{side}>\S+) - (?P<{side}_last>\S+)"
    rf" port range (?P<{side}_port>\d+) - (?P<{side}_last_port>\d+)"
    for side in ("local", "remote")
)
_SHOWN_POLICY = re.compile(
    r"\[\d+\] priority (?P<priority>\d+) action (?P<action>\w+) type (?P<type>\S+) protocol .*?(?:sa (?P<sa>\d+))?"
    r"(?: <fast-path>)?\s*\n" + _SHOWN_ENDS
)


def parse_policies(text: str) -> tuple[Policy, ...]:
    """Those in ``show ipsec spd``; entries with other actions are nobody's of ours."""
    _, *parts = _SHOWN_SPD.split(text)
    return tuple(
        _policy_of(int(number), shown)
        for number, entries in zip(parts[::2], parts[1::2], strict=True)
        for shown in _SHOWN_POLICY.finditer(entries)
        if shown["action"].upper() in Action.__members__
    )


def _policy_of(spd: int, shown: re.Match[str]) -> Policy:
    priority = int(shown["priority"])
    return Policy(
        spd=spd,
        outbound=shown["type"].endswith("outbound"),
        priority=priority >> _PROTOCOL_BITS,
        action=Action[shown["action"].upper()],
        local=_network(shown["local"], shown["local_last"]),
        remote=_network(shown["remote"], shown["remote_last"]),
        sad_id=NO_SA if shown["sa"] is None else int(shown["sa"]),
        protocol=priority % (1 << _PROTOCOL_BITS) or ANY_PROTOCOL,
        local_ports=(int(shown["local_port"]), int(shown["local_last_port"])),
        remote_ports=(int(shown["remote_port"]), int(shown["remote_last_port"])),
    )


def _network(first: str, last: str) -> IpNetwork:
    """The network that begins and ends so: all ranges of ours are networks."""
    start, stop = ip_address(first), ip_address(last)
    free = (int(start) ^ int(stop)).bit_length()
    return ip_network((start, start.max_prefixlen - free), strict=False)


@dataclass(frozen=True, slots=True)
class Spd:
    """An SPD on an interface, where it judges what is sent and ESP that is received."""

    number: int
    sw_if_index: int = 0


class SpdDescriptor(Descriptor[Spd]):
    """SPDs. VPP takes their entries away with them."""

    kind = "spd"

    async def create(self, value: Spd) -> Spd:
        await self._api.call("ipsec_spd_add_del", is_add=True, spd_id=value.number)
        await self._api.call(
            "ipsec_interface_add_del_spd", is_add=True, sw_if_index=value.sw_if_index, spd_id=value.number
        )
        return value

    async def delete(self, value: Spd) -> None:
        await self._api.call("ipsec_spd_add_del", is_add=False, spd_id=value.number)

    async def retrieve(self) -> tuple[Spd, ...]:
        """Without their interfaces, which VPP tells by a number of its own for the SPD."""
        return tuple(Spd(detail.spd_id) for detail in await self._api.dump("ipsec_spds_dump"))

    def depends_on(self, value: Spd) -> tuple[Reference, ...]:
        return (Reference("interface", value.sw_if_index),)
