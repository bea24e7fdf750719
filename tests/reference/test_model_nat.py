"""The model's NAT: destination, static and source NAT, ports that run out, checksums, errors through it."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, TCPerror
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from ipsec_gw.model.firewall import (
    Action,
    DestinationNat,
    Pool,
    Service,
    SourceNat,
    StaticNat,
    Translation,
)
from tests.reference.checksums import add, checksum, moved, pseudo_header
from tests.reference.fib import key_bytes
from tests.reference.kit import CLIENT, SERVER, Firewall, checked, net, out, permit_all, policy, tcp_service
from tests.reference.nat import hash_of, ports
from tests.reference.network import SEED
from tests.reference.packets import Key
from xdp_steer.flow_layout import SessionFlag
from xdp_steer.reasons import Reason

WEB = "198.51.100.10"
TO_POOL = (SourceNat("out", Translation.POOL, "lan", "wan", pool="p"),)


def pool(name="p", first="198.51.100.100", last=None, **fields):
    return Pool(name, ip_address(first), ip_address(last or first), **fields)


def syn(sport=1024, dst=WEB, src=CLIENT, dport=80):
    return IP(src=src, dst=dst) / TCP(sport=sport, dport=dport, flags="S")


def masked(*pools, rules=TO_POOL, **fields):
    return Firewall(permit_all(pools=pools, source_nat=rules, **fields))


def test_the_clients_port_is_kept_where_the_pool_has_it():
    firewall = masked(pool(ports=(1024, 1027)))
    packet = out(firewall.sees("fwa", syn()))
    assert (packet[IP].src, packet[TCP].sport) == ("198.51.100.100", 1024)
    assert checked(packet) == packet
    back = IP(src=WEB, dst="198.51.100.100") / TCP(sport=80, dport=1024, flags="SA", ack=1)
    reply = out(firewall.sees("fwd", back))
    assert (reply[IP].dst, reply[TCP].dport) == (CLIENT, 1024)
    assert checked(reply) == reply
    assert firewall.entry(CLIENT, WEB, (1024, 80), 6, "lan").flags == SessionFlag.NAT


def test_ports_run_out_for_one_server_and_not_for_another():
    firewall = masked(pool(ports=(40000, 40001)))
    used = {out(firewall.sees("fwa", syn(sport)))[TCP].sport for sport in (1, 2)}
    assert used == {40000, 40001}
    assert firewall.sees("fwa", syn(3)).reason is Reason.NAT_EXHAUSTED
    assert firewall.sees("fwa", syn(3, dst="198.51.100.11")).reason is Reason.FORWARDED
    assert firewall.sessions == 6


def test_overflow_is_asked_once_and_has_no_overflow_of_its_own():
    firewall = masked(
        pool(ports=(40000, 40000), overflow="q"),
        pool("q", "198.51.100.110", ports=(50000, 50000), overflow="r"),
        pool("r", "198.51.100.120"),
    )
    used = [out(firewall.sees("fwa", syn(sport)))[IP].src for sport in (1, 2)]
    assert used == ["198.51.100.100", "198.51.100.110"]
    assert firewall.sees("fwa", syn(3)).reason is Reason.NAT_EXHAUSTED


def test_candidates_are_those_of_the_hash():
    key = Key(key_bytes(CLIENT), key_bytes(WEB), 1, 80, 6, 1)
    first = hash_of(key, SEED)
    expected = [40000 + (first + n * 40503) % 2**32 % 1000 for n in range(16)]
    assert list(ports(key, (40000, 40999), True, SEED)) == expected
    own = key._replace(sport=40500)
    assert ports(own, (40000, 40999), True, SEED)[0] == 40500
    assert len(ports(own, (40000, 40999), True, SEED)) == 16
    assert ports(own, (40000, 40999), False, SEED) == (0,)


def test_a_persistent_pool_gives_a_source_one_address():
    firewall = masked(pool(last="198.51.100.103", persistent=True))
    targets = [f"8.8.8.{n}" for n in range(20)]
    assert len({out(firewall.sees("fwa", syn(dst=dst)))[IP].src for dst in targets}) == 1
    firewall = masked(pool(last="198.51.100.103"))
    assert len({out(firewall.sees("fwa", syn(dst=dst)))[IP].src for dst in targets}) == 4


def test_interface_nat_takes_the_egress_address():
    rules = (SourceNat("out", Translation.INTERFACE),)
    packet = out(masked(rules=rules).sees("fwa", syn()))
    assert packet[IP].src == "198.51.100.1"
    bare = Firewall(permit_all(source_nat=rules), addresses=False)
    assert bare.sees("fwa", syn()).reason is Reason.NAT_NO_ADDRESS


def test_off_ends_the_search_and_a_pool_of_the_other_family_does_not():
    off = SourceNat("off", Translation.OFF, destinations=(net("198.51.100.10/32"),))
    firewall = masked(pool(), pool("six", "2001:db8:d::100"), rules=(off, *TO_POOL))
    assert out(firewall.sees("fwa", syn()))[IP].src == CLIENT
    six = SourceNat("six", Translation.POOL, pool="six")
    firewall = masked(pool(), pool("six", "2001:db8:d::100"), rules=(six, *TO_POOL))
    assert out(firewall.sees("fwa", syn()))[IP].src == "198.51.100.100"


def test_echo_gets_an_identifier_and_gets_it_back():
    firewall = masked(pool("p", "2001:db8:d::100", ports=(500, 500)))
    request = IPv6(src="2001:db8:a::a", dst="2001:db8:d::a") / ICMPv6EchoRequest(id=7)
    packet = out(firewall.sees("fwa", request))
    assert (packet[IPv6].src, packet[ICMPv6EchoRequest].id) == ("2001:db8:d::100", 500)
    assert checked(packet) == packet
    reply = IPv6(src="2001:db8:d::a", dst="2001:db8:d::100") / ICMPv6EchoReply(id=500)
    packet = out(firewall.sees("fwd", reply))
    assert (packet[IPv6].dst, packet[ICMPv6EchoReply].id) == ("2001:db8:a::a", 7)


def test_protocols_without_ports_have_one_candidate():
    firewall = masked(pool())
    for source, reason in ((CLIENT, Reason.FORWARDED), ("10.0.0.11", Reason.NAT_EXHAUSTED)):
        assert firewall.sees("fwa", IP(src=source, dst=WEB, proto=47) / Raw(bytes(8))).reason is reason


def test_a_translated_flow_that_exists_is_no_candidate():
    """Without NAT there is no choice: the second flow to the same reply key drops."""
    static = (StaticNat("n", "wan", net("198.51.100.64/28"), net("10.0.2.0/28")),)
    firewall = Firewall(permit_all(static_nat=static))
    assert firewall.sees("fwc", syn(src="10.0.2.10")).reason is Reason.FORWARDED
    assert firewall.sees("fwa", syn(src="198.51.100.74")).reason is Reason.NAT_EXHAUSTED


def test_static_nat_works_both_ways_and_before_source_nat():
    static = (StaticNat("n", "wan", net("198.51.100.64/28"), net("10.0.2.0/28")),)
    firewall = masked(pool(), rules=(SourceNat("all", Translation.POOL, pool="p"),), static_nat=static)
    packet = out(firewall.sees("fwc", syn(src="10.0.2.10")))
    assert (packet[IP].src, packet[TCP].sport) == ("198.51.100.74", 1024)
    inward = out(firewall.sees("fwd", syn(src=WEB, dst="198.51.100.75")))
    assert inward[IP].dst == "10.0.2.11"
    assert firewall.pipeline.counters == {50: (2, 80), 30: (1, 40)}


DNAT = (
    DestinationNat("web", net("198.51.100.50/32"), net("10.0.1.10/32"), services=tcp_service(80, 89), to_port=8080),
)


def test_destination_nat_moves_ports_in_step_and_policies_see_the_result():
    allow = policy("in", Action.PERMIT, ("wan", "dmz"), destinations=(net("10.0.1.10/32"),), services=tcp_service(8083))
    firewall = Firewall(permit_all(default=Action.DENY, destination_nat=DNAT, policies=(allow,)))
    packet = out(firewall.sees("fwd", syn(src=WEB, dst="198.51.100.50", dport=83)))
    assert (packet[IP].dst, packet[TCP].dport) == (SERVER, 8083)
    reply = IP(src=SERVER, dst=WEB) / TCP(sport=8083, dport=1024, flags="SA", ack=1)
    packet = out(firewall.sees("fwb", reply))
    assert (packet[IP].src, packet[TCP].sport) == ("198.51.100.50", 83)
    assert firewall.sees("fwd", syn(src=WEB, dst="198.51.100.50", dport=84)).reason is Reason.DEFAULT_DENY
    assert firewall.pipeline.counters == {10: (1, 40), 40: (1, 40)}


def test_destination_nat_to_this_machine():
    inward = (DestinationNat("ssh", net("198.51.100.51/32"), net("10.0.2.1/32")),)
    rule = policy("in", Action.PERMIT, ("wan", "self"))
    firewall = masked(
        pool(), destination_nat=inward, policies=(rule,), rules=(SourceNat("all", Translation.POOL, pool="p"),)
    )
    outcome = firewall.sees("fwd", syn(src=WEB, dst="198.51.100.51"))
    assert (outcome.reason, out(outcome)[IP].dst, out(outcome)[IP].src) == (Reason.HOST, "10.0.2.1", WEB)
    assert out(outcome)[IP].ttl == 64


@pytest.mark.parametrize("field", [0, 0x1234])
def test_checksums_that_were_none_or_wrong_stay_so(field):
    firewall = masked(pool())
    outcome = firewall.sees("fwa", IP(src=CLIENT, dst=WEB) / UDP(sport=5000, dport=53, chksum=field) / Raw(b"abc"))
    packet = out(outcome)
    right = checked(packet)[UDP].chksum
    if field == 0:
        assert packet[UDP].chksum == 0
    else:
        original = IP(src=CLIENT, dst=WEB) / UDP(sport=5000, dport=53) / Raw(b"abc")
        before = IP(bytes(original))[UDP].chksum
        assert (packet[UDP].chksum - right) % 0xFFFF == (field - before) % 0xFFFF


def test_a_partial_checksum_stays_the_sum_of_the_pseudo_header():
    def seeded(src, sport):
        seed = add(pseudo_header(4, key_bytes(src), key_bytes(WEB), 6, 20))
        return IP(src=src, dst=WEB) / TCP(sport=sport, dport=80, flags="S", chksum=seed)

    firewall = masked(pool(ports=(1024, 1024)))
    firewall.pipeline.ports = Firewall(firewall.ruleset, partial=True).pipeline.ports
    outcome = firewall.sees("fwa", seeded(CLIENT, 1024))
    assert outcome.reason is Reason.TO_KERNEL
    assert outcome.frame[14:] == bytes(seeded("198.51.100.100", 1024))
    plain = masked(pool(ports=(1024, 1024)))
    assert plain.sees("fwa", seeded(CLIENT, 1024)).reason is Reason.FORWARDED, "a port that knows of none"


def test_errors_are_translated_inside_and_outside():
    firewall = masked(pool(ports=(40000, 40000)))
    sent = out(firewall.sees("fwa", syn(1)))[IP]
    about = IP(src=WEB, dst="198.51.100.100") / ICMP(type=3, code=3) / bytes(sent)[:28]
    packet = out(firewall.sees("fwd", about))
    assert (packet[IP].src, packet[IP].dst) == (WEB, CLIENT)
    assert (packet[IPerror].src, packet[IPerror].dst) == (CLIENT, WEB)
    assert packet[TCPerror].sport == 1
    quoted = bytes(packet[IPerror])[:20]
    assert checksum(quoted) == 0, "the quoted header is sound"
    assert checked(packet)[ICMP].chksum == packet[ICMP].chksum


def test_an_error_from_a_translated_server_comes_from_its_outer_address():
    firewall = Firewall(permit_all(destination_nat=DNAT))
    sent = out(firewall.sees("fwd", syn(src=WEB, dst="198.51.100.50")))[IP]
    packet = out(firewall.sees("fwb", IP(src=SERVER, dst=WEB) / ICMP(type=3, code=3) / bytes(sent)[:28]))
    assert (packet[IP].src, packet[IPerror].dst, packet[TCPerror].dport) == ("198.51.100.50", "198.51.100.50", 80)
    router = out(firewall.sees("fwb", IP(src="10.0.1.12", dst=WEB) / ICMP(type=11, code=0) / bytes(sent)[:28]))
    assert router[IP].src == "10.0.1.12"


def test_later_fragments_get_addresses_and_nothing_else():
    firewall = masked(pool(ports=(40000, 40000)))
    first = IP(src=CLIENT, dst=WEB, id=5, flags="MF") / UDP(sport=5, dport=6, len=24, chksum=1) / Raw(bytes(8))
    later = IP(src=CLIENT, dst=WEB, id=5, frag=2, proto=17) / Raw(b"payload!")
    assert out(firewall.sees("fwa", first))[UDP].sport == 40000
    packet = out(firewall.sees("fwa", later))
    assert (packet[IP].src, bytes(packet[IP].payload)) == ("198.51.100.100", b"payload!")
    assert checked(packet) == packet


def test_moved_checksums_agree_with_fresh_ones():
    old, new = bytes(Ether() / syn())[14:], bytes(Ether() / syn(src="10.0.0.11"))[14:]
    assert moved(int.from_bytes(old[10:12]), add(old[:10] + old[12:20]), add(new[:10] + new[12:20])) == int.from_bytes(
        new[10:12]
    )


def test_services_have_source_ports_too():
    high = (Service(6, (80, 80), (40000, 65535)),)
    firewall = Firewall(permit_all(policies=(policy("no", Action.DENY, ("lan", "wan"), services=high),)))
    assert firewall.sees("fwa", syn(39999)).reason is Reason.FORWARDED
    assert firewall.sees("fwa", syn(40000)).reason is Reason.POLICY_DENY
