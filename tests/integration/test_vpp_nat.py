"""VPP as a translator for NAT pools: flows there and back by VLAN tags, translated to the addresses of their pools."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, UDPerror, fragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.contract.world import World
from tests.integration.vpp_world import docked_world
from vpp_conf import lifecycle
from vpp_conf.api import VppApi
from vpp_conf.descriptors.af_xdp import Reception
from vpp_conf.descriptors.nat import (
    NatAddressDescriptor,
    NatInterfaceDescriptor,
    NatTableDescriptor,
    NatTimeouts,
    NatTimeoutsDescriptor,
    translations,
)
from vpp_conf.descriptors.subif import SubInterfaceDescriptor
from vpp_conf.locate import locate_vpp
from vpp_conf.nat import NatPlan, NatPool, drop_nat, hold_nat
from vpp_conf.paths import VppPaths
from xdp_steer.dock import Role
from xdp_steer.flow_layout import TRANSLATOR_MAC, TRANSLATOR_MTU, TRANSLATOR_OUTSIDE, TRANSLATOR_PORT_MAC

pytestmark = [
    pytest.mark.root,
    pytest.mark.vpp,
    pytest.mark.usefixtures("vpp"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

KERNEL, ENGINE = "ipsecgw-kn", "ipsecgw-vn"
TIMEOUTS = NatTimeouts(udp=60, tcp_established=1800, tcp_transitory=120, icmp=30)
ONE = NatPool(1, IPv4Address("203.0.113.16"), IPv4Address("203.0.113.19"))
TWO = NatPool(2, IPv4Address("198.51.100.1"), IPv4Address("198.51.100.1"))
PLAN = NatPlan(
    ENGINE, TRANSLATOR_PORT_MAC.hex(":"), TRANSLATOR_OUTSIDE, TRANSLATOR_MTU, 1 << 16, TIMEOUTS, pools=(ONE, TWO)
)
CLIENT, SERVER = "10.1.0.9", "192.0.2.9"
OUTSIDE = TRANSLATOR_OUTSIDE
SOL_PACKET, PACKET_AUXDATA, ETH_P_ALL = 263, 8, 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    tmp_path = tmp_path_factory.mktemp("nat")
    with docked_world(tmp_path, "vppn") as built:
        lifecycle.up(tmp_path)
        words = ("address", TRANSLATOR_PORT_MAC.hex(":"), "type", "veth", "peer", "name", ENGINE)
        _ip("link", "add", KERNEL, *words, "address", TRANSLATOR_MAC.hex(":"))
        for name in (KERNEL, ENGINE):
            _ip("link", "set", name, "arp", "off", "up")
        built.steering.dock(ENGINE, Role.TO_TRANSLATOR)
        yield built


@pytest.fixture
async def api(world: World) -> AsyncIterator[VppApi]:
    """A connection, and afterwards no NAT."""
    api = VppApi(VppPaths(world.run_dir.resolve()).api_socket, locate_vpp().api_dir)
    await api.connect()
    yield api
    await drop_nat(api, OUTSIDE)
    assert not await NatTableDescriptor(api).retrieve()
    await api.close()


class Tagged:
    """The kernel's end of the pair: packets by the tags that they go and come by."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.bind((KERNEL, 0))
        self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)

    def send(self, tag: int, packet: Packet) -> None:
        frame = Ether(src=TRANSLATOR_PORT_MAC.hex(":"), dst=TRANSLATOR_MAC.hex(":")) / Dot1Q(vlan=tag) / packet
        self._socket.send(bytes(frame))

    def next(self, seconds: float = 5.0) -> tuple[int, Packet] | None:
        """The tag and the packet of the next frame from VPP, without what pads it; None if none comes."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and select.select([self._socket], [], [], left)[0]:
            data, extra, _, address = self._socket.recvmsg(1 << 16, 256)
            frame = Ether(data)
            if address[2] == socket.PACKET_OUTGOING or IP not in frame:
                continue
            assert frame.dst == TRANSLATOR_PORT_MAC.hex(":")
            (told,) = (raw for level, kind, raw in extra if (level, kind) == (SOL_PACKET, PACKET_AUXDATA))
            return struct.unpack("IIIHHHH", told)[5] & 0xFFF, IP(bytes(frame[IP])[: frame[IP].len])
        return None

    def get(self, tag: int) -> Packet:
        """The next packet, which has to come by that tag, with right checksums."""
        found = self.next()
        assert found is not None, "nothing came"
        assert found[0] == tag
        assert found[1].frag or found[1].flags.MF or checksums_are_right(found[1]), found[1].summary()
        return found[1]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def wire(world: World) -> Iterator[Tagged]:
    made = Tagged()
    yield made
    made.close()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def checksums_are_right(packet: Packet) -> bool:
    fresh = packet.copy()
    for layer in (IP, TCP, UDP, ICMP):
        if layer in fresh:
            del fresh[layer].chksum
    return bytes(IP(bytes(fresh))) == bytes(packet)


def udp(sport: int = 4000, source: str = CLIENT) -> Packet:
    return IP(src=source, dst=SERVER, ttl=64) / UDP(sport=sport, dport=53) / Raw(b"question")


async def hold(api: VppApi, plan: NatPlan = PLAN) -> bool:
    return await hold_nat(api, plan, Reception())


async def test_a_flow_of_each_protocol_there_and_back(api: VppApi, wire: Tagged) -> None:
    assert not await hold(api)
    for request, port in (
        (udp(), 4000),
        (IP(src=CLIENT, dst=SERVER, ttl=64) / TCP(sport=4001, dport=80, flags="S"), 4001),
        (IP(src=CLIENT, dst=SERVER, ttl=64) / ICMP(id=4002) / Raw(b"ping"), 4002),
    ):
        wire.send(ONE.tag, request)
        out = wire.get(OUTSIDE)
        assert ONE.first <= IPv4Address(out.src) <= ONE.last
        assert (out.dst, out.ttl) == (SERVER, 63)
        assert bytes(out[Raw].load) == bytes(request[Raw].load) if Raw in request else Raw not in out
        answer = IP(src=SERVER, dst=out.src, ttl=50)
        if UDP in out:
            assert out[UDP].sport == port
            answer /= UDP(sport=53, dport=port) / Raw(b"answer")
        elif TCP in out:
            assert out[TCP].sport == port
            answer /= TCP(sport=80, dport=port, flags="SA")
        else:
            assert out[ICMP].id == port
            answer /= ICMP(type=0, id=port) / Raw(b"ping")
        wire.send(OUTSIDE, answer)
        inside = wire.get(ONE.tag)
        assert (inside.src, inside.dst, inside.ttl) == (SERVER, CLIENT, 49)
        assert inside[ICMP].id == port if ICMP in inside else inside.dport == port
    found = await translations(api, ONE.table, IPv4Address(CLIENT))
    assert {(one.protocol, one.inside[1]) for one in found} == {(17, 4000), (6, 4001), (1, 4002)}
    assert all(ONE.first <= one.outside[0] <= ONE.last for one in found)
    assert {one.far[0] for one in found} == {IPv4Address(SERVER)}


async def test_each_pool_has_its_own_addresses_and_the_way_back_is_its_own(api: VppApi, wire: Tagged) -> None:
    """The same flow by both pools: VPP tells them apart by the tag."""
    await hold(api)
    seen = {}
    for pool in (ONE, TWO):
        wire.send(pool.tag, udp())
        seen[pool.tag] = wire.get(OUTSIDE)
        assert pool.first <= IPv4Address(seen[pool.tag].src) <= pool.last
    for pool in (TWO, ONE):
        out = seen[pool.tag]
        wire.send(OUTSIDE, IP(src=SERVER, dst=out.src) / UDP(sport=53, dport=out.sport) / Raw(b"answer"))
        assert wire.get(pool.tag)[UDP].dport == 4000


async def test_sources_share_the_addresses_and_each_keeps_its_own(api: VppApi, wire: Tagged) -> None:
    await hold(api)
    used: dict[str, set[str]] = {}
    for number in range(1, 33):
        for port in (5000, 5001):
            wire.send(ONE.tag, udp(port, f"10.1.0.{number}"))
            used.setdefault(f"10.1.0.{number}", set()).add(wire.get(OUTSIDE).src)
    assert all(len(addresses) == 1 for addresses in used.values())
    assert len({address for addresses in used.values() for address in addresses}) == 4


async def test_errors_and_fragments_find_their_flow(api: VppApi, wire: Tagged) -> None:
    await hold(api)
    wire.send(ONE.tag, udp())
    out = wire.get(OUTSIDE)
    wire.send(OUTSIDE, IP(src="192.0.2.77", dst=out.src) / ICMP(type=3, code=4, nexthopmtu=1300) / bytes(out)[:28])
    error = wire.get(ONE.tag)
    assert (error.src, error.dst) == ("192.0.2.77", CLIENT)
    assert (error[IPerror].src, error[UDPerror].sport, error[ICMP].nexthopmtu) == (CLIENT, 4000, 1300)

    whole = IP(src=CLIENT, dst=SERVER, id=77) / UDP(sport=4000, dport=53) / Raw(bytes(range(256)) * 10)
    parts = fragment(IP(bytes(whole)), 1400)
    assert len(parts) == 2
    for part in parts:
        wire.send(ONE.tag, part)
    first, second = (wire.get(OUTSIDE) for _ in parts)
    assert (first.src, second.src, second.frag, second.id) == (out.src, out.src, parts[1].frag, 77)
    assert bytes(second.payload)[: len(parts[1].payload)] == bytes(parts[1].payload)


async def test_what_belongs_to_no_flow_goes_nowhere(api: VppApi, wire: Tagged) -> None:
    await hold(api)
    wire.send(OUTSIDE, IP(src=SERVER, dst=str(ONE.first)) / UDP(sport=53, dport=4000) / Raw(b"uninvited"))
    wire.send(OUTSIDE, IP(src=SERVER, dst=str(ONE.first)) / ICMP(id=1) / Raw(b"ping"))
    wire.send(ONE.tag, udp())
    assert Raw in wire.get(OUTSIDE)
    wire.send(OUTSIDE, IP(src=SERVER, dst=str(ONE.first)) / TCP(sport=53, dport=4000, flags="S"))
    wire.send(ONE.tag, udp(4444))
    assert wire.get(OUTSIDE)[UDP].sport == 4444
    assert wire.next(0.2) is None


async def test_a_daemon_that_comes_back_finds_all_in_place(world: World, api: VppApi, wire: Tagged) -> None:
    await hold(api)
    wire.send(ONE.tag, udp())
    before = wire.get(OUTSIDE)
    other = VppApi(VppPaths(world.run_dir.resolve()).api_socket, locate_vpp().api_dir)
    await other.connect()
    assert not await hold_nat(other, PLAN, Reception())
    await other.close()
    wire.send(ONE.tag, udp())
    after = wire.get(OUTSIDE)
    assert (after.src, after.sport) == (before.src, before.sport)


async def test_another_plan_sweeps_what_is_wanted_no_more(api: VppApi, wire: Tagged) -> None:
    await hold(api)
    grown = replace(ONE, last=ONE.last + 1)
    assert not await hold(api, replace(PLAN, pools=(grown, TWO)))  # nothing of what was there ends
    assert await hold(api, replace(PLAN, pools=(replace(ONE, last=ONE.first),)))
    assert await NatAddressDescriptor(api).retrieve() == tuple(replace(ONE, last=ONE.first).addresses())
    assert {sub.vid for sub in await SubInterfaceDescriptor(api).retrieve()} == {ONE.tag, OUTSIDE}
    assert len(await NatInterfaceDescriptor(api).retrieve()) == 2
    longer = replace(TIMEOUTS, udp=300, icmp=77)
    assert not await hold(api, replace(PLAN, pools=(replace(ONE, last=ONE.first),), timeouts=longer))
    assert await NatTimeoutsDescriptor(api).retrieve() == (longer,)
    assert await hold(api, replace(PLAN, sessions=1 << 15))
    assert (await NatTableDescriptor(api).retrieve())[0].sessions == 1 << 15
    wire.send(TWO.tag, udp())
    assert wire.get(OUTSIDE).src == str(TWO.first)
