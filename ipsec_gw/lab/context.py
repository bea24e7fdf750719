"""What a scenario works with: the network, who takes part, and where results go."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ipsec_gw.lab.capture import Capture, Captures, write_pcap
from ipsec_gw.lab.progress import Listener, Note, step
from ipsec_gw.lab.report import Check
from ipsec_gw.lab.session import Session, start_time
from ipsec_gw.lab.topology import Role, Topology
from ipsec_gw.lab.traffic import Host


@dataclass(frozen=True, slots=True)
class Options:
    """What the user chose. ``artifacts`` gets logs and captures, if given.

    ``baseline`` leaves ipsec-gw out: what strongSwan and the kernel do alone, to tell their faults from ours.
    ``seed`` and ``minutes`` are for scenarios that choose by chance. ``cases`` is for the matrix: "all", how many to
    draw, or names; and for `charon`: "all", or names. ``rounds`` is how often others do what they do again and again, 0
    for their own number.
    """

    engine: str = "kernel"
    proposal: str = "aes128gcm16"
    artifacts: Path | None = None
    baseline: bool = False
    seed: int = 1
    minutes: float = 1.0
    cases: str = "all"
    rounds: int = 0


@dataclass
class Lab:
    """One run of a scenario. What it starts is registered on ``stack``, which takes it down in reverse order."""

    session: Session
    topology: Topology
    options: Options
    listener: Listener
    stack: AsyncExitStack
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pids: dict[int, int] = field(default_factory=dict)
    strongswan: str = "unknown"
    vpp: str | None = None

    def check(self, name: str, ok: bool, expected: str, measured: object) -> None:
        """Record a verdict and tell it at once."""
        made = Check(name, bool(ok), expected, str(measured))
        self.checks.append(made)
        self.listener.tell(made)

    def note(self, text: str) -> None:
        """Record a measurement that has no right or wrong."""
        self.notes.append(text)
        self.listener.tell(Note(text))

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Tell what is under way."""
        with step(self.listener, name):
            yield

    def host(self, role: Role, interface: str) -> Host:
        """An end for traffic."""
        return Host(self.topology.namespace(role), self.topology.address(role, interface))

    def host6(self, role: Role, interface: str) -> Host:
        """An end for IPv6 traffic."""
        return Host(self.topology.namespace(role), self.topology.address6(role, interface))

    def watch_process(self, pid: int) -> None:
        """Remember a process: the last checks of the run look whether it is gone."""
        started = start_time(pid)
        if started is not None:
            self.pids[pid] = started

    def capture(self, role: Role, interface: str) -> Capture:
        """Start capturing on an interface."""
        return Capture(self.topology.namespace(role), interface)

    def save_logs(self) -> None:
        """Copy the logs to the artifacts directory, if one was asked for."""
        if self.options.artifacts is None:
            return
        for log in self.session.run_dir.rglob("*.log"):
            target = self.options.artifacts / "-".join(log.relative_to(self.session.run_dir).parts)
            shutil.copyfile(log, target)

    def save_captures(self, captures: Captures) -> None:
        """Write what came in on the captured interfaces, merged, to the artifacts directory, if one was asked for."""
        if self.options.artifacts is None:
            return
        frames = (frame for capture in captures.captures for frame in capture.frames if not frame.outgoing)
        write_pcap(self.options.artifacts / "wan.pcap", frames)
