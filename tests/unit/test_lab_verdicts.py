"""The scenario's verdicts, held to evidence that is wrong in one point each: every check must be able to fail."""

from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from ipaddress import ip_network
from types import SimpleNamespace

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.layers.l2 import Ether

from ipsec_gw.lab.context import Lab, Options
from ipsec_gw.lab.gateway import GuardCount, ShownSa, Status, SteerCount
from ipsec_gw.lab.scenarios.verdicts import (
    Evidence,
    Judged,
    Reading,
    few,
    judge_capture,
    judge_carriers,
    judge_counters,
)
from ipsec_gw.lab.session import Session
from ipsec_gw.lab.topology import site_to_site
from tests.unit.lab_kit import KERNEL_NAMES, SALT, A, B, frame, kernel_sa

KEY = bytes(range(16))
IN, OUT = f"{A}/0000000a", f"{B}/0000000b"


class Told:
    def tell(self, event):
        pass


def lab(engine="vpp"):
    topology = site_to_site("igw-000000")
    return Lab(Session("igw-000000", 1, 1, ()), topology, Options(engine=engine), Told(), AsyncExitStack())


def failed(of):
    return [check.name for check in of.checks if not check.ok]


def shown(direction, packets=0, state="vpp", reason=""):
    source, destination, spi = (B, A, 0xA) if direction == "in" else (A, B, 0xB)
    return ShownSa(direction, spi, source, destination, state, state, reason, packets)


NOT_STEERED = SteerCount(0, 0)


def reading(inbound=0, outbound=0, *, steer=NOT_STEERED, guard=None, state="vpp"):
    status = Status("vpp", "", True, {IN: steer}, {OUT: guard} if guard else {})
    return Reading(status, (shown("in", inbound, state), shown("out", outbound, state)))


GOOD_BEFORE = reading(3, 4, steer=SteerCount(3, 7))
GOOD_AFTER = reading(13, 24, steer=SteerCount(13, 7))
CARRIED = Counter({IN: 10, OUT: 20})


def test_counters_that_agree():
    run = lab()
    judge_counters(run, "x", GOOD_BEFORE, GOOD_AFTER, CARRIED)
    assert len(run.checks) == 4
    assert failed(run) == []
    assert run.notes == [f"{IN}: 7 packets went to the kernel before the hand-over"]


@pytest.mark.parametrize(
    ("after", "carried", "names"),
    [
        (reading(13, 24, steer=SteerCount(12, 8)), CARRIED, ["x: XDP gives all inbound ESP to the engine"]),
        (reading(13, 24, steer=SteerCount(14, 7)), CARRIED, ["x: XDP gives all inbound ESP to the engine"]),
        (
            reading(13, 24, steer=SteerCount(13, 7), guard=GuardCount(1, 0)),
            CARRIED,
            ["x: the kernel sends no outbound ESP past the guard"],
        ),
        (reading(12, 24, steer=SteerCount(13, 7)), CARRIED, ["x: `show sas` counts what the wire carried, in"]),
        (reading(13, 25, steer=SteerCount(13, 7)), CARRIED, ["x: `show sas` counts what the wire carried, out"]),
        (
            reading(3, 4, steer=SteerCount(3, 7)),
            Counter(),
            [
                "x: `show sas` counts what the wire carried, in",
                "x: XDP gives all inbound ESP to the engine",
                "x: `show sas` counts what the wire carried, out",
                "x: the kernel sends no outbound ESP past the guard",
            ],
        ),
    ],
)
def test_counters_that_do_not(after, carried, names):
    run = lab()
    judge_counters(run, "x", GOOD_BEFORE, after, carried)
    assert failed(run) == names


def test_counters_of_sas_that_need_not_be_used():
    run = lab()
    judge_counters(run, "now", GOOD_BEFORE, GOOD_AFTER, Counter({IN: 10}), lambda sa: sa.direction == "in")
    assert failed(run) == []
    assert len(run.checks) == 2
    judge_counters(run, "now", GOOD_BEFORE, GOOD_AFTER, Counter({IN: 10}))
    assert failed(run) == [
        "now: `show sas` counts what the wire carried, out",
        "now: the kernel sends no outbound ESP past the guard",
    ]


def test_the_kernel_engine_must_not_claim_anything():
    run = lab("kernel")
    judge_counters(run, "x", GOOD_BEFORE, GOOD_AFTER, CARRIED)
    assert failed(run) == ["x: nothing is steered or guarded"]


@pytest.mark.parametrize(
    ("engine", "sas", "bad"),
    [
        ("vpp", [shown("in"), shown("out")], []),
        ("vpp", [shown("in")], ["out"]),
        ("vpp", [shown("in"), shown("out", state="pending")], ["out"]),
        ("vpp", [shown("in"), shown("in", state="kernel"), shown("out")], ["in"]),
        ("vpp", [shown("in"), shown("in", state="kernel", reason="old"), shown("out")], []),
        ("kernel", [shown("in", state="kernel", reason="r"), shown("out", state="kernel")], ["out"]),
        ("kernel", [], ["in", "out"]),
    ],
)
def test_carriers(engine, sas, bad):
    run = lab(engine)
    judge_carriers(run, engine, sas)
    assert failed(run) == [f"{engine} carries direction {direction}" for direction in bad]


def test_few():
    assert few([]) == "none"
    assert few([1, 2]) == "2: 1; 2"
    assert few([1, 2, 3, 4]) == "4: 1; 2; 3 ..."


# A small run on the wire: two packets each way between client and server, captured in all places.


def packet(source, destination, number, ttl=64):
    return IP(src=source, dst=destination, ttl=ttl, id=number) / UDP(sport=1, dport=2) / bytes([number])


TO_B = [packet("10.1.0.10", "10.2.0.10", number) for number in (1, 2)]
TO_A = [packet("10.2.0.10", "10.1.0.10", number) for number in (3, 4)]


def hop(one):
    """The packet one router further."""
    return packet(one.src, one.dst, one.id, one.ttl - 1)


def protected(packets, source, destination, spi, numbers=(1, 2), ivs=None):
    sa = SecurityAssociation(
        ESP, spi=spi, crypt_algo="AES-GCM", crypt_key=KEY + SALT, tunnel_header=IP(src=source, dst=destination)
    )
    ivs = ivs or [number.to_bytes(8, "big") for number in numbers]
    return [
        frame(Ether() / sa.encrypt(hop(one), seq_num=number, iv=iv))
        for one, number, iv in zip(packets, numbers, ivs, strict=True)
    ]


class Fixed:
    """Captures whose frames are given."""

    def __init__(self, *frames, lost=0):
        self.captures = [SimpleNamespace(frames=list(each)) for each in frames]
        self._lost = lost

    def drain(self):
        return 0

    def lost(self):
        return self._lost


def world(**changed):
    from_a, from_b = protected(TO_B, A, B, 0xB), protected(TO_A, B, A, 0xA)
    client = [frame(Ether() / one, outgoing=True) for one in TO_B] + [frame(Ether() / hop(hop(one))) for one in TO_A]
    server = [frame(Ether() / one, outgoing=True) for one in TO_A] + [frame(Ether() / hop(hop(one))) for one in TO_B]
    sas = {
        (sa.destination, sa.spi): sa
        for sa in (
            replace(kernel_sa(KEY, 0xB), aead=KERNEL_NAMES["AES-GCM"]),
            replace(kernel_sa(KEY, 0xA), source=kernel_sa().destination, destination=kernel_sa().source),
        )
    }
    return {"from_a": from_a, "from_b": from_b, "client": client, "server": server, "sas": sas, "lost": 0} | changed


def judged(engine="vpp", lossy=False, links=frozenset(), bridged=False, taken_over=False, flapped=False, **changed):
    parts = world(**changed)
    run = lab(engine)
    wan = Fixed(parts["from_a"], parts["from_b"], lost=parts["lost"])
    evidence = Evidence([0, 0], [len(capture.frames) for capture in wan.captures])
    evidence.engine_took([shown("in"), shown("out")])
    diary = SimpleNamespace(all=lambda: parts["sas"])
    by = Judged(lossy=lossy, links=links, bridged=bridged, taken_over=taken_over, flapped=flapped)
    judge_capture(run, evidence, wan, Fixed(parts["client"], parts["server"]), [diary], by)
    return run


def test_a_good_capture():
    run = judged()
    assert len(run.checks) == 11
    assert failed(run) == []


def test_behind_a_nat_that_forgets_not_all_arrives():
    """But what arrives is what was encrypted."""
    arrived = world()["server"][:-1]
    assert failed(judged(server=arrived)) == ["what A encrypts is what the server receives"]
    assert failed(judged(server=arrived, lossy=True)) == []
    stray = [*arrived, frame(Ether() / packet("10.1.0.10", "10.2.0.10", 99))]
    assert failed(judged(server=stray, lossy=True)) == ["what the server receives is what A encrypts"]


def test_a_bridge_tells_what_is_too_long_in_the_name_of_others():
    told = IP(src="10.1.0.10", dst="10.2.0.10") / ICMP(type=3, code=4, nexthopmtu=1416) / bytes(TO_A[0])
    server = [*world()["server"], frame(Ether() / told)]
    name = "what the server receives is what A encrypts"
    assert failed(judged(server=server, lossy=True)) == [name]
    assert failed(judged(server=server, lossy=True, bridged=True)) == []
    other = [*server, frame(Ether() / packet("10.1.0.10", "10.2.0.10", 99))]
    assert failed(judged(server=other, lossy=True, bridged=True)) == [name]


def test_lost_frames_spoil_the_proof():
    assert failed(judged(lost=1)) == ["the captures are complete"]


def test_a_packet_that_no_kernel_key_opens():
    name = "the oracle opens every ESP packet of both directions"
    assert name in failed(judged(sas={}))
    forged = protected(TO_B, A, B, 0xB)
    forged[1] = frame(forged[1].data[:-1] + bytes((forged[1].data[-1] ^ 1,)))
    assert failed(judged(from_a=forged)) == [name]


def test_one_direction_alone_is_not_enough():
    assert "the oracle opens every ESP packet of both directions" in failed(judged(from_b=[]))


def test_an_inner_packet_that_nobody_sent():
    foreign = [TO_B[0], packet("10.1.0.10", "10.2.0.10", 99)]
    assert failed(judged(from_a=protected(foreign, A, B, 0xB))) == [
        "what A encrypts is what the client sent",
        "what A encrypts is what the server receives",
    ]
    strange = [TO_A[0], packet("10.2.0.10", "10.1.0.10", 99)]
    assert failed(judged(from_b=protected(strange, B, A, 0xA))) == ["what B encrypts is what the server sent"]


def test_what_gateways_say_in_clear_on_a_link_inside_the_tunnel():
    link = frozenset({ip_network("192.168.42.0/30")})
    clear = [*world()["from_b"], frame(Ether() / packet("192.168.42.2", "192.168.42.1", 5))]
    name = "nothing of the protected networks crosses the WAN in clear while the tunnel is up"
    assert failed(judged(from_b=clear)) == []
    assert failed(judged(from_b=clear, links=link)) == [name]


def test_a_sequence_number_used_twice():
    twice = protected(TO_B, A, B, 0xB, numbers=(1, 1), ivs=[b"12345678", b"abcdefgh"])
    assert failed(judged(from_a=twice)) == [
        "A uses no sequence number and no nonce twice",
        "sequence numbers from the engine strictly increase",
    ]


def test_a_nonce_used_twice():
    twice = protected(TO_B, A, B, 0xB, ivs=[b"12345678", b"12345678"])
    assert failed(judged(from_a=twice)) == ["A uses no sequence number and no nonce twice"]


def test_numbers_that_jump_or_do_not_start_at_one():
    for numbers in ((1, 3), (2, 3)):
        jumped = protected(TO_B, A, B, 0xB, numbers=numbers)
        assert failed(judged(from_a=jumped)) == ["A leaves no sequence number out"]
        assert failed(judged(from_b=protected(TO_A, B, A, 0xA, numbers=numbers))) == ["B leaves no sequence number out"]


def test_the_guard_may_take_numbers_of_an_sa_that_stays_in_the_kernel():
    of_the_kernel = {**world()["sas"], (kernel_sa().destination, 0xC): kernel_sa(KEY, 0xC)}
    early, engine = protected(TO_B[:1], A, B, 0xC, numbers=(15,)), protected(TO_B[1:], A, B, 0xB, numbers=(1,))
    assert failed(judged(from_a=[*early, *engine], sas=of_the_kernel)) == []


def test_an_engine_must_send_in_order():
    late = protected(TO_B, A, B, 0xB, numbers=(2, 1))
    assert failed(judged(from_a=late)) == ["sequence numbers from the engine strictly increase"]


def test_what_an_engine_sends_behind_the_kernel_leaves_its_ring_after_a_link_was_down():
    behind = protected(TO_B, A, B, 0xB, numbers=(1 << 27, 2))
    name = "no number of A goes back beyond the reordering of one ring, whoever sends"
    assert failed(judged(from_a=behind, taken_over=True)) == [name]
    assert failed(judged(from_a=behind, taken_over=True, flapped=True)) == []
    one_ring = protected(TO_B * 513, A, B, 0xB, numbers=(1 << 27, *range(1, 1026)))
    parts = {"client": [frame(Ether() / one, outgoing=True) for one in TO_B * 513] + world()["client"][2:]}
    assert name in failed(judged(from_a=one_ring, taken_over=True, flapped=True, lossy=True, **parts))


def test_clear_packets_on_the_wan():
    leaked = [*protected(TO_B, A, B, 0xB), frame(Ether() / TO_B[0])]
    assert failed(judged(from_a=leaked)) == [
        "nothing of the protected networks crosses the WAN in clear while the tunnel is up"
    ]
