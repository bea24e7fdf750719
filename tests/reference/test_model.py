"""The model itself, on packets made by scapy, step by step of the specification: the way in, policies, answers."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from ipsec_gw.model.firewall import SELF, Action, Ruleset, Service
from tests.reference.kit import (
    CLIENT,
    SECOND,
    SERVER,
    Firewall,
    c2s,
    checked,
    net,
    out,
    permit_all,
    policy,
    tcp_service,
    zones,
)
from xdp_steer.reasons import Reason


@pytest.fixture
def firewall() -> Firewall:
    return Firewall(permit_all())


# The way in


def test_arp_and_double_tags_are_not_ip(firewall):
    assert firewall.sees("fwa", Ether() / ARP()).reason is Reason.NOT_IP
    assert firewall.sees("fwa", Ether() / Dot1Q(vlan=1) / Dot1Q(vlan=2) / IP(dst=SERVER)).reason is Reason.NOT_IP


def test_an_interface_or_vlan_without_zone_drops(firewall):
    assert firewall.sees("fwx", IP(dst=SERVER)).reason is Reason.NO_ZONE
    assert firewall.sees("fwa", Ether() / Dot1Q(vlan=100) / IP(dst=SERVER)).reason is Reason.NO_ZONE


def test_a_priority_tag_is_the_untagged_port_and_stays_on_what_the_kernel_gets(firewall):
    tagged = Ether() / Dot1Q(vlan=0, prio=5) / IP(src=CLIENT, dst="10.0.1.119") / UDP(sport=1, dport=2)
    outcome = firewall.sees("fwa", tagged)
    assert (outcome.action, outcome.reason) == ("PASS", Reason.TO_KERNEL), "nobody knows the neighbour's MAC"
    assert outcome.frame == bytes(tagged)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[:14] + b"\x55" + raw[15:],  # version
        lambda raw: raw[:14] + b"\x44" + raw[15:],  # 16 bytes of header
        lambda raw: raw[:16] + b"\x00\x13" + raw[18:],  # shorter than its header
        lambda raw: raw[:16] + b"\xff\xff" + raw[18:],  # longer than the frame
        lambda raw: raw[:30],
        lambda raw: raw[:16] + b"\x00\x27" + raw[18:],  # 19 bytes of TCP
    ],
)
def test_ipv4_that_contradicts_itself_is_malformed(firewall, spoil):
    frame = spoil(bytes(Ether() / c2s("S")))
    assert firewall.sees("fwa", frame).reason is Reason.MALFORMED


def test_six_extension_headers_are_fine_and_seven_are_not(firewall):
    def chain(count):
        packet = IPv6(src="2001:db8:a::a", dst="2001:db8:b::a")
        for _ in range(count):
            packet /= IPv6ExtHdrDestOpt()
        return packet / UDP(sport=1, dport=2)

    assert firewall.sees("fwa", chain(6)).action == "REDIRECT"
    assert firewall.sees("fwa", chain(7)).reason is Reason.MALFORMED


def test_a_cut_extension_header_is_malformed(firewall):
    packet = IPv6(src="2001:db8:a::a", dst="2001:db8:b::a", nh=0, plen=8) / Raw(b"\x11\x01" + bytes(6))
    assert firewall.sees("fwa", packet).reason is Reason.MALFORMED


@pytest.mark.parametrize("addresses", [("::ffff:10.0.0.10", "2001:db8:b::a"), ("2001:db8:a::a", "::ffff:10.0.1.10")])
def test_ipv4_addresses_in_ipv6_are_malformed(firewall, addresses):
    packet = IPv6(src=addresses[0], dst=addresses[1]) / UDP(sport=1, dport=2)
    assert firewall.sees("fwa", packet).reason is Reason.MALFORMED


def test_neighbour_discovery_passes_with_hop_limit_255_only(firewall):
    solicitation = IPv6(src="2001:db8:a::a", dst="2001:db8:a::1", hlim=255) / ICMPv6ND_NS(tgt="2001:db8:a::1")
    assert firewall.sees("fwa", solicitation).reason is Reason.NDP
    solicitation.hlim = 64
    assert firewall.sees("fwa", solicitation).reason is Reason.ICMP_UNSOLICITED


def test_multicast_is_for_this_machine_and_makes_no_session():
    ospf = (Service(89),)
    firewall = Firewall(Ruleset(zones=zones(host_inbound=ospf), default=Action.PERMIT))
    assert firewall.sees("fwa", IP(src=CLIENT, dst="224.0.0.5", proto=89) / Raw(bytes(24))).reason is Reason.HOST
    denied = firewall.sees("fwa", IP(src=CLIENT, dst="224.0.0.251") / UDP(sport=5353, dport=5353))
    assert (denied.action, denied.reason) == ("DROP", Reason.DEFAULT_DENY)
    assert firewall.sessions == 0
    assert firewall.pipeline.counters == {20: (1, 44)}


# Forwarding


def test_a_forwarded_packet_has_the_next_hops_mac_and_one_ttl_less(firewall):
    outcome = firewall.sees("fwa", c2s("S"))
    expected = Ether(src="02:00:00:00:00:62", dst="02:00:00:00:62:0a") / c2s("S")
    expected[IP].ttl = 63
    assert (outcome.action, outcome.frame) == ("REDIRECT", bytes(expected))


def test_tags_are_taken_off_and_put_on(firewall):
    to_vlan = out(firewall.sees("fwa", IP(src=CLIENT, dst="10.0.100.10") / UDP(sport=5, dport=6)))
    assert (to_vlan[Dot1Q].vlan, to_vlan[Dot1Q].prio, to_vlan.src) == (100, 0, "02:00:00:00:00:63")
    back = Ether() / Dot1Q(vlan=100, prio=7) / IP(src="10.0.100.10", dst=CLIENT) / UDP(sport=6, dport=5)
    assert not out(firewall.sees("fwc", back)).haslayer(Dot1Q)


def test_ttl_one_is_answered_from_the_ingress_address(firewall):
    packet = IP(src=CLIENT, dst=SERVER, ttl=1, id=7) / UDP(sport=5, dport=6) / Raw(b"payload")
    outcome = firewall.sees("fwa", packet)
    answer = out(outcome)
    assert (outcome.action, outcome.reason) == ("TX", Reason.TTL_EXPIRED)
    assert (answer[IP].src, answer[IP].dst, answer[IP].ttl) == ("10.0.0.1", CLIENT, 64)
    assert (answer[IP].id, answer[IP].flags, answer[IP].len) == (0, "DF", 56)
    assert (answer[ICMP].type, answer[ICMP].code) == (11, 0)
    assert bytes(answer[ICMP].payload) == bytes(packet)[:28]
    assert checked(answer) == answer
    assert firewall.sessions == 2, "the session was there before the TTL was looked at"


def test_an_error_is_from_the_packets_destination_where_the_port_has_no_address():
    firewall = Firewall(permit_all(), addresses=False)
    answer = out(firewall.sees("fwa", IP(src=CLIENT, dst=SERVER, ttl=0) / UDP(sport=5, dport=6)))
    assert answer[IP].src == SERVER


@pytest.mark.parametrize("source", ["0.0.0.0", "127.0.0.1", "224.0.0.5", "255.255.255.255"])
def test_a_source_that_is_nobody_opens_nothing(firewall, source):
    outcome = firewall.sees("fwa", IP(src=source, dst=SERVER) / UDP(sport=5, dport=6))
    assert (outcome.action, outcome.reason) == ("DROP", Reason.MARTIAN_SOURCE)
    assert firewall.sessions == 0


def test_too_big_with_df_names_the_mtu(firewall):
    packet = IP(src=CLIENT, dst=SERVER, flags="DF") / UDP(sport=5, dport=6) / Raw(bytes(1373))
    answer = out(firewall.sees("fwa", packet))
    assert (answer[ICMP].type, answer[ICMP].code, answer[ICMP].nexthopmtu) == (3, 4, 1400)


def test_too_big_without_df_is_left_to_the_kernel_and_the_limit_fits(firewall):
    big = IP(src=CLIENT, dst=SERVER) / UDP(sport=5, dport=6) / Raw(bytes(1373))
    assert firewall.sees("fwa", big).reason is Reason.TO_KERNEL
    fits = IP(src=CLIENT, dst=SERVER) / UDP(sport=5, dport=6) / Raw(bytes(1372))
    assert firewall.sees("fwa", fits).reason is Reason.FORWARDED


def test_ipv6_too_big(firewall):
    packet = IPv6(src="2001:db8:a::a", dst="2001:db8:f3::9") / UDP(sport=5, dport=6) / Raw(bytes(1300))
    answer = out(firewall.sees("fwa", packet))
    assert (answer[IPv6].src, answer["ICMPv6 Packet Too Big"].mtu) == ("2001:db8:a::1", 1280)
    assert len(bytes(answer[IPv6])) == 1280
    assert bytes(answer[IPv6])[48:] == bytes(packet)[:1232]
    assert checked(answer) == answer


@pytest.mark.parametrize(
    ("destination", "reason", "code"),
    [
        ("192.0.2.1", Reason.ROUTE_BLACKHOLE, None),
        ("192.0.2.17", Reason.ROUTE_UNREACHABLE, 1),
        ("192.0.2.33", Reason.ROUTE_UNREACHABLE, 13),
        ("10.0.4.10", Reason.NO_EGRESS_ZONE, None),
    ],
)
def test_routes_that_lead_nowhere(firewall, destination, reason, code):
    outcome = firewall.sees("fwa", IP(src=CLIENT, dst=destination) / UDP(sport=5, dport=6))
    assert outcome.reason is reason
    assert (outcome.action == "TX") is (code is not None)
    assert code is None or (out(outcome)[ICMP].type, out(outcome)[ICMP].code) == (3, code)


def test_an_interface_that_takes_no_redirect_leaves_packets_to_the_kernel():
    firewall = Firewall(permit_all(), redirect=False)
    outcome = firewall.sees("fwa", c2s("S"))
    assert (outcome.action, outcome.frame[14:]) == ("PASS", bytes(c2s("S")))


def test_a_session_from_a_spoofed_address_gets_no_replies_into_another_zone(firewall):
    firewall.sees("fwa", IP(src="10.0.2.10", dst="198.51.100.10") / UDP(sport=5, dport=6))
    reply = firewall.sees("fwd", IP(src="198.51.100.10", dst="10.0.2.10") / UDP(sport=6, dport=5))
    assert reply.reason is Reason.ZONE_CHANGED


# Policies


def test_zone_pair_before_global_before_default():
    firewall = Firewall(
        permit_all(
            policies=(
                policy("global", Action.DENY, None, services=tcp_service(1, 100)),
                policy("web", Action.PERMIT, ("lan", "dmz"), services=tcp_service(80)),
            )
        )
    )
    assert firewall.sees("fwa", c2s("S")).reason is Reason.FORWARDED
    ssh = IP(src=CLIENT, dst=SERVER) / TCP(dport=22)
    assert firewall.sees("fwa", ssh).reason is Reason.POLICY_DENY
    assert firewall.sees("fwa", IP(src=CLIENT, dst=SERVER) / TCP(dport=101)).reason is Reason.FORWARDED
    assert firewall.pipeline.counters == {10: (1, 40), 11: (1, 40)}


def test_the_first_rule_that_matches_all_of_it_decides():
    lan_hosts = (net("10.0.0.10/31"),)
    firewall = Firewall(
        permit_all(
            policies=(
                policy("a", Action.DENY, ("lan", "dmz"), sources=lan_hosts, destinations=(net("10.0.1.11/32"),)),
                policy("b", Action.PERMIT, ("lan", "dmz"), sources=(net("10.0.0.0/24"),)),
                policy("c", Action.DENY, ("lan", "dmz"), sources=lan_hosts),
            )
        )
    )
    assert firewall.sees("fwa", c2s("S")).reason is Reason.FORWARDED
    assert firewall.entry(CLIENT, SERVER, (1024, 80), 6, "lan").rule == 11


def test_a_network_of_the_other_family_matches_nothing():
    everything6 = policy("v6", Action.DENY, ("lan", "dmz"), sources=(net("::/0"),))
    firewall = Firewall(permit_all(policies=(everything6,)))
    assert firewall.sees("fwa", c2s("S")).reason is Reason.FORWARDED
    packet = IPv6(src="2001:db8:a::a", dst="2001:db8:b::a") / TCP(flags="S")
    assert firewall.sees("fwa", packet).reason is Reason.POLICY_DENY


def test_reject_resets_tcp_and_acknowledges_what_it_saw():
    firewall = Firewall(permit_all(policies=(policy("no", Action.REJECT, ("lan", "dmz")),)))
    answer = out(firewall.sees("fwa", c2s("S", seq=100)))
    assert (answer[TCP].flags, answer[TCP].seq, answer[TCP].ack) == ("RA", 0, 101)
    assert (answer[IP].src, answer[IP].dst, answer[TCP].sport, answer[TCP].dport) == (SERVER, CLIENT, 80, 1024)
    assert checked(answer) == answer


def test_reject_of_udp_comes_from_the_destination_and_of_rst_not_at_all():
    loose = zones(syn_check=False)
    firewall = Firewall(permit_all(zones=loose, policies=(policy("no", Action.REJECT, ("lan", "dmz")),)))
    answer = out(firewall.sees("fwa", IP(src=CLIENT, dst=SERVER) / UDP(sport=5, dport=6)))
    assert (answer[IP].src, answer[ICMP].type, answer[ICMP].code) == (SERVER, 3, 13)
    assert firewall.sees("fwa", c2s("R")).action == "DROP"


def test_default_reject_answers_with_its_own_reason():
    firewall = Firewall(Ruleset(zones=zones(), default=Action.REJECT))
    outcome = firewall.sees("fwa", IP(src=CLIENT, dst=SERVER) / UDP(sport=5, dport=6))
    assert (outcome.action, outcome.reason) == ("TX", Reason.DEFAULT_DENY)


def test_this_machine_is_closed_but_for_policies_and_host_inbound_services():
    ssh, ping = tcp_service(22), (Service(1, (0x0800, 0x0800)),)
    firewall = Firewall(
        permit_all(zones=zones(host_inbound=ping), policies=(policy("in", Action.PERMIT, ("lan", SELF), services=ssh),))
    )
    assert firewall.sees("fwa", IP(src=CLIENT, dst="10.0.0.1") / TCP(dport=22)).reason is Reason.HOST
    assert firewall.sees("fwd", IP(src="198.51.100.10", dst="10.0.0.1") / TCP(dport=22)).reason is Reason.DEFAULT_DENY
    assert firewall.sees("fwd", IP(src="198.51.100.10", dst="10.0.0.1") / ICMP(id=3)).reason is Reason.HOST
    assert firewall.pipeline.counters == {10: (1, 40), 22: (1, 28)}


def test_ike_and_esp_to_this_machine_need_no_rule():
    firewall = Firewall(Ruleset(zones=zones()))
    for packet in (UDP(sport=9, dport=500), UDP(sport=9, dport=4500), Raw(bytes(20))):
        proto = 17 if packet.haslayer(UDP) else 50
        outcome = firewall.sees("fwd", IP(src="8.8.8.8", dst="198.51.100.1", proto=proto) / packet)
        assert (outcome.action, outcome.reason) == ("PASS", Reason.HOST_IKE)
    assert firewall.sessions == 0


# Fragments


def pieces(payload=400, size=160):
    return fragment(IP(src=CLIENT, dst=SERVER, id=9) / UDP(sport=5, dport=6) / Raw(bytes(payload)), fragsize=size)


def test_later_fragments_follow_the_first_one_for_thirty_seconds(firewall):
    first, second, third = pieces()
    assert firewall.sees("fwa", second).reason is Reason.FRAGMENT_UNKNOWN
    assert [firewall.sees("fwa", each).reason for each in (first, third)] == [Reason.FORWARDED, Reason.FORWARDED]
    assert firewall.entry(CLIENT, SERVER, (5, 6), 17, "lan").packets == 2
    firewall.now += 31 * SECOND
    assert firewall.sees("fwa", second).reason is Reason.FRAGMENT_UNKNOWN


def test_later_fragments_to_this_machine_are_the_kernels(firewall):
    packet = IP(src=CLIENT, dst="10.0.0.1", frag=5, proto=17) / Raw(bytes(16))
    assert firewall.sees("fwa", packet).reason is Reason.LOCAL_FRAGMENT


def test_ipv6_fragments(firewall):
    def piece(offset, more, load):
        header = IPv6ExtHdrFragment(offset=offset, m=more, id=77)
        return IPv6(src="2001:db8:a::a", dst="2001:db8:b::a") / IPv6ExtHdrHopByHop() / header / load

    first = piece(0, 1, UDP(sport=5, dport=6, len=40, chksum=1) / Raw(bytes(16)))
    assert firewall.sees("fwa", first).reason is Reason.FORWARDED
    later = piece(3, 0, Raw(bytes(16)))
    later[IPv6ExtHdrFragment].nh = 17
    assert firewall.sees("fwa", later).reason is Reason.FORWARDED


# ICMP


def test_echo_makes_a_session_and_the_reply_finds_it(firewall):
    assert firewall.sees("fwa", IP(src=CLIENT, dst=SERVER) / ICMP(id=7)).reason is Reason.FORWARDED
    assert firewall.sees("fwb", IP(src=SERVER, dst=CLIENT) / ICMP(type=0, id=7)).reason is Reason.FORWARDED
    assert firewall.sees("fwb", IP(src=SERVER, dst=CLIENT) / ICMP(type=0, id=8)).reason is Reason.ICMP_UNSOLICITED


def test_icmp_services_are_types_and_codes():
    echo6 = (Service(58, (0x8000, 0x8000)),)
    firewall = Firewall(Ruleset(zones=zones(), policies=(policy("p", Action.PERMIT, None, services=echo6),)))
    packet = IPv6(src="2001:db8:a::a", dst="2001:db8:b::a") / ICMPv6EchoRequest(id=3)
    assert firewall.sees("fwa", packet).reason is Reason.FORWARDED
    packet[ICMPv6EchoRequest].code = 1
    packet[ICMPv6EchoRequest].id = 4
    assert firewall.sees("fwa", packet).reason is Reason.DEFAULT_DENY
