"""Compiled programs as values, and the files that they are kept in."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from ipsec_gw.errors import SteeringError
from xdp_steer.bytecode import Bytecode, Function, MapShape, MapUse, taken_apart
from xdp_steer.libbpf import MAP_ARRAY, PROG_XDP
from xdp_steer.store import KEPT, Store

MAP, PLAIN, EXIT = 0x1118, 0x0118, 0x95  # two octets each: operation, then the registers


def instruction(word: int, immediate: int = 0) -> bytes:
    return struct.pack("=Hhi", word, 0, immediate)


def wide(word: int, immediate: int) -> bytes:
    return instruction(word, immediate) + instruction(0)


CODE = wide(MAP, 7) + wide(PLAIN, 7) + wide(MAP, 9) + wide(MAP, 7) + instruction(EXIT)
OFFSETS = (0, 32, 48)
SHAPE = MapShape("metas", MAP_ARRAY, 4, 64, 2, 0)


def taken() -> Function:
    return taken_apart("xdp_pipeline", PROG_XDP, CODE, {7: "steer", 9: "control"})


def test_descriptors_of_maps_become_names_and_numbers_stay() -> None:
    function = taken()
    assert function.uses == tuple(map(MapUse, OFFSETS, ("steer", "control", "steer")))
    assert function.code == wide(MAP, 0) + wide(PLAIN, 7) + wide(MAP, 0) + wide(MAP, 0) + instruction(EXIT)
    assert function.instructions({"steer": 7, "control": 9, "other": 8}) == CODE
    assert function.instructions({"steer": 70, "control": 90})[4:8] == struct.pack("=i", 70)


def test_the_second_half_of_a_wide_instruction_is_no_instruction() -> None:
    code = instruction(PLAIN, 1) + instruction(MAP, 5) + instruction(EXIT)
    assert taken_apart("a", PROG_XDP, code, {}).uses == ()


def test_a_descriptor_without_a_name_is_an_error() -> None:
    with pytest.raises(SteeringError, match="program a uses a map that is none of its source's"):
        taken_apart("a", PROG_XDP, CODE, {7: "steer"})


def test_a_map_that_is_not_there_is_an_error() -> None:
    with pytest.raises(SteeringError, match="program xdp_pipeline uses map control, which does not exist"):
        taken().instructions({"steer": 7})


def test_a_function_that_was_not_compiled_is_an_error() -> None:
    with pytest.raises(SteeringError, match="there is no program tc_guard"):
        Bytecode((taken(),), ()).function("tc_guard")


def test_text_and_back() -> None:
    bytecode = Bytecode((taken(),), (SHAPE,))
    assert Bytecode.from_text(bytecode.to_text()) == bytecode


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"functions": [{}], "maps": []}', '{"functions": 1, "maps": []}', "\udcff"]
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Bytecode.from_text(text)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "kept", "source", "6.1", "0.26")


def only_file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "kept").iterdir()
    return path


def test_what_was_put_is_there_for_the_same_source_headers_and_compiler(store: Store, tmp_path: Path) -> None:
    assert store.get() is None
    store.put(Bytecode((taken(),), (SHAPE,)))
    assert store.get() == Bytecode((taken(),), (SHAPE,))
    assert only_file(tmp_path).stat().st_mode & 0o777 == 0o600
    for other in (
        ("source2", "6.1", "0.26"),
        ("source", "6.2", "0.26"),
        ("source", "6.1", "0.27"),
        ("source6.1", "0.26"),
    ):
        assert Store(tmp_path / "kept", *other).get() is None


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_others_can_write_is_not_used(store: Store, tmp_path: Path, what: str) -> None:
    store.put(Bytecode((taken(),), ()))
    path = only_file(tmp_path) if what == "file" else tmp_path / "kept"
    path.chmod(path.stat().st_mode | 0o020)
    assert store.get() is None


def test_a_symbolic_link_is_not_followed(store: Store, tmp_path: Path) -> None:
    store.put(Bytecode((taken(),), ()))
    path = only_file(tmp_path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert store.get() is None


@pytest.mark.parametrize("text", ["", '{"functions"', "\x80"])
def test_a_broken_file_is_not_used_and_replaced(store: Store, tmp_path: Path, text: str) -> None:
    store.put(Bytecode((taken(),), ()))
    only_file(tmp_path).write_text(text, encoding="latin-1")
    assert store.get() is None
    store.put(Bytecode((taken(),), ()))
    assert store.get() is not None


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file", "source")
    store.put(Bytecode((), ()))
    assert store.get() is None


def test_those_that_were_used_last_are_kept(tmp_path: Path) -> None:
    stores = [Store(tmp_path, f"source {number}") for number in range(KEPT + 1)]
    for age, store in enumerate(stores[:KEPT]):
        store.put(Bytecode((), ()))
        os.utime(store._path, (1000 + age, 1000 + age))
    assert stores[0].get() is not None, "the oldest is used once more"
    stores[KEPT].put(Bytecode((), ()))
    assert [number for number, store in enumerate(stores) if store.get() is None] == [1]
