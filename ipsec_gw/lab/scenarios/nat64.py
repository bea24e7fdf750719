"""NAT64: hosts with IPv6, one of them without IPv4, reach servers with IPv4 (RFC 6146, RFC 7915)."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv6Address

from ipsec_gw.lab import edge
from ipsec_gw.lab.capture import Captures
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.crowd import Met, crowd
from ipsec_gw.lab.packets import IPPROTO_ICMPV6, Packet, TooBig, ip_packet, packet_of
from ipsec_gw.lab.path_mtu import discovered
from ipsec_gw.lab.prefixes import embedded
from ipsec_gw.lab.scenarios.border import Story, set_up, watched
from ipsec_gw.lab.scenarios.conversations import SIZES, TCP_BYTES, answers_ping, both, finds_mtu, judged, refused
from ipsec_gw.lab.scenarios.edge_rules import CLOSED, FOUR, PREFIX, nat64_rules
from ipsec_gw.lab.scenarios.rules import OPEN
from ipsec_gw.lab.talk import Attempt, endpoint, tcp, udp
from ipsec_gw.lab.topology import HOST, MTU, WAN, Role
from ipsec_gw.lab.traffic import Host, TrafficError, until

IPV6_LONGER = 20
"""Bytes that an IPv6 header has more than one of IPv4."""

FRAGMENT_HEADER = 8
"""Bytes of a header that IPv6 has for fragments alone (RFC 8200 4.5)."""

FRAGMENTED = (2000, 4000)
CROWDED, FLOWS, SEED = 7300, 1000, 64
"""The port that all flows at once are for, how many there are (half of them UDP, half TCP), and of their payloads."""

IPV6_RECVERR, TIME_EXCEEDED = 25, 3
"""``linux/in6.h``, RFC 4443 3.3"""

COUNT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Ends:
    """Who talks. ``client`` and ``inner`` are their IPv6; ``server6`` is the server as the LAN knows it behind the
    prefix, ``router6`` the router.
    """

    client: Host
    inner: Host
    server: Host
    server6: IPv6Address
    router6: IPv6Address


async def run(lab: Lab) -> None:
    """Play it."""
    inner_end = watched(lab, lab.capture(Role.INNER, HOST))
    story, ends = await set_up(lab, nat64_rules(lab.topology)), _ends(lab)
    await _path_mtu(story, ends)
    await _conversations(story, ends)
    await _beside(story, ends)
    await _errors(story, ends)
    await _all_at_once(story, ends)
    _judge_captures(story, ends, inner_end)
    with lab.step("ipsec-gw off"):
        await story.gateway.off()


def _ends(lab: Lab) -> Ends:
    server, router = lab.topology.address(Role.SERVER, HOST), lab.topology.address(Role.WAN, edge.TO_GATEWAY)
    return Ends(
        lab.host6(Role.CLIENT, HOST),
        lab.host6(Role.INNER, HOST),
        lab.host(Role.SERVER, HOST),
        embedded(PREFIX, server),
        embedded(PREFIX, router),
    )


async def _path_mtu(story: Story, ends: Ends) -> None:
    """First of all, while nobody knows it."""
    lab, called = story.lab, (ends.server6, OPEN)
    with lab.step("path MTU discovery"):
        there, back = edge.PATH_MTU + IPV6_LONGER, MTU - IPV6_LONGER
        name = "path MTU: the IPv6 client learns the one of IPv4"
        await finds_mtu(lab, name, there, discovered(ends.client, called, ends.server))
        wanted = TooBig(ends.router6, there, ends.client.address, ends.server6)
        errors = story.mtu_errors(story.lan)
        found = "; ".join(map(str, errors)) or "none"
        lab.check("path MTU: the router's error comes translated", errors == {wanted}, str(wanted), found)
        name = "path MTU: the IPv4 server learns the one of IPv6"
        await finds_mtu(lab, name, back, discovered(ends.client, called, ends.server, back=True))
        await _room_for_fragments(story, ends)
        await judged(
            lab,
            "path MTU: a TCP stream goes on",
            f"path MTU {there}",
            tcp(ends.inner, called, ends.server, OPEN, size=TCP_BYTES, seed=1),
            lambda heard: (heard.peer, heard.mtu) == (FOUR, there),
        )


async def _room_for_fragments(story: Story, ends: Ends) -> None:
    """A fragment of IPv4 becomes longer by another header: the server's first ones are too long, and answered."""
    teller = story.lab.topology.address(Role.GATEWAY_A, WAN)
    wanted = TooBig(teller, MTU - IPV6_LONGER - FRAGMENT_HEADER, ends.server.address, FOUR)

    def told() -> bool:
        return wanted in story.mtu_errors(story.wan)

    name, called = "path MTU: the IPv4 server hears that fragments need more room", (ends.server6, OPEN)
    talk = asyncio.create_task(udp(ends.client, called, ends.server, OPEN, sizes=FRAGMENTED[:1], seed=2))
    try:
        await until(told, COUNT_SECONDS, name)
    except TrafficError as error:
        story.lab.note(str(error))
    finally:
        talk.cancel()
        await asyncio.gather(talk, return_exceptions=True)
    story.lab.check(name, told(), str(wanted), "; ".join(map(str, story.mtu_errors(story.wan))) or "none")


async def _conversations(story: Story, ends: Ends) -> None:
    lab, called = story.lab, (ends.server6, OPEN)
    hosts = ("client with both", ends.client), ("host without IPv4", ends.inner)
    with lab.step("IPv6 to IPv4"):
        for number, (name, host) in enumerate(hosts, 1):
            for protocol, talk in (
                ("TCP", tcp(host, called, ends.server, OPEN, size=TCP_BYTES, seed=number)),
                ("UDP", udp(host, called, ends.server, OPEN, sizes=SIZES, seed=number)),
                ("fragments", udp(host, called, ends.server, OPEN, sizes=FRAGMENTED, seed=number)),
            ):
                expected = f"the server sees {FOUR}"
                await judged(lab, f"{name}, {protocol}", expected, talk, lambda heard: heard.peer == FOUR)
            await answers_ping(lab, f"{name}, ICMP", host, Host(ends.server.namespace, ends.server6), number)
        story.wan.drain()
        fragments = [packet for packet in _packets(story.wan) if packet.fragment]
        out = sum(1 for packet in fragments if packet.source == FOUR)
        back = sum(1 for packet in fragments if packet.destination == FOUR)
        name, ok = "fragments cross the WAN as fragments, both ways", bool(out and back)
        lab.check(name, ok, f"some from and to {FOUR}", f"{out} from it, {back} to it")


async def _beside(story: Story, ends: Ends) -> None:
    """The same client and server talk without a translator as well."""
    lab, port = story.lab, OPEN
    client4, wan4 = lab.host(Role.CLIENT, HOST), lab.topology.address(Role.GATEWAY_A, WAN)
    with lab.step("beside it: IPv4 to IPv4, IPv6 to IPv6"):
        await both(lab, "IPv4 to IPv4", client4, (ends.server, port), (wan4,), "the gateway")
        own = (ends.client.address,)
        await both(lab, "IPv6 to IPv6", ends.client, (lab.host6(Role.SERVER, HOST), port), own, "the client")


async def _errors(story: Story, ends: Ends) -> None:
    lab = story.lab
    with lab.step("errors"):
        await refused(lab, "errors come back: nobody listens", ends.inner, (ends.server6, CLOSED))
        await _hops_run_out(story, ends)
        before = (await story.gateway.status()).verdicts.get("default-deny", 0)
        with closing(Attempt(ends.server, FOUR, OPEN)) as attempt:
            await story.gateway.status_when(
                lambda status: status.verdicts.get("default-deny", 0) >= before + 2, COUNT_SECONDS, "both are denied"
            )
            attempt.look()
            silent = not attempt.tcp and not attempt.udp
            lab.check("nobody gets in uncalled", silent, "TCP silence, UDP silence", attempt)


async def _hops_run_out(story: Story, ends: Ends) -> None:
    """At the router, the second one on the way."""
    name, what = "errors come back: the router's time exceeded", "EHOSTUNREACH"
    with closing(endpoint(ends.client, socket.SOCK_DGRAM)) as caller:
        caller.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 2)
        caller.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        caller.connect((str(ends.server6), CLOSED))
        caller.send(b"not that far")
        told = 0

        def has_come() -> bool:
            nonlocal told
            told = told or caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            return bool(told)

        try:
            await until(has_come, COUNT_SECONDS, name)
        except TrafficError as error:
            story.lab.note(str(error))
    about = (ends.client.address, ends.server6)
    tellers = {str(packet.source) for packet in story.arrived(story.lan, lambda one: _exceeded(one) == about)}
    found = f"{errno.errorcode.get(told, told)} by {', '.join(tellers) or 'nobody'}"
    expected = f"{what} by {ends.router6}"
    story.lab.check(name, found == expected, expected, found)


def _exceeded(packet: Packet) -> tuple[object, object] | None:
    """Whose packet to whom an ICMPv6 time exceeded is about."""
    if packet.protocol != IPPROTO_ICMPV6 or packet.payload[0] != TIME_EXCEEDED:
        return None
    about = ip_packet(packet.payload[8:])
    return (about.source, about.destination) if about else None


async def _all_at_once(story: Story, ends: Ends) -> None:
    lab, half = story.lab, FLOWS // 2
    lab.note(f"seed {SEED}: payloads of {FLOWS:,} flows")
    with lab.step(f"{FLOWS:,} flows at once"):
        async with crowd((ends.client, ends.inner), (ends.server6, CROWDED), ends.server, half, SEED) as met:
            sessions = await story.gateway.sessions("--port", str(CROWDED), "--limit", str(2 * FLOWS))
        for protocol, flows in zip(("UDP", "TCP"), met, strict=True):
            _judge_flows(lab, protocol, flows, half)
        shown = {(one["protocol"], one["natSource"]["address"], one["natSource"]["port"]) for one in sessions}
        ok = len(sessions) == len(shown) == FLOWS
        expected = f"{FLOWS:,} sessions, each with its own translated port"
        lab.check("all flows are there at once", ok, expected, f"{len(sessions):,} sessions, {len(shown):,} ports")


def _judge_flows(lab: Lab, protocol: str, flows: Met, count: int) -> None:
    name = f"{FLOWS:,} flows at once, {protocol}"
    right = f"{len(flows.seen)} flows, {flows.wrong} wrong"
    lab.check(f"{name}: every payload comes to its own end", not flows.wrong, f"{count} flows, 0 wrong", right)
    others = sum(1 for address, _ in flows.seen if address != str(FOUR))
    ok = len(flows.seen) == count and not flows.twice and not others
    expected, found = f"0 twice, all of {FOUR}", f"{flows.twice} twice, {others} of other addresses"
    lab.check(f"{name}: no translated port twice", ok, expected, found)


def _packets(captures: Captures) -> list[Packet]:
    return [packet for one in captures.captures for frame in one.frames if (packet := packet_of(frame))]


def _judge_captures(story: Story, ends: Ends, inner_end: Captures) -> None:
    lab = story.lab
    with lab.step("look for what went untranslated"):
        story.wan.drain()
        inner_end.drain()
        wan, inner = _packets(story.wan), _packets(inner_end)
        private = lab.topology.network(Role.CLIENT, HOST)
        leaked = [
            packet
            for packet in wan
            for end in (packet.source, packet.destination)
            if end in PREFIX or end == ends.inner.address or end in private
        ]
        lab.check("nothing untranslated is on the WAN", not leaked, "0 packets", f"{len(leaked)} of {len(wan)} packets")
        four = sum(1 for packet in inner if packet.source.version == 4)
        lab.check("no IPv4 reaches the host without it", not four, "0 packets", f"{four} of {len(inner)} packets")
        lost = story.lan.lost() + story.wan.lost() + inner_end.lost()
        lab.check("the captures are complete", lost == 0, "0 frames lost", lost)
