"""Which addresses NAT owns on which link, and how the neighbours are told."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from ipsec_gw.firewall.answers import MAX_IPV6_NEIGHBOURS, Answer, Owned, answers, owned
from ipsec_gw.mirror.announce import frame
from ipsec_gw.model.firewall import DestinationNat, Nat64, Nptv6, Pool, Ruleset, SourceNat, StaticNat, Translation, Zone
from ipsec_gw.model.ids import IpNetwork

ZONES = (Zone("wan", ("eth0", "eth9")), Zone("lan", ("eth1",)))
CONNECTED = {
    "eth0": frozenset({ip_network("203.0.113.0/24"), ip_network("2001:db8::/64")}),
    "eth1": frozenset({ip_network("10.0.0.0/24")}),
    "eth7": frozenset({ip_network("203.0.113.0/24")}),  # in no zone
}


def pool(name: str, first: str, last: str, overflow: str | None = None) -> Pool:
    return Pool(name, ip_address(first), ip_address(last), overflow=overflow)


def source(name: str, to_zone: str | None = "wan", kind: Translation = Translation.POOL) -> SourceNat:
    return SourceNat(f"use-{name}", kind, "lan", to_zone, pool=name if kind is Translation.POOL else None)


def led(destination: str, to: str, zone: str | None = "wan") -> DestinationNat:
    return DestinationNat("led", ip_network(destination), ip_network(to), zone)


def static(external: str, internal: str) -> StaticNat:
    return StaticNat("static", "wan", ip_network(external), ip_network(internal))


def on(interface: str, *networks: str) -> set[Answer]:
    return {Answer(interface, ip_network(network)) for network in networks}


def asked(taken: tuple[str, ...] = (), **parts: object) -> frozenset[Answer]:
    ruleset = Ruleset(zones=ZONES, **parts)  # type: ignore[arg-type]
    found = answers(ruleset, CONNECTED, frozenset(map(ip_address, taken)))
    assert not found.left_out
    return found.given


def test_a_pool_is_owned_where_a_rule_uses_it() -> None:
    pools = (pool("a", "203.0.113.14", "203.0.113.20"), pool("unused", "203.0.113.40", "203.0.113.41"))
    assert asked(pools=pools, source_nat=(source("a"),)) == on(
        "eth0", "203.0.113.14/31", "203.0.113.16/30", "203.0.113.20/32"
    )
    assert asked(pools=pools, source_nat=(source("a", "lan"),)) == set(), "not on a link of that zone"
    assert asked(pools=pools, source_nat=(source("a", None),)) == asked(pools=pools, source_nat=(source("a"),))
    assert asked(pools=pools, source_nat=(source("a", kind=Translation.INTERFACE),)) == set()


def test_an_overflow_is_owned_too() -> None:
    pools = (pool("a", "203.0.113.14", "203.0.113.14", "b"), pool("b", "203.0.113.16", "203.0.113.19"))
    assert asked(pools=pools, source_nat=(source("a"),)) == on("eth0", "203.0.113.14/32", "203.0.113.16/30")


def test_destinations_and_outer_addresses_of_both_families() -> None:
    destination_nat = (led("203.0.113.10", "10.0.0.10"), led("2001:db8::80/125", "fd00::/125"))
    static_nat = (static("203.0.113.25", "10.0.0.25"), static("198.51.100.0/24", "10.9.0.0/24"))
    assert asked(destination_nat=destination_nat, static_nat=static_nat) == on(
        "eth0", "203.0.113.10/32", "203.0.113.25/32", "2001:db8::80/125"
    )


def test_the_outer_prefix_of_nptv6() -> None:
    nptv6 = (Nptv6("net", "wan", ip_network("2001:db8::80/125"), ip_network("fd00::/125")),)
    assert asked(nptv6=nptv6) == on("eth0", "2001:db8::80/125")


def test_the_pool_of_nat64() -> None:
    pools = (pool("a", "203.0.113.14", "203.0.113.14"),)
    assert asked(pools=pools, nat64=(Nat64("n", ip_network("64:ff9b::/96"), pool="a"),)) == on(
        "eth0", "203.0.113.14/32"
    )


def test_a_zone_decides_on_which_link() -> None:
    """Redirecting what the LAN sends to a host on the WAN does not take that host's address away from it."""
    assert asked(destination_nat=(led("203.0.113.10", "10.0.0.10", "lan"),)) == set()
    assert asked(destination_nat=(led("10.0.0.77", "10.9.0.1", None),)) == on("eth1", "10.0.0.77/32")


def test_neighbours_and_overlaps_are_put_together() -> None:
    rules = (
        led("203.0.113.16/29", "10.0.0.0/29"),
        led("203.0.113.24/29", "10.0.1.0/29"),
        led("203.0.113.17", "10.1.0.1"),
    )
    assert asked(destination_nat=rules) == on("eth0", "203.0.113.16/28")


def test_what_is_somebodys_is_not_answered_for() -> None:
    pools = (pool("a", "203.0.113.0", "203.0.113.3"), pool("z", "203.0.113.254", "203.0.113.255"))
    found = asked(("203.0.113.1",), pools=pools, source_nat=(source("a"), source("z")))
    assert found == on("eth0", "203.0.113.2/31", "203.0.113.254/32"), "own, network, broadcast"
    assert asked(destination_nat=(led("203.0.113.9", "203.0.113.9"),)) == set(), "another port of the same host"
    rules = (led("203.0.113.8/31", "10.0.0.8/31"), led("10.0.0.1", "203.0.113.9", "lan"))
    assert asked(("10.0.0.1",), destination_nat=rules) == on("eth0", "203.0.113.8/32"), "a host that is led to"


def test_a_whole_link_is_nobodys() -> None:
    ruleset = Ruleset(
        zones=ZONES, static_nat=(static("203.0.113.0/24", "10.3.0.0/24"), static("203.0.113.9", "10.4.0.9"))
    )
    found = answers(ruleset, CONNECTED, frozenset())
    assert found.given == frozenset()
    assert [(one.interface, str(one.network)) for one in found.left_out] == [("eth0", "203.0.113.0/24")]
    alone = {"eth0": frozenset({ip_network("203.0.113.9/32")})}
    assert not answers(ruleset, alone, frozenset({ip_address("203.0.113.9")})).left_out, "the interface's own address"


def test_ipv6_has_a_limit_and_small_ones_go_first() -> None:
    rules = (led("2001:db8::1:0/112", "fd00::/112"), led("2001:db8::80/121", "fd00::/121"))
    found = answers(Ruleset(zones=ZONES, destination_nat=rules), CONNECTED, frozenset())
    assert found.given == on("eth0", "2001:db8::80/121")
    assert [str(one.network) for one in found.left_out] == ["2001:db8::1:0/112"]
    assert str(MAX_IPV6_NEIGHBOURS) in found.left_out[0].reason


def test_owned_names_the_zone() -> None:
    ruleset = Ruleset(
        destination_nat=(led("203.0.113.10", "10.0.0.10", None),), static_nat=(static("192.0.2.1", "10.0.0.1"),)
    )
    assert owned(ruleset) == {Owned(None, ip_network("203.0.113.10")), Owned("wan", ip_network("192.0.2.1"))}


LAST = st.integers(0, 255)
PREFIXES = st.builds(
    lambda last, length: ip_network((int(IPv4Address("203.0.113.0")) + last, length), strict=False),
    LAST,
    st.integers(25, 32),
)


@given(
    st.lists(PREFIXES, max_size=4),
    st.tuples(LAST, LAST),
    st.frozensets(LAST, max_size=4),
    st.lists(PREFIXES, max_size=2),
)
def test_each_address_by_itself(
    outer: list[IpNetwork], span: tuple[int, int], own: frozenset[int], inner: list[IpNetwork]
) -> None:
    base = IPv4Address("203.0.113.0")
    first, last = base + min(span), base + max(span)
    rules = tuple(DestinationNat(str(one), one, ip_network((0x0A000000, one.prefixlen)), "wan") for one in outer)
    hosts = tuple(StaticNat(str(one), "wan", ip_network((0x0B000000, one.prefixlen)), one) for one in inner)
    ruleset = Ruleset(
        zones=ZONES, pools=(Pool("p", first, last),), source_nat=(source("p"),), destination_nat=rules, static_nat=hosts
    )
    taken = frozenset(base + number for number in own)
    found = answers(ruleset, CONNECTED, taken)
    answered = [address for one in found.given for address in one.network]
    assert len(answered) == len(set(answered)), "no overlaps"
    expected = {
        base + number
        for number in range(1, 255)
        if (first <= base + number <= last or any(base + number in one for one in outer))
        and base + number not in taken
        and not any(base + number in one for one in inner)
    }
    assert found.left_out or set(answered) == expected


MAC = "02:00:00:00:00:17"


def test_gratuitous_arp() -> None:
    seen = Ether(frame(MAC, ip_address("203.0.113.10")))
    assert (seen.dst, seen.src) == ("ff:ff:ff:ff:ff:ff", MAC)
    arp = seen[ARP]
    assert (arp.op, arp.hwsrc, arp.psrc, arp.pdst) == (1, MAC, "203.0.113.10", "203.0.113.10")


def test_unsolicited_advertisement() -> None:
    raw = frame(MAC, ip_address("2001:db8::10"))
    seen = Ether(raw)
    assert (seen.dst, seen.src) == ("33:33:00:00:00:01", MAC)
    assert (seen[IPv6].src, seen[IPv6].dst, seen[IPv6].hlim) == ("2001:db8::10", "ff02::1", 255)
    advertisement = seen[ICMPv6ND_NA]
    assert (advertisement.tgt, advertisement.R, advertisement.S, advertisement.O) == ("2001:db8::10", 0, 0, 1)
    assert seen[ICMPv6NDOptDstLLAddr].lladdr == MAC
    checksum = advertisement.cksum
    del advertisement.cksum
    assert Ether(bytes(seen))[ICMPv6ND_NA].cksum == checksum
    assert len(raw) == 14 + 40 + seen[IPv6].plen
