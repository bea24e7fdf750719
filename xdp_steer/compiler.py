"""BCC as a compiler: source in, instructions out. Loading is done by whoever needs them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from ipsec_gw.errors import EnvironmentMissing, SteeringError
from xdp_steer import layout, libbpf
from xdp_steer.bytecode import Bytecode, shape, taken_apart
from xdp_steer.headers import Headers

_USER_SPACE_ONLY = ("names", "events", "waiting", "copies")
"""Maps that no program reads, and the ring buffers, which have neither keys nor values."""


def version() -> str:
    """Of BCC. Raises EnvironmentMissing."""
    try:
        return metadata.version("bcc")
    except metadata.PackageNotFoundError as error:
        raise _missing() from error


def compile_programs(
    text: str,
    kinds: Mapping[str, int],
    private: tuple[str, ...],
    specs: tuple[layout.MapSpec, ...],
    headers: Headers,
    map_pins: Path,
) -> Bytecode:
    """Compile the functions that ``kinds`` names, with their kernel kinds, and hold their tables against ``specs``.

    ``private`` are the maps that are not pinned below ``map_pins``. Raises EnvironmentMissing (no BCC) and
    SteeringError (compiler, layout).
    """
    try:
        from bcc import BPF, lib  # noqa: PLC0415 - loads LLVM, which programs that were kept never need
    except ImportError as error:
        raise _missing() from error
    cflags = [f'-DPIN_ROOT="{map_pins}"', "-Wno-macro-redefined", *headers.cflags]
    try:
        with kernel_source(headers):
            bpf = BPF(text=text.encode(), cflags=cflags)
    except Exception as error:  # BCC raises nothing more precise
        raise SteeringError(f"the XDP pipeline does not compile ({error}) - see the log above") from error
    try:
        check_tables(bpf, specs)
        tables = (*(spec.name for spec in specs), *private)
        names = {lib.bpf_table_fd(bpf.module, name.encode()): name for name in tables}
        functions = (taken_apart(name, kind, bpf.dump_func(name.encode()), names) for name, kind in kinds.items())
        return Bytecode(tuple(functions), tuple(shape(name, bpf[name.encode()].map_fd) for name in private))
    finally:
        bpf.cleanup()  # LLVM's memory, and BCC's own descriptors


@contextmanager
def kernel_source(headers: Headers) -> Iterator[None]:
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


def _missing() -> EnvironmentMissing:
    return EnvironmentMissing("BCC is not installed - install python3-bpfcc (PyPI's bcc is another thing)")
