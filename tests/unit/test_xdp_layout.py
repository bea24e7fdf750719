"""What C and Python share: reasons, layouts, the source's digest, kernel headers."""

from __future__ import annotations

import ctypes
import re
from ipaddress import ip_address
from pathlib import Path

import pytest

from ipsec_gw.errors import EnvironmentMissing, SteeringError
from ipsec_gw.model.ids import SaKey
from xdp_steer import dock, flow_layout, layout, libbpf, pipeline, reasons, screen_layout
from xdp_steer.headers import Headers, find_headers
from xdp_steer.reasons import Reason

FROZEN = {
    1: "STEERED", 2: "NOT_IP", 3: "TRUNCATED", 4: "NOT_ESP", 5: "FRAGMENT", 6: "IKE", 7: "IKE_NAT_T", 8: "KEEPALIVE",
    9: "UNKNOWN_SPI", 10: "KERNEL_OWNED", 11: "ENGINE_OFF", 12: "NO_DOCK", 13: "TAGGED", 14: "IP_OPTIONS",
    15: "IP6_EXTENSIONS", 16: "ENCAPSULATION", 17: "MOVED", 32: "GUARD_ENGINE", 33: "GUARD_KERNEL", 34: "GUARD_HELD",
    35: "GUARD_NEWBORN", 36: "GUARD_FULL",
}  # fmt: skip
"""Append only. A number that changes its meaning here breaks metrics and logs out there."""


def test_reasons_keep_their_numbers() -> None:
    assert {reason.value: reason.name for reason in Reason} | FROZEN == {r.value: r.name for r in Reason}
    assert all(FROZEN[number] == Reason(number).name for number in FROZEN)


def test_reasons_fit_the_counter_map_and_leave_out_next() -> None:
    assert min(Reason) > 0
    assert max(Reason) < reasons.MAX_REASONS


def test_c_uses_exactly_the_reasons_that_exist() -> None:
    code = "".join(path.read_text() for path in pipeline.BPF_DIR.glob("*.h"))
    used = set(re.findall(r"\bREASON_(\w+)", code))
    assert used == {reason.name for reason in Reason}
    assert set(re.findall(r"^#define REASON_(\w+)", pipeline.source(), re.MULTILINE)) == used


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "::", "0.0.0.0"])
def test_keys_survive_the_map(address: str) -> None:
    key = SaKey(ip_address(address), 0x01020304)
    leaf = layout.SaKeyLeaf.of(key)
    assert bytes(leaf)[16:] == b"\x01\x02\x03\x04"
    assert leaf.key() == key


def test_v4_is_mapped() -> None:
    assert bytes(layout.SaKeyLeaf.of(SaKey(ip_address("192.0.2.1"), 1)))[:16] == ip_address("::ffff:192.0.2.1").packed


class Swapped(ctypes.Structure):
    _fields_ = (("generation", ctypes.c_uint32), ("owner", ctypes.c_uint32), ("counter", ctypes.c_uint32))


class Wider(ctypes.Structure):
    _fields_ = (("owner", ctypes.c_uint32), ("generation", ctypes.c_uint64), ("counter", ctypes.c_uint32))


@pytest.mark.parametrize("compiled", [Swapped, Wider, ctypes.c_uint32])
def test_a_structure_that_differs_is_refused(compiled: type) -> None:
    with pytest.raises(SteeringError, match="layout of steer values differs"):
        layout.check_type("steer values", compiled, layout.SteerEntryLeaf)


def test_the_same_structure_is_accepted() -> None:
    layout.check_type("steer values", layout.SteerEntryLeaf, layout.SteerEntryLeaf)


@pytest.mark.parametrize(
    "change", [{"type": 2}, {"key_size": 16}, {"value_size": 16}, {"max_entries": 9}, {"map_flags": 1}]
)
def test_a_pinned_map_that_differs_is_refused(change: dict[str, int]) -> None:
    right = {"type": libbpf.MAP_HASH, "key_size": 20, "value_size": 40, "max_entries": layout.MAX_SAS}
    layout.check_map(layout.STEER, libbpf.MapInfo(**right))
    with pytest.raises(SteeringError, match="pinned map steer has another layout"):
        layout.check_map(layout.STEER, libbpf.MapInfo(**(right | change)))


def test_a_session_table_that_allocates_each_entry_is_refused_whatever_its_size() -> None:
    sizes = {"key_size": ctypes.sizeof(flow_layout.FlowKeyLeaf), "value_size": ctypes.sizeof(flow_layout.SessionLeaf)}
    right = {"type": libbpf.MAP_HASH, "max_entries": 10} | sizes
    layout.check_map(flow_layout.SESSIONS, libbpf.MapInfo(**right))
    with pytest.raises(SteeringError, match=r"pinned map sessions .* flags 0x1, not 1, \(40, \d+\), 10, 0x0\)"):
        layout.check_map(flow_layout.SESSIONS, libbpf.MapInfo(**right, map_flags=libbpf.BPF_F_NO_PREALLOC))


def test_screens_of_before_there_were_thresholds_are_refused() -> None:
    entries, switches = screen_layout.SCREENS.entries, 8  # bytes
    found = libbpf.MapInfo(type=libbpf.MAP_ARRAY, key_size=4, value_size=switches, max_entries=entries)
    with pytest.raises(SteeringError, match=r"pinned map screens has another layout .*run `ipsec-gw off` first"):
        layout.check_map(screen_layout.SCREENS, found)
    found.value_size = ctypes.sizeof(screen_layout.ScreenLeaf)
    layout.check_map(screen_layout.SCREENS, found)


def test_the_source_is_whole_and_its_digest_covers_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    text = pipeline.source()
    assert not re.search(r'^#include "', text, re.MULTILINE)
    monkeypatch.setattr(layout, "MAX_SAS", 1)
    assert pipeline.digest(pipeline.source()) != pipeline.digest(text)


def test_c_is_gpl() -> None:
    for path in [*pipeline.BPF_DIR.glob("*.h"), *pipeline.BPF_DIR.glob("*.c")]:
        assert path.read_text().startswith("/* SPDX-License-Identifier: GPL-2.0\n"), path.name


def test_p21_no_program_prints() -> None:
    """bpf_trace_printk() took half of a processor."""
    assert "printk" not in pipeline.source() + dock.OBJECT.with_suffix(".c").read_text()


def touch(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_split_headers_are_put_together(tmp_path: Path) -> None:
    common, build = tmp_path / "src/linux-headers-6.1.0-9-common", tmp_path / "src/linux-headers-6.1.0-9-amd64"
    touch(common / "include/linux/kconfig.h")
    touch(build / "include/generated/autoconf.h")
    touch(build / "arch/x86/include/generated/asm.h")
    touch(build / "Makefile", f"include {common}/Makefile\n")
    found = find_headers(modules=tmp_path / "modules", sources=tmp_path / "src")
    assert found.source == common
    assert f"-I{build}/arch/x86/include/generated" in found.cflags
    assert find_headers(given=str(build)) == found


def test_the_newest_complete_tree_wins(tmp_path: Path) -> None:
    for version in ("6.9.0", "6.10.0"):
        touch(tmp_path / f"linux-headers-{version}/include/generated/autoconf.h")
        touch(tmp_path / f"linux-headers-{version}/include/linux/kconfig.h")
    touch(tmp_path / "linux-headers-6.11.0/include/generated/autoconf.h")
    found = find_headers(modules=tmp_path / "modules", sources=tmp_path)
    assert found == Headers(tmp_path / "linux-headers-6.10.0", ())


def test_no_headers_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentMissing, match="install linux-headers-amd64"):
        find_headers(modules=tmp_path, sources=tmp_path)
