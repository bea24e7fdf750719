"""The VXLAN scenario's own parts: what its gateways have, and how its packets are found in clear."""

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether

from ipsec_gw.lab.gateway import ShownSa
from ipsec_gw.lab.matrix.case import Connection
from ipsec_gw.lab.scenarios.vxlan_over_ipsec import BRIDGED, FITS, OWN_ENDS, ROUTED, TUNNEL, of_vxlan
from ipsec_gw.lab.topology import MTU, Role
from ipsec_gw.model.sizes import inner_mtu
from tests.unit.lab_kit import esp_frame, frame, inner, scapy_sa

IPV4_HEADER, UDP_HEADER, VXLAN_HEADER, ETHERNET = 20, 8, 8, 14


def test_each_child_is_for_one_way_and_the_gateways_mirror_each_other():
    for role in (Role.GATEWAY_A, Role.GATEWAY_B):
        text = Connection(children=ROUTED.children).text(role)
        there, back = text.split("back {{")
        assert ("local_ts = dynamic[udp]\n" in there, "remote_ts = dynamic[udp/4789]" in there) == (True, True)
        assert ("local_ts = dynamic[udp/4789]" in back, "remote_ts = dynamic[udp]\n" in back) == (True, True)
        assert text.count("mode = transport") == 2
    assert Connection(children=BRIDGED.children).text(Role.GATEWAY_A).count("dynamic[udp]\n") == 2


def test_in_tunnel_mode_one_child_is_for_all_udp_between_the_devices_ends():
    a, b = (Connection(children=TUNNEL.children).text(role) for role in (Role.GATEWAY_A, Role.GATEWAY_B))
    for text, ends in ((a, ("192.0.2.1", "192.0.2.2")), (b, ("192.0.2.2", "192.0.2.1"))):
        lines = [line.strip() for line in text.splitlines()]
        assert {f"local_ts = {ends[0]}/32[udp]", f"remote_ts = {ends[1]}/32[udp]", "mode = tunnel"} <= set(lines)


def test_so_it_is_between_the_gateways_own_addresses():
    for role in (Role.GATEWAY_A, Role.GATEWAY_B):
        text = Connection(children=OWN_ENDS.children).text(role)
        assert text.count("dynamic[udp]\n") == 2
        assert "mode = tunnel" in text


def shown(child, direction):
    return ShownSa(direction, 1, "10.0.0.1", "10.0.0.2", "vpp", "vpp", "", 0, child)


def test_an_sa_of_a_child_that_carries_the_other_way_is_not_used():
    ways = [("net", "out"), ("net", "in"), ("back", "out"), ("back", "in")]
    assert [ROUTED.uses(shown(*way)) for way in ways] == [True, False, False, True]
    assert [BRIDGED.uses(shown(*way)) for way in ways[:2]] == [True, True]


def test_what_fits_is_what_esp_leaves():
    """In transport mode the IP header is outside, where tunnel mode has one more inside."""
    assert inner_mtu(MTU, 4, encapsulated=False) - UDP_HEADER - VXLAN_HEADER - ETHERNET == FITS == ROUTED.fits
    assert TUNNEL.fits == OWN_ENDS.fits == FITS - IPV4_HEADER


def test_the_devices_packets_are_seen_in_clear_and_nothing_else():
    outer = Ether() / IP(src="10.0.0.1", dst="10.0.0.2")
    header = b"\x08" + bytes(3) + b"\0\0\x2a\0"
    sent = outer / UDP(sport=40000, dport=4789) / header / Ether() / inner()
    piece = Ether() / IP(src="10.0.0.1", dst="10.0.0.2", frag=185, proto=17) / bytes(64)
    other = [frame(outer / UDP(sport=500, dport=500)), frame(Ether() / ARP()), esp_frame(scapy_sa(), inner())]
    other += [frame(outer / UDP(sport=4789, dport=40000)), frame(outer / inner())]
    lengths = [len(packet) - ETHERNET for packet in (sent, piece)]
    assert of_vxlan([*other, frame(sent), frame(piece)]) == [
        f"10.0.0.1 -> 10.0.0.2 UDP, {length} bytes" for length in lengths
    ]
    assert of_vxlan(other) == []
