"""Mobike: a gateway's outer address changes under traffic (RFC 4555), first the peer's, then our own.

Charon moves the SAs, keys and numbers go on. A used key never comes to the engine for another destination: the kernel
carries such a tunnel behind the engine's number until a rekey brings it back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from ipaddress import IPv4Address

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.kernel_sas import dump
from ipsec_gw.lab.matrix.case import Connection
from ipsec_gw.lab.netns import set_sysctl
from ipsec_gw.lab.oracle import EspPacket
from ipsec_gw.lab.process import run as call
from ipsec_gw.lab.scenarios.failover import flowing
from ipsec_gw.lab.scenarios.tale import Tale, tell
from ipsec_gw.lab.scenarios.tunnel import (
    REKEY_SECONDS,
    Story,
    follow,
    lossless,
    only_new,
    packets,
    spis,
)
from ipsec_gw.lab.scenarios.verdicts import Evidence, Judged, few
from ipsec_gw.lab.topology import WAN, Role
from ipsec_gw.lab.traffic import until

THERE = {Role.GATEWAY_A: IPv4Address("10.0.0.4"), Role.GATEWAY_B: IPv4Address("10.0.0.3")}
"""Where they move to."""

ASKED = "asked charon for a rekey"
"""As the daemon's log has it."""

MOVES = (
    (Role.GATEWAY_B, "away"),
    (Role.GATEWAY_A, "away"),
    (Role.GATEWAY_B, "back"),
    (Role.GATEWAY_A, "back"),
)


async def _play(story: Story, evidence: Evidence) -> None:
    for role in THERE:
        # Otherwise an address takes all that came after it along.
        set_sysctl(story.lab.topology.namespace(role), f"net/ipv4/conf/{WAN}/promote_secondaries", "1")
    earlier = {packet.spi for packet in packets(story)} - spis(story)
    for role, way in MOVES:
        await _move(story, evidence, role, way)
    _judge_keys(story, [packet for packet in packets(story) if packet.spi not in earlier])


async def _move(story: Story, evidence: Evidence, role: Role, way: str) -> None:
    """The address goes, another one comes; charon follows, and then the engine."""
    lab, gateway, name = story.lab, story.gateway, f"{role} goes {way}"
    home, away = lab.topology.address(role, WAN), THERE[role]
    before, after = (home, away) if way == "away" else (away, home)
    await flowing(story)
    old, marks = spis(story), [flow.next for flow in story.flows]
    asked = gateway.said(ASKED) if gateway else 0
    with lab.step(f"{name}: from {before} to {after}"):
        await _readdress(lab, role, before, after)
        await until(partial(_moved, story, after), REKEY_SECONDS, "SAs with the new address")
    with lab.step(f"{name}: carried again"):
        await follow(story, evidence, 2)
        await flowing(story)
        if gateway is not None and (role is Role.GATEWAY_B or gateway.said(ASKED) > asked):
            await until(partial(only_new, story, old), REKEY_SECONDS, "new SAs alone")
            await follow(story, evidence, 2)
    if gateway is not None:
        _judge_keys_of(story, role, name, old, gateway.said(ASKED) - asked)
    for flow, mark in zip(story.flows, marks, strict=True):
        lab.note(f"{flow.source} -> {flow.destination}, {name}: {flow.tally(mark, flow.next - 2)}")
    marks = [flow.next for flow in story.flows]
    await flowing(story)
    await lossless(story, story.flows, marks, f"after {name}")


def _judge_keys_of(story: Story, role: Role, name: str, old: frozenset[int], asked: int) -> None:
    """To another address of the peer the engine sends with a fresh key alone; our own it takes over in place, unless it
    was seen without its SAs between.
    """
    kept = spis(story) & old
    if role is Role.GATEWAY_B or asked:
        story.lab.check(f"{name}: charon is asked for a rekey", asked > 0, "once or more", asked)
        story.lab.check(f"{name}: the engine has fresh keys", not kept, "no old SPI", few(sorted(kept)))
    story.lab.note(f"{name}: {len(kept)} of {len(old)} SAs go on in the engine, {asked} rekeys were asked for")


async def _readdress(lab: Lab, role: Role, before: IPv4Address, after: IPv4Address) -> None:
    lines = (f"addr add {after}/24 dev {WAN}", f"addr del {before}/24 dev {WAN}")
    await call(["ip", "-n", lab.topology.namespace(role), "-batch", "-"], stdin="\n".join(lines) + "\n")


def _moved(story: Story, address: IPv4Address) -> bool:
    """Whether all SAs have it."""
    now = dump(story.a.site.namespace)
    return len(now) >= 2 and all(address in (sa.source, sa.destination) for sa in now)


def _judge_keys(story: Story, carried: Sequence[EspPacket]) -> None:
    """Numbers and nonces belong to a key, wherever its packets go."""
    sent = {(packet.spi, packet.sequence, packet.iv, packet.payload) for packet in carried}
    numbers = Counter((spi, number) for spi, number, *_ in sent)
    nonces = Counter((spi, iv) for spi, _, iv, _ in sent)
    twice = [f"{spi:08x} {what!r}" for used in (numbers, nonces) for (spi, what), count in used.items() if count > 1]
    name = "no number and no nonce is used twice with a key, whatever its addresses"
    story.lab.check(name, bool(carried) and not twice, "every one once", few(twice) if twice else len(carried))


_ROAMED = Judged(
    taken_over=True,
    lossy=True,
    gaps=True,
    roamed=(frozenset({THERE[Role.GATEWAY_A]}), frozenset({THERE[Role.GATEWAY_B]})),
)
TALE = Tale("mobike", Connection(), _play, judged=_ROAMED)


async def run(lab: Lab) -> None:
    """Play it."""
    await tell(lab, TALE)
