"""The firewall around a tunnel: what comes out of it and goes into it is judged alike, whoever does the ESP work."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from ipaddress import IPv4Network

from ipsec_gw.lab.capture import Capture, Captures
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import GatewayMisbehaved, GatewayUnderTest
from ipsec_gw.lab.kernel_sas import dump
from ipsec_gw.lab.netns import inside, receive_on_one_processor
from ipsec_gw.lab.packets import Packet, packet_of, udp4
from ipsec_gw.lab.process import all_of
from ipsec_gw.lab.process import run as run_command
from ipsec_gw.lab.scenarios.conversations import answers_ping, both
from ipsec_gw.lab.scenarios.rules import DENIED_IN, DENIED_OUT, OPEN, tunnel_rules
from ipsec_gw.lab.scenarios.start import gateway_of, start_swan
from ipsec_gw.lab.scenarios.truth import counter_truth
from ipsec_gw.lab.scenarios.verdicts import few
from ipsec_gw.lab.sites import site_of
from ipsec_gw.lab.strongswan import Site, Swan
from ipsec_gw.lab.talk import Attempt, endpoint
from ipsec_gw.lab.topology import HOST, LAN, WAN, Role
from ipsec_gw.lab.traffic import Host, TrafficError, until
from ipsec_gw.lab.wire import clear_packets, count_by_sa, esp_packets, numbers
from vpp_conf.locate import locate_vpp

COUNT_SECONDS = 60.0
FORGED = 5
"""Packets in clear for each of two ports."""

LIVE = 7300, 7301
"""Ports of client and server in the session that is imitated."""

FORGED_PAYLOAD = b"not out of any tunnel"
CLEAR = "clear-of-protected"
"""The verdict on a packet in clear that an IPsec policy protects."""

NOTHING = "0 packets"


@dataclass(frozen=True, slots=True)
class Story:
    """Those who take part. ``wan`` sees what each gateway sends, ``ends`` what reaches client and server."""

    lab: Lab
    a: Swan
    b: Swan
    gateway: GatewayUnderTest
    wan: Captures
    client_end: Capture
    server_end: Capture
    client: Host
    server: Host
    own: Host
    provider: Host


async def run(lab: Lab) -> None:
    """Play it."""
    sites = (site_of(lab.topology, role, lab.options.proposal) for role in (Role.GATEWAY_A, Role.GATEWAY_B))
    story = await set_up(lab, tuple(sites), tunnel_rules(lab.topology))
    await _without_tunnel(story)
    await bring_up(story)
    await _permitted(story)
    await _denied(story)
    await _beside_the_tunnel(story)
    await _forged(story)
    judge_wan(story, [lab.topology.network(role, LAN) for role in (Role.GATEWAY_A, Role.GATEWAY_B)])
    with lab.step("ipsec-gw off"):
        await story.gateway.off()


async def set_up(lab: Lab, sites: Sequence[Site], rules: str) -> Story:
    """Both strongSwans, and ipsec-gw with a firewall beside the first, and everything that watches them."""
    topology = lab.topology
    wan = Captures([lab.capture(Role.WAN, "to-a"), lab.capture(Role.WAN, "to-b")])
    client_end, server_end = lab.capture(Role.CLIENT, HOST), lab.capture(Role.SERVER, HOST)
    ends = Captures([client_end, server_end])
    lab.stack.callback(lab.save_captures, wan)
    for captures in (wan, ends):
        lab.stack.callback(captures.close)
        lab.stack.callback(asyncio.create_task(captures.keep_draining()).cancel)
    a, b = [await start_swan(lab, site) for site in sites]
    gateway = gateway_of(lab, a, rules)
    with lab.step("start two strongSwans and ipsec-gw"):
        await all_of(a.load(), b.load(), gateway.start())
        await receive_on_one_processor(b.site.namespace, WAN)
    for pid in gateway.pids:
        lab.watch_process(pid)
    provider = topology.bridge.address
    if provider is None:
        raise TrafficError("the WAN has no router")
    return Story(
        lab,
        a,
        b,
        gateway,
        wan,
        client_end,
        server_end,
        lab.host(Role.CLIENT, HOST),
        lab.host(Role.SERVER, HOST),
        lab.host(Role.GATEWAY_A, LAN),
        Host(topology.namespace(Role.WAN), provider.ip),
    )


async def _without_tunnel(story: Story) -> None:
    lab, rule = story.lab, "branch-in-clear"
    with lab.step("try without the tunnel"):
        before = await story.gateway.rules()
        with closing(Attempt(story.client, story.server.address, OPEN)) as attempt:
            rules = await _counted(story, {rule: before[rule] + 2}, "the policy against it has seen both")
            counted = "denied by policy" if rules[rule] >= before[rule] + 2 else f"{rule}: {rules[rule]}"
            said = f"{attempt.look()}, {counted}"
    silent = "TCP silence, UDP silence, denied by policy"
    lab.check("without a tunnel, its traffic is denied to the WAN", said == silent, silent, said)


async def _counted(story: Story, least: dict[str, int], what: str) -> dict[str, int]:
    """The rules' counters once they have come so far, or as they are after a while."""
    try:
        return await story.gateway.rules_when(
            lambda rules: all(rules[name] >= count for name, count in least.items()), COUNT_SECONDS, what
        )
    except GatewayMisbehaved as error:
        story.lab.note(str(error))
        return await story.gateway.rules()


async def bring_up(story: Story) -> None:
    """IKE, until the engine carries the tunnel."""
    lab, gateway = story.lab, story.gateway
    with lab.step("initiate the tunnel"):
        await story.a.initiate()
    lab.strongswan = await story.a.version()
    if lab.options.engine == "vpp":
        lab.vpp = locate_vpp().version.removeprefix("vpp ").split()[0]
    for swan in (story.a, story.b):
        said = await swan.list_sas()
        lab.check(f"IKE is up at {swan.site.identity}", said.ike and said.child, "IKE_SA and CHILD_SA", said)
    with lab.step(f"wait until {gateway.engine} carries the tunnel"):
        sas = await gateway.carrying()
    states = sorted({sa.state for sa in sas})
    lab.check("the engine asked for carries the tunnel", states == [gateway.engine], gateway.engine, ", ".join(states))


async def _permitted(story: Story) -> None:
    lab = story.lab
    client, server, own = story.client, story.server, story.own
    with lab.step("what is permitted in the tunnel"):
        ways = (
            ("client to server", client, server, OPEN),
            ("server to client", server, client, OPEN),
            ("server to client, the port that is denied the other way", server, client, DENIED_OUT),
            ("client to server, the port that is denied the other way", client, server, DENIED_IN),
            ("gateway A itself to server", own, server, OPEN + 1),
        )
        for way, caller, called, port in ways:
            await both(lab, f"tunnel: {way}", caller, (called, port), (caller.address,), "the caller, not translated")
        pings = (("client to server", client, server), ("server to client", server, client))
        for number, (way, caller, called) in enumerate((*pings, ("server to gateway A itself", server, own)), 1):
            await answers_ping(lab, f"tunnel: {way}, ICMP", caller, called, number)


async def _denied(story: Story) -> None:
    lab = story.lab
    with lab.step("what is denied in the tunnel"):
        before = await story.gateway.rules()
        ways = (
            ("client to server", story.client, story.server, DENIED_OUT, "denied-out", story.server_end),
            ("server to client", story.server, story.client, DENIED_IN, "denied-in", story.client_end),
        )
        attempts = [Attempt(caller, called.address, port) for _, caller, called, port, _, _ in ways]
        marks = [_seen(end) for *_, end in ways]
        try:
            # Of TCP the second SYN as well: no answer has ended the attempt.
            least = {rule: before[rule] + 3 for *_, rule, _ in ways}
            rules = await _counted(story, least, "denied packets are counted")
            outcomes = [str(attempt.look()) for attempt in attempts]
        finally:
            for attempt in attempts:
                attempt.close()
        silent = "TCP silence, UDP silence"
        for (way, caller, _, port, rule, end), mark, outcome in zip(ways, marks, outcomes, strict=True):
            lab.check(f"tunnel: {way}, denied", outcome == silent, silent, outcome)
            counted = "3 or more" if rules[rule] >= least[rule] else f"{rules[rule] - before[rule]}"
            lab.check(f"tunnel: {way}, the policy has counted it", counted == "3 or more", "3 or more", counted)
            arrived = _arrived(end, mark, caller, port)
            lab.check(f"tunnel: {way}, nothing denied arrives", not arrived, NOTHING, f"{arrived} packets")


def _seen(end: Capture) -> int:
    end.drain()
    return len(end.frames)


def _packets(end: Capture, mark: int = 0) -> list[Packet]:
    """What has come in at an end since."""
    end.drain()
    packets = (packet_of(frame) for frame in end.frames[mark:] if not frame.outgoing)
    return [packet for packet in packets if packet is not None]


def _arrived(end: Capture, mark: int, source: Host, port: int) -> int:
    """How many packets of a host for a port have come in at an end since."""
    packets = _packets(end, mark)
    return sum(1 for packet in packets if (packet.source, packet.destination_port) == (source.address, port))


async def _beside_the_tunnel(story: Story) -> None:
    wan = story.lab.host(Role.GATEWAY_A, WAN)
    with story.lab.step("beside the tunnel"):
        seen, name = (wan.address,), "beside the tunnel: client to WAN with source NAT"
        await both(story.lab, name, story.client, (story.provider, OPEN), seen, "gateway A")


async def _forged(story: Story) -> None:
    """Packets in clear that claim to come from the branch: to a permitted port, and as part of a live session."""
    lab = story.lab
    with (
        closing(endpoint(story.client, socket.SOCK_DGRAM, LIVE[0])) as here,
        closing(endpoint(story.server, socket.SOCK_DGRAM, LIVE[1])) as there,
    ):
        with lab.step("packets in clear that claim to come out of the tunnel"):
            await _goes(here, story.server, there)
            before = (await story.gateway.status()).verdicts.get(CLEAR, 0)
            await _forge(story)
            dropped = await _dropped(story, before)
            wanted = 2 * FORGED
            lab.check(
                "forged packets in clear are dropped", dropped == wanted, f"{wanted} {CLEAR}", f"{dropped} {CLEAR}"
            )
            arrived = [packet for packet in _packets(story.client_end) if packet.payload.endswith(FORGED_PAYLOAD)]
            lab.check("no forged packet arrives", not arrived, NOTHING, f"{len(arrived)} packets")
            await _check_goes(lab, "the session they imitate goes on", there, story.client, here)
        await check_counters(story)
        await _terminate(story, here)


async def check_counters(story: Story) -> None:
    """While the tunnel is up: what charon says of it is what the wire carried."""
    story.wan.drain()
    carried = count_by_sa(packet for capture in story.wan.captures for packet in esp_packets(capture.frames))
    await counter_truth(story.lab, story.a, story.gateway, carried)


async def _goes(one: socket.socket, to: Host, other: socket.socket) -> None:
    """A datagram from one to the other. Raises TrafficError."""
    loop = asyncio.get_running_loop()
    port = other.getsockname()[1]
    await loop.sock_sendto(one, b"genuine", (str(to.address), port))
    try:
        async with asyncio.timeout(COUNT_SECONDS):
            data = await loop.sock_recv(other, 100)
    except TimeoutError:
        raise TrafficError(f"no datagram arrives at {to} port {port}") from None
    if data != b"genuine":
        raise TrafficError(f"{to} port {port} hears {data!r}")


async def _check_goes(lab: Lab, name: str, one: socket.socket, to: Host, other: socket.socket) -> None:
    try:
        await _goes(one, to, other)
        lab.check(name, True, "the next datagram arrives", "it arrives")
    except TrafficError as error:
        lab.check(name, False, "the next datagram arrives", error)


async def _forge(story: Story) -> None:
    namespace, way = story.provider.namespace, story.lab.topology.network(Role.GATEWAY_A, LAN)
    via = story.lab.topology.address(Role.GATEWAY_A, WAN)
    await run_command(["ip", "route", "replace", str(way), "via", str(via)], namespace=namespace)
    with inside(namespace):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with raw:
        for source_port, port in ((LIVE[1], LIVE[0]), (LIVE[1] + 1, OPEN)):
            packet = udp4(story.server.address, source_port, story.client.address, port, FORGED_PAYLOAD)
            for _ in range(FORGED):
                raw.sendto(packet, (str(story.client.address), 0))


async def _dropped(story: Story, before: int) -> int:
    """How many packets in clear have been dropped, once these are all of ours, or after a while."""
    with suppress(GatewayMisbehaved):
        await story.gateway.status_when(
            lambda status: status.verdicts.get(CLEAR, 0) >= before + 2 * FORGED, COUNT_SECONDS, "all forged packets"
        )
    return (await story.gateway.status()).verdicts.get(CLEAR, 0) - before


async def _terminate(story: Story, here: socket.socket) -> None:
    """Without the tunnel its sessions have nowhere to go: what they would send in clear is on the capture."""
    lab = story.lab
    with lab.step("terminate the tunnel"):
        await story.a.terminate()
        namespaces = (story.a.site.namespace, story.b.site.namespace)
        await until(lambda: not any(dump(name) for name in namespaces), COUNT_SECONDS, "kernels without SAs")
        await story.gateway.sas_when(lambda sas: not sas, COUNT_SECONDS, "no SA shown")
    outside = story.wan.captures[0]
    mark = _seen(outside)
    for _ in range(FORGED):
        here.sendto(b"too late", (str(story.server.address), LIVE[1]))
    # An echo through the same interfaces: what was sent before it has been judged when it is answered.
    await answers_ping(lab, "after the tunnel: client to WAN, ICMP", story.client, story.provider, 9)
    leaving = [packet for packet in _packets(outside, mark) if packet.destination == story.server.address]
    name = "after the tunnel, its sessions do not go on in clear"
    lab.check(name, not leaving, NOTHING, f"{len(leaving)} packets")


def judge_wan(story: Story, protected: Sequence[IPv4Network]) -> None:
    """Nothing of these networks was on the WAN in clear, and ESP was, numbered as it should be."""
    lab = story.lab
    story.wan.drain()
    for side, capture in zip("AB", story.wan.captures, strict=True):
        clear = clear_packets(capture.frames, protected)
        name = f"nothing of the protected networks leaves {side} in clear"
        lab.check(name, not clear, "none", f"{len(clear)} packets" if clear else "none")
        for line in clear[:5]:
            lab.note(f"in clear from {side}: {line}")
        carried = esp_packets(capture.frames)
        lab.check(f"{side} sends ESP", bool(carried), "some", "some" if carried else "none")
        lab.note(f"{side} sent {len(carried)} packets of ESP")
        reused = [sa for sa in numbers(carried) if not sa.unique]
        name = f"{side} uses no sequence number and no nonce twice"
        lab.check(name, bool(carried) and not reused, "every one once", few(reused))
    lost = story.wan.lost() + story.client_end.lost() + story.server_end.lost()
    lab.check("the captures are complete", lost == 0, "0 frames lost", lost)
