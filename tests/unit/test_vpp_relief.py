"""What a running VPP holds, and which service a process belongs to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.machines import probe
from vpp_conf import process
from vpp_conf.process import service_of
from vpp_conf.startup.files import Files
from vpp_conf.startup.machine import HugePool, Machine
from vpp_conf.startup.relief import without_process

SMALL, LARGE = 2 << 20, 1 << 30
PID = 77
STATUS = "Name:\tvpp_main\nVmRSS:\t 9000 kB\nRssAnon:\t 1000 kB\nRssFile:\t 5000 kB\nRssShmem:\t 3000 kB\n"
NUMA_MAPS = """\
7f0000000000 default file=/memfd:buffers\\040(deleted) huge dirty=5 N0=3 N1=2 kernelpagesize_kB=2048
7f1000000000 default anon=40 dirty=40 N0=40 kernelpagesize_kB=4
7f2000000000 default anon=1 huge dirty=1 N1=1 kernelpagesize_kB=2048
7f3000000000 default huge N0=1 kernelpagesize_kB=1048576
7f4000000000 default
"""


def machine(*pools: HugePool) -> Machine:
    return replace(probe("vm-two-cpus"), memory_available=1 << 30, page_bytes=4096, pools=pools)


def files(root: Path) -> Files:
    folder = root / "proc" / str(PID)
    folder.mkdir(parents=True)
    (folder / "status").write_text(STATUS)
    (folder / "numa_maps").write_text(NUMA_MAPS)
    return Files(root)


def test_what_the_process_holds_counts_as_free(tmp_path: Path) -> None:
    pools = (HugePool(0, SMALL, 10, 1, "a"), HugePool(1, SMALL, 3, 2, "b"), HugePool(0, LARGE, 1, 0, "c"))
    after = without_process(machine(*pools), files(tmp_path), PID)
    assert after.memory_available == (1 << 30) + 4000 * 1024, "files are counted as available already"
    assert [pool.free for pool in after.pools] == [4, 3, 1], "never more than there are"
    assert replace(after, memory_available=1 << 30, pools=pools) == machine(*pools)


def test_a_process_that_has_ended_holds_nothing(tmp_path: Path) -> None:
    pools = (HugePool(0, SMALL, 10, 1, "a"),)
    assert without_process(machine(*pools), Files(tmp_path), PID) == machine(*pools)


@pytest.mark.parametrize(
    ("text", "service"),
    [
        ("0::/system.slice/ipsec-gw-vpp.service\n", "ipsec-gw-vpp.service"),
        ("0::/system.slice/ipsec-gw-vpp.service/inner/other.service\n", "ipsec-gw-vpp.service"),
        ("2:cpu:/x.service\n1:name=systemd:/system.slice/a.service\n", "a.service"),
        ("0::/user.slice/user-0.slice/session-1.scope\n", None),
        ("2:cpu:/x.service\n0::/\n", None),
        (None, None),
    ],
)
def test_the_service_of_a_process(
    text: str | None, service: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "PROC", tmp_path)
    if text is not None:
        (tmp_path / str(PID)).mkdir()
        (tmp_path / str(PID) / "cgroup").write_text(text)
    assert service_of(PID) == service
