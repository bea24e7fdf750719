"""NPTv6: the LAN's prefix is another one outside, both ways, and no checksum changes (RFC 6296)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ipsec_gw.lab import edge
from ipsec_gw.lab.capture import IPPROTO_TCP, IPPROTO_UDP, Frame
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.edge import INSIDE6, OUTSIDE6
from ipsec_gw.lab.packets import IPPROTO_ICMPV6, IPV6_BYTES, Packet, TooBig, intact, packet_of
from ipsec_gw.lab.path_mtu import discovered
from ipsec_gw.lab.prefixes import nptv6
from ipsec_gw.lab.scenarios.border import Story, set_up
from ipsec_gw.lab.scenarios.conversations import SIZES, TCP_BYTES, answers_ping, both, finds_mtu, judged, refused
from ipsec_gw.lab.scenarios.edge_rules import CLOSED, nptv6_rules
from ipsec_gw.lab.scenarios.rules import OPEN
from ipsec_gw.lab.talk import Address, tcp, udp
from ipsec_gw.lab.topology import HOST, WAN, Role
from ipsec_gw.lab.traffic import Host

FRAGMENTED = (2000, 4000)
LONGEST_IN = edge.LAN_PATH_MTU - IPV6_BYTES
"""Octets behind an IPv6 header: longer ones to the client are answered by the gateway."""

CHECKSUM_AT = {IPPROTO_TCP: 16, IPPROTO_UDP: 6, IPPROTO_ICMPV6: 2}
ERRORS = 128
"""Types of ICMPv6 below are errors: what they quote has other addresses on the other side."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Who talks. ``outside`` is the client as the WAN knows it, ``inner_outside`` the LAN's other host."""

    client: Host
    inner: Host
    outside: Host
    inner_outside: Host
    router: Host
    server: Host


async def run(lab: Lab) -> None:
    """Play it."""
    story, ends = await set_up(lab, nptv6_rules()), _ends(lab)
    await _path_mtu(story, ends)
    await _outward(story, ends)
    await _inward(story, ends)
    await _counted(story, ends)
    _judge_captures(story, ends)
    with lab.step("ipsec-gw off"):
        await story.gateway.off()


def _ends(lab: Lab) -> Ends:
    client, inner = (lab.host6(role, HOST) for role in (Role.CLIENT, Role.INNER))
    outside, inner_outside = (
        Host(host.namespace, nptv6(lab.topology.address6(role, HOST), INSIDE6, OUTSIDE6))
        for role, host in ((Role.CLIENT, client), (Role.INNER, inner))
    )
    router, server = lab.host6(Role.WAN, edge.TO_GATEWAY), lab.host6(Role.SERVER, HOST)
    lab.note(f"{client} is {outside} outside, {inner} is {inner_outside}")
    return Ends(client, inner, outside, inner_outside, router, server)


async def _path_mtu(story: Story, ends: Ends) -> None:
    """First of all, while nobody knows it."""
    lab, server = story.lab, ends.server
    with lab.step("path MTU discovery"):
        talk = discovered(ends.client, (server.address, OPEN), server)
        await finds_mtu(lab, "path MTU: the client learns it from datagrams", edge.PATH_MTU, talk)
        wanted = TooBig(ends.router.address, edge.PATH_MTU, ends.client.address, server.address)
        errors = story.mtu_errors(story.lan)
        found = "; ".join(map(str, errors)) or "none"
        lab.check("path MTU: the error is about the inside address", errors == {wanted}, str(wanted), found)
        await _path_mtu_inward(story, ends)
        await judged(
            lab,
            "path MTU: a TCP stream goes on",
            f"path MTU {edge.PATH_MTU}",
            tcp(ends.inner, (server.address, OPEN), server, OPEN, size=TCP_BYTES, seed=1),
            lambda heard: (heard.peer, heard.mtu) == (ends.inner_outside.address, edge.PATH_MTU),
        )


async def _path_mtu_inward(story: Story, ends: Ends) -> None:
    """The gateway itself tells it, and speaks of the outside address."""
    lab, server, outside = story.lab, ends.server.address, ends.outside.address
    name = "path MTU: the server learns the one inside"
    await finds_mtu(lab, name, edge.LAN_PATH_MTU, discovered(ends.server, (outside, OPEN), ends.client))
    wanted = TooBig(lab.topology.address6(Role.GATEWAY_A, WAN), edge.LAN_PATH_MTU, server, outside)
    errors = story.mtu_errors(story.wan)
    found = "; ".join(map(str, errors)) or "none"
    lab.check("path MTU: the error is about the outside address", errors == {wanted}, str(wanted), found)


async def _outward(story: Story, ends: Ends) -> None:
    lab, server = story.lab, ends.server
    with lab.step("from the LAN"):
        for name, host, outside in (
            ("client to server", ends.client, ends.outside),
            ("inner host to server", ends.inner, ends.inner_outside),
        ):
            await both(lab, name, host, (server, OPEN), (outside.address,), f"{outside}")
        await judged(
            lab,
            "client to server, fragments",
            f"the server sees {ends.outside}",
            udp(ends.client, (server.address, OPEN), server, OPEN, sizes=FRAGMENTED, seed=2),
            lambda heard: heard.peer == ends.outside.address,
        )
        await answers_ping(lab, "client to server, ICMP", ends.client, server, 1)
        await refused(lab, "client to server, errors come back", ends.client, (server.address, CLOSED))


async def _inward(story: Story, ends: Ends) -> None:
    lab, server, outside = story.lab, ends.server, ends.outside
    called = outside.address, OPEN
    with lab.step("from outside"):
        for protocol, talk in (
            ("TCP", tcp(server, called, ends.client, OPEN, size=TCP_BYTES, seed=3)),
            ("UDP", udp(server, called, ends.client, OPEN, sizes=SIZES, seed=4)),
            ("fragments", udp(server, called, ends.client, OPEN, sizes=FRAGMENTED, seed=5)),
        ):
            name, expected = f"server to client, {protocol}", f"the client sees {server}"
            await judged(lab, name, expected, talk, lambda heard: heard.peer == server.address)
        await answers_ping(lab, "server to client, ICMP", server, outside, 2)
        await refused(lab, "server to client, errors come back", server, (outside.address, CLOSED))


async def _counted(story: Story, ends: Ends) -> None:
    before = (await story.gateway.rules())["campus"]
    talk = udp(ends.client, (ends.server.address, OPEN), ends.server, OPEN, sizes=(64,), seed=6)
    await judged(story.lab, "one more flow", "the same source", talk, lambda heard: heard.peer == ends.outside.address)
    counted = (await story.gateway.rules())["campus"] - before
    story.lab.check("`show firewall` counts it", counted == 1, "1 first packet", counted)


def _judge_captures(story: Story, ends: Ends) -> None:
    lab = story.lab
    with lab.step("compare both sides"):
        story.lan.drain()
        story.wan.drain()
        lan, wan = ([frame for one in side.captures for frame in one.frames] for side in (story.lan, story.wan))
        _judge_octets(lab, ends, lan, wan)
        _judge_prefixes(lab, lan, wan)
        lost = story.lan.lost() + story.wan.lost()
        lab.check("the captures are complete", lost == 0, "0 frames lost", lost)


def _judge_octets(lab: Lab, ends: Ends, lan: list[Frame], wan: list[Frame]) -> None:
    """What is behind the IPv6 header came to the other side as it was, checksums included."""
    remote, inside, outside = (
        {ends.server.address, ends.router.address},
        {ends.client.address},
        {ends.outside.address},
    )
    fitting = [packet for packet in _passing(wan, remote, outside) if len(packet.payload) <= LONGEST_IN]
    for way, at_lan, at_wan in (
        ("out", _passing(lan, inside, remote), _passing(wan, outside, remote)),
        ("in", _passing(lan, remote, inside), fitting),
    ):
        one, other = Counter(map(_octets, at_lan)), Counter(map(_octets, at_wan))
        differing = ((one - other) + (other - one)).total()
        lab.check(
            f"checksums are the same on both sides, {way}",
            bool(at_lan) and not differing,
            f"{len(at_lan)} equal packets",
            f"{len(at_wan)} compared, {differing} differ",
        )
        wrong = sum(1 for packet in (*at_lan, *at_wan) if not intact(packet))
        lab.check(f"checksums are right on both sides, {way}", not wrong, "0 wrong", f"{wrong} wrong")


def _passing(frames: Iterable[Frame], sources: set[Address], destinations: set[Address]) -> list[Packet]:
    """Whole packets with a checksum, from some to others."""
    packets = (packet for frame in frames if (packet := packet_of(frame)))
    return [
        packet
        for packet in packets
        if packet.source in sources
        and packet.destination in destinations
        and packet.protocol in CHECKSUM_AT
        and not packet.fragment
    ]


def _octets(packet: Packet) -> tuple[int, int, bytes]:
    """Protocol, length, and all octets; of an error those of its checksum."""
    at, payload = CHECKSUM_AT[packet.protocol], packet.payload
    error = packet.protocol == IPPROTO_ICMPV6 and payload[0] < ERRORS
    return packet.protocol, len(payload), payload[at : at + 2] if error else payload


def _judge_prefixes(lab: Lab, lan: list[Frame], wan: list[Frame]) -> None:
    """Wherever in a frame: also in what errors quote."""
    for name, prefix, frames in (
        ("nothing of the inside prefix is on the WAN", INSIDE6, wan),
        ("nothing of the outside prefix is on the LAN", OUTSIDE6, lan),
    ):
        octets = prefix.network_address.packed[: prefix.prefixlen // 8]
        leaked = sum(1 for frame in frames if octets in frame.data)
        lab.check(name, not leaked, "0 frames", f"{leaked} of {len(frames)} frames")
