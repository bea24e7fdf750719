"""The plan of a VPP start as values: numbers with their reasons, findings with the way out. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ipsec_gw.errors import EnvironmentMissing

KILOBYTE = 1 << 10
MEGABYTE = 1 << 20
GIGABYTE = 1 << 30


class Severity(StrEnum):
    """An error refuses the plan, a warning costs speed or capacity, a note only informs."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """A contradiction between what is wanted and what is there. ``way_out`` is what an operator can do."""

    severity: Severity
    subject: str
    text: str
    way_out: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}" + (f" - {self.way_out}" if self.way_out else "")


class PlanRefused(EnvironmentMissing):
    """No VPP can be planned for this machine. ``findings`` are all that was found, the errors among them."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        errors = [str(finding) for finding in findings if finding.severity is Severity.ERROR]
        super().__init__("; ".join(errors))
        self.findings = findings


@dataclass(frozen=True, slots=True)
class Number:
    """One value of startup.conf, as it stands there, and why it is so. ``-`` stands for what is left out."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class Setting:
    """A kernel setting to change: ``path`` is below the root directory, ``command`` does the same in a shell."""

    path: str
    now: int
    wanted: int
    command: str
    reason: str


@dataclass(frozen=True, slots=True)
class Needs:
    """What the gateway has to carry. None: found out from the machine.

    ``sas`` counts both directions, ``tunnels`` their pairs, ``sessions`` those of the firewall (they live in BPF maps
    and need memory as well). ``interfaces`` are the docked kernel interfaces; ``workers`` is the number of worker
    threads; ``policies`` are SPD entries, which tunnels need with ``policy_mode = "spd"`` alone; ``mtu`` is in bytes.
    Members of the ``stats_group`` may read VPP's counters.
    """

    sas: int = 4096
    tunnels: int = 1024
    sessions: int = 262144
    interfaces: tuple[str, ...] = ()
    mtu: int | None = None
    workers: int | None = None
    policies: int = 0
    qat: bool = True
    stats_group: str | None = None


class RxMode(StrEnum):
    """How VPP learns of packets on an AF_XDP interface."""

    POLLING = "polling"
    INTERRUPT = "interrupt"


@dataclass(frozen=True, slots=True)
class SocketPlan:
    """A socket of VPP in its folder, with its permissions and the name of its group."""

    name: str
    mode: int
    group: str

    @property
    def permissions(self) -> str:
        """``0660 monitor``."""
        return f"{self.mode:04o} {self.group}"


@dataclass(frozen=True, slots=True)
class InterfacePlan:
    """A kernel interface for VPP: its receive queues, whether its AF_XDP sockets should copy nothing, and which worker
    takes each queue, by VPP's numbers from 0. Empty without workers.
    """

    name: str
    queues: int
    zero_copy: bool
    placement: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Handler:
    """An engine and the algorithms, by VPP's plain names, that it is given."""

    engine: str
    algorithms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QatPlan:
    """Virtual functions for VPP's dpdk plugin and the queue pairs that they have together."""

    devices: tuple[str, ...]
    queue_pairs: int


@dataclass(frozen=True, slots=True)
class StartupPlan:
    """All that startup.conf is rendered from. Sizes are in bytes, pages are VPP's names (``4K``, ``2M``).

    ``buffers`` is what VPP is asked for per NUMA node, ``buffers_usable`` what comes out of it on all nodes but the
    idle ones: buffers that would cross a page are lost. ``poll_sleep_usec`` and ``policy_buckets`` 0 leave theirs out.
    ``section``: crypto engines have one in this release. ``ordinary_bytes`` and ``hugepage_bytes`` are what VPP takes
    at most from either kind of memory.
    """

    release: tuple[int, int]
    main_core: int
    workers: tuple[int, ...]
    idle_nodes: tuple[int, ...]
    buffers: int
    buffers_usable: int
    buffer_page: str
    data_bytes: int
    heap_bytes: int
    heap_page: str
    statseg_bytes: int
    poll_sleep_usec: int
    rx_mode: RxMode
    interfaces: tuple[InterfacePlan, ...]
    sockets: tuple[SocketPlan, ...]
    stats_group: str | None
    plugins: tuple[str, ...]
    engines: tuple[str, ...]
    section: bool
    handlers: tuple[Handler, ...]
    policy_buckets: int
    qat: QatPlan | None
    ordinary_bytes: int
    hugepage_bytes: int
    numbers: tuple[Number, ...]
    findings: tuple[Finding, ...]
    settings: tuple[Setting, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What an operator could do something about, one line each."""
        return tuple(str(finding) for finding in self.findings if finding.way_out)


def size(number: int) -> str:
    """A size as VPP reads it: the largest unit that divides it."""
    for unit, letter in ((GIGABYTE, "G"), (MEGABYTE, "M"), (KILOBYTE, "K")):
        if number and number % unit == 0:
            return f"{number // unit}{letter}"
    return str(number)


def count(number: int, noun: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def power_of_two(number: int) -> int:
    """The least power of two that is not less."""
    return 1 << max(0, number - 1).bit_length()
