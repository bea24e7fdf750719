"""The probe on recorded and composed machines, and on this one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.machines import NAMES, probe, unpack_machine
from vpp_conf.startup.cpu_lists import cpu_list, show_cpus
from vpp_conf.startup.files import Files
from vpp_conf.startup.machine import Machine, Nic, VppOffer
from vpp_conf.startup.probe import ROOT, read_machine

GIGABYTE = 1 << 30
OFFER = VppOffer((26, 6), frozenset({"af_xdp_plugin.so"}), frozenset({"native"}))


def nic(machine: Machine, name: str) -> Nic:
    return next(one for one in machine.nics if one.name == name)


def free(machine: Machine, page_bytes: int) -> dict[int, int]:
    return {pool.node: pool.free for pool in machine.pools if pool.page_bytes == page_bytes}


def test_a_laptop() -> None:
    machine = probe("laptop")
    assert machine.model == "11th Gen Intel(R) Core(TM) i7-1185G7 @ 3.00GHz"
    assert len(machine.cpus) == 8
    assert len({cpu.core for cpu in machine.cpus}) == 4
    assert {"avx512f", "vaes"} <= machine.flags
    assert machine.iommu
    assert machine.container is None
    assert (machine.memory_total, machine.memory_available) == (16084428 << 10, 9823148 << 10)
    assert nic(machine, "wlp0s20f3").driver == "iwlwifi"
    assert not nic(machine, "wlp0s20f3").native_xdp
    assert nic(machine, "wlp0s20f3").node is None
    assert nic(machine, "wlp0s20f3").link_up
    assert not nic(machine, "enp0s31f6").link_up
    assert machine.crypto == ()


def test_a_small_vm_made_from_an_image_is_no_container() -> None:
    machine = probe("vm-two-cpus")
    assert machine.container is None
    assert machine.allowed == {0, 1}
    assert machine.limits.memory_bytes is None
    assert machine.limits.cpus is None
    assert not machine.iommu
    assert free(machine, 2 << 20) == {0: 0}
    assert nic(machine, "eth0").zero_copy(machine.kernel)
    assert nic(machine, "ifb0").driver is None


def test_isolated_cpus_are_allowed_though_they_are_in_no_affinity() -> None:
    machine = probe("xeon-one-socket-qat")
    assert machine.isolated == machine.tickless == {*range(2, 10), *range(34, 42)}
    assert machine.allowed == set(range(64))
    assert "isolcpus=2-9,34-41" in machine.kernel.parameters


def test_isolated_cpus_outside_of_the_cpuset_are_not(tmp_path: Path) -> None:
    root = unpack_machine("xeon-one-socket-qat", tmp_path)
    (root / "sys/fs/cgroup/cpuset.cpus.effective").write_text("0-5,10-33,42-63\n")
    assert read_machine(Files(root), OFFER).allowed == {0, 1, 2, 3, 4, 5, *range(10, 34), *range(42, 64)}


def test_qat_with_its_functions() -> None:
    machine = probe("xeon-one-socket-qat")
    physical, *virtual = machine.crypto
    assert (physical.qat, physical.driver, physical.functions, physical.parent) == ("4xxx", "4xxx", 16, None)
    assert len(virtual) == 7
    assert {one.qat for one in virtual} == {"4xxx"}
    assert {one.parent for one in virtual} == {"0000:76:00.0"}
    assert {one.driver for one in virtual} == {"vfio-pci"}
    assert [one.iommu_group for one in virtual] == list(range(91, 98))


def test_a_folder_of_interfaces_holds_other_files_too() -> None:
    machine = probe("xeon-one-socket-qat")
    assert [one.name for one in machine.nics] == ["eno1", "eno2", "idrac"]
    assert (nic(machine, "eno1").rx_queues, nic(machine, "eno1").tx_queues, nic(machine, "eno1").node) == (8, 8, 0)


def test_two_sockets() -> None:
    machine = probe("xeon-two-sockets-qat")
    assert machine.nodes == (0, 1)
    assert len({cpu.core for cpu in machine.cpus}) == 56
    assert {cpu.number for cpu in machine.cpus if cpu.node == 1} == {*range(28, 56), *range(84, 112)}
    assert free(machine, GIGABYTE) == {0: 4, 1: 4}
    assert machine.hugepage_bytes == GIGABYTE
    assert [(one.qat, one.node, one.functions_possible) for one in machine.crypto] == [
        ("C62x", 0, 16),
        ("C62x", 0, 16),
        ("C62x", 1, 16),
    ]
    assert machine.sysctls.numa_balancing == 1


def test_a_node_without_memory_gets_no_buffers(tmp_path: Path) -> None:
    root = unpack_machine("xeon-two-sockets-qat", tmp_path)
    (root / "sys/devices/system/node/has_memory").write_text("1\n")
    assert read_machine(Files(root), OFFER).nodes == (1,)


def test_four_nodes_on_one_socket() -> None:
    machine = probe("epyc-four-nodes")
    assert machine.nodes == (0, 1, 2, 3)
    assert free(machine, 2 << 20) == {0: 0, 1: 0, 2: 1024, 3: 0}
    assert nic(machine, "enp65s0f0np0").node == 2


def test_an_arm_server_has_larger_pages_and_no_name() -> None:
    machine = probe("arm-altra")
    assert machine.model == "Arm Neoverse-N1"
    assert "aes" in machine.flags
    assert machine.page_bytes == 64 << 10
    assert machine.hugepage_bytes == 512 << 20
    assert {pool.page_bytes for pool in machine.pools} == {2 << 20, 512 << 20}


def test_a_kernel_without_numa() -> None:
    machine = probe("cloud-virtio")
    assert machine.nodes == (0,)
    assert free(machine, 2 << 20) == {0: 400}
    assert machine.sysctls.numa_balancing is None
    assert not nic(machine, "ens3").zero_copy(machine.kernel)


def test_a_container_has_limits() -> None:
    machine = probe("container")
    assert machine.container == "docker"
    assert machine.allowed == {4, 5, 6, 7}
    assert machine.limits.memory_bytes == 2 * GIGABYTE
    assert machine.limits.cpus == 3.0
    assert machine.limits.hugepage_bytes(2 << 20) == 64 << 20
    assert machine.limits.hugepage_bytes(GIGABYTE) is None


def test_the_limits_of_all_groups_above_hold() -> None:
    machine = probe("atom-qat")
    assert machine.limits.memory_bytes == 4 * GIGABYTE
    assert machine.limits.cpus == 4.0
    assert not machine.iommu


def test_an_empty_folder_is_a_poor_machine_and_no_error(tmp_path: Path) -> None:
    machine = read_machine(Files(tmp_path), OFFER)
    assert machine.cpus == ()
    assert machine.memory_total == 0
    assert machine.nics == ()


@pytest.mark.parametrize("name", NAMES)
def test_every_machine_says_whether_it_is_recorded(name: str) -> None:
    header = Path(f"tests/machines/{name}.txt")
    text = (Path(__file__).parents[2] / header).read_text()
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert any("not recorded" in line or line.startswith("# Recorded") for line in comments)


def test_this_machine() -> None:
    machine = read_machine(Files(ROOT), OFFER)
    assert {cpu.number for cpu in machine.cpus} >= machine.allowed >= os.sched_getaffinity(0)
    assert 0 < machine.memory_available <= machine.memory_total
    assert machine.page_bytes == os.sysconf("SC_PAGE_SIZE")
    assert machine.kernel.release == os.uname().release
    assert all(pool.free <= pool.total for pool in machine.pools)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-3,8", {0, 1, 2, 3, 8}), ("", set()), ("(null)", set()), ("5", {5}), ("0,2-3\n", {0, 2, 3})],
)
def test_lists_of_cpus(text: str, numbers: set[int]) -> None:
    assert cpu_list(text) == numbers
    assert cpu_list(show_cpus(frozenset(numbers))) == numbers
