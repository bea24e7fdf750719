"""Every refusal of the soft engine's store, and that a refusal changes nothing."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import IP, UDP

from ipsec_gw.engines.soft.store import MAX_REPLAY_WINDOW, Store
from ipsec_gw.errors import EngineError, UsedKeyError
from ipsec_gw.model.algorithms import AES_GCM_256, CHACHA20_POLY1305
from ipsec_gw.model.ids import Direction, SaKey, TunnelId
from ipsec_gw.model.objects import InterfaceKind, Selector, UdpEncap, XfrmInterface
from ipsec_gw.model.secret import Secret
from tests.unit.soft_kit import (
    LOCAL,
    LOCAL6,
    PEER,
    SELECTOR,
    TUNNEL_ID,
    context,
    next_hop,
    sa,
    secret,
    tunnel,
    up_frame,
)

IN = sa(Direction.IN, 0x1001)
OUT = sa(Direction.OUT, 0x2001)
SPARE_IN = sa(Direction.IN, 0x1002)
SPARE_OUT = sa(Direction.OUT, 0x2002)
HOP = next_hop()
TUNNEL = tunnel([IN], OUT)
PLAINTEXT = up_frame(IP(src="10.1.0.1", dst="10.2.0.2") / UDP())


@pytest.fixture
def store():
    made = Store(context(), 3000)
    for obj in (IN, OUT, SPARE_IN, SPARE_OUT, HOP, TUNNEL):
        made.create(obj)
    return made


def refused(store, act, match, error=EngineError):
    objects, forwarding, counters = store.objects, store.forwarding, store.counters
    with pytest.raises(error, match=match) as caught:
        act()
    assert type(caught.value) is error
    assert " - " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (store.objects, store.counters) == (objects, counters)
    assert store.forwarding is forwarding


def test_holds_what_it_was_given(store):
    assert dict(store.objects) == {obj.key: obj for obj in (IN, OUT, SPARE_IN, SPARE_OUT, HOP, TUNNEL)}


def test_what_was_read_does_not_change_later(store):
    before = store.objects
    store.delete(TUNNEL.key)
    assert TUNNEL.key in before
    assert TUNNEL.key not in store.objects


@pytest.mark.parametrize("obj", [IN, OUT, HOP, TUNNEL], ids=["in", "out", "hop", "tunnel"])
def test_what_exists_is_not_created(store, obj):
    refused(store, lambda: store.create(obj), "exists already")


@pytest.mark.parametrize(
    "obj",
    [sa(Direction.IN, 9), next_hop(key=ip_address("203.0.113.9")), tunnel([IN], OUT, key=TunnelId(2, PEER))],
    ids=["sa", "hop", "tunnel"],
)
def test_what_does_not_exist_is_neither_updated_nor_deleted(store, obj):
    refused(store, lambda: store.update(obj), "does not exist - create it first")
    refused(store, lambda: store.delete(obj.key), "does not exist - nothing to delete")


@pytest.mark.parametrize("key", [IN.key, OUT.key, HOP.key], ids=["in", "out", "hop"])
def test_what_a_tunnel_uses_is_not_deleted(store, key):
    refused(store, lambda: store.delete(key), "is used by tunnel 198.51.100.7#1")
    store.delete(TUNNEL.key)
    store.delete(key)
    assert key not in store.objects


def test_sas_that_no_tunnel_uses_go(store):
    store.delete(SPARE_IN.key)
    store.delete(SPARE_OUT.key)
    assert store.counters.keys() == {IN.key, OUT.key}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"secret": secret(32)}, "key has 32 bytes, AES_GCM_16-128 takes 16"),
        ({"secret": Secret(b"")}, "key has 0 bytes"),
        ({"salt": secret(8)}, "salt has 8 bytes, AES_GCM_16-128 takes 4"),
        ({"algorithm": AES_GCM_256, "secret": secret(16)}, "key has 16 bytes, AES_GCM_16-256 takes 32"),
        ({"algorithm": CHACHA20_POLY1305, "secret": secret(16)}, "key has 16 bytes, CHACHA20_POLY1305 takes 32"),
        ({"replay_window": MAX_REPLAY_WINDOW + 1}, "replay window 4097 is impossible"),
        ({"replay_window": -1}, "replay window -1 is impossible"),
        ({"encap": UdpEncap(0, 4500)}, "UDP with port 0"),
        ({"source": LOCAL6}, "of another family"),
        ({"gre": True, "encap": UdpEncap(4500, 4500)}, "GRE in UDP"),
        ({"gre": True, "key": SaKey(LOCAL6, 0x3001), "source": LOCAL6}, "GRE in UDP or over IPv6"),
    ],
)
@pytest.mark.parametrize("direction", Direction)
def test_sas_that_cannot_be(store, direction, changes, match):
    wrong = replace(sa(direction, 0x3001), **changes)
    refused(store, lambda: store.create(wrong), match)


@pytest.mark.parametrize(
    "changes",
    [
        {"secret": secret(16)},
        {"salt": secret(4)},
        {"esn": True},
        {"replay_window": 128},
        {"algorithm": AES_GCM_256, "secret": secret(32)},
        {"direction": Direction.OUT},
        {"encap": UdpEncap(4500, 4500)},
        {"gre": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_of_an_sa_only_the_source_changes(store, changes):
    refused(
        store, lambda: store.update(replace(IN, **changes)), "only the source and the UDP ports of an SA can change"
    )


def test_a_moved_source_goes_into_the_outer_header(store):
    moved = ip_address("192.0.2.77")
    before = store.forwarding
    store.update(replace(OUT, source=moved))
    assert IP(before.encapsulate(PLAINTEXT)[0].frame[14:]).src == str(LOCAL)
    packet = IP(store.forwarding.encapsulate(PLAINTEXT)[0].frame[14:])
    assert (packet.src, packet["ESP"].seq) == (str(moved), 2)  # the numbers go on
    refused(store, lambda: store.update(replace(OUT, source=LOCAL6)), "of another family")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"interface": "wan9"}, "wan9 is no WAN interface"),
        ({"interface": "ipsecgw-vp"}, "no WAN interface"),
        ({"mac": "02:00:00:00:00"}, "not a MAC address"),
    ],
)
def test_next_hops_that_cannot_be(store, changes, match):
    refused(store, lambda: store.create(next_hop(key=ip_address("203.0.113.9"), **changes)), match)
    refused(store, lambda: store.update(next_hop(**changes)), match)


FOREIGN_IN = replace(sa(Direction.IN, 0x1003), key=SaKey(ip_address("192.0.2.50"), 0x1003))
FOREIGN_OUT = replace(sa(Direction.OUT, 0x2003), key=SaKey(ip_address("203.0.113.9"), 0x2003))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"inbound": ()}, "has 0 inbound SAs - use one to 4"),
        ({"inbound": tuple(SaKey(LOCAL, spi) for spi in range(5))}, "has 5 inbound SAs"),
        ({"inbound": (SPARE_IN.key, SPARE_IN.key)}, "use one to 4 different ones"),
        ({"inbound": (SaKey(LOCAL, 0xDEAD),)}, "there is no inbound SA 192.0.2.1/0000dead"),
        ({"inbound": (SPARE_OUT.key,)}, "there is no inbound SA"),
        ({"outbound": SaKey(PEER, 0xDEAD)}, "there is no outbound SA 198.51.100.7/0000dead"),
        ({"outbound": SPARE_IN.key}, "there is no outbound SA"),
        ({"inbound": (FOREIGN_IN.key,)}, "does not lead to 192.0.2.1"),
        ({"outbound": FOREIGN_OUT.key}, "does not lead to 198.51.100.7"),
        ({"remote": ip_address("203.0.113.9"), "outbound": FOREIGN_OUT.key}, "no next hop to 203.0.113.9"),
    ],
)
def test_tunnels_that_cannot_be(store, changes, match):
    store.create(FOREIGN_IN)
    store.create(FOREIGN_OUT)
    other = tunnel([SPARE_IN], SPARE_OUT, key=TunnelId(2, PEER))
    refused(store, lambda: store.create(replace(other, **changes)), match)
    refused(store, lambda: store.update(replace(TUNNEL, **changes)), match)


def test_an_inbound_sa_belongs_to_one_tunnel(store):
    other = tunnel([SPARE_IN, IN], SPARE_OUT, key=TunnelId(2, PEER))
    refused(store, lambda: store.create(other), "0000.*1001 belongs to another tunnel")
    store.update(replace(TUNNEL, inbound=(IN.key,)))  # to itself it may belong again


def test_four_inbound_sas_fit(store):
    more = [sa(Direction.IN, 0x1100 + n) for n in range(3)]
    for one in more:
        store.create(one)
    store.update(tunnel([IN, *more], OUT))
    assert {spi for _, spi in store.forwarding.inbound} == {0x1001, 0x1100, 0x1101, 0x1102}


@pytest.mark.parametrize("present", [True, False])
def test_a_key_sends_once(store, present):
    """RFC 4106 §3.1: a second sender under one key would repeat IVs sooner or later."""
    store.forwarding.encapsulate(PLAINTEXT)
    if not present:
        store.delete(TUNNEL.key)
        store.delete(OUT.key)
    again = replace(OUT, key=SaKey(PEER, 0x2999))
    refused(store, lambda: store.create(again), "has the key of SA 198.51.100.7/00002001", UsedKeyError)


def test_an_unused_key_may_come_back(store):
    store.delete(SPARE_OUT.key)
    store.create(SPARE_OUT)
    assert SPARE_OUT.key in store.objects


def test_both_directions_may_share_an_spi_and_peers_may_share_one_too(store):
    """The key is (destination, SPI): charon draws its own inbound SPIs, peers draw theirs."""
    far = ip_address("203.0.113.9")
    same = replace(sa(Direction.OUT, IN.key.spi), key=SaKey(far, IN.key.spi))
    twin = replace(sa(Direction.OUT, OUT.key.spi), key=SaKey(far, OUT.key.spi))
    store.create(same)
    store.create(twin)
    store.create(next_hop(key=far))
    network = Selector(SELECTOR.source, ip_network("10.3.0.0/16"))
    other = tunnel([SPARE_IN], twin, key=TunnelId(TUNNEL_ID.reqid, far), remote=far, selectors=(network,))
    store.create(other)
    (to_far,) = store.forwarding.encapsulate(up_frame(IP(src="10.1.0.1", dst="10.3.0.1") / UDP()))
    assert IP(to_far.frame[14:]).dst == str(far)
    assert IP(store.forwarding.encapsulate(PLAINTEXT)[0].frame[14:]).dst == str(PEER)


def test_gre_is_of_all_sas_of_a_tunnel_with_an_interface(store):
    inbound, outbound, bare = (
        sa(Direction.IN, 0x5001, gre=True),
        sa(Direction.OUT, 0x5002, gre=True),
        sa(Direction.OUT, 0x5003),
    )
    for one in (inbound, outbound, bare):
        store.create(one)
    by = {"key": TunnelId(5, PEER), "interface": XfrmInterface(9, "gre1", InterfaceKind.GRE)}
    refused(store, lambda: store.create(tunnel([inbound], bare, **by)), "GRE is of all SAs")
    refused(store, lambda: store.create(tunnel([inbound], outbound, key=TunnelId(5, PEER))), "GRE is of all SAs")
    store.create(tunnel([inbound], outbound, **by))
