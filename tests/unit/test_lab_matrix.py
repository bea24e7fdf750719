"""The catalogue of the matrix, its texts, and how its packets are told apart; all that needs no gateway."""

import struct
from dataclasses import replace

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import GRE

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.gateway import ShownSa
from ipsec_gw.lab.matrix.case import Act, Carrier, Case, Child, Connection
from ipsec_gw.lab.matrix.catalogue import catalogue, chosen
from ipsec_gw.lab.matrix.ends import PLACES, End
from ipsec_gw.lab.matrix.probes import MARK, Fate, Outcome, Probe, Protocol, _is_of_device, _message, _number_in
from ipsec_gw.lab.scenarios.matrix import Course, Stage, _as_expected, _judge
from ipsec_gw.lab.topology import LAN, Role, crossroads
from ipsec_gw.lab.traffic import checksum
from tests.unit.test_lab_verdicts import lab

OPTIONS = (
    *("-esn", "replay_window = 0", "encap = yes", "mobike = no", "mode = transport", "mode = beet", "mode = pass"),
    *(
        "mode = drop",
        "start_action = trap",
        "start_action = start",
        "if_id_in",
        "mark_in",
        "set_mark_in",
        "version = 1",
    ),
    *("unique = replace", "pools = virtual", "vips = ", "copy_df", "copy_ecn", "copy_dscp", "tfc_padding", "ipcomp"),
    *("ah_proposals", "life_packets", "life_bytes", "inactivity", "priority", "policies = no", "hw_offload"),
    *("[udp/5000]", "[tcp/5000]", "[icmp]", "[gre]", "chacha20poly1305", "aes128gcm8", "aes128-sha256", "aes128ccm16"),
)


def test_the_catalogue_covers_the_options_of_ordinary_life():
    texts = [case.conf(role) for case in catalogue() for role in (Role.GATEWAY_A, Role.GATEWAY_B)]
    assert [option for option in OPTIONS if not any(option in text for text in texts)] == []
    assert {act for case in catalogue() for act in case.acts} == set(Act)
    names = [case.name for case in catalogue()]
    assert len(names) == len(set(names)) >= 90


def test_every_text_is_whole():
    for case in catalogue():
        for role in (Role.GATEWAY_A, Role.GATEWAY_B):
            text = case.conf(role)
            assert text.count("{") == text.count("}") > 0
            assert "{{" not in text
        assert case.probes
        assert not case.initiate or case.trigger is None


def test_a_sample_is_the_same_for_the_same_seed_and_names_choose():
    assert chosen("6", 7) == chosen("6", 7)
    assert len(chosen("6", 7)) == 6
    assert {case.name for n in range(300) for case in chosen("6", n)} == {case.name for case in catalogue()}
    assert [case.name for case in chosen("trap, gcm-128", 1)] == ["trap", "gcm-128"]
    assert chosen("all", 1) == catalogue()
    with pytest.raises(IpsecGwError, match="no configuration nonsense in the matrix - known: gcm-128"):
        chosen("gcm-128,nonsense", 1)


def test_each_side_is_told_as_it_sees_it():
    child = Child(options=("both = 1",), a=("ours = 2",), remote_b="10.99.0.0/24")
    case = Case("x", "", (Connection(children=(child,), b=("theirs = 3",)),), ())
    a, b = case.conf(Role.GATEWAY_A), case.conf(Role.GATEWAY_B)
    assert ["local_ts = 10.1.0.0/24" in a, "remote_ts = 10.2.0.0/24" in a, "ours = 2" in a, "theirs" in a] == [
        1,
        1,
        1,
        0,
    ]
    assert ["local_ts = 10.2.0.0/24" in b, "remote_ts = 10.99.0.0/24" in b, "ours" in b, "theirs = 3" in b] == [
        1,
        1,
        0,
        1,
    ]
    assert "both = 1" in a
    assert "both = 1" in b


def test_the_ends_live_where_the_topology_has_them():
    topology = crossroads("igw-0")
    for end, place in PLACES.items():
        if end in (End.FORGER, End.VIRTUAL):
            continue
        ports = topology.ports(place.role)
        held = {one.ip for port in ports for one in (port.address, port.address6, *port.further) if one is not None}
        assert set(place.addresses) <= held, end
    assert Role.WAN in topology.forwarding
    for role in (Role.GATEWAY_A, Role.GATEWAY_B):
        behind = {port.address.network for port in topology.ports(role) if port.name == LAN}
        assert behind <= {route.destination for route in topology.routes if route.role is Role.WAN}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [Protocol.UDP, Protocol.TCP])
def test_segments_and_datagrams_have_right_checksums(protocol, version):
    probe = Probe(End.CLIENT, End.SERVER, protocol, version=version)
    payload = MARK + struct.pack(">Q", 77) + b"odd"
    message = _message(probe, payload)
    source, destination = probe.ends
    pseudo = source.packed + destination.packed + struct.pack(">HH", protocol.number(version), len(message))
    assert checksum(pseudo + message) == 0
    assert _number_in(b"whatever" + message) == 77
    assert _number_in(message[:-8]) == 0, "cut short"


def test_what_a_gre_device_sends_is_heard_where_it_comes_out_alone():
    inside = IP(src="10.2.0.10", dst="10.0.0.1") / UDP() / (MARK + struct.pack(">Q", 77))
    outer = IP(src="10.0.0.2", dst="10.0.0.1")
    assert _is_of_device(bytes(outer / GRE() / inside))
    assert not _is_of_device(bytes(inside))
    assert not _is_of_device(bytes(outer / GRE(proto=0x88B5) / (MARK + struct.pack(">Q", 78))))


def sa(direction, state, reason=""):
    return ShownSa(direction, 1, "10.0.0.1", "10.0.0.2", "soft", state, reason, 0)


BOTH = [sa("in", "soft"), sa("out", "soft")]


@pytest.mark.parametrize(
    ("carrier", "sas", "right"),
    [
        (Carrier.ENGINE, BOTH, True),
        (Carrier.ENGINE, BOTH[:1], False),
        (Carrier.ENGINE, [*BOTH, sa("in", "kernel", "why")], False),
        (Carrier.KERNEL, [sa("in", "kernel", "why"), sa("out", "kernel", "why")], True),
        (Carrier.KERNEL, [*BOTH, sa("in", "kernel", "why")], False),
        (Carrier.KERNEL, [sa("in", "pending", "why")], False),
        (Carrier.PARTLY, [*BOTH, sa("in", "kernel", "why")], True),
        (Carrier.PARTLY, [*BOTH, sa("in", "kernel")], False),
        (Carrier.PARTLY, BOTH, False),
    ],
)
def test_who_carries_is_held_against_what_is_expected(carrier, sas, right):
    assert _as_expected(carrier, "soft", sas) is right


PROBES = (Probe(End.CLIENT, End.SERVER), Probe(End.STRANGER_B, End.CLIENT))
CASE = Case("x", "y", (Connection(),), PROBES)


def stage(*fates, classes=frozenset({"ESP of 10.0.0.1 has 0xb8"})):
    return Stage("at first", Outcome(fates, classes))


GOOD = Course((stage(Fate.TUNNEL, Fate.DROPPED),), tuple(BOTH))


@pytest.mark.parametrize(
    ("alone", "beside", "says"),
    [
        (GOOD, GOOD, "the same"),
        (GOOD, Course((stage(Fate.DROPPED, Fate.DROPPED),), tuple(BOTH)), "client -> server"),
        (GOOD, Course((stage(Fate.CLEAR, Fate.DROPPED),), tuple(BOTH)), "in clear"),
        (GOOD, Course((stage(Fate.TUNNEL, Fate.TUNNEL),), tuple(BOTH)), "stranger-b -> client"),
        (GOOD, Course((), tuple(BOTH), "broke"), "soft: broke"),
        (
            GOOD,
            replace(GOOD, stages=(stage(Fate.TUNNEL, Fate.DROPPED, classes=frozenset()),)),
            "has 0xb8 by the kernel",
        ),
        (Course((stage(Fate.DROPPED, Fate.DROPPED),)),) * 2 + ("nothing went through a tunnel",),
    ],
)
def test_every_difference_is_told(alone, beside, says):
    told = lab("soft")
    _judge(told, CASE, alone, beside)
    fares, carries = told.checks
    assert fares.ok is (says == "the same")
    assert says in fares.measured
    assert carries.ok is bool(beside.carriers)
