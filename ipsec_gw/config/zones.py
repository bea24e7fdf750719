"""Zones and the interfaces in them."""

from __future__ import annotations

from collections.abc import Mapping

from ipsec_gw.config.applications import Applications
from ipsec_gw.config.firewall import ZoneShape
from ipsec_gw.config.limits import MAX_INTERFACES, MAX_ZONES
from ipsec_gw.config.names import check_zone_name
from ipsec_gw.config.positions import Path
from ipsec_gw.config.problems import Refused, Report
from ipsec_gw.config.screens import Profiles
from ipsec_gw.config.section import read
from ipsec_gw.model.firewall import TUNNEL_INTERFACES, Zone

ZONES = "zones"


def resolve_zones(
    raw: Mapping[str, object], applications: Applications, profiles: Profiles, wan: tuple[str, ...], report: Report
) -> tuple[Zone, ...]:
    """The good zones of the file. Every interface is in one zone at most, and those of ``wan`` are in one."""
    interfaces = _Interfaces(report)
    zones = []
    whole = True
    for number, (name, value) in enumerate(raw.items(), 1):
        path: Path = (ZONES, name)
        if number == MAX_ZONES + 1:
            report.add(path, f"{len(raw)} zones are too many", f"{MAX_ZONES} is the most: put interfaces together")
        shape = _shape(path, name, value, report)
        whole = whole and shape is not None
        if shape is None:
            continue
        interfaces.take(path, name, shape.interfaces)
        if shape.tunnels:
            interfaces.take_tunnels(path, name)
        services = applications.lookup((*path, "host_inbound"), shape.host_inbound)
        profiles.check((*path, "screen"), shape.screen)
        options = (shape.syn_check, shape.tcp_reset, shape.tcp_mss, shape.tunnels, shape.screen)
        zones.append(Zone(name, tuple(shape.interfaces), services or (), *options))
    if zones and whole:
        interfaces.check_wan(wan)
    return tuple(zones)


def _shape(path: Path, name: str, value: object, report: Report) -> ZoneShape | None:
    try:
        check_zone_name(name)
    except Refused as refused:
        report.refuse(path, refused)
        return None
    return read(ZoneShape, value, path, report)


class _Interfaces:
    """Who has an interface, and where the file says so."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._owners: dict[str, tuple[str, Path]] = {}
        self._tunnels: tuple[str, Path] | None = None

    def take(self, path: Path, zone: str, names: list[str]) -> None:
        for index, name in enumerate(names):
            place = (*path, "interfaces", index)
            if name in TUNNEL_INTERFACES:
                message = f"{name} comes and goes with the tunnels and is in their zone"
                self._report.add(place, message, "remove it and write tunnels = true in that zone")
                continue
            if name in self._owners:
                owner, first = self._owners[name]
                message = f"{name} is in zone {owner} already (line {self._report.line(first)})"
                self._report.add(place, message, "an interface is in one zone: remove it from one of them")
                continue
            self._owners[name] = (zone, place)
            if len(self._owners) == MAX_INTERFACES + 1:
                self._report.add(place, f"more than {MAX_INTERFACES} interfaces", "remove some")

    def take_tunnels(self, path: Path, zone: str) -> None:
        place = (*path, "tunnels")
        if self._tunnels is None:
            self._tunnels = zone, place
            return
        owner, first = self._tunnels
        message = f"the tunnels are in zone {owner} already (line {self._report.line(first)})"
        self._report.add(place, message, "they are in one zone: remove it from one of them")

    def check_wan(self, wan: tuple[str, ...]) -> None:
        """The firewall drops what comes in by an interface without a zone: IKE on the WAN must not be that."""
        for index, name in enumerate(wan):
            if name not in self._owners:
                message = f"{name} is in no zone: with a firewall, all that arrives there is dropped"
                self._report.add(("gateway", "wan", index), message, "add it to the interfaces of a zone")
