"""IPsec policies and clear packets: into tunnels of the kernel, out of tunnels, and what must not come in clear."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from firewall_kit import FAR, LAN, WAN, zones
from firewall_packets import about, changed, echo, ip_layer, tcp, udp
from scapy.layers.inet import TCP, UDP
from scapy.layers.ipsec import ESP
from scapy.packet import Packet
from tunnel_kit import IN, NEAR, OUT, REMOTE, Tunnels, pair, policy, tunnels_world

from ipsec_gw.model.firewall import Action, Policy, Ruleset, Service, Zone
from ipsec_gw.model.objects import PortMatch
from xdp_steer import libbpf
from xdp_steer.compile.tunnels import tunnel_lists
from xdp_steer.flow_layout import State, TunnelKeyLeaf, TunnelNetLeaf
from xdp_steer.prog_run import XdpAction
from xdp_steer.reasons import Reason
from xdp_steer.tunnels import TunnelTable

pytestmark = pytest.mark.root

VERSIONS = (4, 6)
VPN = Zone("vpn", tunnels=True, host_inbound=(Service(6, (22, 22)),))
ASYMMETRIC = Ruleset(
    zones=(*zones(), VPN),
    policies=(
        Policy("into", Action.PERMIT, from_zone="lan", to_zone="vpn"),
        Policy("out", Action.PERMIT, from_zone="vpn", to_zone="lan"),
        Policy("clear", Action.DENY, from_zone="lan", to_zone="wan"),
        Policy("inward", Action.PERMIT, from_zone="wan", to_zone="lan"),
    ),
)
"""Tells the zones apart: LAN to tunnel is let through, LAN to WAN is not."""


BOTH_FAMILIES = [one for version in VERSIONS for one in pair(version)]


@pytest.fixture(scope="module")
def arena(pins: Path) -> Iterator[Tunnels]:
    with tunnels_world(pins) as made:
        yield made


@pytest.fixture
def tunnels(arena: Tunnels) -> Tunnels:
    arena.world.clear()
    arena.apply(ASYMMETRIC, *BOTH_FAMILIES)
    return arena


def outward(version: int, **fields: object) -> Packet:
    return tcp(LAN.host(version), FAR[version], **fields)


def inward(version: int, **fields: object) -> Packet:
    return tcp(FAR[version], LAN.host(version), **fields)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_protected_packet_leaves_into_the_tunnels_zone_by_the_kernel(tunnels, version):
    packet = outward(version)
    result = tunnels.lan(packet)
    assert (result.action, result.reason) == (XdpAction.PASS, Reason.TO_KERNEL)
    assert bytes(result.packet) == bytes(LAN.frame(packet))
    assert tunnels.world.session().translated.zone == tunnels.world.zone("vpn")


@pytest.mark.parametrize("version", VERSIONS)
def test_what_no_policy_protects_leaves_into_the_zone_of_its_interface(tunnels, version):
    other_source = outward(version, dport=81)
    near = {4: "10.1.0.0/30", 6: "2001:db8:1::/126"}[version]
    tunnels.apply(ASYMMETRIC, policy(OUT, near, REMOTE[version]))
    assert tunnels.lan(other_source).reason is Reason.POLICY_DENY


@pytest.mark.parametrize("version", VERSIONS)
def test_the_answer_comes_out_of_the_tunnel(tunnels, version):
    tunnels.lan(outward(version))
    answer = inward(version, dport=outward(version)[TCP].sport, flags="SA")
    answer[TCP].sport = 80
    result = tunnels.out(answer)
    assert (result.action, result.reason) == (XdpAction.REDIRECT, Reason.FORWARDED)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_flow_may_come_out_of_a_tunnel(tunnels, version):
    assert tunnels.out(inward(version)).reason is Reason.FORWARDED
    assert tunnels.world.session().flow.zone == tunnels.world.zone("vpn")


def test_an_unknown_zone_in_the_address_is_no_zone(tunnels):
    assert tunnels.out(inward(4), zone=63).reason is Reason.NO_ZONE


@pytest.mark.parametrize("version", VERSIONS)
def test_a_protected_source_does_not_come_in_clear(tunnels, version):
    result = tunnels.world.send(WAN, inward(version))
    assert (result.action, result.reason) == (XdpAction.DROP, Reason.CLEAR_OF_PROTECTED)
    assert tunnels.world.sessions() == []


def test_other_sources_come_in_clear(tunnels):
    assert tunnels.world.send(WAN, tcp(WAN.host4, LAN.host4)).reason is Reason.FORWARDED


def test_ipsec_between_the_ends_of_a_host_to_host_policy_comes_in(tunnels):
    ends = [policy(direction, f"{WAN.address4}/32", f"{WAN.host4}/32") for direction in (OUT, IN)]
    tunnels.apply(ASYMMETRIC, *ends)
    esp = ip_layer(4, src=WAN.host4, dst=WAN.address4) / ESP(spi=7, seq=1, data=b"x" * 40)
    ike = udp(WAN.host4, WAN.address4, dport=500)
    assert tunnels.world.send(WAN, esp).reason is Reason.HOST_IKE
    assert tunnels.world.send(WAN, ike).reason is Reason.HOST_IKE
    assert tunnels.world.send(WAN, udp(WAN.host4, WAN.address4, dport=5000)).reason is Reason.CLEAR_OF_PROTECTED


def test_without_a_zone_of_tunnels_nothing_goes_into_them(tunnels):
    tunnels.apply(replace(ASYMMETRIC, zones=(*zones(), replace(VPN, tunnels=False))), *BOTH_FAMILIES)
    assert tunnels.lan(outward(4)).reason is Reason.NO_EGRESS_ZONE


def test_the_priority_decides_and_not_the_length_of_prefixes(tunnels):
    protect = policy(OUT, NEAR[4], "203.0.0.0/8", priority=10)
    bypass = policy(OUT, NEAR[4], REMOTE[4], priority=20, protects=False)
    tunnels.apply(ASYMMETRIC, protect, bypass)
    assert tunnels.lan(outward(4)).reason is Reason.TO_KERNEL
    tunnels.apply(ASYMMETRIC, protect, replace(bypass, priority=5))
    assert tunnels.lan(outward(4, dport=81)).reason is Reason.POLICY_DENY


@pytest.mark.parametrize(
    ("packet", "protected"),
    [
        (tcp(LAN.host4, FAR[4], dport=443), True),
        (tcp(LAN.host4, FAR[4], dport=444), False),
        (udp(LAN.host4, FAR[4], dport=443), False),
    ],
    ids=["port", "other port", "other protocol"],
)
def test_protocol_and_ports_count(tunnels, packet, protected):
    tunnels.apply(ASYMMETRIC, policy(OUT, NEAR[4], REMOTE[4], upper=6, destination_port=PortMatch(443, 0xFFFF)))
    assert tunnels.lan(packet).reason is (Reason.TO_KERNEL if protected else Reason.POLICY_DENY)


def test_the_type_of_icmp_is_its_source_port(tunnels):
    request = policy(OUT, NEAR[4], REMOTE[4], upper=1, source_port=PortMatch(8, 0xFFFF))
    tunnels.apply(ASYMMETRIC, request)
    assert tunnels.lan(echo(LAN.host4, FAR[4])).reason is Reason.TO_KERNEL
    tunnels.world.clear()
    tunnels.apply(ASYMMETRIC, replace(request, source_port=PortMatch(13, 0xFFFF)))
    assert tunnels.lan(echo(LAN.host4, FAR[4])).reason is Reason.POLICY_DENY


def test_policies_of_marks_and_xfrm_interfaces_match_no_packet_without(tunnels):
    tunnels.apply(
        ASYMMETRIC, *(replace(one, mark=(1, 1)) for one in pair(4)), *(replace(one, if_id=7) for one in pair(6))
    )
    assert tunnels.lan(outward(4)).reason is Reason.POLICY_DENY
    assert tunnels.lan(outward(6)).reason is Reason.POLICY_DENY


def test_a_session_does_not_go_on_in_clear_when_its_tunnel_is_gone(tunnels):
    tunnels.lan(outward(4))
    tunnels.apply(ASYMMETRIC)
    result = tunnels.lan(outward(4))
    assert (result.action, result.reason) == (XdpAction.DROP, Reason.ZONE_CHANGED)


@pytest.mark.parametrize("version", VERSIONS)
def test_answers_to_connections_of_this_machine_come_out_of_the_tunnel(tunnels, version):
    """Their packets leave encrypted by the kernel, so there is no session: the socket tells."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with closing(socket.socket(family, socket.SOCK_DGRAM)) as sock:
        sock.bind((LAN.own(version), 5555))
        answer = udp(FAR[version], LAN.own(version), dport=5555)
        assert tunnels.out(answer).reason is Reason.DEFAULT_DENY  # it only listens
        sock.connect((FAR[version], answer[UDP].sport))
        result = tunnels.out(answer)
        assert (result.action, result.reason) == (XdpAction.PASS, Reason.HOST_SOCKET)
        assert tunnels.out(changed(answer, sport=1)).reason is Reason.DEFAULT_DENY
        assert tunnels.world.send(WAN, answer).reason is Reason.CLEAR_OF_PROTECTED


def test_tcp_of_this_machine_comes_out_of_the_tunnel(tunnels):
    with closing(socket.socket()) as listener, closing(socket.socket()) as sock:
        listener.bind((LAN.address4, 5556))
        listener.listen()
        assert tunnels.out(tcp(FAR[4], LAN.address4, dport=5556)).reason is Reason.DEFAULT_DENY
        sock.bind((LAN.address4, 5557))
        sock.setblocking(False)
        assert sock.connect_ex((FAR[4], 80))  # in progress: SYN sent
        answer = tcp(FAR[4], LAN.address4, dport=5557, flags="SA")
        answer[TCP].sport = 80
        assert tunnels.out(answer).reason is Reason.HOST_SOCKET
        answer[TCP].sport = 81
        assert tunnels.out(answer).reason is Reason.TCP_NOT_SYN


@pytest.mark.parametrize("version", VERSIONS)
def test_answers_to_pings_of_this_machine_come_out_of_the_tunnel(tunnels, version):
    assert tunnels.out(echo(FAR[version], LAN.own(version), reply=True)).reason is Reason.HOST_SOCKET
    assert tunnels.out(echo(FAR[version], LAN.host(version), reply=True)).reason is Reason.ICMP_UNSOLICITED


@pytest.mark.parametrize("version", VERSIONS)
def test_icmp_errors_about_packets_of_this_machine_come_out_of_the_tunnel(tunnels, version):
    sent = udp(LAN.own(version), FAR[version])
    assert tunnels.out(about(sent, FAR[version], LAN.own(version))).reason is Reason.HOST_SOCKET
    forwarded = udp(LAN.host(version), FAR[version])
    assert tunnels.out(about(forwarded, FAR[version], LAN.host(version))).reason is Reason.ICMP_NO_SESSION


def test_a_connection_to_this_machine_is_established_without_its_answers(tunnels):
    """They leave encrypted, unseen: without this its session would end with the time for opening."""
    syn = tcp(FAR[4], LAN.address4, dport=22)
    assert tunnels.out(syn).reason is Reason.HOST
    assert tunnels.world.session().state is State.OPENING
    ack = changed(syn)
    ack[TCP].flags = "A"
    del ack[TCP].chksum
    assert tunnels.out(ack).reason is Reason.HOST
    assert tunnels.world.session().state is State.ESTABLISHED


def test_policies_change_without_leaving_anything_behind(tunnels):
    maps = tunnels.world.maps
    wide = [policy(OUT, NEAR[4], f"10.{number}.0.0/16", reqid=number) for number in range(1, 200)]
    tunnels.table.replace(tunnel_lists([*BOTH_FAMILIES, *wide]).lists)
    assert len(list(libbpf.map_keys(maps["tunnel_nets"], TunnelNetLeaf))) == 4 + 199
    again = TunnelTable(maps)  # of the next process
    again.replace(tunnel_lists(BOTH_FAMILIES).lists)
    assert len(list(libbpf.map_keys(maps["tunnel_nets"], TunnelNetLeaf))) == 4
    assert len(list(libbpf.map_keys(maps["tunnels"], TunnelKeyLeaf))) == 4
    assert not again.replace(tunnel_lists(BOTH_FAMILIES).lists)
    tunnels.table = again
    assert tunnels.lan(outward(4)).reason is Reason.TO_KERNEL


def test_lists_lead_to_their_own_entries_only(tunnels):
    """Every number that a far network leads to has entries from 0 on, and no number is used twice."""
    maps = tunnels.world.maps
    for count in (5, 50, 7):
        tunnels.table.replace(
            tunnel_lists([policy(OUT, NEAR[4], f"10.{n}.0.0/16", priority=n) for n in range(count)]).lists
        )
        keys = list(libbpf.map_keys(maps["tunnel_nets"], TunnelNetLeaf))
        numbers = [libbpf.map_lookup(maps["tunnel_nets"], key, ctypes.c_uint32()).value for key in keys]
        assert len(set(numbers)) == len(numbers) == count
        entries = {(key.list, key.n) for key in libbpf.map_keys(maps["tunnels"], TunnelKeyLeaf)}
        assert entries == {(number, 0) for number in numbers}
