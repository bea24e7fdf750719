"""The model's screens that count."""

from __future__ import annotations

from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Packet, Raw

from ipsec_gw.model.screens import Screens
from tests.reference.fib import key_bytes
from tests.reference.kit import CLIENT, SECOND, SERVER, Firewall, permit_all, zones
from xdp_steer.reasons import Reason

OWN = "10.0.0.1"


def firewall(**screens: int | bool) -> Firewall:
    return Firewall(permit_all(zones=zones(screen="these"), screens=(Screens("these", **screens),)))


def syn(dport: int, dst: str = SERVER, src: str = CLIENT) -> Packet:
    return IP(src=src, dst=dst) / TCP(sport=1024, dport=dport, flags="S")


def reasons(seen: Firewall, *packets: Packet) -> list[Reason]:
    return [seen.sees("fwa", packet).reason for packet in packets]


def test_a_threshold_is_for_one_window():
    seen = firewall(syn_flood=2, window=10)
    assert reasons(seen, syn(1), syn(2), syn(3)) == [Reason.FORWARDED, Reason.FORWARDED, Reason.SCREEN_SYN_FLOOD]
    seen.now += 10 * SECOND - 1
    assert reasons(seen, syn(4)) == [Reason.SCREEN_SYN_FLOOD]
    seen.now += 1
    assert reasons(seen, syn(5)) == [Reason.FORWARDED]


def test_what_was_asked_for_before_is_not_counted_again():
    seen = firewall(port_scan=1, ip_sweep=2)
    others = [syn(1, f"10.0.1.{host}") for host in (10, 11, 12)]
    assert reasons(seen, syn(1), syn(1), *others[:2]) == [Reason.FORWARDED] * 4
    assert reasons(seen, others[2]) == [Reason.SCREEN_IP_SWEEP]
    assert reasons(seen, syn(2, src="10.0.0.11"), syn(3, src="10.0.0.11")) == [
        Reason.FORWARDED,
        Reason.SCREEN_PORT_SCAN,
    ]


def test_ipsec_to_an_address_of_this_machine_is_not_counted():
    seen = firewall(udp_flood=1)
    seen.pipeline.own = frozenset({key_bytes(OWN)})
    ike = IP(src=CLIENT, dst=OWN) / UDP(sport=500, dport=500)
    rest = IP(src=CLIENT, dst=OWN, frag=8, proto=17) / Raw(bytes(64))
    other = IP(src=CLIENT, dst=SERVER) / UDP(sport=500, dport=500)
    assert reasons(seen, ike, rest, ike, other, ike) == [
        Reason.HOST_IKE,
        Reason.LOCAL_FRAGMENT,
        Reason.HOST_IKE,
        Reason.FORWARDED,
        Reason.HOST_IKE,
    ]
    assert reasons(seen, other, ike) == [Reason.SCREEN_UDP_FLOOD, Reason.HOST_IKE]


def test_a_session_that_is_gone_makes_room():
    seen = firewall(sessions_source=1)
    assert reasons(seen, syn(1), syn(2)) == [Reason.FORWARDED, Reason.SCREEN_SESSIONS_SOURCE]
    seen.pipeline.sessions.entries.clear()
    assert reasons(seen, syn(2)) == [Reason.FORWARDED]


def test_alarm_counts_and_lets_go():
    seen = firewall(sessions_destination=1, alarm_only=True)
    assert reasons(seen, syn(1), syn(2)) == [Reason.FORWARDED, Reason.FORWARDED]
    assert [count for count, _ in seen.pipeline.screened.values()] == [1]
