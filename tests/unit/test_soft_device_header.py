"""Headers of GRE and IPIP devices in the soft engine, against scapy's, and what of them is the kernel's."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import GRE
from scapy.packet import Packet, Raw

from ipsec_gw.engines.soft.device_header import Wrapping
from ipsec_gw.engines.soft.drops import Dropped, DropReason
from ipsec_gw.engines.soft.packets import IpPacket, parse_ipv4, parse_ipv6
from ipsec_gw.model.objects import DeviceHeader

OURS, THEIRS = "192.0.2.1", "192.0.2.2"
GRE1 = Wrapping.of(DeviceHeader(ip_address(OURS), ip_address(THEIRS), gre=True))
IPIP1 = Wrapping.of(DeviceHeader(ip_address(OURS), ip_address(THEIRS), gre=False))
COPYING = Wrapping.of(DeviceHeader(ip_address(OURS), ip_address(THEIRS), gre=True, dscp=True))
INSIDE = IP(bytes(IP(src="10.1.0.1", dst="10.2.0.2", id=7, ttl=3) / UDP(sport=1, dport=2) / b"inside"))


def parsed(packet: Packet) -> IpPacket:
    return parse_ipv4(bytes(packet))


def arriving(behind: Packet, **fields: object) -> IpPacket:
    """From the other end."""
    return parse_ipv4(bytes(IP(**{"src": THEIRS, "dst": OURS, **fields}) / behind))


@pytest.mark.parametrize(("wrapping", "protocol"), [(GRE1, 47), (IPIP1, 4)], ids=["gre", "ipip"])
def test_it_is_a_packet_of_the_device_around_one_that_stays_what_it_is(wrapping: Wrapping, protocol: int) -> None:
    made = IP(wrapping.wrap(parsed(INSIDE)).data)
    assert (made.src, made.dst, made.proto, made.ttl, made.len) == (OURS, THEIRS, protocol, 64, len(bytes(made)))
    behind = made.payload.payload if wrapping.gre else made.payload
    assert bytes(behind) == bytes(INSIDE)
    if wrapping.gre:
        assert bytes(made.payload)[:4] == b"\0\0\x08\0"


def test_ipv6_has_its_own_number_in_gre() -> None:
    inside = IPv6(bytes(IPv6(src="fd00::1", dst="fd00::2", tc=0xB9) / UDP() / b"six"))
    made = IP(COPYING.wrap(parse_ipv6(bytes(inside))).data)
    assert (made[GRE].proto, bytes(made[GRE].payload), made.tos) == (0x86DD, bytes(inside), 0xB9)


@pytest.mark.parametrize(
    ("wrapping", "inside", "outside"),
    [
        (GRE1, 0xB8, 0),
        (COPYING, 0xB8, 0xB8),
        (GRE1, 0xB9, 1),
        (COPYING, 0x02, 2),
        (GRE1, 0x03, 2),
        (COPYING, 0xBB, 0xBA),
    ],
)
def test_it_copies_what_the_device_copies_and_ecn_as_the_kernel_does(
    wrapping: Wrapping, inside: int, outside: int
) -> None:
    """A mark of the way before is not one of the way to come (``INET_ECN_encapsulate``)."""
    packet = IP(src="10.1.0.1", dst="10.2.0.2", tos=inside) / UDP()
    assert IP(wrapping.wrap(parse_ipv4(bytes(packet))).data).tos == outside


@pytest.mark.parametrize("flags", ["DF", 0])
def test_df_is_that_of_the_packet_inside(flags: object) -> None:
    packet = IP(src="10.1.0.1", dst="10.2.0.2", flags=flags) / UDP()
    assert bool(IP(GRE1.wrap(parse_ipv4(bytes(packet))).data).flags.DF) is (flags == "DF")


def test_every_packet_has_a_number_of_its_own() -> None:
    numbers = {IP(IPIP1.wrap(parsed(INSIDE)).data).id for _ in range(8)}
    assert len(numbers) == 8


@pytest.mark.parametrize(("wrapping", "behind"), [(GRE1, GRE() / INSIDE), (IPIP1, INSIDE)], ids=["gre", "ipip"])
def test_what_comes_from_the_other_end_comes_out_of_it(wrapping: Wrapping, behind: Packet) -> None:
    packet = arriving(behind)
    assert wrapping.has(packet)
    found = wrapping.unwrap(packet)
    assert found is not None
    assert found.data == bytes(INSIDE)


@pytest.mark.parametrize("fields", [{"src": "192.0.2.3"}, {"dst": "192.0.2.3"}, {"src": OURS, "dst": THEIRS}])
def test_what_has_other_addresses_is_not_the_devices(fields: dict[str, object]) -> None:
    assert not GRE1.has(arriving(GRE() / INSIDE, **fields))
    assert not GRE1.has(arriving(INSIDE))
    assert not IPIP1.has(arriving(GRE() / INSIDE))


KERNELS = {
    "a piece": (GRE1, arriving(GRE() / INSIDE, flags="MF")),
    "the last piece": (IPIP1, arriving(Raw(bytes(24)), proto=4, frag=3)),
    "a key": (GRE1, arriving(GRE(key_present=1, key=1) / INSIDE)),
    "a checksum": (GRE1, arriving(GRE(chksum_present=1) / INSIDE)),
    "MPLS": (GRE1, arriving(GRE(proto=0x8847) / Raw(bytes(8)))),
    "cut off": (GRE1, arriving(Raw(b"\0\0"), proto=47)),
}


@pytest.mark.parametrize(("wrapping", "packet"), KERNELS.values(), ids=KERNELS.keys())
def test_what_it_takes_the_kernel_to_unwrap_is_left_to_it(wrapping: Wrapping, packet: IpPacket) -> None:
    assert wrapping.has(packet)
    assert wrapping.unwrap(packet) is None


@pytest.mark.parametrize(
    ("wrapping", "behind"),
    [(GRE1, GRE(proto=0x0800) / Raw(b"short")), (IPIP1, Raw(b"no packet"))],
    ids=["gre", "ipip"],
)
def test_what_only_says_that_a_packet_is_inside_goes_nowhere(wrapping: Wrapping, behind: Packet) -> None:
    with pytest.raises(Dropped) as caught:
        wrapping.unwrap(arriving(behind, proto=wrapping.protocol))
    assert caught.value.reason is DropReason.INNER_MALFORMED
