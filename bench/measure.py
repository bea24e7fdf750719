"""One measurement of one case, and the proof that its packets went where the case says."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from bench import rearm
from bench.cases import Case, Program, Ring, address_number, frame_of
from bench.machine import BenchError, Machine, ifindex
from bench.rearm import Arm, Entry
from xdp_steer import dock, libbpf
from xdp_steer.flow_layout import EVENT_RING_BYTES, EventLeaf
from xdp_steer.prog_run import RunResult, XdpAction, prog_run

REPEAT = 100_000
"""Packets of a measurement; the kernel reports their mean duration in whole nanoseconds."""
_RECORD = ctypes.sizeof(EventLeaf) + 8
_RING_RECORDS = EVENT_RING_BYTES // _RECORD
_CHUNK = 5_000
"""Packets between two readings of the ring, less than it holds."""


class Meter:
    """Runs cases on a machine, remembering where each has got to in its clients."""

    def __init__(self, machine: Machine, pins: Path) -> None:
        self._machine = machine
        self._entry_of_dock = libbpf.open_pin(dock.directory_of(pins, "wan0") / dock.ENTRY)
        self._numbers: dict[str, int] = {}
        self._generation = machine.generation

    def nanoseconds(self, case: Case) -> float:
        """The mean of REPEAT packets, re-arm program included. Raises BenchError if one of them went another way."""
        self._machine.apply(case.rules)
        self._machine.drain_events(2 * _RING_RECORDS)
        if case.ring is Ring.FULL:
            self._run(case, REPEAT)
        if case.cut:
            self._run(case, 2)
        with self._due(case), self._proven(case):
            if case.ring is Ring.READ:
                return self._read_meanwhile(case)
            result = self._run(case, REPEAT)
        self._check_packet(case, result)
        if case.ring is Ring.FULL and (kept := self._machine.drain_events(REPEAT)) < _RING_RECORDS - 1:
            raise BenchError(f"{case.name}: {kept} records in a ring for {_RING_RECORDS}: it was not full")
        return result.duration_ns

    def _read_meanwhile(self, case: Case) -> float:
        total = 0
        for _ in range(REPEAT // _CHUNK):
            total += self._run(case, _CHUNK).duration_ns
            if (read := self._machine.drain_events(REPEAT)) != _CHUNK:
                raise BenchError(f"{case.name}: {read} records of {_CHUNK} denials")
        return total / (REPEAT // _CHUNK)

    def _run(self, case: Case, repeat: int) -> RunResult:
        frame = frame_of(case)
        first, count, step = case.clients
        head = (ctypes.c_uint8 * rearm.HEAD).from_buffer_copy(frame)
        arm = Arm(
            head, address_number(first), count, self._numbers.get(first + str(count), 0), step, len(frame), case.cut
        )
        program = self._machine.rearm.arm(case.entry, self._program(case), arm)
        result = prog_run(program, frame, repeat, ifindex(case.port))
        if case.entry is Entry.EACH:
            self._numbers[first + str(count)] = self._machine.rearm.number()
        return result

    def _program(self, case: Case) -> int:
        programs: dict[Program, Callable[[], int]] = {
            Program.TRIVIAL: lambda: self._machine.rearm.trivial,
            Program.BASE: lambda: self._machine.rearm.base,
            Program.BASE_MANY: lambda: self._machine.rearm.base_many,
            Program.PIPELINE: lambda: self._machine.steering.pipeline_fd,
            Program.DOCK: lambda: self._entry_of_dock,
        }
        return programs[case.program]()

    @contextmanager
    def _due(self, case: Case) -> Iterator[None]:
        """All routes are old, once for each session."""
        if not case.due:
            yield
            return
        self._generation += 1
        self._machine.set_generation(self._generation)
        yield
        self._machine.set_generation(self._machine.generation)

    @contextmanager
    def _proven(self, case: Case) -> Iterator[None]:
        """Counters moved as the case says: that many packets, for that reason and for no other, new flows or none."""
        before, opened = self._machine.verdicts(), self._machine.opened()
        fell = self._machine.steering.dock_counts("wan0").fell_to_kernel
        yield
        after = self._machine.verdicts()
        moved = {reason: after[reason] - before[reason] for reason in after if after[reason] != before[reason]}
        if moved != ({case.reason: REPEAT} if case.reason else {}):
            found = ", ".join(f"{reason.label} {count}" for reason, count in moved.items())
            raise BenchError(f"{case.name}: {REPEAT} packets were counted as {found or 'nothing'}")
        if (fresh := self._machine.opened() - opened) != (REPEAT if case.opens else 0):
            raise BenchError(f"{case.name}: {fresh} of {REPEAT} packets began a session")
        if case.session is not None and not self._machine.route_kept(case.session):
            raise BenchError(f"{case.name}: the route was looked up")
        if self._machine.steering.dock_counts("wan0").fell_to_kernel != fell:
            raise BenchError(f"{case.name}: the dock found no socket")

    @staticmethod
    def _check_packet(case: Case, result: RunResult) -> None:
        """The last packet: action, one hop, new sender."""
        if result.retval != case.action:
            raise BenchError(f"{case.name}: the packet met {XdpAction(result.retval).name}, not {case.action.name}")
        if case.entry is Entry.DIRECT or case.cut or case.program is not Program.PIPELINE:
            return
        sent, left = (Ether(data) for data in (frame_of(case), result.packet))
        hops = [frame[IP].ttl if IP in frame else frame[IPv6].hlim for frame in (sent, left)]
        if hops[1] != hops[0] - 1 or left.dst == sent.dst:
            raise BenchError(f"{case.name}: the packet was not restored, or not forwarded")
        source = left[IP if IP in left else IPv6].src
        if case.source is not None and source != case.source:
            raise BenchError(f"{case.name}: the packet left from {source}, not from {case.source}")

    def close(self) -> None:
        """Close what this opened."""
        os.close(self._entry_of_dock)
