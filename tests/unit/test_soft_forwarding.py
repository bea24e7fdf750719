"""What becomes of one frame: decrypted, encrypted, or dropped for a reason."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import ICMP, IP, UDP, defragment, fragment
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.layers.l2 import GRE, Dot1Q, Ether
from scapy.utils import checksum

from ipsec_gw.engines.port import Counters, Link
from ipsec_gw.engines.soft.drops import Dropped, DropReason
from ipsec_gw.engines.soft.esp import EspPayload, EspTransform
from ipsec_gw.engines.soft.store import Store
from ipsec_gw.errors import EngineError
from ipsec_gw.model.algorithms import ALGORITHMS
from ipsec_gw.model.ids import Direction, SaKey, TunnelId
from ipsec_gw.model.objects import HeaderCopies, InterfaceKind, PortMatch, Selector, UdpEncap, XfrmInterface
from tests.unit.soft_kit import (
    GATEWAY_MAC,
    LOCAL,
    LOCAL6,
    PEER,
    PEER6,
    SCAPY_NAMES,
    SELECTOR,
    SELECTOR6,
    UP_ENGINE,
    UP_KERNEL,
    WAN,
    context,
    next_hop,
    oracle,
    sa,
    tunnel,
    up_frame,
    wan_frame,
)

FROM_PEER = IP(src="10.2.0.1", dst="10.1.0.1", ttl=1) / UDP(sport=5, dport=6) / b"hello"
TO_PEER = IP(src="10.1.0.1", dst="10.2.0.1", ttl=1) / UDP(sport=5, dport=6) / b"hello"
FROM_PEER6 = IPv6(src="fd02::1", dst="fd01::1", hlim=1) / UDP(sport=5, dport=6) / b"hello"
TO_PEER6 = IPv6(src="fd01::1", dst="fd02::1", hlim=1) / UDP(sport=5, dport=6) / b"hello"
V6_OUTER = {
    Direction.IN: {"key": SaKey(LOCAL6, 0x1001), "source": PEER6},
    Direction.OUT: {"key": SaKey(PEER6, 0x2001), "source": LOCAL6},
}


class Gateway:
    """One tunnel in a store, and both of its SAs at hand."""

    def __init__(
        self, wan: Link = WAN, *, outer6: bool = False, selectors=(SELECTOR, SELECTOR6), by=None, **of_sas
    ) -> None:
        changes = V6_OUTER if outer6 else {Direction.IN: {}, Direction.OUT: {}}
        self.inbound = sa(Direction.IN, 0x1001, **of_sas, **changes[Direction.IN])
        self.outbound = sa(Direction.OUT, 0x2001, **of_sas, **changes[Direction.OUT])
        addresses = {"local": LOCAL6, "remote": PEER6, "key": TunnelId(1, PEER6)} if outer6 else {}
        self.tunnel = tunnel([self.inbound], self.outbound, selectors=selectors, interface=by, **addresses)
        self.store = Store(context(wan), 3000)
        for obj in (self.inbound, self.outbound, next_hop(key=self.tunnel.remote), self.tunnel):
            self.store.create(obj)
        self.peer = oracle(self.inbound)

    def decapsulate(self, frame: bytes):
        (emission,) = self.store.forwarding.decapsulate(frame)
        return emission

    def encapsulate(self, frame: bytes):
        (emission,) = self.store.forwarding.encapsulate(frame)
        return emission

    def drops(self, frame: bytes) -> DropReason:
        with pytest.raises(Dropped) as dropped:
            self.decapsulate(frame)
        return dropped.value.reason

    def refuses(self, frame: bytes) -> DropReason:
        with pytest.raises(Dropped) as dropped:
            self.encapsulate(frame)
        return dropped.value.reason

    def sealed(self, data: bytes, next_header: int = 4, number: int = 1) -> bytes:
        """An authentic frame with whatever inside."""
        seal = EspTransform(0x1001, self.inbound.algorithm, self.inbound.secret, self.inbound.salt, esn=False).seal
        packet = seal(number, bytes(8), EspPayload(next_header, data))
        return wan_frame(IP(src="198.51.100.7", dst="192.0.2.1", proto=50) / packet)


@pytest.mark.parametrize("outer6", [False, True])
@pytest.mark.parametrize("inner", [FROM_PEER, FROM_PEER6], ids=["v4", "v6"])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)
@pytest.mark.parametrize("esn", [False, True])
def test_esp_becomes_a_frame_for_the_kernel(outer6, inner, algorithm, esn):
    gateway = Gateway(outer6=outer6, algorithm=algorithm, esn=esn)
    emission = gateway.decapsulate(wan_frame(gateway.peer.encrypt(inner)))
    assert emission.interface == UP_ENGINE.name
    assert emission.frame == bytes(Ether(dst=UP_KERNEL.mac, src=UP_ENGINE.mac) / inner)  # TTL 1 included
    assert gateway.store.counters[gateway.inbound.key] == Counters(1, len(inner))


@pytest.mark.parametrize("outer6", [False, True])
@pytest.mark.parametrize("inner", [TO_PEER, TO_PEER6], ids=["v4", "v6"])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)
@pytest.mark.parametrize("esn", [False, True])
def test_plaintext_becomes_esp_for_the_peer(outer6, inner, algorithm, esn):
    gateway = Gateway(outer6=outer6, algorithm=algorithm, esn=esn)
    peer = oracle(gateway.outbound)
    for number in (1, 2, 3):
        emission = gateway.encapsulate(up_frame(inner))
        frame = Ether(emission.frame)
        assert (emission.interface, frame.dst, frame.src) == (WAN.name, GATEWAY_MAC, WAN.mac)
        outer = frame.payload
        assert (outer.src, outer.dst) == (str(gateway.outbound.source), str(gateway.outbound.key.destination))
        assert (outer.hlim if outer6 else outer.ttl) == 64
        assert (outer[ESP].spi, outer[ESP].seq) == (0x2001, number)
        assert bytes(peer.decrypt(outer)) == bytes(inner)
    assert gateway.store.counters[gateway.outbound.key] == Counters(3, 3 * len(inner))


def test_a_tagged_esp_frame_is_decrypted():
    gateway = Gateway()
    frame = bytes(Ether(dst=WAN.mac) / Dot1Q(vlan=9) / gateway.peer.encrypt(FROM_PEER))
    assert gateway.decapsulate(frame).frame[14:] == bytes(FROM_PEER)


def test_ethernet_padding_is_not_encrypted():
    gateway = Gateway()
    outer = Ether(gateway.encapsulate(up_frame(TO_PEER) + b"padding of a short frame").frame).payload
    assert bytes(oracle(gateway.outbound).decrypt(outer)) == bytes(TO_PEER)


@pytest.mark.parametrize(
    ("tos", "flags", "wanted"), [(0, 0, 0), (0xB8, "DF", "DF"), (0x02, 0, 0), (0xFF, "DF", "DF"), (0x01, 0, 0)]
)
def test_dscp_ecn_and_df_are_copied(tos, flags, wanted):
    gateway = Gateway()
    outer = Ether(gateway.encapsulate(up_frame(IP(src="10.1.0.1", dst="10.2.0.1", tos=tos, flags=flags))).frame)[IP]
    assert (outer.tos, outer.flags) == (tos, wanted)


def test_ipv6_inside_means_df_outside():
    gateway = Gateway()
    assert Ether(gateway.encapsulate(up_frame(TO_PEER6)).frame)[IP].flags == "DF"


def test_outer_packets_without_df_have_their_own_identification():
    gateway = Gateway()
    ids = {Ether(gateway.encapsulate(up_frame(TO_PEER)).frame)[IP].id for _ in range(10)}
    assert len(ids) == 10


def test_ivs_differ_and_do_not_show_the_number():
    gateway = Gateway()
    ivs = [gateway.encapsulate(up_frame(TO_PEER)).frame[42:50] for _ in range(100)]
    assert len(set(ivs)) == 100
    assert ivs[0] != (1).to_bytes(8, "big")
    masks = {int.from_bytes(iv, "big") ^ number for number, iv in enumerate(ivs, start=1)}
    assert len(masks) == 1  # one mask per SA: a bijection of the number


def test_a_congestion_mark_comes_in():
    gateway = Gateway()
    outer = gateway.peer.encrypt(IP(src="10.2.0.1", dst="10.1.0.1", tos=0x02) / b"data")
    outer.tos = 0x03
    del outer.chksum
    inner = IP(gateway.decapsulate(wan_frame(outer)).frame[14:])
    assert inner.tos == 0x03
    outer = gateway.peer.encrypt(FROM_PEER)
    outer.tos = 0x03
    del outer.chksum
    assert gateway.drops(wan_frame(outer)) is DropReason.CONGESTION


def test_a_packet_is_received_once():
    gateway = Gateway()
    frame = wan_frame(gateway.peer.encrypt(FROM_PEER))
    gateway.decapsulate(frame)
    assert gateway.drops(frame) is DropReason.REPLAYED
    gateway.decapsulate(wan_frame(gateway.peer.encrypt(FROM_PEER, seq_num=65)))
    assert gateway.drops(frame) is DropReason.TOO_OLD
    assert gateway.store.counters[gateway.inbound.key].packets == 2


def test_a_forged_packet_does_not_move_the_window():
    gateway = Gateway()
    forged = bytearray(wan_frame(gateway.peer.encrypt(FROM_PEER, seq_num=4000)))
    forged[-1] ^= 1
    assert gateway.drops(bytes(forged)) is DropReason.AUTHENTICATION
    gateway.decapsulate(wan_frame(gateway.peer.encrypt(FROM_PEER, seq_num=1)))


def test_an_update_does_not_forget_the_window_nor_the_numbers():
    gateway = Gateway()
    frame = wan_frame(gateway.peer.encrypt(FROM_PEER))
    gateway.decapsulate(frame)
    gateway.encapsulate(up_frame(TO_PEER))
    gateway.store.update(gateway.tunnel)
    gateway.store.update(next_hop(mac="02:00:00:00:00:55"))
    assert gateway.drops(frame) is DropReason.REPLAYED
    after = Ether(gateway.encapsulate(up_frame(TO_PEER)).frame)
    assert (after.dst, after[ESP].seq) == ("02:00:00:00:00:55", 2)


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (IP(src="10.3.0.1", dst="10.1.0.1"), DropReason.SELECTOR),
        (IP(src="10.2.0.1", dst="10.9.0.1"), DropReason.SELECTOR),
        (IP(src="10.1.0.1", dst="10.2.0.1"), DropReason.SELECTOR),  # its own direction mirrored
        (IPv6(src="fd02:1::1", dst="fd01::1"), DropReason.SELECTOR),
        (IPv6(src="::10.2.0.1", dst="::10.1.0.1"), DropReason.SELECTOR),  # not the IPv4 of the same number
    ],
)
def test_decrypted_packets_must_fit_the_selectors(inner, reason):
    """Invariant 8."""
    gateway = Gateway()
    assert gateway.drops(wan_frame(gateway.peer.encrypt(inner))) is reason


def test_the_selectors_of_another_tunnel_do_not_help():
    gateway = Gateway()
    other_in, other_out = sa(Direction.IN, 0x1009), sa(Direction.OUT, 0x2009)
    network = Selector(SELECTOR.source, ip_network("10.3.0.0/16"))
    for obj in (other_in, other_out, tunnel([other_in], other_out, key=TunnelId(2, PEER), selectors=(network,))):
        gateway.store.create(obj)
    inner = IP(src="10.3.0.1", dst="10.1.0.1")
    gateway.decapsulate(wan_frame(oracle(other_in).encrypt(inner)))
    assert gateway.drops(wan_frame(gateway.peer.encrypt(inner))) is DropReason.SELECTOR


@pytest.mark.parametrize(
    ("data", "next_header", "reason"),
    [
        (b"", 59, DropReason.DUMMY),
        (bytes(64), 59, DropReason.DUMMY),
        (bytes(FROM_PEER)[20:], 17, DropReason.NEXT_HEADER),
        (bytes(FROM_PEER), 41, DropReason.INNER_MALFORMED),
        (bytes(FROM_PEER6), 4, DropReason.INNER_MALFORMED),
        (bytes(FROM_PEER)[:-1], 4, DropReason.INNER_MALFORMED),
        (b"", 4, DropReason.INNER_MALFORMED),
    ],
)
def test_authentic_but_not_for_us(data, next_header, reason):
    gateway = Gateway()
    assert gateway.drops(gateway.sealed(data, next_header)) is reason
    assert gateway.store.counters[gateway.inbound.key].packets == 0
    assert gateway.drops(gateway.sealed(data, next_header)) is DropReason.REPLAYED  # authentic: the number is used


def test_tfc_padding_is_cut_off():
    gateway = Gateway()
    assert gateway.decapsulate(gateway.sealed(bytes(FROM_PEER) + bytes(100))).frame[14:] == bytes(FROM_PEER)
    assert gateway.store.counters[gateway.inbound.key].octets == len(FROM_PEER)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (IP(dst="192.0.2.1") / ICMP(), DropReason.NOT_ESP),
        (IP(dst="192.0.2.1") / UDP(dport=4500) / bytes(60), DropReason.UNKNOWN_SA),
        (IP(dst="192.0.2.1") / UDP(dport=4500) / b"\xff", DropReason.UNKNOWN_SA),
        (IP(dst="192.0.2.1") / UDP(dport=4500, len=7) / bytes(60), DropReason.MALFORMED),
        (IP(dst="192.0.2.1") / UDP(dport=4500, len=99) / bytes(60), DropReason.MALFORMED),
        (IP(dst="192.0.2.1", proto=17) / bytes(7), DropReason.MALFORMED),
        (IP(dst="192.0.2.1") / UDP(dport=4500) / ESP(spi=0x1001, seq=1, data=bytes(60)), DropReason.ENCAPSULATION),
        (IP(dst="192.0.2.1", proto=50) / bytes(33), DropReason.UNKNOWN_SA),
        (IP(dst="192.0.2.1", proto=50), DropReason.UNKNOWN_SA),
        (IP(dst="192.0.2.1") / ESP(spi=0x1002, seq=1, data=bytes(60)), DropReason.UNKNOWN_SA),
        (IP(dst="192.0.2.2") / ESP(spi=0x1001, seq=1, data=bytes(60)), DropReason.UNKNOWN_SA),
        (IPv6(dst="2001:db8::1") / ESP(spi=0x1001, seq=1, data=bytes(60)), DropReason.UNKNOWN_SA),
        (IP(dst="192.0.2.1") / ESP(spi=0x1001, seq=1, data=bytes(25)), DropReason.MALFORMED),
        (IP(dst="192.0.2.1") / ESP(spi=0x1001, seq=1, data=bytes(60)), DropReason.AUTHENTICATION),
        (IP(dst="192.0.2.1", flags="MF") / ESP(spi=0x1001, seq=1, data=bytes(60)), DropReason.FRAGMENT),
        (IP(dst="192.0.2.1", frag=9) / ESP(spi=0x1001, seq=1, data=bytes(60)), DropReason.FRAGMENT),
    ],
)
def test_what_the_wan_may_bring(packet, reason):
    assert Gateway().drops(wan_frame(packet)) is reason


@pytest.mark.parametrize(
    "inner",
    [
        IP(src="10.1.0.1", dst="10.3.0.1"),
        IP(src="10.9.0.1", dst="10.2.0.1"),
        IP(src="10.2.0.1", dst="10.1.0.1"),
        IPv6(src="fd01::1", dst="fd03::1"),
    ],
)
def test_plaintext_that_no_tunnel_covers(inner):
    assert Gateway().refuses(up_frame(inner)) is DropReason.NO_TUNNEL


def test_the_narrowest_selector_wins_whatever_the_order():
    gateway = Gateway(selectors=(Selector(ip_network("0.0.0.0/0"), ip_network("0.0.0.0/0")),))
    spis = {"10.2.0.0/16": 0x2101, "10.2.3.0/24": 0x2102}
    for reqid, (network, spi) in enumerate(spis.items(), start=2):
        one_in, one_out = sa(Direction.IN, spi), sa(Direction.OUT, spi)
        selector = Selector(ip_network("10.0.0.0/8"), ip_network(network))
        for obj in (one_in, one_out, tunnel([one_in], one_out, key=TunnelId(reqid, PEER), selectors=(selector,))):
            gateway.store.create(obj)
    one_in, one_out = sa(Direction.IN, 0x2103), sa(Direction.OUT, 0x2103)
    narrow_source = Selector(ip_network("10.1.1.0/24"), ip_network("10.2.3.0/24"))
    for obj in (one_in, one_out, tunnel([one_in], one_out, key=TunnelId(9, PEER), selectors=(narrow_source,))):
        gateway.store.create(obj)

    def spi_to(source: str, destination: str) -> int:
        return Ether(gateway.encapsulate(up_frame(IP(src=source, dst=destination))).frame)[ESP].spi

    assert spi_to("10.1.0.1", "203.0.113.1") == 0x2001
    assert spi_to("10.1.0.1", "10.2.0.1") == 0x2101
    assert spi_to("10.1.0.1", "10.2.3.1") == 0x2102
    assert spi_to("10.1.1.1", "10.2.3.1") == 0x2103


@pytest.mark.parametrize(("outer6", "overhead"), [(False, 20 + 8 + 8 + 16), (True, 40 + 8 + 8 + 16)])
def test_what_exceeds_the_mtu_uses_up_no_number(outer6, overhead):
    gateway = Gateway(replace(WAN, mtu=1400), outer6=outer6)
    fits = (1400 - overhead) // 4 * 4 - 2  # two bytes of trailer, no padding

    def inner(length: int) -> bytes:
        return up_frame(IP(src="10.1.0.1", dst="10.2.0.1", flags="DF") / bytes(length - 20))

    assert gateway.refuses(inner(fits + 1)) is DropReason.TOO_BIG
    emission = gateway.encapsulate(inner(fits))
    assert len(emission.frame) == 14 + 1400
    assert Ether(emission.frame)[ESP].seq == 1


@pytest.mark.parametrize("length", [1349, 1480, 1500])
def test_what_may_be_fragmented_leaves_in_fragments(length):
    gateway = Gateway(replace(WAN, mtu=1400))
    sent = IP(bytes(IP(src="10.1.0.1", dst="10.2.0.1", id=7) / UDP(sport=1, dport=2) / bytes(length - 28)))
    frames = [Ether(one.frame) for one in gateway.store.forwarding.encapsulate(up_frame(sent))]
    assert len(frames) == 2
    assert all(frame[IP].len <= 1400 for frame in frames)
    assert all(checksum(bytes(frame[IP])[:20]) == 0 for frame in frames)
    (whole,) = defragment([frame[IP] for frame in frames])
    opened = oracle(gateway.outbound).decrypt(IP(bytes(whole)))
    assert bytes(opened[IP]) == bytes(sent)


def test_over_ipv6_nothing_is_fragmented():
    gateway = Gateway(replace(WAN, mtu=1400), outer6=True)
    assert gateway.refuses(up_frame(IP(src="10.1.0.1", dst="10.2.0.1") / bytes(1400))) is DropReason.TOO_BIG


def test_a_decrypted_packet_that_exceeds_the_veth_is_dropped():
    gateway = Gateway()
    inner = IP(src="10.2.0.1", dst="10.1.0.1") / bytes(UP_ENGINE.mtu - 19)
    assert gateway.drops(wan_frame(gateway.peer.encrypt(inner))) is DropReason.TOO_BIG


@pytest.mark.parametrize(("esn", "last"), [(False, (1 << 32) - 1), (True, (1 << 64) - 1)])
def test_sequence_numbers_do_not_wrap(esn, last):
    gateway = Gateway(esn=esn)
    living = gateway.store.forwarding.outbound[0].sa
    living._sequence = last - 1  # the numbers in between cannot be sent in a test's time
    assert Ether(gateway.encapsulate(up_frame(TO_PEER)).frame)[ESP].seq == 0xFFFFFFFF
    assert gateway.refuses(up_frame(TO_PEER)) is DropReason.SEQUENCE_EXHAUSTED
    assert gateway.refuses(up_frame(TO_PEER)) is DropReason.SEQUENCE_EXHAUSTED
    assert gateway.store.counters[gateway.outbound.key].packets == 1


def test_extended_numbers_cross_32_bits():
    gateway = Gateway(esn=True)
    gateway.store.forwarding.outbound[0].sa._sequence = 0xFFFFFFFF
    outer = Ether(gateway.encapsulate(up_frame(TO_PEER)).frame)[IP]
    assert outer[ESP].seq == 0
    assert bytes(oracle(gateway.outbound).decrypt(outer, esn=1)) == bytes(TO_PEER)


def test_a_rekey_in_three_steps_loses_nothing():
    """New inbound beside the old one, outbound switched, old inbound gone (ipsec.rst, RFC 7296 §2.8)."""
    gateway = Gateway()
    new_in, new_out = sa(Direction.IN, 0x1002), sa(Direction.OUT, 0x2002)
    for obj in (new_in, new_out):
        gateway.store.create(obj)
    new_peer = oracle(new_in)
    assert gateway.drops(wan_frame(new_peer.encrypt(FROM_PEER))) is DropReason.UNKNOWN_SA  # not yet in a tunnel

    gateway.store.update(replace(gateway.tunnel, inbound=(gateway.inbound.key, new_in.key)))
    for peer in (gateway.peer, new_peer):
        gateway.decapsulate(wan_frame(peer.encrypt(FROM_PEER)))
    assert Ether(gateway.encapsulate(up_frame(TO_PEER)).frame)[ESP].spi == 0x2001

    gateway.store.update(tunnel([gateway.inbound, new_in], new_out))
    assert Ether(gateway.encapsulate(up_frame(TO_PEER)).frame)[ESP].spi == 0x2002
    gateway.store.delete(gateway.outbound.key)

    gateway.store.update(tunnel([new_in], new_out))
    gateway.store.delete(gateway.inbound.key)
    assert gateway.drops(wan_frame(gateway.peer.encrypt(FROM_PEER))) is DropReason.UNKNOWN_SA
    gateway.decapsulate(wan_frame(new_peer.encrypt(FROM_PEER)))


def test_a_forwarding_state_in_use_is_not_touched_by_changes():
    gateway = Gateway()
    before = gateway.store.forwarding
    gateway.store.delete(gateway.tunnel.key)
    assert gateway.refuses(up_frame(TO_PEER)) is DropReason.NO_TUNNEL
    (emission,) = before.encapsulate(up_frame(TO_PEER))
    assert emission.interface == WAN.name


def test_duplicate_spis_with_different_destinations():
    gateway = Gateway()
    here = ip_address("192.0.2.8")
    twin = sa(Direction.IN, 0x1001, key=SaKey(here, 0x1001))
    out = sa(Direction.OUT, 0x2008)
    for obj in (twin, out, tunnel([twin], out, key=TunnelId(8, PEER), local=here)):
        gateway.store.create(obj)
    for peer in (gateway.peer, oracle(twin)):
        assert gateway.decapsulate(wan_frame(peer.encrypt(FROM_PEER))).frame[14:] == bytes(FROM_PEER)
    assert gateway.store.counters[twin.key].packets == gateway.store.counters[gateway.inbound.key].packets == 1


GRE1 = XfrmInterface(41, "gre1", InterfaceKind.GRE)
OUTER = {Direction.IN: IP(src=str(PEER), dst="192.0.2.1"), Direction.OUT: IP(src="192.0.2.1", dst=str(PEER))}


class GreGateway(Gateway):
    """The same over GRE in transport mode, by a device."""

    def __init__(self, **of_sas) -> None:
        super().__init__(gre=True, by=GRE1, **of_sas)

    def plain(self, inner) -> bytes:
        header = Ether(dst=UP_ENGINE.mac, src=UP_KERNEL.mac) / Dot1Q(vlan=GRE1.vlan)
        return bytes(header / inner)


def transport(esp_sa) -> SecurityAssociation:
    """Scapy's idea of an SA in transport mode."""
    key = esp_sa.secret.reveal() + esp_sa.salt.reveal()
    return SecurityAssociation(ESP, spi=esp_sa.key.spi, crypt_algo=SCAPY_NAMES[esp_sa.algorithm], crypt_key=key)


@pytest.mark.parametrize("inner", [FROM_PEER, FROM_PEER6], ids=["v4", "v6"])
def test_what_comes_behind_a_gre_header_goes_to_its_device(inner):
    gateway = GreGateway()
    sealed = transport(gateway.inbound).encrypt(OUTER[Direction.IN] / GRE() / inner)
    emission = gateway.decapsulate(wan_frame(sealed))
    assert emission.frame == bytes(Ether(dst=UP_KERNEL.mac, src=UP_ENGINE.mac) / Dot1Q(vlan=GRE1.vlan) / inner)
    assert gateway.store.counters[gateway.inbound.key] == Counters(1, len(inner) + 4), "as the kernel counts"


@pytest.mark.parametrize("inner", [TO_PEER, TO_PEER6], ids=["v4", "v6"])
def test_what_a_device_sends_goes_behind_a_gre_header(inner):
    gateway = GreGateway()
    emission = gateway.encapsulate(gateway.plain(inner))
    opened = transport(gateway.outbound).decrypt(IP(emission.frame[14:]))
    assert (opened.src, opened.dst, opened.proto) == ("192.0.2.1", str(PEER), 47)
    assert bytes(opened[GRE]) == bytes(GRE() / inner)
    assert gateway.store.counters[gateway.outbound.key] == Counters(1, len(inner) + 4)


@pytest.mark.parametrize(
    "behind",
    [
        GRE(key_present=1, key=7) / FROM_PEER,
        GRE(chksum_present=1) / FROM_PEER,
        GRE(seqnum_present=1, sequence_number=1) / FROM_PEER,
        GRE(version=1) / FROM_PEER,
        GRE(proto=0x8847) / bytes(FROM_PEER),
        GRE(proto=0) / bytes(FROM_PEER),
        bytes(GRE())[:3],
    ],
    ids=["key", "checksum", "number", "version", "mpls", "keepalive", "short"],
)
def test_other_gre_is_dropped(behind):
    gateway = GreGateway()
    assert gateway.drops(gateway.sealed(bytes(behind), 47)) is DropReason.NEXT_HEADER


def test_what_is_not_behind_gre_does_not_pass_for_it_nor_the_other_way_round():
    gateway = GreGateway()
    assert gateway.drops(gateway.sealed(bytes(FROM_PEER), 4)) is DropReason.NEXT_HEADER
    plain = Gateway()
    assert plain.drops(plain.sealed(bytes(GRE() / FROM_PEER), 47)) is DropReason.NEXT_HEADER


def test_the_gre_header_counts_for_what_fits():
    gateway = GreGateway(wan=replace(WAN, mtu=1500))
    room = 1442
    fitting = IP(src="10.1.0.1", dst="10.2.0.1", flags="DF") / UDP() / bytes(room - 28)
    assert len(gateway.encapsulate(gateway.plain(fitting)).frame) - 14 <= 1500
    assert gateway.refuses(gateway.plain(fitting / bytes(4))) is DropReason.TOO_BIG


@pytest.mark.parametrize(("dscp", "outside"), [(True, 0xB8 | 2), (False, 2)])
def test_the_outer_header_has_what_the_device_copies(dscp, outside):
    gateway = GreGateway(copies=HeaderCopies(dscp=dscp))
    marked = IP(src="10.1.0.1", dst="10.2.0.1", tos=0xB8 | 2) / UDP()
    assert IP(gateway.encapsulate(gateway.plain(marked)).frame[14:]).tos == outside


class Host(Gateway):
    """Transport mode between the gateway itself and its peer."""

    def __init__(self, *, outer6: bool = False, **of_sas) -> None:
        ends = (LOCAL6, PEER6) if outer6 else (LOCAL, PEER)
        selector = Selector(*map(ip_network, ends))
        super().__init__(outer6=outer6, selectors=(selector,), transport=True, **of_sas)
        header = IPv6 if outer6 else IP
        hops = {"hlim": 1} if outer6 else {"ttl": 1, "id": 7, "tos": 0xB8}
        here, there = map(str, ends)
        self.peer = SecurityAssociation(
            ESP,
            spi=self.inbound.key.spi,
            crypt_algo="AES-GCM",
            crypt_key=self.inbound.secret.reveal() + self.inbound.salt.reveal(),
        )
        self.sent = header(bytes(header(src=here, dst=there, **hops) / UDP(sport=5, dport=6) / b"hello"))
        self.received = header(bytes(header(src=there, dst=here, **hops) / UDP(sport=6, dport=5) / b"hi"))

    def opened(self, frame: bytes):
        """The peer's idea of a packet of ours."""
        ether = Ether(frame)
        peer = SecurityAssociation(
            ESP,
            spi=self.outbound.key.spi,
            crypt_algo="AES-GCM",
            crypt_key=self.outbound.secret.reveal() + self.outbound.salt.reveal(),
        )
        return peer.decrypt(ether[type(self.sent)])


@pytest.mark.parametrize("outer6", [False, True], ids=["IPv4", "IPv6"])
class TestTransportMode:
    def test_outbound_the_packet_keeps_its_header(self, outer6: bool) -> None:
        host = Host(outer6=outer6)
        emission = host.encapsulate(up_frame(host.sent))
        wire = Ether(emission.frame)[type(host.sent)]
        assert (wire.src, wire.dst, bytes(wire.payload)[:4]) == (host.sent.src, host.sent.dst, (0x2001).to_bytes(4))
        assert bytes(host.opened(emission.frame)) == bytes(host.sent), "TTL, DSCP and identification included"
        counted = host.store.counters[host.outbound.key]
        assert counted == Counters(packets=1, octets=len(host.sent.payload)), "as the kernel counts it"

    def test_inbound_it_has_the_header_of_its_esp_packet(self, outer6: bool) -> None:
        host = Host(outer6=outer6)
        emission = host.decapsulate(wan_frame(host.peer.encrypt(host.received)))
        assert bytes(Ether(emission.frame).payload) == bytes(host.received)
        assert host.store.counters[host.inbound.key].octets == len(host.received.payload)

    def test_the_selectors_hold(self, outer6: bool) -> None:
        host = Host(outer6=outer6)
        host.store.update(replace(host.tunnel, selectors=(replace(host.tunnel.selectors[0], protocol=6),)))
        assert host.drops(wan_frame(host.peer.encrypt(host.received))) is DropReason.SELECTOR
        assert host.refuses(up_frame(host.sent)) is DropReason.NO_TUNNEL


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("ported", [False, True])
def test_transport_mode_puts_fragments_together(ported: bool, backwards: bool) -> None:
    host = Host()
    if ported:
        one = replace(host.tunnel.selectors[0], protocol=17, destination_port=PortMatch(6, 0xFFFF))
        host.store.update(replace(host.tunnel, selectors=(one,)))
    sent = IP(bytes(IP(src=host.sent.src, dst=host.sent.dst, id=9) / UDP(sport=5, dport=6) / (b"whole" * 700)))
    pieces = fragment(sent, 1400)
    assert len(pieces) == 3
    out: list[bytes] = []
    for piece in reversed(pieces) if backwards else pieces:
        assert out == [], "before the last one"
        out += [one.frame for one in host.store.forwarding.encapsulate(up_frame(piece))]
    (whole,) = defragment([Ether(frame)[IP] for frame in out])
    assert bytes(host.opened(bytes(Ether() / whole))) == bytes(sent)


def test_fragments_in_tunnel_mode_pass_as_they_are() -> None:
    gateway = Gateway()
    piece = fragment(TO_PEER / (b"x" * 200), 100)[1]
    assert len(gateway.store.forwarding.encapsulate(up_frame(piece))) == 1


def test_in_transport_mode_what_is_too_long_leaves_in_fragments_unless_it_may_not() -> None:
    host = Host()
    sent = IP(bytes(IP(src=host.sent.src, dst=host.sent.dst, id=9) / UDP(sport=5, dport=6) / bytes(1472)))
    pieces = [Ether(one.frame)[IP] for one in host.store.forwarding.encapsulate(up_frame(sent))]
    assert [piece.len <= 1500 for piece in pieces] == [True, True]
    (whole,) = defragment(pieces)
    assert bytes(host.opened(bytes(Ether() / whole))) == bytes(sent)
    sent.flags = "DF"
    del sent.chksum
    assert host.refuses(up_frame(sent)) is DropReason.TOO_BIG


def test_transport_mode_in_udp() -> None:
    host = Host(encap=UdpEncap(4500, 4500))
    emission = host.encapsulate(up_frame(host.sent))
    wire = Ether(emission.frame)[IP]
    assert (wire.proto, wire[UDP].sport, wire[UDP].dport) == (17, 4500, 4500)
    host.peer.nat_t_header = UDP(sport=4500, dport=4500)
    back = host.decapsulate(wan_frame(host.peer.encrypt(host.received)))
    assert bytes(Ether(back.frame).payload) == bytes(host.received)


def test_a_tunnel_has_one_mode() -> None:
    host = Host()
    other = sa(Direction.IN, 0x1002)
    host.store.create(other)
    with pytest.raises(EngineError, match="both modes"):
        host.store.update(replace(host.tunnel, inbound=(host.inbound.key, other.key)))


@pytest.mark.parametrize("ranks", [(0, 1), (1, 0)])
def test_between_the_same_hosts_the_greater_rank_has_what_fits_both(ranks):
    here, there = ip_network("192.0.2.1"), ip_network(str(PEER))
    selectors = (
        Selector(here, there, 17, destination_port=PortMatch(4789, 0xFFFF)),
        Selector(here, there, 17, source_port=PortMatch(4789, 0xFFFF)),
    )
    store = Store(context(WAN), 3000)
    store.create(next_hop())
    for number, (selector, rank) in enumerate(zip(selectors, ranks, strict=True), start=1):
        pair = [
            sa(way, number + base, transport=True) for way, base in ((Direction.IN, 0x1000), (Direction.OUT, 0x2000))
        ]
        one = tunnel([pair[0]], pair[1], selectors=(selector,), key=TunnelId(number, PEER))
        for obj in (*pair, replace(one, hosts=True, rank=rank)):
            store.create(obj)
    spis = []
    for ports in ({"sport": 4789, "dport": 4789}, {"sport": 1, "dport": 4789}, {"sport": 4789, "dport": 1}):
        (emission,) = store.forwarding.encapsulate(up_frame(IP(src="192.0.2.1", dst=str(PEER)) / UDP(**ports)))
        spis.append(Ether(emission.frame)[ESP].spi)
    assert spis == [0x2001 + ranks.index(1), 0x2001, 0x2002]


def test_between_hosts_fragments_are_put_together_in_tunnel_mode_too() -> None:
    hosts = Selector(ip_network(LOCAL), ip_network(PEER), 17, destination_port=PortMatch(6, 0xFFFF))
    gateway = Gateway(selectors=(hosts,))
    gateway.store.update(replace(gateway.tunnel, hosts=True))
    sent = IP(bytes(IP(src=str(LOCAL), dst=str(PEER), id=9) / UDP(sport=5, dport=6) / bytes(1800)))
    first, second = fragment(sent, 1400)
    assert gateway.store.forwarding.encapsulate(up_frame(first)) == ()
    pieces = [Ether(one.frame)[IP] for one in gateway.store.forwarding.encapsulate(up_frame(second))]
    (whole,) = defragment(pieces)
    assert bytes(oracle(gateway.outbound).decrypt(whole)) == bytes(sent)
