"""The BCC programs (XDP pipeline with its stages, TC guard): compiled once, pinned, adopted from their pins afterwards.

Pins below ``PINS/programs/DIGEST``: the digest covers the whole source with every shared number, so a changed product
never runs on programs of another. What was compiled is kept in a file as well: a compile costs many seconds, and an
unchanged product does it once for each version of the kernel headers and of BCC.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog

from ipsec_gw.errors import SteeringError
from xdp_steer import compiler, filter_layout, flow_layout, layout, libbpf, reasons, screen_layout, store
from xdp_steer.bytecode import Bytecode, MapShape
from xdp_steer.flow_layout import EgressStage, Stage
from xdp_steer.headers import find_headers

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
    Stage.TRANSLATE,
    Stage.TRANSLATED,
)
_CLEAR = ("decrypted", "routed_in", "routed_out")
"""The fields of :class:`ClearPrograms`, and the names of their pins."""
_ENTRIES = {
    "pipeline": "xdp_pipeline",
    "guard": "tc_guard",
    "xfrmi_out": "tc_xfrmi_out",
    "xfrmi_in": "tc_xfrmi_in",
    "xfrmi_back": "tc_xfrmi_back",
}
"""Functions that are always there, by the names of their pins."""
_XFRMI = ("xfrmi_out", "xfrmi_in", "xfrmi_back")
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
class XfrmiPrograms:
    """Descriptors of the TC programs for XFRM interfaces: on their egress, and on ingress of the kernel's and of the
    engine's end of the veth pair.
    """

    xfrmi_out: int
    xfrmi_in: int
    xfrmi_back: int


@dataclass(frozen=True, slots=True)
class Programs:
    """Descriptors of the programs; ``clear`` is None without the firewall. ``fresh`` is False when they came from
    their pins.
    """

    pipeline: int
    guard: int
    xfrmi: XfrmiPrograms
    clear: ClearPrograms | None
    fresh: bool

    def close(self) -> None:
        """Close all. What is attached or pinned stays."""
        for fd in self.named().values():
            os.close(fd)

    def named(self) -> dict[str, int]:
        """Descriptors by the names of their pins."""
        clear = {} if self.clear is None else {name: getattr(self.clear, name) for name in _CLEAR}
        xfrmi = {name: getattr(self.xfrmi, name) for name in _XFRMI}
        return {"pipeline": self.pipeline, "guard": self.guard} | xfrmi | clear


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
        bytecode, compiled = _bytecode(text, pins / "maps", firewall=firewall)
        programs = _load(bytecode, maps, directory, firewall=firewall)
        log.info("pipeline loaded", digest=directory.name, compiled=compiled)
    _sweep(directory)
    return programs


def _bytecode(text: str, map_pins: Path, *, firewall: bool) -> tuple[Bytecode, bool]:
    """Of this source, and whether it had to be compiled for that."""
    headers = find_headers(os.environ.get("BCC_KERNEL_SOURCE"))
    kept = store.Store(store.DIRECTORY, text, headers.release, compiler.version())
    bytecode = kept.get()
    if bytecode is not None:
        return bytecode, False
    specs = layout.MAPS + (filter_layout.FIREWALL_MAPS if firewall else ())
    private = _PRIVATE if firewall else ()
    bytecode = compiler.compile_programs(text, _kinds(firewall=firewall), private, specs, headers, map_pins)
    kept.put(bytecode)
    return bytecode, True


def _adopt(directory: Path, maps: Mapping[str, int], *, firewall: bool) -> Programs | None:
    fds: dict[str, int] = {}
    try:
        for name in (*_ENTRIES, *(_CLEAR if firewall else ())):
            fds[name] = libbpf.open_pin(directory / name)
    except OSError:
        for fd in fds.values():
            os.close(fd)
        return None
    programs = _programs(fds, firewall=firewall, fresh=False)
    ours = {libbpf.map_info(fd).id for fd in maps.values()} | _private_maps(directory)
    if all(libbpf.program_maps(fd) <= ours for fd in fds.values()):
        return programs
    programs.close()  # programs that outlived their maps count into nowhere
    return None


def _programs(fds: Mapping[str, int], *, firewall: bool, fresh: bool) -> Programs:
    xfrmi = XfrmiPrograms(**{name: fds[name] for name in _XFRMI})
    clear = ClearPrograms(**{name: fds[name] for name in _CLEAR}) if firewall else None
    return Programs(fds["pipeline"], fds["guard"], xfrmi, clear, fresh)


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


def _load(bytecode: Bytecode, maps: Mapping[str, int], directory: Path, *, firewall: bool) -> Programs:
    """Load the programs into the kernel, stages before what leads to them, and pin them."""
    with ExitStack() as stack:
        try:
            private = {one.name: _own(stack, _make_map(one)) for one in bytecode.maps}
            everything = private | dict(maps)
            if firewall:
                _fill(bytecode, everything)
            fds = {pin: _own(stack, _load_function(bytecode, name, everything)) for pin, name in _ENTRIES.items()}
            if firewall:
                fds |= {pin: _own(stack, _load_function(bytecode, f"tc_{pin}", everything)) for pin in _CLEAR}
        except OSError as error:
            raise SteeringError(f"the kernel refuses the XDP pipeline: {error.strerror}") from error
        programs = _programs(fds, firewall=firewall, fresh=True)
        _pin(directory, programs, private)
        stack.pop_all()
        for fd in private.values():
            os.close(fd)  # the pins hold them
        return programs


def _own(stack: ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _make_map(one: MapShape) -> int:
    return libbpf.map_create(one.kind, one.name, one.key_size, one.value_size, one.max_entries, flags=one.flags)


def _fill(bytecode: Bytecode, maps: Mapping[str, int]) -> None:
    """The program arrays. They hold what is in them."""
    for name, (array, index) in _stages().items():
        fd = _load_function(bytecode, name, maps)
        libbpf.map_update(maps[array], ctypes.c_uint32(index), ctypes.c_uint32(fd))
        os.close(fd)


def _load_function(bytecode: Bytecode, name: str, maps: Mapping[str, int]) -> int:
    function = bytecode.function(name)
    return libbpf.prog_load(function.kind, name, function.instructions(maps))


def _stages() -> dict[str, tuple[str, int]]:
    """Names of the stages' functions, with the program array and the place in it."""
    into = {f"stage_{stage.name.lower()}": ("stages", int(stage)) for stage in _STAGES}
    out = {f"stage_egress_{stage.name.lower()}": ("egress_stages", int(stage)) for stage in EgressStage}
    return into | out


def _kinds(*, firewall: bool) -> dict[str, int]:
    """All functions, with the kernel's kind of each."""
    kinds = {name: libbpf.PROG_SCHED_CLS for name in _ENTRIES.values()} | {"xdp_pipeline": libbpf.PROG_XDP}
    if firewall:
        arrays = {"stages": libbpf.PROG_XDP, "egress_stages": libbpf.PROG_SCHED_CLS}
        kinds |= {name: arrays[array] for name, (array, _) in _stages().items()}
        kinds |= {f"tc_{name}": libbpf.PROG_SCHED_CLS for name in _CLEAR}
    return kinds


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
