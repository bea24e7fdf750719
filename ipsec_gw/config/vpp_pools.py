"""What a pool of source NAT must be, and how it may be used, for VPP to translate with it, always or at times."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from ipsec_gw.config.context import Context
from ipsec_gw.config.firewall import PoolShape
from ipsec_gw.config.positions import Path
from ipsec_gw.config.problems import Report
from ipsec_gw.model.firewall import SELF, Moves, Pool, PoolEngine
from ipsec_gw.model.ids import IpNetwork

MAX_VPP_ADDRESSES = 256
"""VPP goes through the addresses of all its pools for every new flow (``nat44_ed_in2out.c``)."""

ALL_PORTS = (1024, 65535)
"""What VPP hands out, and nothing else (``ED_USER_PORT_OFFSET``)."""

_XDP_INSTEAD = 'or write engine = "xdp"'


def check_vpp_pool(path: Path, pool: Pool, shape: PoolShape, report: Report) -> bool:
    """Can VPP translate with such a pool? What it cannot do goes to the report."""
    if pool.engine is PoolEngine.XDP:
        return True
    count = int(pool.last) - int(pool.first) + 1
    wrong = [
        (pool.first.version != 4, "addresses", "VPP translates IPv4", "write addresses of IPv4"),
        (
            count < 2,
            "addresses",
            "one address is too few: VPP has some, and XDP the others, for when VPP is away",
            "write two or more",
        ),
        (
            count > MAX_VPP_ADDRESSES,
            "addresses",
            f"{count} addresses are too many for VPP, which goes through them for every new flow",
            f"write {MAX_VPP_ADDRESSES} at most",
        ),
        (shape.ports != ALL_PORTS, "ports", "VPP hands out all ports from 1024 on", "remove ports"),
        (shape.overflow is not None, "overflow", "VPP knows no second pool to ask", "remove overflow"),
        (
            shape.block is not None or shape.subscribers is not None,
            "block",
            "VPP gives no blocks of ports to subscribers",
            "remove block and subscribers",
        ),
        (
            pool.engine is PoolEngine.AUTO and shape.persistent,
            "persistent",
            "VPP and XDP have different addresses, and a source has both in turn",
            "remove persistent",
        ),
    ]
    found = [(key, message, way_out) for is_wrong, key, message, way_out in wrong if is_wrong]
    for key, message, way_out in found:
        report.add((*path, key), message, f"{way_out}, {_XDP_INSTEAD}")
    return not found


def moves_of(path: Path, shape: PoolShape, report: Report) -> Moves | None:
    """When such a pool changes the engine; half of what promotes demotes if nothing is said. None: see the report."""
    given = {field.name: value for field in fields(Moves) if (value := getattr(shape, field.name)) is not None}
    if shape.engine is not PoolEngine.AUTO:
        for name in given:
            report.add(
                (*path, name), "only pools that change the engine have it", 'write engine = "auto", or remove it'
            )
        return None if given else Moves()
    wrong = False
    for what in ("flows", "packets"):
        promote, demote = f"promote_{what}", f"demote_{what}"
        high = given.get(promote, getattr(Moves(), promote))
        low = given.setdefault(demote, high // 2)
        if low >= high:
            wrong = True
            option = demote if getattr(shape, demote) is not None else promote
            report.add((*path, option), f"{demote} {low} is not below {promote} {high}", "leave room between the two")
    return None if wrong else Moves(**given)


def check_engine(pools: Iterable[Pool], engine: str, report: Report) -> None:
    """Of a gateway with an engine that is not VPP."""
    for pool in pools:
        if pool.engine is not PoolEngine.XDP:
            message = f"VPP never translates, the engine of the gateway is {engine}"
            way_out = f'write engine = "auto" or "vpp" under [gateway], {_XDP_INSTEAD}'
            report.add(("nat", "pools", pool.name, "engine"), message, way_out)


class VppPools:
    """How rules use the pools of VPP. What comes back by one is of the zone that its rules lead to, so there is one."""

    def __init__(self, pools: dict[str, Pool], context: Context) -> None:
        self._context = context
        self._pools = [pool for pool in pools.values() if pool.engine is not PoolEngine.XDP]
        self._zones: dict[str, str] = {}

    def check_source(self, path: Path, name: str | None, zone: str | None) -> None:
        """A source NAT rule with that pool, into that zone."""
        if not any(pool.name == name for pool in self._pools) or name is None:
            return
        place: Path = (*path, "to")
        known = {one.name: one for one in self._context.zones}
        if zone is None or zone == SELF:
            self._add(path, f"VPP translates with pool {name}, for flows into one zone", "add to = the zone")
        elif zone in known and known[zone].tunnels:
            self._add(place, f"VPP translates with pool {name}, and zone {zone} has tunnels", "name a pool of XDP")
        elif self._zones.setdefault(name, zone) != zone:
            message = f"VPP translates with pool {name} for flows into zone {self._zones[name]}, and into no other"
            self._add(place, message, "make a pool for each zone")

    def check_nat64(self, path: Path, name: str | None) -> None:
        """A NAT64 rule with that pool."""
        if any(pool.name == name for pool in self._pools):
            self._add(
                (*path, "translate", "pool"), f"VPP translates with pool {name}, IPv4 alone", "name a pool of XDP"
            )

    def check_apart(self, path: Path, network: IpNetwork) -> None:
        """What another rule translates: an address of VPP's is nobody else's."""
        for pool in self._pools:
            first, last = network.network_address, network.broadcast_address
            if first.version == 4 and int(pool.first) <= int(last) and int(first) <= int(pool.last):
                line = self._context.report.line(("nat", "pools", pool.name))
                message = f"{network} shares addresses with pool {pool.name} (line {line}), which are VPP's"
                self._add(path, message, "give the pool other addresses")

    def _add(self, path: Path, message: str, way_out: str) -> None:
        self._context.report.add(path, message, way_out)
