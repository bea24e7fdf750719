"""Policers against the token buckets of their RFCs, packet by packet, and their rates over time on two CPUs.

Rates of the packet-by-packet tests are so low that the time that a test takes means nothing: seconds are made to pass.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from random import Random

import pytest
from firewall_kit import LAN, WAN, World, ifindex, zones
from firewall_packets import assert_sound, tcp, udp
from scapy.layers.inet import IP
from scapy.packet import Packet, Raw

from ipsec_gw.model.filters import Colour, Filter, FilterAction, FilterTerm, Policer
from ipsec_gw.model.firewall import ANY_SERVICE, Action, Ruleset
from tests.reference.policers import GREEN, RED, YELLOW, Marker
from xdp_steer import filter_layout as fil
from xdp_steer import libbpf
from xdp_steer.flow_layout import NameKind
from xdp_steer.prog_run import TcAction, XdpAction, prog_run
from xdp_steer.reasons import Reason
from xdp_steer.tables import Count

pytestmark = pytest.mark.root

YELLOW_MARK, RED_MARK = 12, 14
SLOW = 64
"""Bits per second: eight bytes."""
DSCPS = {0: GREEN, 46: GREEN, 10: GREEN, 20: YELLOW, 36: YELLOW, 22: RED, 11: GREEN, 42: GREEN}
"""What comes in, and its colour where that counts: not the marks of this test."""
MARGIN = 80
"""Bytes: what a bucket may get of the ten seconds that a test takes at most."""


TWO = Policer("slow", SLOW, 4000, yellow=YELLOW_MARK, red=RED_MARK)
ONE_RATE = replace(TWO, excess_burst=6000)
TWO_RATES = replace(TWO, peak_rate=3 * SLOW, peak_burst=7000)
POLICERS = {"two colours": TWO, "RFC 2697": ONE_RATE, "RFC 2698": TWO_RATES}
KINDS = [
    pytest.param(replace(policer, aware=aware), id=f"{name}{', aware' if aware else ''}")
    for name, policer in POLICERS.items()
    for aware in ((False, True) if policer.three_colours else (False,))
]


def policed(policer: Policer, where: Filter | None = None, **fields: object) -> Ruleset:
    """What comes in by lan is policed, and all of it permitted."""
    permissive = zones(lan={"syn_check": False, "host_inbound": ANY_SERVICE})
    where = where or Filter("edge", input=("lan0",))
    term = FilterTerm("edge/all", "edge", FilterAction.ACCEPT, policer=policer.name, **fields)  # type: ignore[arg-type]
    return Ruleset(zones=permissive, default=Action.PERMIT, filters=(where,), filter_terms=(term,), policers=(policer,))


def sized(octets: int, dscp: int = 0) -> Packet:
    """A packet to this machine, whose header stays as it is, of that many bytes of IP."""
    bare = IP(src=LAN.host4, dst=LAN.address4, tos=dscp << 2) / udp(LAN.host4, LAN.address4, octets=0)[IP].payload
    made = bare.copy()
    made.remove_payload()
    made = made / bare.payload.__class__(sport=1024, dport=5000) / Raw(bytes(octets - 28))
    assert len(bytes(made)) == octets
    return made


def colour_of(world: World, octets: int, dscp: int) -> str:
    """By the mark that it gets; a packet that is green keeps its own."""
    result = world.send(LAN, sized(octets, dscp))
    assert result.reason is Reason.HOST
    assert_sound(result.frame)
    return {YELLOW_MARK: YELLOW, RED_MARK: RED}.get(result.ip.tos >> 2, GREEN)


@pytest.mark.parametrize("policer", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_packets_have_the_colours_of_the_rfc(world: World, policer: Policer, seed: int) -> None:
    """DSCPs that come in: none, and of assured forwarding of each precedence, but for the marks of this test."""
    print(f"seed {seed}")
    random, marker, seen = Random(seed), Marker(policer), Counter[str]()
    world.apply(policed(policer))
    for step in range(120):
        if random.random() < 0.3:
            seconds = random.choice((1, 10, 60, 400, 3000))
            world.fill_buckets(policer, seconds)
            marker.pass_time(seconds)
        octets = random.choice((64, 300, 700, 1400))
        dscp = random.choice(tuple(DSCPS))
        if marker.is_close(octets, MARGIN):
            continue
        expected = marker.colour(octets, DSCPS[dscp])
        assert colour_of(world, octets, dscp) == expected, (
            f"step {step}: {octets} bytes, {marker.committed}, {marker.other}"
        )
        seen[expected] += 1
    assert seen.keys() == ({GREEN, YELLOW, RED} if policer.three_colours else {GREEN, RED})


def test_the_excess_bucket_gets_only_what_the_other_has_no_room_for(world: World) -> None:
    """RFC 2697: facts 11b, N7: capped before the overflow is counted, the excess bucket never fills."""
    world.apply(policed(ONE_RATE))
    assert [colour_of(world, 1400, 0) for _ in range(7)] == [GREEN] * 2 + [YELLOW] * 4 + [RED]
    world.fill_buckets(ONE_RATE, 2800 / 8)
    assert [colour_of(world, 1300, 0) for _ in range(4)] == [GREEN] * 3 + [RED], "all of it was for the first bucket"
    world.fill_buckets(ONE_RATE, 4000 / 8 + 2800 / 8)
    assert [colour_of(world, 1300, 0) for _ in range(6)] == [GREEN] * 3 + [YELLOW] * 2 + [RED]


def test_a_packet_larger_than_the_burst_never_conforms(world: World) -> None:
    small = replace(TWO, burst=1000)
    world.apply(policed(small))
    assert colour_of(world, 1400, 0) == RED
    assert colour_of(world, 900, 0) == GREEN


@pytest.mark.parametrize("years", [0, 1, 2, 5])
def test_a_bucket_that_rests_for_years_is_full(world: World, years: int) -> None:
    """Times are modulo 2^64 ticks, 2.3 years."""
    world.apply(policed(TWO))
    assert [colour_of(world, 1400, 0) for _ in range(3)] == [GREEN, GREEN, RED]
    world.fill_buckets(TWO, years * 365 * 86400 + 4000 / 8)
    assert [colour_of(world, 1400, 0) for _ in range(3)] == [GREEN, GREEN, RED]


def test_another_rate_begins_with_what_it_can_have(world: World) -> None:
    """A bucket that was hours from being full at the old rate does not keep the new one waiting."""
    world.apply(policed(TWO))
    assert [colour_of(world, 1400, 0) for _ in range(3)] == [GREEN, GREEN, RED]
    world.apply(policed(replace(TWO, rate=1_000_000_000)))
    assert colour_of(world, 1400, 0) == GREEN


def test_buckets_stay_as_they_are_over_a_reload(world: World) -> None:
    world.apply(policed(TWO))
    assert [colour_of(world, 1400, 0) for _ in range(3)] == [GREEN, GREEN, RED]
    world.apply(policed(TWO, mark=46))
    assert colour_of(world, 1400, 0) == RED


def test_what_is_beyond_drops_and_is_counted(world: World) -> None:
    """By colour; the term counts them all. A policer's mark goes before that of the term."""
    policer = replace(ONE_RATE, yellow=Colour.ACCEPT, red=Colour.DISCARD)
    world.apply(policed(policer, mark=46))
    before = world.rule_counts()
    results = [world.send(LAN, sized(1400)) for _ in range(7)]
    assert [result.reason for result in results] == [Reason.HOST] * 6 + [Reason.FILTER_POLICED]
    assert results[-1].action is XdpAction.DROP
    assert {result.ip.tos >> 2 for result in results[:6]} == {46}
    after = world.rule_counts()
    moved = {name: (after[name].packets - before[name].packets) for name in after}
    assert moved[NameKind.FILTER_TERM, "edge/all"] == 7
    assert moved[NameKind.POLICER, "slow"] == 1
    assert moved[NameKind.POLICER_YELLOW, "slow"] == 4
    world.clear()
    world.apply(policed(replace(policer, yellow=Colour.DISCARD), mark=46))
    results = [world.send(LAN, sized(1400)).reason for _ in range(3)]
    assert results == [Reason.HOST] * 2 + [Reason.FILTER_POLICED]


def test_terms_and_directions_share_a_policer(world: World) -> None:
    """One name is one bucket; on TC egress it is the IP packet that counts, too."""
    both = Filter("edge", input=("lan0",), output=("wan0",))
    world.apply(policed(replace(TWO, red=Colour.DISCARD), both))
    packet = tcp(WAN.address4, WAN.host4, flags="A") / Raw(bytes(1400 - 40))
    assert len(bytes(packet)) == 1400
    assert colour_of(world, 1400, 0) == GREEN
    assert world.emit(WAN, packet).action is TcAction.UNSPEC
    result = world.emit(WAN, packet)
    assert (result.action, result.reason) == (TcAction.SHOT, Reason.EGRESS_POLICED)
    assert world.emit(WAN, tcp(WAN.address4, WAN.host4) / Raw(bytes(1100 - 40))).action is TcAction.UNSPEC
    assert world.send(LAN, sized(300)).reason is Reason.FILTER_POLICED


FAST = Policer("slow", 100_000_000, 12_500_000)
"""Its burst is a second: a test that is held up for less loses nothing."""
OCTETS = 1000
SECONDS = float(os.environ.get("POLICED_SECONDS", "2"))


def accepted(world: World) -> int:
    """Bytes so far."""
    counts = world.rule_counts()
    term, red = (counts[key] for key in ((NameKind.FILTER_TERM, "edge/all"), (NameKind.POLICER, "slow")))
    assert term.octets >= red.octets
    return term.octets - red.octets


def two_cpus() -> tuple[int, int]:
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2:
        pytest.skip("needs two CPUs")
    return found[0], found[1]


def test_ten_seconds_that_are_made_to_pass_on_two_cpus(world: World) -> None:
    """Within 2 percent of the rate, four times as much offered by each CPU in turn."""
    policer = replace(FAST, rate=10_000_000, burst=1_250_000)
    world.apply(policed(policer))
    frame, port = bytes(LAN.frame(sized(OCTETS))), ifindex(LAN)
    steps, seconds = 100, 10.0
    offered = int(4 * seconds / steps * policer.rate / 8 / OCTETS)
    with ExitStack() as stack:
        pinned = [stack.enter_context(ThreadPoolExecutor(1, initializer=pin, initargs=(cpu,))) for cpu in two_cpus()]
        before, began = accepted(world), time.monotonic_ns()
        drain(world, policer, frame)
        for _ in range(steps):
            for cpu in pinned:
                cpu.submit(prog_run, world.steering.pipeline_fd, frame, offered, port).result()
            world.fill_buckets(policer, seconds / steps)
        drain(world, policer, frame)
        passed = seconds + (time.monotonic_ns() - began) / 1e9
    found = accepted(world) - before - policer.burst
    assert passed < 4 * seconds, "too slow a machine: it offers less than the rate"
    assert found == pytest.approx(passed * policer.rate / 8, rel=0.02)


def pin(cpu: int) -> None:
    """This thread."""
    os.sched_setaffinity(0, {cpu})


def drain(world: World, policer: Policer, frame: bytes) -> None:
    """Empty the bucket, whatever was in it."""
    prog_run(world.steering.pipeline_fd, frame, 2 * policer.burst // OCTETS, ifindex(LAN))


def test_two_cpus_at_the_same_time_share_one_rate(world: World) -> None:
    """Within 2 percent of the rate, each CPU sending as fast as it can (POLICED_SECONDS= of real time)."""
    cpus = two_cpus()
    world.apply(policed(FAST))
    frame, port = bytes(LAN.frame(sized(OCTETS))), ifindex(LAN)
    prog_run(world.steering.pipeline_fd, frame, 1, port)  # the session
    before, began = accepted(world), time.monotonic_ns()
    end = began + int(SECONDS * 1e9)

    def send(cpu: int) -> None:
        pin(cpu)
        while time.monotonic_ns() < end:
            prog_run(world.steering.pipeline_fd, frame, 5000, port)

    threads = [threading.Thread(target=send, args=(cpu,)) for cpu in cpus]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    emptied = time.monotonic_ns() - began
    drain(world, FAST, frame)  # of what came while the last thread was waited for, and until then at least
    passed = time.monotonic_ns() - began
    found = (accepted(world) - before - FAST.burst) * 8e9 / FAST.rate
    print(f"{found / passed:.3f} of the rate over {passed / 1e9:.1f} s, without the first {FAST.burst} bytes")
    assert 0.98 * emptied <= found <= 1.02 * passed


def test_a_bucket_never_gets_more_than_its_burst_ahead(world: World) -> None:
    """What the word says is what the datapath makes of it: the burst's worth of time, and no byte more."""
    world.apply(policed(replace(TWO, red=Colour.DISCARD)))
    while world.send(LAN, sized(300)).reason is Reason.HOST:
        pass
    number = world.ids.rules[NameKind.POLICER, "slow"]
    state = libbpf.map_lookup(world.maps["policer_states"], ctypes.c_uint32(number), fil.PolicerStateLeaf())
    ahead = (state.full - time.monotonic_ns() * fil.POLICER_TICKS) % (1 << 64)
    assert fil.burst_ticks(4000 - 300 - MARGIN, SLOW) < ahead <= fil.burst_ticks(4000, SLOW)
    assert Count(0, 0) != world.rule_counts()[NameKind.POLICER, "slow"]
