"""The GRE scenario's own parts: what its gateways have, and how its packets are found in clear."""

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import GRE, Ether

from ipsec_gw.lab.capture import Frame
from ipsec_gw.lab.scenarios.gre_over_ipsec import CLEAR, GRE_TUNNEL, IPIP, IPIP_TUNNEL, MTU, bare
from ipsec_gw.lab.scenarios.gre_over_ipsec import GRE as LINK
from ipsec_gw.lab.topology import MTU as PACKET
from ipsec_gw.lab.topology import Role
from ipsec_gw.model.sizes import GRE_HEADER, IPV4_HEADER, inner_mtu
from tests.unit.lab_kit import esp_frame, inner, scapy_sa


def test_both_gateways_protect_what_the_device_sends_alone():
    for link, protocol in ((LINK, "gre"), (IPIP, "4")):
        for role in (Role.GATEWAY_A, Role.GATEWAY_B):
            text = link.connection.text(role)
            assert "mode = transport" in text
            assert f"local_ts = {{here}}/32[{protocol}]" in text
            assert f"remote_ts = {{there}}/32[{protocol}]" in text


def test_in_tunnel_mode_they_protect_it_between_its_own_ends():
    for link, ends in ((GRE_TUNNEL, ("192.0.2.1", "192.0.2.2")), (IPIP_TUNNEL, ("{here}", "{there}"))):
        for role in (Role.GATEWAY_A, Role.GATEWAY_B):
            here, there = ends if role is Role.GATEWAY_A or link is IPIP_TUNNEL else reversed(ends)
            text = link.connection.text(role)
            assert "mode = tunnel" in text
            assert f"local_ts = {here}/32[" in text
            assert f"remote_ts = {there}/32[" in text


def test_what_fits_is_what_esp_leaves():
    room = inner_mtu(PACKET, 4, encapsulated=False)
    assert {
        LINK: str(room - GRE_HEADER),
        IPIP: str(room),
        GRE_TUNNEL: str(room - IPV4_HEADER - GRE_HEADER),
        IPIP_TUNNEL: str(room - IPV4_HEADER),
    } == MTU


def frame(packet):
    return Frame(0.0, "wan0", False, bytes(packet))


def test_the_devices_packets_are_seen_in_clear_and_esp_is_none_of_them():
    outer = Ether() / IP(src="10.0.0.1", dst="10.0.0.2")
    clear = [frame(outer / GRE() / inner()), frame(outer / inner())]
    other = [frame(outer / UDP(sport=500, dport=500)), esp_frame(scapy_sa(), inner())]
    assert bare([*other, *clear], CLEAR) == [f"10.0.0.1 -> 10.0.0.2 protocol {number}" for number in (47, 4)]
    assert bare(other, CLEAR) == []
