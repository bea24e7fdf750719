"""Compiled programs as values: instructions, and which maps they name. Kept as text, so that a compile is needed once.

A map is named in an instruction by a descriptor, which only the process that compiles has. So the name is kept instead,
and the descriptor of whoever loads put in its place (``struct bpf_insn``, ``BPF_PSEUDO_MAP_FD`` of linux/bpf.h).
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from ipsec_gw.errors import SteeringError
from xdp_steer import libbpf

_INSTRUCTION = struct.Struct("=BBhi")  # code, two registers, offset, immediate
_LOAD_WIDE = 0x18  # BPF_LD | BPF_IMM | BPF_DW: takes the place of two instructions
_MAP_DESCRIPTOR = 1  # BPF_PSEUDO_MAP_FD as source register, the upper half of the byte
_IMMEDIATE = 4
"""Octets before the immediate in an instruction."""


@dataclass(frozen=True, slots=True)
class MapUse:
    """The instruction at ``offset`` (octets) names the map."""

    offset: int
    name: str


@dataclass(frozen=True, slots=True)
class Function:
    """A program of the kernel's kind ``kind`` (``enum bpf_prog_type``). Descriptors in ``code`` are 0."""

    name: str
    kind: int
    code: bytes
    uses: tuple[MapUse, ...]

    def instructions(self, maps: Mapping[str, int]) -> bytes:
        """What the kernel loads, with these descriptors of maps. Raises SteeringError for a map that is not there."""
        code = bytearray(self.code)
        for use in self.uses:
            if use.name not in maps:
                raise SteeringError(f"program {self.name} uses map {use.name}, which does not exist")
            struct.pack_into("=i", code, use.offset + _IMMEDIATE, maps[use.name])
        return bytes(code)


@dataclass(frozen=True, slots=True)
class MapShape:
    """A map that the programs share with nobody: as ``struct bpf_map_info`` tells it."""

    name: str
    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Bytecode:
    """All programs of one source, and the maps to make before they are loaded."""

    functions: tuple[Function, ...]
    maps: tuple[MapShape, ...]

    def function(self, name: str) -> Function:
        """The one of that name. Raises SteeringError."""
        for function in self.functions:
            if function.name == name:
                return function
        raise SteeringError(f"there is no program {name} among those that were compiled")

    def to_text(self) -> str:
        """A JSON document of it."""
        functions = [asdict(one) | {"code": base64.b64encode(one.code).decode()} for one in self.functions]
        return json.dumps({"functions": functions, "maps": [asdict(one) for one in self.maps]})

    @classmethod
    def from_text(cls, text: str) -> Bytecode:
        """What :meth:`to_text` was made of. Raises ValueError for anything else."""
        try:
            document = json.loads(text)
            functions = (
                Function(
                    str(one["name"]),
                    int(one["kind"]),
                    base64.b64decode(one["code"], validate=True),
                    tuple(MapUse(int(use["offset"]), str(use["name"])) for use in one["uses"]),
                )
                for one in document["functions"]
            )
            return cls(tuple(functions), tuple(MapShape(**one) for one in document["maps"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not compiled programs: {error!r}") from error


def taken_apart(name: str, kind: int, code: bytes, names: Mapping[int, str]) -> Function:
    """Of the instructions that a compiler made. ``names`` are those of its maps by their descriptors there.

    Raises SteeringError for a descriptor without a name.
    """
    plain, uses = bytearray(code), []
    for offset, descriptor in _map_descriptors(code):
        if descriptor not in names:
            raise SteeringError(f"program {name} uses a map that is none of its source's")
        struct.pack_into("=i", plain, offset + _IMMEDIATE, 0)
        uses.append(MapUse(offset, names[descriptor]))
    return Function(name, kind, bytes(plain), tuple(uses))


def _map_descriptors(code: bytes) -> Iterator[tuple[int, int]]:
    wide = False
    for number, (operation, registers, _, immediate) in enumerate(_INSTRUCTION.iter_unpack(code)):
        if wide:  # the second half of the one before
            wide = False
            continue
        wide = operation == _LOAD_WIDE
        if wide and registers >> 4 == _MAP_DESCRIPTOR:
            yield number * _INSTRUCTION.size, immediate


def shape(name: str, fd: int) -> MapShape:
    """Of a map that exists."""
    info = libbpf.map_info(fd)
    return MapShape(name, info.type, info.key_size, info.value_size, info.max_entries, info.map_flags)
