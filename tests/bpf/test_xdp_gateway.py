"""Docks, steering and the guard live on a veth, and what stays of them."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from scapy.packet import Raw
from xdp_kit import DEADLINE, MARKER, Wire, await_frames, esp, ip

from ipsec_gw.errors import EnvironmentMissing, SteeringError
from ipsec_gw.model.ids import SaKey
from xdp_steer import compiler, dock, guard, libbpf, pipeline, store
from xdp_steer.gateway import DockCount, GuardCount, Reason, Role, Steering
from xdp_steer.layout import MAX_WAITING_FRAME, WAITING_RING_BYTES, WaitingLeaf
from xdp_steer.waiting import WaitingReader
from xdp_steer.xsk import XskSocket

pytestmark = pytest.mark.root

LOCAL = IPv4Address("192.0.2.1")
KNOWN = SaKey(LOCAL, 0x11111111)
HOUR = 3600.0
CLOCK_MONOTONIC_COARSE = 6
"""<linux/time.h>, which Python does not name; it is behind by a few milliseconds."""
HOUR_MS = 3_600_000


def qdiscs(interface: str) -> str:
    return subprocess.run(["tc", "qdisc", "show", "dev", interface], check=True, capture_output=True, text=True).stdout


def add_filter(interface: str, preference: int, program: int) -> None:
    """A filter of somebody else: only its name tells it from the guard."""
    with IPRoute() as ipr:
        ipr.tc(
            "add-filter",
            "bpf",
            ifindex(interface),
            handle=guard.HANDLE,
            parent=0xFFFFFFF3,
            prio=preference,
            protocol=0x0003,
            fd=program,
            name="somebody",
            direct_action=True,
        )


def ifindex(interface: str) -> int:
    return dock.ifindex_of(interface)


def steer_known(steering: Steering, wire: Wire) -> XskSocket:
    steering.dock(wire.near, Role.WAN)
    steering.set_engine(True)
    steering.steer(KNOWN)
    xsk = XskSocket(wire.near, frames=64)
    xsk.enter(steering.xsks_map(wire.near))
    return xsk


def test_steered_esp_reaches_the_socket_and_the_rest_the_kernel(steering: Steering, wire: Wire) -> None:
    xsk = steer_known(steering, wire)
    other = esp(0x22222222)
    wire.inject(esp(KNOWN.spi))
    wire.inject(other)
    wire.inject(MARKER)
    assert await_frames(xsk, 1) == [bytes(esp(KNOWN.spi))]
    assert wire.kernel_got(MARKER) == [bytes(other)]
    count = steering.steer_counters()[KNOWN]
    assert (count.engine_packets, count.kernel_packets) == (1, 0)
    assert count.engine_octets == len(esp(KNOWN.spi))
    assert steering.dock_counts(wire.near) == DockCount(1, 0)
    xsk.close()


def test_a_closed_socket_gives_the_next_packet_to_the_kernel(steering: Steering, wire: Wire) -> None:
    xsk = steer_known(steering, wire)
    wire.inject(esp(KNOWN.spi, seq=1))
    assert len(await_frames(xsk, 1)) == 1
    xsk.close()
    wire.inject(esp(KNOWN.spi, seq=2))
    wire.inject(MARKER)
    assert wire.kernel_got(MARKER) == [bytes(esp(KNOWN.spi, seq=2))]
    assert steering.dock_counts(wire.near) == DockCount(1, 1)


def test_the_engine_flag_turns_everything_off(steering: Steering, wire: Wire) -> None:
    xsk = steer_known(steering, wire)
    steering.set_engine(False)
    wire.inject(esp(KNOWN.spi))
    wire.inject(MARKER)
    assert wire.kernel_got(MARKER) == [bytes(esp(KNOWN.spi))]
    assert xsk.receive() == []
    assert steering.steer_counters()[KNOWN].kernel_packets == 1
    xsk.close()


def test_unsteered_goes_to_the_kernel(steering: Steering, wire: Wire) -> None:
    xsk = steer_known(steering, wire)
    steering.unsteer(KNOWN)
    assert steering.steered() == frozenset()
    wire.inject(esp(KNOWN.spi))
    wire.inject(MARKER)
    assert wire.kernel_got(MARKER) == [bytes(esp(KNOWN.spi))]
    xsk.close()


def test_to_engine_takes_every_packet(steering: Steering, wire: Wire) -> None:
    steering.dock(wire.near, Role.TO_ENGINE)
    xsk = XskSocket(wire.near, frames=64)
    xsk.enter(steering.xsks_map(wire.near))
    wire.inject(MARKER)
    assert await_frames(xsk, 1) == [bytes(MARKER)]
    assert not guard.attached(ifindex(wire.near))
    xsk.close()


def engine_with_known(steering: Steering, wire: Wire) -> tuple[Wire, XskSocket]:
    """An engine's socket, the wire that its plaintext comes by, and the known SA claimed for it."""
    ip("link add up8 type veth peer name vp8")
    ip("link set up8 up")
    ip("link set vp8 up")
    plain = Wire("vp8", "up8")
    steering.dock("vp8", Role.TO_ENGINE)
    steering.dock(wire.near, Role.WAN)
    xsk = XskSocket("vp8", frames=64)
    xsk.enter(steering.xsks_map("vp8"))
    steering.claim(KNOWN)
    return plain, xsk


def test_plaintext_without_any_socket_opens_the_guard_for_good(steering: Steering, wire: Wire) -> None:
    """An engine that died lets the kernel send, with no daemon at hand; one that comes back does not get it back."""
    plain, xsk = engine_with_known(steering, wire)
    plain.inject(MARKER)
    assert await_frames(xsk, 1) == [bytes(MARKER)]
    wire.emit(esp(KNOWN.spi, seq=1))
    assert not steering.engine_gone()
    xsk.close()
    wire.emit(esp(KNOWN.spi, seq=2))  # no plaintext came yet: nothing is known
    plain.inject(MARKER)
    assert plain.kernel_got(MARKER) == []
    assert steering.engine_gone()
    wire.emit(esp(KNOWN.spi, seq=3))
    again = XskSocket("vp8", frames=64)
    again.enter(steering.xsks_map("vp8"))
    plain.inject(MARKER)
    until(lambda: counts(steering) == (1, 2))
    wire.emit(esp(KNOWN.spi, seq=4))
    wire.emit(MARKER)
    assert wire.peer_got(MARKER) == [bytes(esp(KNOWN.spi, seq=3)), bytes(esp(KNOWN.spi, seq=4))]
    assert steering.guard_counters() == {KNOWN: GuardCount(passed=2, dropped=2)}
    assert steering.verdicts()[Reason.GUARD_TAKEN_OVER].packets == 2
    assert steering.claimed() == {KNOWN}
    steering.set_engine_gone(False)
    wire.emit(esp(KNOWN.spi, seq=5))
    assert steering.guard_counters()[KNOWN] == GuardCount(passed=2, dropped=3)
    for closing in (again, plain):
        closing.close()


def test_a_daemon_that_is_away_leaves_plaintext_to_the_kernel(steering: Steering, wire: Wire) -> None:
    """Nobody follows rekeys then. Neither the engine's socket nor the daemon's return gives anything back."""
    plain, xsk = engine_with_known(steering, wire)
    for alive in (0.0, HOUR):  # 0: it may be away for ever
        steering.heartbeat(alive)
        plain.inject(MARKER)
        assert await_frames(xsk, 1) == [bytes(MARKER)]
    wire.emit(esp(KNOWN.spi, seq=1))
    assert not steering.engine_gone()
    steering.heartbeat(1e-9)
    begun = time.monotonic_ns()
    until(lambda: time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE) > begun)
    wire.emit(esp(KNOWN.spi, seq=2))  # no plaintext came yet
    plain.inject(MARKER)
    until(steering.engine_gone)
    steering.heartbeat(HOUR)
    plain.inject(MARKER)
    until(lambda: counts(steering) == (2, 2))
    assert xsk.receive() == []
    wire.emit(esp(KNOWN.spi, seq=3))
    wire.emit(MARKER)
    assert wire.peer_got(MARKER) == [bytes(esp(KNOWN.spi, seq=3))]
    steering.set_engine_gone(False)
    plain.inject(MARKER)
    assert await_frames(xsk, 1) == [bytes(MARKER)]
    for closing in (xsk, plain):
        closing.close()


def test_what_is_to_be_translated_is_vpps_or_nobodys(steering: Steering, wire: Wire) -> None:
    """Without a socket it is dropped, and the first such packet ends the translation of new flows."""
    steering.dock(wire.near, Role.TO_TRANSLATOR)
    xsk = XskSocket(wire.near, frames=64)
    xsk.enter(steering.xsks_map(wire.near))
    steering.begin_translation(1, anew=True)
    wire.inject(MARKER)
    assert await_frames(xsk, 1) == [bytes(MARKER)]
    assert steering.translates()
    xsk.close()
    assert steering.translates()  # nothing is known yet
    wire.inject(MARKER)
    until(lambda: not steering.translates())
    assert steering.dock_counts(wire.near) == DockCount(to_engine=1, fell_to_kernel=1)
    assert not steering.engine_gone()
    again = XskSocket(wire.near, frames=64)
    again.enter(steering.xsks_map(wire.near))
    wire.inject(MARKER)
    assert await_frames(again, 1) == [bytes(MARKER)]
    assert not steering.translates()  # user space alone gives it back
    steering.dock(wire.near, Role.WAN)
    again.close()
    wire.inject(MARKER)
    assert wire.kernel_got(MARKER) == []  # all that came before was not for the kernel


def test_a_socket_on_another_queue_keeps_the_guard_closed(steering: Steering, wire: Wire) -> None:
    """Plaintext that falls to the kernel by one queue does not tell that the engine is dead."""
    ip("link add up8 numrxqueues 2 numtxqueues 2 type veth peer name vp8 numrxqueues 2 numtxqueues 2")
    ip("link set up8 up")
    ip("link set vp8 up")
    plain = Wire("vp8", "up8")
    steering.dock("vp8", Role.TO_ENGINE)
    for queue in (0, 1):  # the kernel chooses one of them: with the socket on the other, the packet falls
        xsk = XskSocket("vp8", queue, frames=64)
        xsk.enter(steering.xsks_map("vp8"))
        plain.inject(MARKER)
        until(lambda: sum(counts(steering)) == queue + 1)  # noqa: B023 - called here and now
        fell = counts(steering)[1]
        assert not steering.engine_gone()
        xsk.close()
    assert fell == 1
    plain.close()


def counts(steering: Steering) -> tuple[int, int]:
    found = steering.dock_counts("vp8")
    return found.to_engine, found.fell_to_kernel


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end


def test_steered_esp_without_a_socket_tells_nothing_of_the_engine(steering: Steering, wire: Wire) -> None:
    xsk = steer_known(steering, wire)
    xsk.close()
    wire.inject(esp(KNOWN.spi))
    wire.inject(MARKER)
    assert wire.kernel_got(MARKER) == [bytes(esp(KNOWN.spi))]
    assert not steering.engine_gone()


def test_two_docks_each_have_their_own_way_out(steering: Steering, wire: Wire) -> None:
    ip("link add wan8 type veth peer name far8")
    ip("link set wan8 up")
    ip("link set far8 up")
    second = Wire("wan8", "far8")
    first_xsk = steer_known(steering, wire)
    second_xsk = steer_known(steering, second)
    second.inject(esp(KNOWN.spi, seq=8))
    wire.inject(esp(KNOWN.spi, seq=9))
    assert await_frames(second_xsk, 1) == [bytes(esp(KNOWN.spi, seq=8))]
    assert await_frames(first_xsk, 1) == [bytes(esp(KNOWN.spi, seq=9))]
    for closing in (first_xsk, second_xsk, second):
        closing.close()


def test_an_engine_sends_past_the_guard(steering: Steering, wire: Wire) -> None:
    xsk = steer_known(steering, wire)
    steering.claim(KNOWN)
    assert xsk.send([bytes(esp(KNOWN.spi)), bytes(MARKER)]) == 2
    assert wire.peer_got(MARKER) == [bytes(esp(KNOWN.spi))]
    assert steering.guard_counters() == {}
    xsk.close()


def test_opening_again_adopts_without_gap_and_without_compiling(
    steering: Steering, wire: Wire, pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xsk = steer_known(steering, wire)
    program = libbpf.xdp_program(ifindex(wire.near))
    steering.claim(KNOWN)
    steering.close()
    wire.inject(esp(KNOWN.spi, seq=1))  # nobody is there
    assert len(await_frames(xsk, 1)) == 1

    def never(*_: object) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr(pipeline, "_load", never)
    again = Steering.open(pins, hold_ms=0)
    again.dock(wire.near, Role.WAN)
    assert again.docked() == {wire.near}
    assert again.steered() == again.claimed() == {KNOWN}
    assert libbpf.xdp_program(ifindex(wire.near)) == program
    wire.inject(esp(KNOWN.spi, seq=2))
    assert len(await_frames(xsk, 1)) == 1
    assert again.steer_counters()[KNOWN].engine_packets == 2
    again.undock(wire.near)
    again.close()
    xsk.close()


def test_what_was_compiled_once_is_loaded_without_the_compiler(
    steering: Steering, bpffs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very same programs, as the kernel sees them: their instructions with whatever maps they were given."""
    tags = {name: bytes(libbpf.prog_info(fd).tag) for name, fd in steering._programs.named().items()}
    pins = bpffs / f"ipsec-gw-kept-{os.getpid()}"
    monkeypatch.setattr(store, "DIRECTORY", tmp_path)
    for turn in ("compiled", "kept"):
        opened = Steering.open(pins, hold_ms=0)
        loaded = opened._programs
        assert loaded.fresh
        assert {name: bytes(libbpf.prog_info(fd).tag) for name, fd in loaded.named().items()} == tags, turn
        assert len(list(tmp_path.iterdir())) == 1
        opened.close()
        Steering.remove_leftovers(pins)
        monkeypatch.setattr(compiler, "compile_programs", None)


def test_a_program_that_the_kernel_refuses_is_named_with_what_the_verifier_says() -> None:
    leave_without_a_result = struct.pack("=BBhi", 0x95, 0, 0, 0)
    with pytest.raises(OSError, match=r"stage_flow: .*R0 !read_ok"):
        libbpf.prog_load(libbpf.PROG_XDP, "stage_flow", leave_without_a_result)


def test_a_changed_pipeline_goes_live_on_the_docks_that_are_there(
    steering: Steering, wire: Wire, pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xsk = steer_known(steering, wire)
    old = libbpf.prog_info(steering._programs.pipeline).id
    steering.close()
    changed = pipeline.source().replace("int action = steer_plain(ctx);", "int action = XDP_DROP;")
    assert changed != pipeline.source()
    monkeypatch.setattr(pipeline, "source", lambda **_: changed)
    again = Steering.open(pins, hold_ms=0)
    assert libbpf.prog_info(again._programs.pipeline).id != old
    assert [entry.name for entry in (pins / "programs").iterdir()] == [pipeline.digest(changed)]
    wire.inject(esp(KNOWN.spi))
    again.dock(wire.near, Role.TO_ENGINE)
    wire.inject(MARKER)
    assert await_frames(xsk, 1) == [bytes(MARKER)]  # the changed one dropped what came before
    again.undock(wire.near)
    again.close()
    xsk.close()


def test_another_dock_object_replaces_the_program_and_keeps_the_sockets(
    steering: Steering, wire: Wire, pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xsk = steer_known(steering, wire)
    before = libbpf.xdp_program(ifindex(wire.near))
    wire.inject(esp(KNOWN.spi))
    assert len(await_frames(xsk, 1)) == 1
    monkeypatch.setattr(dock, "object_digest", lambda: "another")
    steering.dock(wire.near, Role.WAN)
    assert libbpf.xdp_program(ifindex(wire.near)) != before
    wire.inject(esp(KNOWN.spi))
    assert len(await_frames(xsk, 1)) == 1
    assert steering.dock_counts(wire.near) == DockCount(2, 0)
    xsk.close()


def test_p18_an_interface_without_native_xdp_leaves_the_others_native(steering: Steering, wire: Wire) -> None:
    """And a dock stays in its mode when it is adopted, as the firewall sees by what the kernel says of it."""
    ip("link add slow9 type veth peer name deep9")
    for name in ("slow9", "deep9"):
        ip(f"link set {name} up")
    ip("link set deep9 mtu 9000")  # more than fits into a page, so slow9 gets no native XDP
    for name in ("slow9", wire.near, "slow9"):
        steering.dock(name, Role.WAN)
        assert steering.is_generic(ifindex(name)) is (name == "slow9")
    assert libbpf.xdp_mode(ifindex(wire.near)) is libbpf.XdpMode.DRIVER
    ip("link set deep9 mtu 1500")
    steering.dock("slow9", Role.WAN)
    assert libbpf.xdp_mode(ifindex("slow9")) is libbpf.XdpMode.GENERIC
    steering.undock("slow9")
    steering.dock("slow9", Role.WAN)
    assert libbpf.xdp_mode(ifindex("slow9")) is libbpf.XdpMode.DRIVER


def test_dock_and_pipeline_programs_share_an_array(steering: Steering, wire: Wire) -> None:
    """Both have expected_attach_type 0: kernel 6.18 refuses to mix types in one program array."""
    steering.dock(wire.near, Role.WAN)
    steering.dock(wire.near, Role.TO_ENGINE)
    steering.dock(wire.near, Role.WAN)
    assert dock.role_of(dock.directory_of(steering._pins, wire.near)) is Role.WAN


def test_a_foreign_program_is_refused_by_name(steering: Steering, wire: Wire, pins: Path) -> None:
    foreign = libbpf.BpfObject(dock.OBJECT, {})
    link = libbpf.link_xdp(foreign.program(dock.EXIT), ifindex(wire.near), libbpf.XDP_DRIVER_MODE)
    number = libbpf.xdp_program(ifindex(wire.near))
    with pytest.raises(SteeringError, match=rf"wan9 already has the XDP program to_vpp \(id {number}\)"):
        steering.dock(wire.near, Role.WAN)
    assert libbpf.xdp_program(ifindex(wire.near)) == number
    assert steering.docked() == frozenset()
    assert not dock.directory_of(pins, wire.near).exists()
    assert "clsact" not in qdiscs(wire.near)
    os.close(link)
    foreign.close()


def test_a_foreign_filter_in_the_guards_place_undoes_the_dock(steering: Steering, wire: Wire, pins: Path) -> None:
    subprocess.run(["tc", "qdisc", "add", "dev", wire.near, "clsact"], check=True)
    add_filter(wire.near, guard.PREFERENCE, steering._programs.guard)
    with pytest.raises(SteeringError, match="wan9 has another TC egress filter"):
        steering.dock(wire.near, Role.WAN)
    assert libbpf.xdp_program(ifindex(wire.near)) == 0
    assert not dock.directory_of(pins, wire.near).exists()
    assert "clsact" in qdiscs(wire.near)


def test_undock_leaves_clsact_that_others_brought(steering: Steering, wire: Wire) -> None:
    subprocess.run(["tc", "qdisc", "add", "dev", wire.near, "clsact"], check=True)
    steering.dock(wire.near, Role.WAN)
    assert guard.attached(ifindex(wire.near))
    steering.undock(wire.near)
    assert not guard.attached(ifindex(wire.near))
    assert "clsact" in qdiscs(wire.near)


def test_remove_leaves_nothing(bpffs: Path, wire: Wire) -> None:
    pins = bpffs / f"ipsec-gw-remove-{os.getpid()}"
    steering = Steering.open(pins)
    steering.dock(wire.near, Role.WAN)
    steering.dock(wire.far, Role.TO_ENGINE)
    assert guard.attached(ifindex(wire.near))
    assert libbpf.xdp_program(ifindex(wire.near))
    steering.remove()
    assert not pins.exists()
    for interface in (wire.near, wire.far):
        assert libbpf.xdp_program(ifindex(interface)) == 0
        assert "clsact" not in qdiscs(interface)
    Steering.remove_leftovers(pins)  # nothing there: nothing to do


def test_leftovers_of_a_lost_interface_go_too(steering: Steering, wire: Wire, pins: Path) -> None:
    steering.dock(wire.near, Role.WAN)
    steering.close()
    ip(f"link del {wire.near}")
    again = Steering.open(pins, hold_ms=0)
    assert again.docked() == frozenset()
    assert dock.pinned_interfaces(pins) == frozenset()
    again.close()


def test_an_interface_made_anew_is_docked_anew(steering: Steering, wire: Wire) -> None:
    steering.dock(wire.near, Role.WAN)
    ip(f"link del {wire.near}")
    ip("link add wan9 type veth peer name far9")
    steering.dock("wan9", Role.WAN)
    assert libbpf.xdp_program(ifindex("wan9"))
    assert guard.attached(ifindex("wan9"))


def test_docking_works_inside_an_event_loop(steering: Steering, wire: Wire) -> None:
    async def daemon() -> None:
        steering.dock(wire.near, Role.WAN)

    asyncio.run(daemon())
    assert guard.attached(ifindex(wire.near))


def test_an_interface_with_a_dot_can_be_docked(steering: Steering, wire: Wire) -> None:
    ip("link add dotted.7 type veth peer name far7")
    steering.dock("dotted.7", Role.TO_ENGINE)
    assert "dotted.7" in steering.docked()
    assert "dotted.7" in dock.pinned_interfaces(steering._pins)


def test_maps_outside_a_bpffs_are_refused(bpffs: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentMissing, match="mount -t bpf"):
        Steering.open(tmp_path / "pins")


def test_a_pinned_map_of_another_version_is_refused_and_kept(bpffs: Path) -> None:
    pins = bpffs / f"ipsec-gw-layout-{os.getpid()}"
    (pins / "maps").mkdir(parents=True)
    old = libbpf.map_create(libbpf.MAP_HASH, "steer", 20, 16, 8)
    libbpf.pin(old, pins / "maps" / "steer")
    with pytest.raises(SteeringError, match=r"pinned map steer has another layout .* run `ipsec-gw off` first"):
        Steering.open(pins)
    assert (pins / "maps" / "steer").exists()
    Steering.remove_leftovers(pins)
    assert not pins.exists()
    os.close(old)


def test_programs_that_outlived_their_maps_are_not_adopted(steering: Steering, pins: Path) -> None:
    assert not steering._programs.fresh
    steering.close()
    (pins / "maps" / "verdicts").unlink()
    again = Steering.open(pins, hold_ms=0)
    assert again._programs.fresh
    again.close()


def test_steered_sas_are_adopted_with_their_counter_slots(steering: Steering, pins: Path) -> None:
    keys = [SaKey(LOCAL, 0x1000 + number) for number in range(5)]
    for key in keys:
        steering.steer(key)
    steering.unsteer(keys[2])
    again = Steering.open(pins, hold_ms=0)
    again.steer(keys[2])
    assert again.steered() == set(keys)
    slots = {entry.counter for entry in again._steer._entries().values()}
    assert len(slots) == len(keys)
    again.close()


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_no_descriptor_is_left_open(steering: Steering, wire: Wire, pins: Path) -> None:
    def whole_life() -> None:
        opened = Steering.open(pins, hold_ms=0)
        opened.dock(wire.near, Role.WAN)
        opened.dock(wire.near, Role.WAN)
        opened.undock(wire.near)
        with pytest.raises(EnvironmentMissing):
            opened.dock("nothere", Role.WAN)
        opened.close()

    whole_life()
    before = open_descriptors()
    whole_life()
    assert open_descriptors() == before


def test_unknown_interfaces_are_named(steering: Steering, net: None) -> None:
    with pytest.raises(EnvironmentMissing, match="interface nothere does not exist"):
        steering.dock("nothere", Role.WAN)
    with pytest.raises(SteeringError, match="interface nothere has no dock"):
        steering.xsks_map("nothere")


class TestGuard:
    """What the kernel sends: packet sockets pass TC egress as XFRM's output does."""

    @pytest.fixture(autouse=True)
    def _docked(self, steering: Steering, wire: Wire) -> None:
        steering.dock(wire.near, Role.WAN)
        steering.set_local(frozenset({IPv4Address(esp(KNOWN.spi)["IP"].src)}))

    def test_forwarded_esp_of_others_goes_by(self, steering: Steering, wire: Wire, pins: Path) -> None:
        Steering.open(pins, hold_ms=HOUR_MS).close()
        steering.heartbeat()
        steering.set_local(frozenset({IPv4Address("192.0.2.99")}))
        assert self.sent(wire, KNOWN.spi)
        assert steering.guarded() == frozenset()
        steering.claim(KNOWN)
        assert not self.sent(wire, KNOWN.spi), "a claimed SA is dropped whatever its source"

    def sent(self, wire: Wire, spi: int) -> bool:
        """Whether ESP with this SPI arrives at the peer."""
        wire.emit(esp(spi))
        wire.emit(MARKER)
        return wire.peer_got(MARKER) == [bytes(esp(spi))]

    def test_claimed_is_dropped_and_counted(self, steering: Steering, wire: Wire) -> None:
        steering.claim(KNOWN)
        assert steering.claimed() == {KNOWN}
        assert not self.sent(wire, KNOWN.spi)
        assert steering.guard_counters() == {KNOWN: GuardCount(0, 1)}

    def test_released_passes_and_is_counted(self, steering: Steering, wire: Wire) -> None:
        steering.claim(KNOWN)
        assert not steering.is_released(KNOWN)
        steering.release(KNOWN)
        assert steering.is_released(KNOWN)
        assert steering.claimed() == frozenset()
        assert self.sent(wire, KNOWN.spi)
        assert steering.guard_counters() == {KNOWN: GuardCount(1, 0)}

    def test_only_the_claimed_spi_is_dropped(self, steering: Steering, wire: Wire) -> None:
        steering.claim(KNOWN)
        assert self.sent(wire, KNOWN.spi + 1)

    def test_newborn_is_held_while_the_daemon_lives(self, steering: Steering, wire: Wire, pins: Path) -> None:
        Steering.open(pins, hold_ms=HOUR_MS).close()
        steering.heartbeat()
        assert not self.sent(wire, KNOWN.spi)
        assert steering.guard_counters() == {KNOWN: GuardCount(0, 1)}
        steering.release(KNOWN)
        assert self.sent(wire, KNOWN.spi)
        assert steering.guard_counters() == {KNOWN: GuardCount(1, 1)}

    def test_what_is_held_back_waits_with_all_its_bytes(self, steering: Steering, wire: Wire, pins: Path) -> None:
        Steering.open(pins, hold_ms=HOUR_MS).close()
        reader = WaitingReader(steering.waiting_map)
        reader.read()
        steering.heartbeat()
        steering.claim(KNOWN)
        other = SaKey(KNOWN.destination, KNOWN.spi + 1)  # a newborn
        for spi in (KNOWN.spi, other.spi, KNOWN.spi + 2):
            if spi == KNOWN.spi + 2:
                steering.release(SaKey(KNOWN.destination, spi))
            assert self.sent(wire, spi) is (spi == KNOWN.spi + 2)
        found = reader.read()
        reader.close()
        assert [(packet.key, packet.frame) for packet in found] == [(k, bytes(esp(k.spi))) for k in (KNOWN, other)]
        assert {(packet.l3, packet.esp, packet.ifindex) for packet in found} == {(14, 34, ifindex(wire.near))}

    @pytest.mark.parametrize("length", [14 + 20 + 8, MAX_WAITING_FRAME, MAX_WAITING_FRAME + 1])
    def test_what_waits_has_a_longest(self, steering: Steering, wire: Wire, length: int) -> None:
        ip(f"link set {wire.near} mtu 3000")
        reader = WaitingReader(steering.waiting_map)
        reader.read()
        steering.claim(KNOWN)
        packet = esp(KNOWN.spi)
        packet["ESP"].data = b""
        packet = packet / Raw(bytes(length - len(packet)))
        assert len(packet) == length
        wire.emit(packet)
        waiting = [found.frame for found in reader.read()]
        reader.close()
        assert waiting == ([bytes(packet)] if length <= MAX_WAITING_FRAME else [])
        assert steering.guard_counters()[KNOWN].dropped == 1

    def test_a_full_ring_drops_as_without_one(self, steering: Steering, wire: Wire) -> None:
        reader = WaitingReader(steering.waiting_map)
        reader.read()
        steering.claim(KNOWN)
        room = WAITING_RING_BYTES // (ctypes.sizeof(WaitingLeaf) + 8)  # every record has a header of eight bytes
        for seq in range(room + 50):
            wire.emit(esp(KNOWN.spi, seq=seq))
        first = reader.read(room)
        wire.emit(esp(KNOWN.spi, seq=7))  # there is room again
        rest = reader.read(room)
        reader.close()
        assert room - 2 <= len(first) + len(rest) - 1 <= room
        assert rest[-1].frame == bytes(esp(KNOWN.spi, seq=7))
        assert steering.guard_counters()[KNOWN].dropped == room + 51

    def test_what_waited_leaves_before_its_sa_is_released(self, steering: Steering, wire: Wire, pins: Path) -> None:
        """By a mark that the guard knows; it counts as passed, so its key counts as used."""
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as marked:
            marked.bind((wire.near, 0))
            steering.claim(KNOWN)
            for known, mark in ((0, 0), (0, 7), (7, 8), (7, 7)):
                steering.set_waited_mark(known)
                marked.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                with suppress(OSError):  # dropped
                    marked.send(bytes(esp(KNOWN.spi, seq=10 * known + mark)))
        steering.set_waited_mark(0)
        wire.emit(MARKER)
        assert wire.peer_got(MARKER) == [bytes(esp(KNOWN.spi, seq=77))]
        assert steering.guard_counters() == {KNOWN: GuardCount(passed=1, dropped=3)}

    def test_newborn_is_not_held_without_an_engine(self, steering: Steering, wire: Wire, pins: Path) -> None:
        Steering.open(pins, hold_ms=HOUR_MS).close()
        steering.heartbeat()
        steering.set_engine_gone(True)
        assert self.sent(wire, KNOWN.spi)
        steering.set_engine_gone(False)
        assert not self.sent(wire, KNOWN.spi + 1)

    def test_newborn_passes_without_hold(self, steering: Steering, wire: Wire) -> None:
        steering.heartbeat()
        assert self.sent(wire, KNOWN.spi)

    def test_newborn_passes_without_a_daemon(self, steering: Steering, wire: Wire, pins: Path) -> None:
        Steering.open(pins, hold_ms=HOUR_MS).close()
        libbpf_control_zero(steering)
        assert self.sent(wire, KNOWN.spi)
        assert steering.guard_counters() == {KNOWN: GuardCount(1, 0)}

    def test_forgotten_is_newborn_again(self, steering: Steering, wire: Wire) -> None:
        steering.claim(KNOWN)
        assert not self.sent(wire, KNOWN.spi)
        steering.forget(KNOWN)
        assert steering.guard_counters() == {}
        assert self.sent(wire, KNOWN.spi)

    def test_other_filters_still_see_what_passes(self, steering: Steering, wire: Wire) -> None:
        add_filter(wire.near, 50, steering._programs.guard)
        assert self.sent(wire, KNOWN.spi)
        assert steering.guard_counters() == {KNOWN: GuardCount(2, 0)}  # the same program once more

    def test_verdicts_are_counted(self, steering: Steering, wire: Wire) -> None:
        before = steering.verdicts()[Reason.GUARD_ENGINE].packets
        steering.claim(KNOWN)
        self.sent(wire, KNOWN.spi)
        assert steering.verdicts()[Reason.GUARD_ENGINE].packets == before + 1


def libbpf_control_zero(steering: Steering) -> None:
    """As if no daemon had ever given a sign of life."""
    from xdp_steer import tables
    from xdp_steer.layout import Control

    tables.set_control(steering._control, Control.HEARTBEAT_NS, 0)
