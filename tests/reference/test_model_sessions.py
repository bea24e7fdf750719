"""The model's sessions: TCP states, timeouts, resets, and ICMP errors about them."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, UDPerror, fragment
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.packet import Raw

from ipsec_gw.model.firewall import Ruleset, Service, Sessions, Timeouts
from tests.reference.kit import CLIENT, SECOND, SERVER, Firewall, c2s, out, permit_all, s2c, tcp_service, zones
from xdp_steer.flow_layout import SessionFlag, State
from xdp_steer.reasons import Reason

TIMES = Timeouts(
    tcp_established=50, tcp_opening=10, tcp_closing=20, tcp_time_wait=30, tcp_closed=5, udp=7, icmp=8, other=9
)


@pytest.fixture
def firewall() -> Firewall:
    return Firewall(permit_all(sessions=Sessions(timeouts=TIMES)))


def test_handshake_moves_opening_answered_established(firewall):
    firewall.sees("fwa", c2s("S", seq=100))
    assert firewall.state() == State.OPENING
    firewall.sees("fwb", s2c("SA", seq=500, ack=101))
    assert firewall.state() == State.ANSWERED
    firewall.sees("fwa", c2s("A", seq=101, ack=501))
    assert firewall.state() == State.ESTABLISHED
    assert firewall.entry(CLIENT, SERVER, (1024, 80), 6, "lan").timeout == 50


def test_counters_are_ip_lengths_of_each_direction(firewall):
    firewall.handshake()
    forward = firewall.entry(CLIENT, SERVER, (1024, 80), 6, "lan")
    reverse = firewall.entry(SERVER, CLIENT, (80, 1024), 6, "dmz")
    assert (forward.packets, forward.octets, reverse.packets, reverse.octets) == (2, 80, 1, 40)
    assert (forward.flags, reverse.flags) == (SessionFlag.ACKED, SessionFlag.ACKED | SessionFlag.REVERSE)
    assert (forward.ack, reverse.ack) == (501, 101)


def test_two_fins_make_time_wait_and_one_closing(firewall):
    firewall.handshake()
    firewall.sees("fwa", c2s("FA", seq=101, ack=501))
    assert firewall.state() == State.CLOSING
    firewall.sees("fwa", c2s("FA", seq=101, ack=501))
    assert firewall.state() == State.CLOSING, "the same side again"
    firewall.sees("fwb", s2c("FA", seq=501, ack=102))
    assert firewall.state() == State.TIME_WAIT
    assert firewall.entry(CLIENT, SERVER, (1024, 80), 6, "lan").timeout == 30


def test_a_syn_after_time_wait_begins_anew_and_before_it_does_not(firewall):
    firewall.handshake()
    firewall.sees("fwa", c2s("S", seq=900))
    assert firewall.state() == State.ESTABLISHED
    firewall.sees("fwa", c2s("FA", seq=101, ack=501))
    firewall.sees("fwb", s2c("FA", seq=501, ack=102))
    firewall.sees("fwa", c2s("S", seq=900))
    assert firewall.state() == State.OPENING
    assert firewall.entry(CLIENT, SERVER, (1024, 80), 6, "lan").packets == 1


def test_a_reset_closes_with_the_number_that_is_expected(firewall):
    firewall.handshake()
    assert firewall.sees("fwb", s2c("R", seq=500)).action == "REDIRECT"
    assert firewall.state() == State.ESTABLISHED
    firewall.sees("fwb", s2c("R", seq=501))
    assert firewall.state() == State.CLOSED


def test_a_reset_answers_a_syn_with_any_number(firewall):
    firewall.sees("fwa", c2s("S", seq=100))
    firewall.sees("fwb", s2c("RA", seq=0, ack=101))
    assert firewall.state() == State.CLOSED


def test_a_closed_session_drops_all_but_resets_and_is_not_kept_alive_by_them(firewall):
    firewall.handshake()
    firewall.sees("fwb", s2c("R", seq=501))
    assert firewall.sees("fwa", c2s("A", seq=101, ack=501)).reason is Reason.SESSION_CLOSED
    firewall.now += 4 * SECOND
    assert firewall.sees("fwa", c2s("R", seq=101)).reason is Reason.FORWARDED
    firewall.now += 2 * SECOND
    assert firewall.sees("fwa", c2s("A", seq=101, ack=501)).reason is Reason.TCP_NOT_SYN, "expired"
    assert firewall.sessions == 0


def test_a_reset_with_fin_does_not_begin_to_close(firewall):
    firewall.handshake()
    firewall.sees("fwb", s2c("RF", seq=1))
    assert firewall.state() == State.ESTABLISHED


def test_the_direction_seen_last_keeps_both_alive(firewall):
    firewall.handshake()
    firewall.now += 40 * SECOND
    firewall.sees("fwb", s2c("A", seq=501, ack=101))
    firewall.now += 49 * SECOND
    assert firewall.sees("fwa", c2s("A", seq=101, ack=501)).reason is Reason.FORWARDED
    firewall.now += 51 * SECOND
    assert firewall.sees("fwb", s2c("A", seq=501, ack=101)).reason is Reason.TCP_NOT_SYN


def test_an_expired_session_is_another_one_with_the_next_packet(firewall):
    packet = IP(src=CLIENT, dst=SERVER) / UDP(sport=5, dport=6)
    for wait, packets in ((0, 1), (7, 2), (8, 1)):
        firewall.now += wait * SECOND
        firewall.sees("fwa", packet)
        assert firewall.entry(CLIENT, SERVER, (5, 6), 17, "lan").packets == packets


@pytest.mark.parametrize(("protocol", "seconds"), [(17, 7), (1, 8), (47, 9), (58, 9)])
def test_timeouts_by_protocol(firewall, protocol, seconds):
    body = {17: UDP(sport=5, dport=6), 1: ICMP(id=5)}.get(protocol, Raw(bytes(8)))
    firewall.sees("fwa", IP(src=CLIENT, dst=SERVER, proto=protocol) / body)
    assert {entry.timeout for entry in firewall.pipeline.sessions.entries.values()} == {seconds}


def test_an_applications_timeout_replaces_that_of_established_flows():
    web = zones(host_inbound=tcp_service(80, timeout=33))
    firewall = Firewall(Ruleset(zones=web))
    firewall.sees("fwa", IP(src=CLIENT, dst="10.0.0.1") / TCP(dport=80))
    entry = firewall.entry(CLIENT, "10.0.0.1", (20, 80), 6, "lan")
    assert (entry.timeout, entry.app_timeout) == (30, 33)
    loose = zones(syn_check=False, host_inbound=(Service(6, (80, 80), timeout=33),))
    firewall = Firewall(Ruleset(zones=loose))
    firewall.sees("fwa", IP(src=CLIENT, dst="10.0.0.1") / TCP(dport=80, flags="A"))
    assert firewall.entry(CLIENT, "10.0.0.1", (20, 80), 6, "lan").timeout == 33


def test_tcp_without_a_session_needs_a_syn(firewall):
    assert firewall.sees("fwa", c2s("A")).reason is Reason.TCP_NOT_SYN
    assert firewall.sees("fwa", c2s("SA")).reason is Reason.TCP_NOT_SYN
    assert firewall.sees("fwa", c2s("SPU")).reason is Reason.FORWARDED


def test_tcp_reset_answers_with_the_numbers_of_what_came():
    firewall = Firewall(permit_all(zones=zones(tcp_reset=True)))
    answer = out(firewall.sees("fwa", c2s("A", seq=10, ack=77)))
    assert (answer[TCP].flags, answer[TCP].seq, answer[TCP].ack) == ("R", 77, 0)
    answer = out(firewall.sees("fwa", c2s("F", seq=10) / Raw(b"abc")))
    assert (answer[TCP].flags, answer[TCP].seq, answer[TCP].ack) == ("RA", 0, 14)
    assert firewall.sees("fwa", c2s("R")).action == "DROP"


def test_the_lower_mss_of_both_zones_is_put_in():
    capped = tuple(
        zone.__class__(zone.name, zone.interfaces, tcp_mss={"lan": 1300, "dmz": 1250}.get(zone.name))
        for zone in zones()
    )
    firewall = Firewall(permit_all(zones=capped))
    syn = c2s("S", options=[("NOP", None), ("MSS", 1460)])
    assert out(firewall.sees("fwa", syn))[TCP].options[:2] == [("NOP", None), ("MSS", 1250)]
    small = s2c("SA", options=[("MSS", 600)])
    assert out(firewall.sees("fwb", small))[TCP].options[0] == ("MSS", 600)


def test_the_table_has_an_end(firewall):
    firewall.pipeline.sessions.maximum = 3
    assert firewall.sees("fwa", c2s("S")).reason is Reason.FORWARDED
    assert firewall.sees("fwa", IP(src=CLIENT, dst=SERVER) / UDP(sport=5, dport=6)).reason is Reason.SESSIONS_FULL
    assert firewall.sessions == 2, "no half of a session stays"


# ICMP errors


def error(inner, src=SERVER, dst=CLIENT, **fields):
    return IP(src=src, dst=dst) / ICMP(**{"type": 3, "code": 4, "nexthopmtu": 1000, **fields}) / inner


def test_an_error_about_a_session_goes_to_who_sent_the_packet(firewall):
    sent = out(firewall.sees("fwa", IP(src=CLIENT, dst=SERVER) / UDP(sport=5, dport=6)))[IP]
    outcome = firewall.sees("fwb", error(bytes(sent)[:28], src="10.0.1.12"))
    assert outcome.reason is Reason.FORWARDED
    assert (out(outcome)[IP].src, out(outcome)[IPerror].dst, out(outcome)[UDPerror].dport) == ("10.0.1.12", SERVER, 6)
    assert firewall.entry(SERVER, CLIENT, (6, 5), 17, "dmz").packets == 0


def test_errors_about_nothing_and_cut_ones_drop(firewall):
    quoted = bytes(IP(src=CLIENT, dst=SERVER) / UDP(sport=5, dport=6))
    assert firewall.sees("fwb", error(quoted)).reason is Reason.ICMP_NO_SESSION
    firewall.sees("fwa", quoted and IP(quoted))
    assert firewall.sees("fwb", error(quoted[:24])).reason is Reason.FORWARDED, "the ports are there"
    assert firewall.sees("fwb", error(quoted[:23])).reason is Reason.MALFORMED
    firewall.now += 8 * SECOND
    assert firewall.sees("fwb", error(quoted)).reason is Reason.ICMP_NO_SESSION, "expired"


def test_an_error_about_a_later_fragment_finds_the_flow_of_the_first_one(firewall):
    pieces = fragment(IP(src=CLIENT, dst=SERVER, id=7) / UDP(sport=5, dport=6) / Raw(bytes(64)), 32)
    about = error(bytes(pieces[1])[:28], src="10.0.1.12")
    assert firewall.sees("fwb", about).reason is Reason.ICMP_NO_SESSION
    firewall.sees("fwa", pieces[0])
    assert firewall.sees("fwb", about).reason is Reason.FORWARDED
    assert firewall.sees("fwa", about).reason is Reason.ICMP_NO_SESSION, "not from that side"
    firewall.now += 8 * SECOND
    assert firewall.sees("fwb", about).reason is Reason.ICMP_NO_SESSION, "expired"


def test_an_error_about_our_ike_is_for_charon(firewall):
    quoted = bytes(IP(src="198.51.100.1", dst="8.8.8.8") / UDP(sport=4500, dport=4500))
    assert firewall.sees("fwd", error(quoted, "8.8.8.8", "198.51.100.1")).reason is Reason.HOST_IKE
    assert firewall.sees("fwd", error(quoted, "8.8.8.8", CLIENT)).reason is Reason.ICMP_NO_SESSION


def test_nobody_answers_an_error(firewall):
    sent = IP(src=CLIENT, dst=SERVER) / UDP(sport=5, dport=6)
    firewall.sees("fwa", sent)
    late = error(bytes(sent))
    late.ttl = 1
    outcome = firewall.sees("fwb", late)
    assert (outcome.action, outcome.reason) == ("DROP", Reason.TTL_EXPIRED)


def test_packet_too_big(firewall):
    sent = IPv6(src="2001:db8:a::a", dst="2001:db8:b::a") / UDP(sport=5, dport=6) / Raw(bytes(20))
    firewall.sees("fwa", sent)
    about = IPv6(src="2001:db8:b::b", dst="2001:db8:a::a") / ICMPv6PacketTooBig(mtu=1280) / bytes(sent)
    assert firewall.sees("fwb", about).reason is Reason.FORWARDED
