"""The living part of an SA: what changes with every packet. Only the datapath's thread changes it."""

from __future__ import annotations

import secrets

from ipsec_gw.engines.port import Counters
from ipsec_gw.engines.soft.drops import Dropped, DropReason
from ipsec_gw.engines.soft.esp import IV_BYTES, EspPayload, EspTransform, parse_header, strip_trailer
from ipsec_gw.engines.soft.replay import SEQUENCE_SPACE, ReplayWindow
from ipsec_gw.model.objects import EngineSa

_ESN_SPACE = 1 << 64


class _Tally:
    """Packets and inner octets. Octets first: who reads a packet count finds its octets counted."""

    __slots__ = ("_octets", "_packets")

    def __init__(self) -> None:
        self._packets = 0
        self._octets = 0

    def add(self, octets: int) -> None:
        self._octets += octets
        self._packets += 1

    def read(self) -> Counters:
        packets = self._packets
        return Counters(packets=packets, octets=self._octets)


class InboundSa:
    """Window, key and counters of an SA that receives. Raises EngineError for a key that does not fit."""

    __slots__ = ("_tally", "_transform", "_window")

    def __init__(self, sa: EngineSa) -> None:
        self._transform = EspTransform(sa.key.spi, sa.algorithm, sa.secret, sa.salt, esn=sa.esn)
        self._window = ReplayWindow(sa.replay_window, esn=sa.esn)
        self._tally = _Tally()

    def open(self, packet: bytes) -> EspPayload:
        """What an ESP packet carried. Raises Dropped.

        The window moves as soon as the packet proved authentic (RFC 4303 §3.4.3), whatever is found inside.
        """
        number = self._window.check(parse_header(packet).sequence)
        plaintext = self._transform.open(number, packet)
        self._window.accept(number)
        return strip_trailer(plaintext)

    def count(self, octets: int) -> None:
        """One more packet with an inner IP packet of so many bytes."""
        self._tally.add(octets)

    @property
    def counters(self) -> Counters:
        """Traffic since the SA was created."""
        return self._tally.read()

    @property
    def top(self) -> int:
        """The highest sequence number accepted so far, 0 before the first packet."""
        return self._window.top


class OutboundSa:
    """Sequence number, key and counters of an SA that sends. Raises EngineError for a key that does not fit."""

    __slots__ = ("_iv_mask", "_last", "_sequence", "_tally", "_transform")

    def __init__(self, sa: EngineSa) -> None:
        self._transform = EspTransform(sa.key.spi, sa.algorithm, sa.secret, sa.salt, esn=sa.esn)
        self._sequence = 0
        self._last = (_ESN_SPACE if sa.esn else SEQUENCE_SPACE) - 1
        self._iv_mask = secrets.randbits(8 * IV_BYTES)
        self._tally = _Tally()

    def seal(self, payload: EspPayload) -> bytes:
        """The next ESP packet. Raises Dropped (sequence_exhausted)."""
        if self._sequence >= self._last:
            raise Dropped(DropReason.SEQUENCE_EXHAUSTED)
        self._sequence += 1
        # RFC 4106 §3.1 wants an IV that never repeats under a key. The sequence number is that; XOR with a constant
        # keeps it so (a bijection) and keeps the low bits of one SA from telling those of another.
        iv = (self._sequence ^ self._iv_mask).to_bytes(IV_BYTES, "big")
        sealed = self._transform.seal(self._sequence, iv, payload)
        self._tally.add(len(payload.data))
        return sealed

    @property
    def used(self) -> bool:
        """True once the key has encrypted anything."""
        return self._sequence > 0

    @property
    def counters(self) -> Counters:
        """Traffic since the SA was created."""
        return self._tally.read()


LiveSa = InboundSa | OutboundSa
