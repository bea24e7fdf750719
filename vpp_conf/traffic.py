"""Traffic per SA from VPP's stats segment, in packets and inner bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ipsec_gw.errors import EngineUnavailable
from ipsec_gw.model.ids import SaKey
from vpp_conf.descriptors.sa import SadEntry
from vpp_conf.stats import Combined, StatsSegment

TRAILER_BYTES = 2
ICV_BYTES = 16
SPI_SEQUENCE_IV_BYTES = 16
"""ESP of the AEADs here: SPI 4, sequence number 4, IV 8 in front; pad length and next header, ICV behind."""

TRAFFIC = "/net/ipsec/sa"
RECEIVED = "/if/rx"
FAILED = ("/net/ipsec/sa/err/decryption_failed", "/net/ipsec/sa/err/integ_error")


class Traffic(NamedTuple):
    """Authentic packets, and their bytes as inner IP packets."""

    packets: int
    octets: int


class TrafficReader:
    """Reads one VPP's counters without asking VPP, also when it has died: the mapping keeps its memory alive."""

    def __init__(self) -> None:
        self._segment: StatsSegment | None = None

    def open(self, socket: Path) -> None:
        """Map the segment of the VPP that serves this socket now. Raises EngineUnavailable."""
        self._segment = StatsSegment(socket)  # an earlier mapping goes with its last reader

    def read(self, entries: Mapping[SaKey, SadEntry]) -> Mapping[SaKey, Traffic]:
        """Traffic of these SAs of that VPP. Raises EngineUnavailable before :meth:`open`, else as the segment."""
        if self._segment is None:
            raise EngineUnavailable("VPP's stats segment is not mapped - open the engine first")
        if not entries:
            return {}  # VPP makes the counters with its first SA
        totals = self._segment.combined(TRAFFIC)
        failures = [self._segment.simple(name) for name in FAILED]
        return {
            key: inner_traffic(
                entry.inbound,
                totals[entry.stat_index] if entry.stat_index < len(totals) else Combined(0, 0),
                sum(vector[entry.stat_index] for vector in failures if entry.stat_index < len(vector)),
            )
            for key, entry in entries.items()
        }

    def received(self) -> int:
        """Packets that came in by all of VPP's interfaces since it started. Raises as :meth:`read`."""
        if self._segment is None:
            raise EngineUnavailable("VPP's stats segment is not mapped - open the engine first")
        return sum(total.packets for total in self._segment.combined(RECEIVED))


def inner_traffic(inbound: bool, total: Combined, failed: int) -> Traffic:
    """What VPP counted as the packets inside.

    Outbound VPP counts inner packet, padding, trailer and ICV; inbound also SPI, sequence number and IV, and packets
    that then fail authentication, which are taken off here (their bytes by the mean size). Padding cannot be told
    apart: the bytes are up to three per packet above the truth.
    """
    if not total.packets:
        return Traffic(0, 0)
    good = max(total.packets - failed, 0) if inbound else total.packets
    overhead = TRAILER_BYTES + ICV_BYTES + (SPI_SEQUENCE_IV_BYTES if inbound else 0)
    return Traffic(good, max(total.octets * good // total.packets - overhead * good, 0))
