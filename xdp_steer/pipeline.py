"""The BCC programs (XDP pipeline with its stages, TC guard): compiled once, pinned, adopted from their pins afterwards.

Pins below ``PINS/programs/DIGEST``: the digest covers the whole source with every shared number, so an unchanged
product never compiles twice between two boots (a compile costs seconds), and a changed one always does.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import structlog

from ipsec_gw.errors import EnvironmentMissing, SteeringError
from xdp_steer import filter_layout, flow_layout, layout, libbpf, reasons, screen_layout
from xdp_steer.flow_layout import EgressStage, Stage
from xdp_steer.headers import Headers, find_headers

BPF_DIR = Path(__file__).parent / "bpf"
_SOURCE = BPF_DIR / "pipeline.c"
_INCLUDE = re.compile(r'^#include "(?P<file>\w+\.h)"$')
_DIGEST_CHARS = 16
_STAGES = (
    Stage.FLOW,
    Stage.NEW,
    Stage.POLICY,
    Stage.CREATE,
    Stage.FORWARD,
    Stage.ICMP_ERROR,
    Stage.ANSWER,
    Stage.FRAGMENT,
    Stage.SCREEN,
    Stage.SCREEN_NEW,
    Stage.SESSION_LIMIT,
    Stage.NAT64_TO_IPV4,
    Stage.NAT64_TO_IPV6,
    Stage.NAT64_ERROR,
    Stage.FILTER,
    Stage.HOST_FILTER,
    Stage.COOKIE,
    Stage.TUNNEL_NAT,
)
_CLEAR = ("decrypted", "routed_in", "routed_out")
"""The fields of :class:`ClearPrograms`, and the names of their pins."""
_USER_SPACE_ONLY = ("names", "events", "waiting", "copies")
"""Maps that no program reads, and the ring buffers, which have neither keys nor values."""
_PRIVATE = ("metas", "stages", "egress_stages")
"""Maps of one version of the programs. Their pins keep the program array filled: the kernel empties one that user space
has let go of."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ClearPrograms:
    """Descriptors of the TC programs that are in the firewall only: on ingress of a WAN, and on both hooks of an
    interface without Ethernet.
    """

    decrypted: int
    routed_in: int
    routed_out: int


@dataclass(frozen=True, slots=True)
class Programs:
    """Descriptors of the programs; ``clear`` is None without the firewall. ``compiled`` is False when they came from
    their pins.
    """

    pipeline: int
    guard: int
    clear: ClearPrograms | None
    compiled: bool

    def close(self) -> None:
        """Close all. What is attached or pinned stays."""
        for fd in self.named().values():
            os.close(fd)

    def named(self) -> dict[str, int]:
        """Descriptors by the names of their pins."""
        clear = {} if self.clear is None else {name: getattr(self.clear, name) for name in _CLEAR}
        return {"pipeline": self.pipeline, "guard": self.guard} | clear


def source(*, firewall: bool = True) -> str:
    """The text that BCC compiles: shared numbers first, then pipeline.c with its own headers in place."""
    switch = f"#define FIREWALL {int(firewall)}"
    shared = (reasons, layout, flow_layout, screen_layout, filter_layout)
    numbers = [module.c_defines() for module in shared]
    return "\n".join([switch, *numbers, *_expand(_SOURCE)])


def _expand(path: Path) -> Iterator[str]:
    for line in path.read_text().splitlines():
        match = _INCLUDE.match(line)
        if match:
            yield from _expand(path.parent / match["file"])
        else:
            yield line


def digest(text: str) -> str:
    """The name of a source's pin directory."""
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARS]


def load(pins: Path, maps: Mapping[str, int]) -> Programs:
    """Adopt the pinned programs of this very source and these very maps, or compile, check and pin them.

    ``pins`` is the directory of all pins; ``maps`` gives the pinned maps' descriptors by name. Raises
    EnvironmentMissing (no BCC, no kernel headers) and SteeringError (compiler, verifier, layout, pins). The firewall is
    in them if its maps are there.
    """
    firewall = flow_layout.SESSIONS.name in maps
    text = source(firewall=firewall)
    directory = pins / "programs" / digest(text)
    programs = _adopt(directory, maps, firewall=firewall)
    if programs is None:
        programs = _compile(text, pins / "maps", directory, firewall=firewall)
        log.info("pipeline compiled", digest=directory.name)
    _sweep(directory)
    return programs


def _adopt(directory: Path, maps: Mapping[str, int], *, firewall: bool) -> Programs | None:
    fds: dict[str, int] = {}
    try:
        for name in ("pipeline", "guard", *(_CLEAR if firewall else ())):
            fds[name] = libbpf.open_pin(directory / name)
    except OSError:
        for fd in fds.values():
            os.close(fd)
        return None
    clear = ClearPrograms(**{name: fds[name] for name in _CLEAR}) if firewall else None
    programs = Programs(fds["pipeline"], fds["guard"], clear, compiled=False)
    ours = {libbpf.map_info(fd).id for fd in maps.values()} | _private_maps(directory)
    if all(libbpf.program_maps(fd) <= ours for fd in fds.values()):
        return programs
    programs.close()  # programs that outlived their maps count into nowhere
    return None


def _private_maps(directory: Path) -> frozenset[int]:
    found = set()
    for name in _PRIVATE:
        try:
            fd = libbpf.open_pin(directory / name)
        except OSError:
            continue
        found.add(libbpf.map_info(fd).id)
        os.close(fd)
    return frozenset(found)


def _compile(text: str, map_pins: Path, directory: Path, *, firewall: bool) -> Programs:
    try:
        from bcc import BPF  # noqa: PLC0415 - loads LLVM, which an adopted pipeline never needs
    except ImportError as error:
        raise EnvironmentMissing(
            "BCC is not installed - install python3-bpfcc (PyPI's bcc is another thing)"
        ) from error
    headers = find_headers(os.environ.get("BCC_KERNEL_SOURCE"))
    cflags = [f'-DPIN_ROOT="{map_pins}"', "-Wno-macro-redefined", *headers.cflags]
    try:
        with _kernel_source(headers):
            bpf = BPF(text=text.encode(), cflags=cflags)
        try:
            check_tables(bpf, layout.MAPS + (filter_layout.FIREWALL_MAPS if firewall else ()))
            if firewall:
                _load_stages(bpf)
            pipeline = os.dup(bpf.load_func(b"xdp_pipeline", BPF.XDP).fd)
            guard = os.dup(bpf.load_func(b"tc_guard", BPF.SCHED_CLS).fd)
            clear = _load_clear(bpf) if firewall else None
            programs = Programs(pipeline, guard, clear, compiled=True)
            _pin(directory, programs, {name: bpf[name.encode()].map_fd for name in _PRIVATE if firewall})
            return programs
        finally:
            bpf.cleanup()  # LLVM's memory, and BCC's own descriptors
    except SteeringError:
        raise
    except Exception as error:  # BCC raises nothing more precise
        raise SteeringError(f"the XDP pipeline does not compile or load ({error}) - see the log above") from error


@contextmanager
def _kernel_source(headers: Headers) -> Iterator[None]:
    """BCC reads its kernel source from the environment, and from nowhere else."""
    before = os.environ.get("BCC_KERNEL_SOURCE")
    if headers.source is not None:
        os.environ["BCC_KERNEL_SOURCE"] = str(headers.source)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("BCC_KERNEL_SOURCE", None)
        else:
            os.environ["BCC_KERNEL_SOURCE"] = before


def _load_stages(bpf: Any) -> None:
    """Fill the program arrays before anything leads to them."""
    for stage in _STAGES:
        function = bpf.load_func(f"stage_{stage.name.lower()}".encode(), bpf.XDP)
        bpf[b"stages"][ctypes.c_int(stage)] = ctypes.c_int(function.fd)
    for egress in EgressStage:
        function = bpf.load_func(f"stage_egress_{egress.name.lower()}".encode(), bpf.SCHED_CLS)
        bpf[b"egress_stages"][ctypes.c_int(egress)] = ctypes.c_int(function.fd)


def _load_clear(bpf: Any) -> ClearPrograms:
    fds = {name: os.dup(bpf.load_func(f"tc_{name}".encode(), bpf.SCHED_CLS).fd) for name in _CLEAR}
    return ClearPrograms(**fds)


def check_tables(bpf: Mapping[bytes, object], specs: tuple[layout.MapSpec, ...]) -> None:
    """Hold the tables of a compiled program against what user space makes of them. Raises SteeringError."""
    for spec in specs:
        if spec.name in _USER_SPACE_ONLY:
            continue
        table = bpf[spec.name.encode()]
        if spec.kind == libbpf.MAP_PROG_ARRAY:
            continue  # four-byte indices and descriptors, by definition of the kind
        layout.check_type(f"{spec.name} keys", table.Key, spec.key)  # type: ignore[attr-defined]
        layout.check_type(f"{spec.name} values", _one_value(table.Leaf), spec.value)  # type: ignore[attr-defined]


def _one_value(leaf: type[Any]) -> type[Any]:
    """BCC's per-CPU tables have an array of values as leaf: one of them."""
    if not issubclass(leaf, ctypes.Array):
        return leaf
    element: Any = leaf._type_
    return cast("type[Any]", element)


def _pin(directory: Path, programs: Programs, private: dict[str, int]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, fd in (private | programs.named()).items():
            (directory / name).unlink(missing_ok=True)
            libbpf.pin(fd, directory / name)
    except OSError as error:
        raise SteeringError(f"cannot pin programs in {directory} ({error.strerror}) - is it on a bpffs?") from error


def _sweep(current: Path) -> None:
    """Unpin the programs of other versions: what is still attached lives on without a pin."""
    for directory in current.parent.iterdir():
        if directory != current:
            for entry in directory.iterdir():
                entry.unlink()
            directory.rmdir()
