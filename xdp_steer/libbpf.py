"""libbpf.so.1 by ctypes: the calls that BCC does not offer (pins, links, foreign objects, test runs).

Every function raises OSError with the kernel's errno; callers turn it into an error that names their object.
Structures and numbers are those of ``linux/bpf.h`` and ``bpf/bpf.h`` (libbpf 1.1, the options are size-versioned).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ipsec_gw.errors import EnvironmentMissing

MAP_ANY = 0
MAP_NOEXIST = 1

MAP_HASH = 1
MAP_ARRAY = 2
MAP_PROG_ARRAY = 3
MAP_PERCPU_ARRAY = 6
MAP_LRU_HASH = 9
MAP_LPM_TRIE = 11
MAP_ARRAY_OF_MAPS = 12
MAP_XSKMAP = 17
MAP_RINGBUF = 27

PROG_SCHED_CLS = 3
PROG_XDP = 6
"""enum bpf_prog_type"""

BPF_F_NO_PREALLOC = 1
BPF_XDP = 37
"""enum bpf_attach_type"""
XDP_SKB_MODE = 1 << 1
XDP_DRIVER_MODE = 1 << 2

_NAME_BYTES = 16  # BPF_OBJ_NAME_LEN
_INSTRUCTION_BYTES = 8
_LOG_BYTES = 1 << 16
_VERIFIER_LOG_BYTES = 1 << 24
"""Kernels before 6.4 give nothing of a log that does not fit."""

CValue = TypeVar("CValue", bound="ctypes.Structure | ctypes.Array[Any] | ctypes._SimpleCData[int]")


class _CData(Protocol):
    """Anything that ctypes passes by reference."""


class MapInfo(ctypes.Structure):
    """The head of ``struct bpf_map_info``."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * _NAME_BYTES),
    )


class ProgInfo(ctypes.Structure):
    """The head of ``struct bpf_prog_info``; what an older kernel does not know is 0."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * _NAME_BYTES),
        ("ifindex", ctypes.c_uint32),
        ("gpl_compatible", ctypes.c_uint32),
        ("netns_dev", ctypes.c_uint64),
        ("netns_ino", ctypes.c_uint64),
        ("nr_jited_ksyms", ctypes.c_uint32),
        ("nr_jited_func_lens", ctypes.c_uint32),
        ("jited_ksyms", ctypes.c_uint64),
        ("jited_func_lens", ctypes.c_uint64),
        ("btf_id", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("func_info", ctypes.c_uint64),
        ("nr_func_info", ctypes.c_uint32),
        ("nr_line_info", ctypes.c_uint32),
        ("line_info", ctypes.c_uint64),
        ("jited_line_info", ctypes.c_uint64),
        ("nr_jited_line_info", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("jited_line_info_rec_size", ctypes.c_uint32),
        ("nr_prog_tags", ctypes.c_uint32),
        ("prog_tags", ctypes.c_uint64),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
        ("verified_insns", ctypes.c_uint32),
    )


class LinkInfo(ctypes.Structure):
    """The head of ``struct bpf_link_info``; ``xdp_ifindex`` is 0 once the interface is gone."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("_pad", ctypes.c_uint32),
        ("xdp_ifindex", ctypes.c_uint32),
        ("_rest", ctypes.c_uint32),
    )


class _XdpQueryOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("prog_id", ctypes.c_uint32),
        ("drv_prog_id", ctypes.c_uint32),
        ("hw_prog_id", ctypes.c_uint32),
        ("skb_prog_id", ctypes.c_uint32),
        ("attach_mode", ctypes.c_uint8),
    )


class _MapCreateOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf", ctypes.c_uint32 * 4),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
    )


class _LinkCreateOpts(ctypes.Structure):
    _fields_ = (("sz", ctypes.c_size_t), ("flags", ctypes.c_uint32), ("_pad", ctypes.c_uint32))


class _ProgLoadOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("_before_the_log", ctypes.c_uint64 * 10),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_char_p),
    )


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise EnvironmentMissing("libbpf.so.1 is not installed - install the package libbpf1") from error
    for name in ("bpf_object__open_file", "bpf_object__find_program_by_name", "bpf_object__next_program"):
        getattr(library, name).restype = ctypes.c_void_p
    library.bpf_object__find_map_by_name.restype = ctypes.c_void_p
    library.ring_buffer__new.restype = ctypes.c_void_p
    library.ring_buffer__free.restype = None
    library.libbpf_set_print(None)  # what goes wrong is raised, not written to the operator's terminal
    return library


_lib = _load()


def check(result: int) -> int:
    """A libbpf result: negative is -errno and is raised as OSError."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def possible_cpus() -> int:
    """How many values a per-CPU map has."""
    return check(_lib.libbpf_num_possible_cpus())


def map_create(
    kind: int, name: str, key_size: int, value_size: int, max_entries: int, *, flags: int = 0, inner: int = 0
) -> int:
    """A new map's file descriptor. ``inner`` is a descriptor of the kind of map that a map of maps holds."""
    opts = _MapCreateOpts(sz=ctypes.sizeof(_MapCreateOpts), map_flags=flags, inner_map_fd=inner)
    return check(_lib.bpf_map_create(kind, name.encode(), key_size, value_size, max_entries, ctypes.byref(opts)))


def map_update(fd: int, key: _CData, value: _CData, flags: int = MAP_ANY) -> None:
    """Write one entry."""
    check(_lib.bpf_map_update_elem(fd, _ref(key), _ref(value), ctypes.c_uint64(flags)))


def map_lookup(fd: int, key: _CData, value: CValue) -> CValue:
    """Read one entry into ``value`` and return it. FileNotFoundError when there is none."""
    check(_lib.bpf_map_lookup_elem(fd, _ref(key), _ref(value)))
    return value


def map_delete(fd: int, key: _CData) -> None:
    """Remove one entry. FileNotFoundError when there is none."""
    check(_lib.bpf_map_delete_elem(fd, _ref(key)))


def map_keys(fd: int, key_type: Callable[[], CValue]) -> Iterator[CValue]:
    """The keys of a hash map. A key deleted meanwhile starts the kernel over: expect repetitions then."""
    previous = None
    while True:
        key = key_type()
        try:
            check(_lib.bpf_map_get_next_key(fd, None if previous is None else _ref(previous), _ref(key)))
        except FileNotFoundError:
            return
        yield key
        previous = key


def map_take(fd: int, key: _CData, value: CValue) -> CValue:
    """Read one entry of a hash map and remove it in the same step. FileNotFoundError when there is none."""
    check(_lib.bpf_map_lookup_and_delete_elem(fd, _ref(key), _ref(value)))
    return value


def map_lookup_batch(
    fd: int, token: ctypes.c_uint32, keys: ctypes.Array[Any], values: ctypes.Array[Any], *, first: bool
) -> tuple[int, bool]:
    """Read the next entries of a hash map, as many as the arrays hold: their number, and whether that was all.

    ``token`` is the place in the map, left for the next call; with ``first`` it is not read. OSError with ENOSPC: a
    hash bucket holds more entries than the arrays do, and ``token`` names it.
    """
    count = ctypes.c_uint32(min(len(keys), len(values)))
    begin = None if first else ctypes.byref(token)
    try:
        check(_lib.bpf_map_lookup_batch(fd, begin, ctypes.byref(token), keys, values, ctypes.byref(count), None))
    except FileNotFoundError:
        return count.value, True
    return count.value, False


def map_update_batch(fd: int, keys: ctypes.Array[Any], values: ctypes.Array[Any], count: int) -> None:
    """Write the first ``count`` entries of the arrays. On OSError those before the refused one are written."""
    check(_lib.bpf_map_update_batch(fd, keys, values, ctypes.byref(ctypes.c_uint32(count)), None))


def map_delete_batch(fd: int, keys: ctypes.Array[Any], count: int) -> int:
    """Remove the entries of the first ``count`` keys; those that are gone already are passed over.

    Returns how many it removed.
    """
    removed = start = 0
    size = ctypes.sizeof(keys) // max(len(keys), 1)
    while start < count:
        done = ctypes.c_uint32(count - start)
        rest = ctypes.c_void_p(ctypes.addressof(keys) + start * size)
        try:
            check(_lib.bpf_map_delete_batch(fd, rest, ctypes.byref(done), None))
        except FileNotFoundError:
            start += 1  # the kernel stops at a key that it does not find, and counts those before it
        removed += done.value
        start += done.value
    return removed


def map_entries(fd: int, key_size: int, value_size: int, entries: int) -> list[tuple[bytes, bytes]]:
    """Keys and values of a map that has room for ``entries``. Values of per-CPU maps are those of all CPUs."""
    keys, values = map_content(fd, key_size, value_size, entries)
    return [
        (keys[n * key_size : (n + 1) * key_size], values[n * value_size : (n + 1) * value_size])
        for n in range(len(keys) // key_size)
    ]


def map_content(fd: int, key_size: int, value_size: int, entries: int) -> tuple[bytes, bytes]:
    """The same, the keys one behind the other, and the values."""
    keys, values = ctypes.create_string_buffer(key_size * entries), ctypes.create_string_buffer(value_size * entries)
    place = ctypes.create_string_buffer(max(key_size, 4))
    count = ctypes.c_uint32(entries)
    with suppress(FileNotFoundError):  # the end of the map: count says how many there were
        check(_lib.bpf_map_lookup_batch(fd, None, place, keys, values, ctypes.byref(count), None))
    return keys.raw[: count.value * key_size], values.raw[: count.value * value_size]


def wait_for_programs() -> None:
    """Return when every program run that has begun is over.

    The kernel waits for that at each write into a map of maps, also where membarrier(2) cannot (nohz_full).
    """
    inner = map_create(MAP_ARRAY, "wait_inner", 4, 4, 1)
    try:
        outer = map_create(MAP_ARRAY_OF_MAPS, "wait_outer", 4, 4, 1, inner=inner)
        try:
            map_update(outer, ctypes.c_uint32(0), ctypes.c_uint32(inner))
        finally:
            os.close(outer)
    finally:
        os.close(inner)


def _ref(data: _CData) -> object:
    return ctypes.byref(data)  # type: ignore[arg-type]


def pin(fd: int, path: Path) -> None:
    """Pin a map, program or link in a mounted bpffs."""
    check(_lib.bpf_obj_pin(fd, bytes(path)))


def open_pin(path: Path) -> int:
    """The file descriptor of a pinned object. FileNotFoundError when there is none."""
    return check(_lib.bpf_obj_get(bytes(path)))


def map_info(fd: int) -> MapInfo:
    """What the kernel says about a map."""
    return _info(fd, MapInfo())


def prog_info(fd: int) -> ProgInfo:
    """What the kernel says about a program."""
    return _info(fd, ProgInfo())


def prog_load(kind: int, name: str, instructions: bytes) -> int:
    """A new program's file descriptor, of expected_attach_type 0. For a verifier refusal the text of OSError is the
    name of the program and the end of the verifier's log.
    """
    count = ctypes.c_size_t(len(instructions) // _INSTRUCTION_BYTES)
    arguments = (kind, name.encode(), b"GPL", instructions, count)
    try:
        return check(_lib.bpf_prog_load(*arguments, None))
    except OSError as error:
        buffer = ctypes.create_string_buffer(_VERIFIER_LOG_BYTES)
        opts = _ProgLoadOpts(sz=ctypes.sizeof(_ProgLoadOpts), log_level=1, log_size=len(buffer))
        opts.log_buf = ctypes.cast(buffer, ctypes.c_char_p)
        with suppress(OSError):
            return check(_lib.bpf_prog_load(*arguments, ctypes.byref(opts)))
        raise _refusal(error, f"{name}: {error.strerror}", [buffer]) from error


def _refusal(error: OSError, what: str, logs: Sequence[ctypes.Array[ctypes.c_char]]) -> OSError:
    """The same, and the last that the verifier says in its logs."""
    said = [line for log in logs for line in log.value.decode(errors="replace").splitlines()]
    return OSError(error.errno, "; ".join([what, *said[-3:]]))


def verified_instructions(fd: int) -> int | None:
    """Instructions that the verifier walked over all paths of a program; None from a kernel before 5.16."""
    info = ProgInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    check(_lib.bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)))
    known = size.value >= ProgInfo.verified_insns.offset + ProgInfo.verified_insns.size
    return int(info.verified_insns) if known else None


def link_info(fd: int) -> LinkInfo:
    """What the kernel says about an XDP link."""
    return _info(fd, LinkInfo())


def program_maps(fd: int) -> frozenset[int]:
    """Ids of the maps that a program uses."""
    count = prog_info(fd).nr_map_ids
    ids = (ctypes.c_uint32 * max(count, 1))()
    _info(fd, ProgInfo(nr_map_ids=count, map_ids=ctypes.addressof(ids)))
    return frozenset(ids[:count])


def _info(fd: int, info: CValue) -> CValue:
    size = ctypes.c_uint32(ctypes.sizeof(info))
    check(_lib.bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)))
    return info


def prog_by_id(prog_id: int) -> int:
    """A file descriptor for a loaded program."""
    return check(_lib.bpf_prog_get_fd_by_id(prog_id))


def xdp_program(ifindex: int) -> int:
    """Id of the XDP program on an interface, in whatever mode, 0 for none."""
    opts = _XdpQueryOpts(sz=ctypes.sizeof(_XdpQueryOpts))
    check(_lib.bpf_xdp_query(ifindex, 0, ctypes.byref(opts)))
    return opts.prog_id or opts.drv_prog_id or opts.hw_prog_id or opts.skb_prog_id  # type: ignore[no-any-return]


class XdpMode(IntEnum):
    """Where XDP runs on an interface (``XDP_ATTACHED_*`` of ``linux/if_link.h``)."""

    NONE = 0
    DRIVER = 1
    GENERIC = 2
    HARDWARE = 3
    SEVERAL = 4


def xdp_mode(ifindex: int) -> XdpMode:
    """The mode of the interface's XDP program; NONE also for an interface that is gone."""
    opts = _XdpQueryOpts(sz=ctypes.sizeof(_XdpQueryOpts))
    try:
        check(_lib.bpf_xdp_query(ifindex, 0, ctypes.byref(opts)))
    except OSError:
        return XdpMode.NONE
    return XdpMode(opts.attach_mode)


def link_xdp(prog_fd: int, ifindex: int, mode: int) -> int:
    """Attach a program to an interface by a link whose life the returned descriptor and its pins decide."""
    opts = _LinkCreateOpts(sz=ctypes.sizeof(_LinkCreateOpts), flags=mode)
    return check(_lib.bpf_link_create(prog_fd, ifindex, BPF_XDP, ctypes.byref(opts)))


def link_update(link_fd: int, prog_fd: int) -> None:
    """Put another program behind a link, atomically."""
    check(_lib.bpf_link_update(link_fd, prog_fd, None))


def link_detach(link_fd: int) -> None:
    """Take the program off its interface; pins of the link stay and hold nothing any more."""
    check(_lib.bpf_link_detach(link_fd))


class BpfObject:
    """A ``.bpf.o`` file made by clang, loaded with expected_attach_type 0.

    BCC loads its programs with 0 and libbpf would use BPF_XDP; kernel 6.18 refuses both in one program array.
    ``reuse`` gives pinned maps (by name) that take the place of the file's own. Raises OSError; for a verifier
    refusal its text is the end of the verifier's log.
    """

    def __init__(self, path: Path, reuse: dict[str, int]) -> None:
        self._object = ctypes.c_void_p(_lib.bpf_object__open_file(bytes(path), None))
        if not self._object:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._logs: list[ctypes.Array[ctypes.c_char]] = []
        try:
            for name, fd in reuse.items():
                check(_lib.bpf_map__reuse_fd(self._map(name), fd))
            self._prepare_programs()
            self._load()
        except OSError:
            self.close()
            raise

    def _prepare_programs(self) -> None:
        program = ctypes.c_void_p(_lib.bpf_object__next_program(self._object, None))
        while program:
            check(_lib.bpf_program__set_expected_attach_type(program, 0))
            log = ctypes.create_string_buffer(_LOG_BYTES)
            _lib.bpf_program__set_log_buf(program, log, ctypes.c_size_t(_LOG_BYTES))
            self._logs.append(log)
            program = ctypes.c_void_p(_lib.bpf_object__next_program(self._object, program))

    def _load(self) -> None:
        try:
            check(_lib.bpf_object__load(self._object))
        except OSError as error:
            raise _refusal(error, error.strerror or "load failed", self._logs) from error

    def _map(self, name: str) -> ctypes.c_void_p:
        found = ctypes.c_void_p(_lib.bpf_object__find_map_by_name(self._object, name.encode()))
        if not found:
            raise OSError(2, f"no map {name} in it")
        return found

    def program(self, name: str) -> int:
        """Descriptor of a program, owned by this object."""
        found = ctypes.c_void_p(_lib.bpf_object__find_program_by_name(self._object, name.encode()))
        if not found:
            raise OSError(2, f"no program {name} in it")
        return check(_lib.bpf_program__fd(found))

    def map(self, name: str) -> int:
        """Descriptor of a map, owned by this object."""
        return check(_lib.bpf_map__fd(self._map(name)))

    def close(self) -> None:
        """Close all its descriptors. What is pinned or attached stays."""
        _lib.bpf_object__close(self._object)
        self._object = ctypes.c_void_p(None)


_SampleCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_STOP = -1


class RingBuffer:
    """The consumer of a BPF ring buffer map; a map has one consumer at a time."""

    def __init__(self, map_fd: int) -> None:
        """``map_fd`` stays the caller's and must live as long as this. Raises OSError."""
        self._records: list[bytes] = []
        self._limit = 0
        self._callback = _SampleCallback(self._take)  # libbpf keeps the pointer: so must we
        self._ring = ctypes.c_void_p(_lib.ring_buffer__new(map_fd, self._callback, None, None))
        if not self._ring:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def _take(self, _context: int | None, data: int, size: int) -> int:
        self._records.append(ctypes.string_at(data, size))
        return _STOP if len(self._records) >= self._limit else 0

    def fileno(self) -> int:
        """Readable while there are records."""
        return check(_lib.ring_buffer__epoll_fd(self._open()))

    def _open(self) -> ctypes.c_void_p:
        if not self._ring:
            raise ValueError("the ring buffer is closed - libbpf would not survive it")
        return self._ring

    def consume(self, limit: int) -> list[bytes]:
        """Up to ``limit`` (at least 1) records, oldest first; never waits."""
        self._records, self._limit = [], limit
        result = _lib.ring_buffer__consume(self._open())
        if result < 0 and len(self._records) < limit:  # not our own stop, after which the record counts as read
            check(result)
        return self._records

    def close(self) -> None:
        """Let go of the memory of the ring; twice is no error."""
        _lib.ring_buffer__free(self._ring)
        self._ring = ctypes.c_void_p(None)


class TestRunOpts(ctypes.Structure):
    """``struct bpf_test_run_opts`` of libbpf."""

    __test__ = False  # not a test class for pytest

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


def prog_test_run(fd: int, opts: TestRunOpts) -> None:
    """BPF_PROG_TEST_RUN; results are in ``opts``."""
    opts.sz = ctypes.sizeof(TestRunOpts)
    check(_lib.bpf_prog_test_run_opts(fd, ctypes.byref(opts)))
