"""Where a packet of a flow that did not arrive was seen, in words: what a failed check needs to be understood."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from ipsec_gw.lab.capture import Frame, esp_of
from ipsec_gw.lab.kernel_sas import KernelSa
from ipsec_gw.lab.scenarios.tunnel import Story
from ipsec_gw.lab.traffic import UdpFlow
from ipsec_gw.lab.wire import SaIndex, open_all

PATIENCE = 10.0
"""Seconds after which a packet is not looked for on the WAN any more."""


def whereabouts(story: Story, flow: UdpFlow, number: int) -> str:
    """Every place where the captures have that packet, in the order of time."""
    story.drain()
    lans, wan = (
        list(chain.from_iterable(one.frames for one in captures.captures)) for captures in (story.lans, story.wan)
    )
    sas = {index: sa for diary in story.diaries for index, sa in diary.all().items()}
    return f"packet {number}: {places(flow.payload(number), lans, wan, sas)}"


def places(payload: bytes, lans: Iterable[Frame], wan: Iterable[Frame], sas: Mapping[SaIndex, KernelSa]) -> str:
    """The same of what carries that payload, in clear in ``lans`` and as ESP in ``wan``."""
    seen = [(frame.when, _way(frame)) for frame in lans if payload in frame.data]
    if not seen:
        return "never sent"
    sent = min(when for when, _ in seen)
    seen += _as_esp(payload, [frame for frame in wan if sent <= frame.when <= sent + PATIENCE], sas)
    return "; ".join(f"{words} after {(when - sent) * 1000:.0f} ms" for when, words in sorted(seen))


def _as_esp(payload: bytes, frames: Iterable[Frame], sas: Mapping[SaIndex, KernelSa]) -> Iterator[tuple[float, str]]:
    for frame in frames:
        packet = esp_of(frame)
        if packet is not None and any(payload in one.inner for one in open_all([packet], sas).opened):
            yield frame.when, f"{_way(frame)} as {packet.spi:08x} number {packet.sequence}"


def _way(frame: Frame) -> str:
    return f"{'out of' if frame.outgoing else 'into'} {frame.interface}"
