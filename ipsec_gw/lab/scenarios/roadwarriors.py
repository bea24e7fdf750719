"""Remote access: three clients with virtual addresses at gateway A, two of them behind one NAT."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from ipsec_gw.lab.capture import Captures
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import GatewayUnderTest
from ipsec_gw.lab.kernel_sas import SaDiary, dump
from ipsec_gw.lab.nat import Nat
from ipsec_gw.lab.netns import send_in_one_piece, xfrm_errors
from ipsec_gw.lab.oracle import EspPacket
from ipsec_gw.lab.process import all_of
from ipsec_gw.lab.scenarios.start import gateway_of, start_swan
from ipsec_gw.lab.scenarios.truth import counter_truth
from ipsec_gw.lab.scenarios.verdicts import Reading, few, judge_counters
from ipsec_gw.lab.strongswan import Concentrator, Roadwarrior, Swan
from ipsec_gw.lab.topology import HOST, LAN, OUTSIDE, WAN, Role
from ipsec_gw.lab.traffic import Host, TrafficError, ping, tcp_echo, udp_echo, until
from ipsec_gw.lab.wire import clear_packets, count_by_sa, esp_packets, numbers, open_all
from vpp_conf.locate import locate_vpp

ROADS = (Role.ROAD_1, Role.ROAD_2, Role.ROAD_3)
BEHIND_NAT = 2
"""The first so many of them."""

POOL = IPv4Network("10.99.0.0/24")
FIRST, SECOND = range(20000, 20100), range(30000, 30100)
"""UDP source ports of the NAT, at first and after it has forgotten."""

TCP_BYTES = 50_000
SIZES = (1, 64, 511, 1200, 1372)
SETTLE_SECONDS = 60.0
QUIET_SECONDS = 0.6


@dataclass
class Story:
    """Those who take part. ``virtual`` are the addresses that gateway A gave, in the order of the roads."""

    lab: Lab
    a: Swan
    roads: tuple[Swan, ...]
    gateway: GatewayUnderTest | None
    wan: Captures
    diary: SaDiary
    virtual: list[IPv4Address]

    def packets(self) -> list[EspPacket]:
        """All ESP on the WAN so far, by sender."""
        self.wan.drain()
        self.diary.drain()
        return [packet for capture in self.wan.captures for packet in esp_packets(capture.frames)]

    def outbound_ports(self) -> set[int]:
        """To which UDP ports gateway A sends, of late."""
        here = self.lab.topology.address(Role.GATEWAY_A, WAN)
        sent = [packet for packet in self.packets() if packet.source == here]
        return {packet.ports[1] for packet in sent[-30:] if packet.ports}


async def run(lab: Lab) -> None:
    """Play it."""
    nat = Nat(lab.topology.namespace(Role.NAT), OUTSIDE)
    await nat.use(FIRST)
    for role in (Role.GATEWAY_A, *ROADS):
        send_in_one_piece(lab.topology.namespace(role), WAN)
    story = await _set_up(lab)
    await _bring_up(story)
    await _exchange(story, "virtual addresses")
    _judge_sharing(story)
    await _map_anew(story, nat)
    await _exchange(story, "after the NAT mapped anew")
    here = {str(address) for address in lab.topology.addresses(Role.GATEWAY_A, WAN)}
    await counter_truth(lab, story.a, story.gateway, count_by_sa(story.packets()), sent_by=here)
    await _terminate(story)
    _judge(story)
    if story.gateway is not None:
        with lab.step("ipsec-gw off"):
            await story.gateway.off()


async def _set_up(lab: Lab) -> Story:
    topology = lab.topology
    wan = Captures([lab.capture(Role.WAN, name) for name in ("to-a", "to-nat", "to-rw3")])
    lab.stack.callback(wan.close)
    lab.stack.callback(lab.save_captures, wan)
    diary = SaDiary(topology.namespace(Role.GATEWAY_A))
    lab.stack.callback(diary.close)
    lab.stack.callback(asyncio.create_task(wan.keep_draining()).cancel)
    network, here = topology.network(Role.GATEWAY_A, LAN), topology.address(Role.GATEWAY_A, WAN)
    proposal = lab.options.proposal
    concentrator = Concentrator(Role.GATEWAY_A, topology.namespace(Role.GATEWAY_A), here, network, POOL, proposal)
    a = await start_swan(lab, concentrator)
    roads = tuple(
        [
            await start_swan(
                lab,
                Roadwarrior(
                    role,
                    Role.GATEWAY_A,
                    topology.namespace(role),
                    topology.address(role, WAN),
                    here,
                    network,
                    proposal,
                ),
            )
            for role in ROADS
        ]
    )
    gateway = None if lab.options.baseline else gateway_of(lab, a)
    with lab.step("start four strongSwans" + (" and ipsec-gw" if gateway else "")):
        await all_of(a.load(), *(road.load() for road in roads), *([gateway.start()] if gateway else []))
    for pid in gateway.pids if gateway else ():
        lab.watch_process(pid)
    return Story(lab, a, roads, gateway, wan, diary, [])


async def _bring_up(story: Story) -> None:
    lab = story.lab
    for road in story.roads:
        with lab.step(f"{road.site.identity} dials in"):
            await road.initiate()
        said = await road.list_sas()
        lab.check(f"IKE is up at {road.site.identity}", said.ike and said.child, "IKE_SA and CHILD_SA", said)
        story.virtual.append(await road.virtual_address())
    lab.strongswan = await story.a.version()
    if lab.options.engine == "vpp":
        lab.vpp = locate_vpp().version.removeprefix("vpp ").split()[0]
    shown = ", ".join(map(str, story.virtual))
    ok = len(set(story.virtual)) == len(ROADS) and all(address in POOL for address in story.virtual)
    lab.check("every client has a virtual address of its own", ok, f"three of {POOL}", shown)
    await _carried(story, "all tunnels")


async def _carried(story: Story, what: str) -> None:
    lab, gateway = story.lab, story.gateway
    if gateway is None:
        return
    with lab.step(f"wait until {gateway.engine} carries {what}"):
        sas = await gateway.sas_when(
            lambda sas: len(sas) == 2 * len(ROADS) and all(sa.state == gateway.engine for sa in sas),
            SETTLE_SECONDS + 60.0,
            f"six SAs in {gateway.engine}",
        )
    said = "; ".join(f"{sa.key} {sa.state} {sa.reason}" for sa in sas)
    ok = gateway.engine != "kernel" or all(sa.reason for sa in sas)
    lab.check(f"{gateway.engine} carries {what}", ok, "six SAs", said)


async def _exchange(story: Story, name: str) -> None:
    """TCP, UDP and ICMP of each client, both ways, between two quiet moments: every counter is held to the wire."""
    lab, gateway = story.lab, story.gateway
    await _quiet(story)
    before = await _read(gateway) if gateway else None
    wire_before = count_by_sa(story.packets())
    client = lab.host(Role.CLIENT, HOST)
    with lab.step(f"payload exchange, {name}"):
        for number, (role, address) in enumerate(zip(ROADS, story.virtual, strict=True)):
            road = Host(lab.topology.namespace(role), address)
            for way, left, right in ((f"{role} to client", road, client), (f"client to {role}", client, road)):
                port = 8000 + 10 * number + (left is client)
                await _talk(lab, f"{name}: {way}", left, right, port)
    await _quiet(story)
    if gateway is not None and before is not None:
        judge_counters(lab, name, before, await _read(gateway), count_by_sa(story.packets()) - wire_before)


async def _talk(lab: Lab, what: str, left: Host, right: Host, port: int) -> None:
    talks = (
        ("TCP", tcp_echo(left, right, port=port, size=TCP_BYTES, seed=port)),
        ("UDP", udp_echo(left, right, port=port, sizes=SIZES, seed=port)),
        ("ICMP", ping(left, right, identifier=port, sizes=SIZES, seed=port)),
    )
    for kind, talk in talks:
        try:
            lab.check(f"{what}, {kind}", True, "payloads come back unchanged", await talk)
        except TrafficError as error:
            lab.check(f"{what}, {kind}", False, "payloads come back unchanged", error)


async def _read(gateway: GatewayUnderTest) -> Reading:
    status, sas = await asyncio.gather(gateway.status(), gateway.sas())
    return Reading(status, sas)


async def _quiet(story: Story) -> None:
    loop = asyncio.get_running_loop()
    deadline, still_since, seen = loop.time() + 20.0, loop.time(), -1
    while loop.time() - still_since < QUIET_SECONDS:
        story.wan.drain()
        count = sum(len(capture.frames) for capture in story.wan.captures)
        if count != seen:
            still_since, seen = loop.time(), count
        if loop.time() > deadline:
            raise TrafficError("the WAN is not quiet 20 s after all traffic was over")
        await asyncio.sleep(0.05)


def _judge_sharing(story: Story) -> None:
    """Two clients have one address on the WAN, and are told apart by their ports."""
    lab = story.lab
    here, nat = lab.topology.address(Role.GATEWAY_A, WAN), lab.topology.address(Role.NAT, OUTSIDE)
    pairs = Counter(
        (packet.ports[1] if packet.ports else 0, packet.spi)
        for packet in story.packets()
        if (packet.source, packet.destination) == (here, nat)
    )
    shown = ", ".join(f"{count} to port {port} with {spi:08x}" for (port, spi), count in pairs.items())
    ports = {port for port, _ in pairs}
    ok = len(pairs) == len(ports) == BEHIND_NAT and all(port in FIRST for port in ports)
    lab.check("two clients share one address and have a port and an SA each", ok, f"{BEHIND_NAT} ports", shown)


async def _map_anew(story: Story, nat: Nat) -> None:
    """Both clients behind the NAT get other ports; they talk on, and gateway A follows both."""
    lab = story.lab
    client = lab.host(Role.CLIENT, HOST)
    hosts = [
        Host(lab.topology.namespace(role), address)
        for role, address in list(zip(ROADS, story.virtual, strict=True))[:BEHIND_NAT]
    ]
    spis = {sa.spi for sa in dump(story.a.site.namespace)}
    with lab.step("the NAT maps both of its clients anew"):
        await nat.use(SECOND)
        lost = [await _until_answered(host, client, 9000 + n) for n, host in enumerate(hosts)]
    lab.note(f"echoes that the clients lost until gateway A had followed: {lost}")
    now = {sa.spi for sa in dump(story.a.site.namespace)}
    lab.check(
        "the SAs are the same after the NAT mapped anew", now == spis, "no rekey", f"{len(now & spis)} of {len(spis)}"
    )
    reached = story.outbound_ports() & set(SECOND)
    lab.check("gateway A sends to the new ports of both", len(reached) == BEHIND_NAT, "two ports", sorted(reached))
    await _carried(story, "all tunnels again")


async def _until_answered(host: Host, client: Host, identifier: int) -> int:
    """Ping until an answer comes; how many did not come. Raises TrafficError after a while."""
    for lost in range(int(SETTLE_SECONDS)):
        try:
            async with asyncio.timeout(1.0):
                await ping(host, client, identifier=identifier + lost * 10, sizes=(64,), seed=lost)
        except TimeoutError:
            continue
        return lost
    raise TrafficError(f"{host} gets no answer {SETTLE_SECONDS:.0f} s after its NAT mapped it anew")


async def _terminate(story: Story) -> None:
    lab, gateway = story.lab, story.gateway
    with lab.step("the clients hang up"):
        for road in story.roads:
            await road.terminate()
        await until(lambda: not dump(story.a.site.namespace), 30.0, "a kernel without SAs")
    if gateway is None:
        return
    status = await gateway.status_when(lambda now: not now.steer and not now.guard, 30.0, "empty maps")
    left = [*status.steer, *status.guard]
    lab.check("the steering and guard maps are empty after termination", not left, "none", few(left))


def _judge(story: Story) -> None:
    """Everything that the capture can tell, by the oracle and gateway A's keys."""
    lab = story.lab
    packets = story.packets()
    lab.check("the captures are complete", story.wan.lost() == 0, "0 frames lost", f"{story.wan.lost()} frames lost")
    opening = open_all(packets, story.diary.all())
    bad = [*opening.unknown, *opening.forged]
    ok = not bad and len(opening.opened) == len(packets) > 0
    lab.check(
        "the oracle opens every ESP packet", ok, f"all of {len(packets)}", f"{len(opening.opened)}; bad: {few(bad)}"
    )
    found = numbers(packets)
    for sa in found:
        lab.note(str(sa))
    reused = [sa for sa in found if not sa.unique]
    lab.check(
        "no sequence number and no nonce is used twice",
        not reused,
        "every one once",
        few(reused) if reused else f"{len(found)} SAs",
    )
    frames = [frame for capture in story.wan.captures for frame in capture.frames]
    leaked = clear_packets(frames, (lab.topology.network(Role.GATEWAY_A, LAN), POOL))
    lab.check("nothing of LAN or virtual addresses crosses the WAN in clear", not leaked, "none", few(leaked))
    for swan in (story.a, *story.roads):
        lab.note(f"IPsec error counters of {swan.site.identity}: {xfrm_errors(swan.site.namespace) or 'all 0'}")
