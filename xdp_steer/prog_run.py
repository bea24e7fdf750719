"""BPF_PROG_TEST_RUN: give a loaded program one packet and see what it does with it.

Without an interface the programs run with a fresh context: the loopback of the caller's network namespace (ifindex 1)
and queue 0.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

from ipsec_gw.errors import SteeringError
from xdp_steer import libbpf

_HEADROOM = 512
"""Bytes that a program may add to a packet."""


class XdpAction(IntEnum):
    """``enum xdp_action``."""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


class TcAction(IntEnum):
    """What the guard returns (``linux/pkt_cls.h``); -1 comes as an unsigned number."""

    UNSPEC = 0xFFFFFFFF
    OK = 0
    SHOT = 2
    REDIRECT = 7


@dataclass(frozen=True, slots=True)
class RunResult:
    """``retval`` of the program, the packet as it left it, mean ``duration_ns`` over ``repeat`` runs."""

    retval: int
    packet: bytes
    duration_ns: int
    repeat: int


class _XdpContext(ctypes.Structure):
    """``struct xdp_md``; data and data_end are offsets here."""

    _fields_ = (
        ("data", ctypes.c_uint32),
        ("data_end", ctypes.c_uint32),
        ("data_meta", ctypes.c_uint32),
        ("ingress_ifindex", ctypes.c_uint32),
        ("rx_queue_index", ctypes.c_uint32),
        ("egress_ifindex", ctypes.c_uint32),
    )


class _SkbContext(ctypes.Structure):
    """The head of ``struct __sk_buff``; the kernel takes zeros for the rest of it."""

    _fields_ = (("_fixed", ctypes.c_uint32 * 9), ("ingress_ifindex", ctypes.c_uint32), ("ifindex", ctypes.c_uint32))


def prog_run(program_fd: int, packet: bytes, repeat: int = 1, ifindex: int | None = None) -> RunResult:
    """Run a program on a packet of at least 14 bytes, for TC a whole IP header.

    ``ifindex`` is the interface that an XDP program sees the packet come in by (queue 0). Raises SteeringError when the
    kernel refuses to.
    """
    if ifindex is None:
        return _run(program_fd, packet, repeat, None)
    return _run(program_fd, packet, repeat, _XdpContext(data_end=len(packet), ingress_ifindex=ifindex))


def prog_run_egress(
    program_fd: int, packet: bytes, ifindex: int, ingress_ifindex: int = 0, repeat: int = 1
) -> RunResult:
    """Run a TC program on a packet that is about to leave by the interface ``ifindex``.

    ``ingress_ifindex`` is the interface that the kernel forwards it from, 0 for a packet of this machine. A VLAN tag is
    part of the packet: an offloaded one cannot be given. ``retval`` is the unsigned form of a :class:`TcAction`. Raises
    SteeringError when the kernel refuses to, also for an unknown ``ifindex``.
    """
    return _run(program_fd, packet, repeat, _SkbContext(ifindex=ifindex, ingress_ifindex=ingress_ifindex))


def _run(program_fd: int, packet: bytes, repeat: int, context: _XdpContext | _SkbContext | None) -> RunResult:
    out = _buffer(len(packet) + _HEADROOM)()
    given = _buffer(len(packet)).from_buffer_copy(packet)
    opts = libbpf.TestRunOpts(
        data_in=ctypes.addressof(given),
        data_size_in=len(packet),
        data_out=ctypes.addressof(out),
        data_size_out=len(out),
        repeat=repeat,
    )
    if context is not None:
        opts.ctx_in = ctypes.addressof(context)
        opts.ctx_size_in = ctypes.sizeof(context)
    try:
        libbpf.prog_test_run(program_fd, opts)
    except OSError as error:
        raise SteeringError(
            f"test run of program {program_fd} with {len(packet)} bytes failed ({error.strerror}) - "
            "the kernel takes 14 bytes (for TC a whole IP header) to one page, and interfaces of this network namespace"
        ) from error
    return RunResult(opts.retval, ctypes.string_at(out, opts.data_size_out), opts.duration, repeat)


@cache
def _buffer(size: int) -> type[ctypes.Array[ctypes.c_char]]:
    """The type is kept: to make it anew for every packet takes longer than the test run."""
    return ctypes.c_char * size
