"""Every verdict of the programs, by BPF_PROG_TEST_RUN with packets made by scapy."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.ipsec import ESP
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from xdp_kit import clear_entries, ip, namespace

from ipsec_gw.errors import SteeringError
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.objects import UdpPeer
from xdp_steer import libbpf, tables
from xdp_steer.gateway import Count, Reason, Role, Steering
from xdp_steer.layout import MAX_EXIT_SLOTS, Control, Owner, SaKeyLeaf, SteerEntryLeaf
from xdp_steer.prog_run import TcAction, XdpAction, prog_run

pytestmark = pytest.mark.root

V4 = "192.0.2.1"
V6 = "2001:db8::1"
SPI = 0x11111111
OTHER_SPI = 0x22222222
KERNEL_SPI = 0x33333333
UDP_SPI, MAPPED_SPI, TRIED_SPI = 0x44444444, 0x55555555, 0x66666666
"""In UDP from port 4500, from port 1024, and the same with a trial on."""
NON_ESP_MARKER = bytes(4)
INTERFACE = "wan9"
LOOPBACK = 1
"""The interface that BPF_PROG_TEST_RUN pretends."""

ETH = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")
IP4 = ETH / IP(src="192.0.2.2", dst=V4)
FAR4 = ETH / IP(src="192.0.2.3", dst=V4)
OPTIONS4 = ETH / IP(src="192.0.2.2", dst=V4, options=[IPOption_Router_Alert()])
IP6 = ETH / IPv6(src="2001:db8::2", dst=V6)
IKE = Raw(b"\x11" * 28)


def esp(spi: int = SPI) -> Packet:
    return ESP(spi=spi, seq=1, data=bytes(32))


def options(units: int) -> Packet:
    """An IPv6 destination options header of ``units`` times eight bytes."""
    return IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(units * 8 - 4))])


@dataclass(frozen=True)
class Case:
    name: str
    packet: Packet
    reason: Reason

    def __str__(self) -> str:
        return self.name


NAT_T = UDP(sport=4500, dport=4500)
OTHER_PORT = 4510
"""A NAT-T port that charon was told to use."""

CASES = (
    Case("esp", IP4 / esp(), Reason.STEERED),
    Case("esp in udp", IP4 / NAT_T / esp(UDP_SPI), Reason.STEERED),
    Case("esp in udp from a mapped port", IP4 / UDP(sport=1024, dport=4500) / esp(MAPPED_SPI), Reason.STEERED),
    Case("esp in udp on another port", IP4 / UDP(sport=4500, dport=OTHER_PORT) / esp(UDP_SPI), Reason.STEERED),
    Case("esp in udp from elsewhere", IP4 / UDP(sport=1025, dport=4500) / esp(MAPPED_SPI), Reason.STEERED),
    Case("the same on trial", IP4 / UDP(sport=1025, dport=4500) / esp(TRIED_SPI), Reason.MOVED),
    Case("another address on trial", FAR4 / UDP(sport=1024, dport=4500) / esp(TRIED_SPI), Reason.MOVED),
    Case("nothing new on trial", IP4 / UDP(sport=1024, dport=4500) / esp(TRIED_SPI), Reason.STEERED),
    Case("from port 0 on trial", IP4 / UDP(sport=0, dport=4500) / esp(TRIED_SPI), Reason.MOVED),
    Case("bare esp in udp", IP4 / NAT_T / esp(), Reason.ENCAPSULATION),
    Case("bare esp in udp from port 0", IP4 / UDP(sport=0, dport=4500) / esp(), Reason.ENCAPSULATION),
    Case("esp in udp, bare", IP4 / esp(UDP_SPI), Reason.ENCAPSULATION),
    Case("esp6 in udp, bare", IP6 / esp(UDP_SPI), Reason.ENCAPSULATION),
    Case("esp6", IP6 / esp(), Reason.STEERED),
    Case("esp6 in udp", IP6 / NAT_T / esp(UDP_SPI), Reason.STEERED),
    Case("ike on another port", IP4 / UDP(dport=OTHER_PORT) / Raw(NON_ESP_MARKER) / IKE, Reason.IKE_NAT_T),
    Case("keepalive on another port", IP4 / UDP(dport=OTHER_PORT) / Raw(b"\xff"), Reason.KEEPALIVE),
    Case("a port beside it", IP4 / UDP(dport=OTHER_PORT + 1) / esp(UDP_SPI), Reason.NOT_ESP),
    Case("port 0", IP4 / UDP(dport=0) / esp(UDP_SPI), Reason.NOT_ESP),
    Case("nat-t under a tag", ETH / Dot1Q(vlan=7) / IP4[IP] / NAT_T / esp(UDP_SPI), Reason.TAGGED),
    Case("nat-t behind options", OPTIONS4 / NAT_T / esp(UDP_SPI), Reason.IP_OPTIONS),
    Case("arp", ETH / ARP(pdst=V4), Reason.NOT_IP),
    Case("two tags", ETH / Dot1AD(vlan=1) / Dot1Q(vlan=2) / IP4[IP] / esp(), Reason.NOT_IP),
    Case("no room for ip", ETH / Raw(b"\x45"), Reason.NOT_IP),
    Case("half an ip header", Ether(bytes(IP4)[:24]), Reason.TRUNCATED),
    Case("ip header length 4", ETH / IP(dst=V4, ihl=1, proto=50) / Raw(bytes(64)), Reason.TRUNCATED),
    Case("ip version 5", ETH / IP(dst=V4, version=5, proto=50) / Raw(bytes(64)), Reason.TRUNCATED),
    Case("esp of 7 bytes", IP4[Ether] / Raw(bytes(7)), Reason.NOT_ESP),
    Case("tcp", IP4 / TCP(dport=4500), Reason.NOT_ESP),
    Case("dns", IP4 / UDP(dport=53) / Raw(bytes(12)), Reason.NOT_ESP),
    Case("from 4500 to elsewhere", IP4 / UDP(sport=4500, dport=5000) / esp(), Reason.NOT_ESP),
    Case("first fragment of esp", ETH / IP(dst=V4, flags="MF") / esp(), Reason.FRAGMENT),
    Case("last fragment of esp", ETH / IP(dst=V4, frag=20, proto=50) / Raw(bytes(esp())), Reason.FRAGMENT),
    Case("first fragment of nat-t", ETH / IP(dst=V4, flags="MF") / NAT_T / esp(), Reason.FRAGMENT),
    Case("first fragment of esp6", IP6 / IPv6ExtHdrFragment(m=1) / esp(), Reason.FRAGMENT),
    Case("last fragment of esp6", IP6 / IPv6ExtHdrFragment(offset=20, nh=50) / Raw(bytes(40)), Reason.FRAGMENT),
    Case("ike", IP4 / UDP(sport=500, dport=500) / IKE, Reason.IKE),
    Case("ike with a first word like the spi", IP4 / UDP(sport=500, dport=500) / esp(), Reason.IKE),
    Case("ike6", IP6 / UDP(sport=500, dport=500) / IKE, Reason.IKE),
    Case("ike behind options", ETH / IP(dst=V4, options=[IPOption_Router_Alert()]) / UDP(dport=500) / IKE, Reason.IKE),
    Case("ike behind extensions", IP6 / options(3) / UDP(dport=500) / IKE, Reason.IKE),
    Case("ike under a tag", ETH / Dot1Q(vlan=7) / IP4[IP] / UDP(dport=500) / IKE, Reason.IKE),
    Case("ike on 4500", IP4 / NAT_T / Raw(NON_ESP_MARKER) / IKE, Reason.IKE_NAT_T),
    Case("a bare marker", IP4 / NAT_T / Raw(NON_ESP_MARKER), Reason.IKE_NAT_T),
    Case("ike6 on 4500", IP6 / NAT_T / Raw(NON_ESP_MARKER) / IKE, Reason.IKE_NAT_T),
    Case("keepalive", IP4 / NAT_T / Raw(b"\xff"), Reason.KEEPALIVE),
    Case("padded keepalive", Ether(bytes(IP4 / NAT_T / Raw(b"\xff")) + bytes(17)), Reason.KEEPALIVE),
    Case("one octet, not ff", IP4 / NAT_T / Raw(b"\x00"), Reason.TRUNCATED),
    Case("empty nat-t", IP4 / NAT_T, Reason.TRUNCATED),
    Case("nat-t of 5 bytes", IP4 / NAT_T / Raw(b"\x11" * 5), Reason.TRUNCATED),
    Case("padded nat-t of 5 bytes", Ether(bytes(IP4 / NAT_T / Raw(b"\x11" * 5)) + bytes(13)), Reason.TRUNCATED),
    Case("unknown spi", IP4 / esp(OTHER_SPI), Reason.UNKNOWN_SPI),
    Case("known spi to another address", ETH / IP(dst="192.0.2.9") / esp(), Reason.UNKNOWN_SPI),
    Case("spi 0", IP4 / esp(0), Reason.UNKNOWN_SPI),
    Case("unknown spi on 4500", IP4 / NAT_T / esp(OTHER_SPI), Reason.UNKNOWN_SPI),
    Case("entry of the kernel", IP4 / esp(KERNEL_SPI), Reason.KERNEL_OWNED),
    Case("tagged", ETH / Dot1Q(vlan=7) / IP4[IP] / esp(), Reason.TAGGED),
    Case("802.1ad tag", ETH / Dot1AD(vlan=7) / IP4[IP] / esp(), Reason.TAGGED),
    Case("options", ETH / IP(dst=V4, options=[IPOption_Router_Alert()]) / esp(), Reason.IP_OPTIONS),
    Case("hop-by-hop", IP6 / IPv6ExtHdrHopByHop() / esp(), Reason.IP6_EXTENSIONS),
    Case("routing", IP6 / IPv6ExtHdrRouting() / esp(), Reason.IP6_EXTENSIONS),
    Case("long destination options", IP6 / options(20) / esp(), Reason.IP6_EXTENSIONS),
    Case("atomic fragment", IP6 / IPv6ExtHdrFragment() / esp(), Reason.IP6_EXTENSIONS),
    Case(
        "five extensions",
        IP6 / IPv6ExtHdrHopByHop() / options(1) / options(2) / options(1) / options(1) / esp(),
        Reason.IP6_EXTENSIONS,
    ),
    Case(
        "seven extensions",
        IP6 / options(1) / options(1) / options(1) / options(1) / options(1) / options(1) / options(1) / esp(),
        Reason.NOT_ESP,
    ),
    Case("extension beyond the end", IP6 / IPv6ExtHdrDestOpt(nh=50, len=255), Reason.TRUNCATED),
)


@pytest.fixture(scope="module")
def arena(pins: Path) -> Iterator[Steering]:
    """One docked interface for the whole module: the programs run on made-up packets, nothing passes it."""
    with namespace(f"xdprun{os.getpid()}"):
        ip(f"link add {INTERFACE} type veth peer name far9")
        opened = Steering.open(pins, hold_ms=0)
        opened.dock(INTERFACE, Role.WAN)
        yield opened
        opened.undock(INTERFACE)
        opened.close()


@pytest.fixture
def steering(arena: Steering) -> Steering:
    """Empty maps, engine off."""
    arena.set_engine(False)
    clear_entries(arena)
    arena.set_nat_t_ports(frozenset({OTHER_PORT, 9}))
    return arena


@pytest.fixture
def loaded(steering: Steering) -> Iterator[Steering]:
    """Engine on, one SPI steered on both families, one entry of the kernel, the way out connected."""
    steering._exits.connect(LOOPBACK, steering._docks[INTERFACE].exit)
    for address, source in ((IPv4Address(V4), IPv4Address("192.0.2.2")), (IPv6Address(V6), IPv6Address("2001:db8::2"))):
        steering.steer(SaKey(address, SPI))
        steering.steer(SaKey(address, UDP_SPI), UdpPeer(source, 4500))
        steering.steer(SaKey(address, MAPPED_SPI), UdpPeer(source, 1024))
        steering.steer(SaKey(address, TRIED_SPI), UdpPeer(source, 1024))
        steering.give_to_kernel(SaKey(address, TRIED_SPI), 3600)
    kernel_entry = SteerEntryLeaf(Owner.KERNEL, 1, 9)
    leaf = SaKeyLeaf.of(SaKey(IPv4Address(V4), KERNEL_SPI))
    libbpf.map_update(steering._maps["steer"], leaf, kernel_entry)
    steering.set_engine(True)
    yield steering
    libbpf.map_delete(steering._maps["steer"], leaf)
    steering._exits.disconnect(LOOPBACK)


def run(steering: Steering, packet: bytes) -> tuple[int, dict[Reason, Count]]:
    """The action, and which counters moved by how much."""
    before = steering.verdicts()
    result = prog_run(steering._programs.pipeline, packet)
    assert result.packet == packet  # the pipeline never touches a packet
    after = steering.verdicts()
    moved = {
        reason: Count(after[reason].packets - before[reason].packets, after[reason].octets - before[reason].octets)
        for reason in Reason
        if after[reason] != before[reason]
    }
    return result.retval, moved


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_packet_has_its_reason(loaded: Steering, case: Case) -> None:
    packet = bytes(case.packet)
    before = loaded.dock_counts(INTERFACE).fell_to_kernel
    action, moved = run(loaded, packet)
    assert moved == {case.reason: Count(1, len(packet))}
    # The way out ran: with no socket in the XSKMAP its dock passes the packet on and says so.
    fell = loaded.dock_counts(INTERFACE).fell_to_kernel - before
    assert (action, fell) == (XdpAction.PASS, int(case.reason is Reason.STEERED))


def test_esp_in_udp_from_elsewhere_is_noted(loaded: Steering) -> None:
    loaded.take_moved()
    usual, moved = IP4 / UDP(sport=1024, dport=4500), IP4 / UDP(sport=1025, dport=4500)
    run(loaded, bytes(usual / esp(MAPPED_SPI)))
    run(loaded, bytes(moved / esp(OTHER_SPI)))
    run(loaded, bytes(moved / esp(SPI)))
    assert loaded.take_moved() == frozenset()
    for _ in range(2):
        run(loaded, bytes(moved / esp(MAPPED_SPI)))
        run(loaded, bytes(FAR4 / UDP(sport=1024, dport=4500) / esp(TRIED_SPI)))
    assert loaded.take_moved() == {SaKey(IPv4Address(V4), MAPPED_SPI), SaKey(IPv4Address(V4), TRIED_SPI)}
    assert loaded.take_moved() == frozenset()


def test_a_trial_ends_by_itself_and_with_the_peer_that_is_found(loaded: Steering) -> None:
    key, packet = SaKey(IPv4Address(V4), TRIED_SPI), bytes(IP4 / UDP(sport=1025, dport=4500) / esp(TRIED_SPI))
    assert list(run(loaded, packet)[1]) == [Reason.MOVED]
    loaded.steer(key, UdpPeer(IPv4Address("192.0.2.2"), 1025))
    assert list(run(loaded, packet)[1]) == [Reason.STEERED]
    assert loaded.peers()[key] == UdpPeer(IPv4Address("192.0.2.2"), 1025)
    assert loaded.steer_counters()[key].engine_packets == 1  # counters go on
    back = bytes(IP4 / UDP(sport=1024, dport=4500) / esp(TRIED_SPI))
    assert list(run(loaded, back)[1]) == [Reason.STEERED]
    loaded.give_to_kernel(key, -1)
    assert list(run(loaded, back)[1]) == [Reason.STEERED]


@pytest.mark.parametrize("ports", [(100, 4510, 30000, 65535), (1, 2), (256,), ()], ids=str)
def test_our_ports_are_these_and_no_others(steering: Steering, ports: tuple[int, ...]) -> None:
    steering.set_nat_t_ports(frozenset(ports))
    assert steering.nat_t_ports() == set(ports)
    beside = {port ^ 1 << bit for port in (*ports, 4500) for bit in range(16)} | {0, 1, 0xFFFF}
    for port in sorted({*ports, 4500} | beside):
        expected = Reason.IKE_NAT_T if port in {*ports, 4500} else Reason.IKE if port == 500 else Reason.NOT_ESP
        packet = bytes(IP4 / UDP(dport=port) / Raw(NON_ESP_MARKER) / IKE)
        assert list(run(steering, packet)[1]) == [expected], port


def test_every_xdp_reason_is_in_the_table() -> None:
    covered = {case.reason for case in CASES} | {Reason.ENGINE_OFF, Reason.NO_DOCK}
    assert covered == {reason for reason in Reason if reason < Reason.XFRMI_OUT}  # those: test_xfrm_interfaces.py


@pytest.mark.parametrize("case", CASES, ids=str)
def test_empty_maps_pass_everything(steering: Steering, case: Case) -> None:
    action, moved = run(steering, bytes(case.packet))
    assert action == XdpAction.PASS
    assert Reason.STEERED not in moved
    if case.reason in {Reason.IKE, Reason.IKE_NAT_T, Reason.KEEPALIVE, Reason.UNKNOWN_SPI, Reason.FRAGMENT}:
        assert list(moved) == [case.reason]


def test_engine_off_leaves_a_steered_sa_to_the_kernel(loaded: Steering) -> None:
    loaded.set_engine(False)
    packet = bytes(IP4 / esp())
    assert run(loaded, packet) == (XdpAction.PASS, {Reason.ENGINE_OFF: Count(1, len(packet))})
    count = loaded.steer_counters()[SaKey(IPv4Address(V4), SPI)]
    assert (count.engine_packets, count.kernel_packets, count.kernel_octets) == (0, 1, len(packet))


def test_no_way_out_is_the_kernels_packet_and_counted_once(loaded: Steering) -> None:
    loaded._exits.disconnect(LOOPBACK)
    packet = bytes(IP4 / esp())
    assert run(loaded, packet) == (XdpAction.PASS, {Reason.NO_DOCK: Count(1, len(packet))})
    count = loaded.steer_counters()[SaKey(IPv4Address(V4), SPI)]
    assert (count.engine_packets, count.engine_octets, count.kernel_packets) == (0, 0, 1)


def test_an_empty_slot_takes_its_count_back(loaded: Steering) -> None:
    slot = loaded._exits._taken[LOOPBACK]
    libbpf.map_delete(loaded._maps["exits"], ctypes.c_uint32(slot))
    packet = bytes(IP4 / esp())
    assert run(loaded, packet) == (XdpAction.PASS, {Reason.NO_DOCK: Count(1, len(packet))})
    count = loaded.steer_counters()[SaKey(IPv4Address(V4), SPI)]
    assert (count.engine_packets, count.engine_octets, count.kernel_packets) == (0, 0, 1)


@pytest.mark.parametrize(
    "packet",
    [
        IP4 / esp(),
        IP4 / NAT_T / esp(UDP_SPI),
        IP4 / UDP(dport=500) / IKE,
        IP4 / NAT_T / Raw(NON_ESP_MARKER) / IKE,
        ETH / Dot1Q(vlan=7) / IP4[IP] / esp(),
        IP6 / IPv6ExtHdrHopByHop() / options(2) / IPv6ExtHdrFragment() / NAT_T / esp(UDP_SPI),
    ],
    ids=["esp", "nat-t", "ike", "ike on 4500", "tagged", "extensions"],
)
def test_any_truncation_passes_and_is_counted_once(loaded: Steering, packet: Packet) -> None:
    whole = bytes(packet)
    for length in range(len(ETH), len(whole) + 1):
        action, moved = run(loaded, whole[:length])
        assert action == XdpAction.PASS
        assert [count.packets for count in moved.values()] == [1], length


def test_a_test_run_below_14_bytes_is_refused(steering: Steering) -> None:
    with pytest.raises(SteeringError, match="with 13 bytes failed"):
        prog_run(steering._programs.pipeline, bytes(13))


def test_repeat_gives_a_duration(steering: Steering) -> None:
    result = prog_run(steering._programs.pipeline, bytes(IP4 / esp()), repeat=1000)
    assert (result.retval, result.repeat) == (XdpAction.PASS, 1000)
    assert 0 < result.duration_ns < 1_000_000


OUT4 = ETH / IP(src=V4, dst="198.51.100.1")
OUT6 = ETH / IPv6(src=V6, dst="2001:db8::99")
CLAIMED = (SaKey(IPv4Address("198.51.100.1"), SPI), SaKey(IPv6Address("2001:db8::99"), SPI))

GUARD_CASES = (
    (OUT4 / esp(), TcAction.SHOT),
    (OUT4 / NAT_T / esp(), TcAction.SHOT),
    (OUT4 / UDP(sport=4500, dport=1024) / esp(), TcAction.SHOT),
    (OUT6 / esp(), TcAction.SHOT),
    (ETH / Dot1Q(vlan=7) / OUT4[IP] / esp(), TcAction.SHOT),
    (ETH / IP(dst="198.51.100.1", options=[IPOption_Router_Alert()]) / esp(), TcAction.SHOT),
    (ETH / IP(dst="198.51.100.1", flags="MF") / esp(), TcAction.SHOT),
    (ETH / IP(dst="198.51.100.1", frag=20, proto=50) / Raw(bytes(esp())), TcAction.UNSPEC),
    (OUT4 / NAT_T / Raw(NON_ESP_MARKER) / IKE, TcAction.UNSPEC),
    (OUT4 / NAT_T / Raw(b"\xff"), TcAction.UNSPEC),
    (OUT4 / UDP(sport=500, dport=500) / IKE, TcAction.UNSPEC),
    (OUT4 / UDP(sport=OTHER_PORT, dport=4500) / esp(), TcAction.SHOT),
    (OUT4 / UDP(sport=OTHER_PORT, dport=4500) / Raw(NON_ESP_MARKER) / IKE, TcAction.UNSPEC),
    (OUT4 / UDP(sport=OTHER_PORT, dport=4500) / Raw(b"\xff"), TcAction.UNSPEC),
    (OUT4 / UDP(sport=1024, dport=4500) / esp(), TcAction.UNSPEC),
    (OUT4 / TCP(), TcAction.UNSPEC),
    (ETH / ARP(), TcAction.UNSPEC),
    (OUT4 / esp(OTHER_SPI), TcAction.UNSPEC),
)


@pytest.mark.parametrize(("packet", "action"), GUARD_CASES, ids=lambda value: getattr(value, "summary", lambda: "")())
def test_the_guard_drops_claimed_esp_in_every_shape(steering: Steering, packet: Packet, action: TcAction) -> None:
    for key in CLAIMED:
        steering.claim(key)
    steering.set_nat_t_ports(frozenset({1, 2, 3, OTHER_PORT}))
    assert prog_run(steering._programs.guard, bytes(packet)).retval == action
    dropped = sum(count.dropped for count in steering.guard_counters().values())
    assert dropped == (action is TcAction.SHOT)


def test_the_guard_never_drops_a_truncated_ike_packet(steering: Steering) -> None:
    whole = bytes(OUT4 / NAT_T / Raw(NON_ESP_MARKER) / IKE)
    for length in range(len(OUT4), len(whole) + 1):  # kernel 6.18 makes no packet of less than an IP header for TC
        assert prog_run(steering._programs.guard, whole[:length]).retval == TcAction.UNSPEC


def test_the_guard_holds_a_newborn_until_the_daemon_is_silent_for_two_seconds(steering: Steering) -> None:
    tables.set_control(steering._control, Control.HOLD_NS, 3_600_000_000_000)
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    packet = bytes(OUT4 / esp())
    steering.set_local(frozenset({ip_address(Ether(packet)[IP].src)}))
    tables.set_control(steering._control, Control.HEARTBEAT_NS, now - 2_000_000_001)
    assert prog_run(steering._programs.guard, packet).retval == TcAction.UNSPEC
    tables.set_control(steering._control, Control.HEARTBEAT_NS, now + 60_000_000_000)
    assert prog_run(steering._programs.guard, packet).retval == TcAction.SHOT
    tables.set_control(steering._control, Control.HOLD_NS, 0)
    assert prog_run(steering._programs.guard, packet).retval == TcAction.UNSPEC


def test_the_way_out_of_another_interface_is_not_taken(loaded: Steering) -> None:
    """Its index has the same low bits: one slot, and the index beside it decides."""
    exit_program = loaded._docks[INTERFACE].exit
    loaded._exits.disconnect(LOOPBACK)
    loaded._exits.connect(LOOPBACK + MAX_EXIT_SLOTS, exit_program)
    with pytest.raises(SteeringError, match="65536 apart"):
        loaded._exits.connect(LOOPBACK, exit_program)
    packet = bytes(IP4 / esp())
    assert run(loaded, packet)[1] == {Reason.NO_DOCK: Count(1, len(packet))}
    loaded._exits.keep_only(frozenset())
    loaded._exits.connect(LOOPBACK, exit_program)
    assert run(loaded, packet)[1] == {Reason.STEERED: Count(1, len(packet))}
