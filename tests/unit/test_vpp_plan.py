"""The plan of VPP's start: numbers, contradictions with their way out, settings."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.support.machines import NAMES, probe
from vpp_conf.startup.machine import Kernel, Limits, Machine, VppOffer
from vpp_conf.startup.plan import plan_startup
from vpp_conf.startup.plan_buffers import allocation, largest_mtu, pages_for
from vpp_conf.startup.syntax import TESTED, complete_offer
from vpp_conf.startup.values import Finding, Needs, PlanRefused, RxMode, Severity, StartupPlan

MEGABYTE = 1 << 20


def finding(plan: StartupPlan, subject: str) -> Finding:
    found = [one for one in plan.findings if one.subject == subject]
    assert len(found) == 1, plan.findings
    return found[0]


def refusal(machine: Machine, needs: Needs | None = None) -> Finding:
    """The one error of a plan that is refused."""
    with pytest.raises(PlanRefused) as refused:
        plan_startup(machine, needs)
    errors = [one for one in refused.value.findings if one.severity is Severity.ERROR]
    assert len(errors) == 1, errors
    assert errors[0].way_out
    assert errors[0].text in str(refused.value)
    return errors[0]


@pytest.fixture
def small() -> Machine:
    return probe("vm-two-cpus")


@pytest.fixture
def xeon() -> Machine:
    return probe("xeon-one-socket-qat")


@pytest.fixture
def two_sockets() -> Machine:
    return probe("xeon-two-sockets-qat")


def test_two_cpus_without_hugepages_get_one_sleeping_thread_on_ordinary_pages(small: Machine) -> None:
    plan = plan_startup(small)
    assert (plan.main_core, plan.workers, plan.poll_sleep_usec) == (1, (), 0)
    assert (plan.buffer_page, plan.heap_page, plan.data_bytes) == ("4K", "4K", 2048)
    assert finding(plan, "hugepages").severity is Severity.WARNING
    assert plan.qat is None
    assert plan.plugins == ("af_xdp_plugin.so", "nat_plugin.so", "gre_plugin.so", "vxlan_plugin.so")


@pytest.mark.parametrize("name", ["vm-two-cpus", "laptop", "cloud-jumbo", "arm-altra"])
def test_the_hugepages_asked_for_are_enough(name: str) -> None:
    """Following the advice once leads to hugepages for buffers and heap, and to nothing more to do."""
    machine = probe(name)
    wanted = {one.path: one.wanted for one in plan_startup(machine).settings}
    pools = tuple(
        replace(pool, total=wanted[path], free=pool.free + wanted[path] - pool.total)
        if (path := f"{pool.path}/nr_hugepages") in wanted
        else pool
        for pool in machine.pools
    )
    assert pools != machine.pools
    after = plan_startup(replace(machine, pools=pools))
    assert after.buffer_page == after.heap_page != plan_startup(machine).heap_page
    assert not [one for one in after.settings if "hugepages" in one.path]
    assert "hugepages" not in {one.subject for one in after.findings}


def test_hugepages_that_others_hold_do_not_count(small: Machine) -> None:
    pools = tuple(replace(pool, total=600, free=3) for pool in small.pools if pool.page_bytes == 2 * MEGABYTE)
    plan = plan_startup(replace(small, pools=pools))
    assert plan.buffer_page == "4K"
    assert plan.settings[0].now == 600
    assert plan.settings[0].wanted > 600


def test_hugepages_are_not_proposed_where_memory_is_short(small: Machine) -> None:
    plan = plan_startup(replace(small, memory_available=1000 * MEGABYTE))
    assert not plan.settings
    assert finding(plan, "hugepages").severity is Severity.NOTE


def test_hugepages_that_would_leave_too_little_for_the_rest_are_not_proposed() -> None:
    """Three pages of 512 MiB are less than half of the memory, but the sessions of the firewall need the other half."""
    machine = replace(probe("arm-altra"), memory_available=3200 * MEGABYTE)
    assert [one.wanted for one in plan_startup(machine).settings] == [3]
    plan = plan_startup(machine, Needs(sessions=3_060_000))
    assert plan.settings == ()
    assert finding(plan, "hugepages").severity is Severity.NOTE


def test_isolated_cores_become_workers_and_the_main_thread_is_elsewhere(xeon: Machine) -> None:
    plan = plan_startup(xeon)
    assert plan.workers == tuple(range(2, 10))
    assert plan.main_core == 1


def test_every_worker_has_a_queue_pair_of_qat(xeon: Machine) -> None:
    plan = plan_startup(xeon)
    assert plan.qat is not None
    assert plan.qat.queue_pairs == 8
    assert plan.qat.devices == tuple(f"0000:76:00.{number}" for number in range(1, 5))
    assert "dpdk_plugin.so" in plan.plugins


def test_an_odd_number_of_workers_has_enough_queue_pairs(xeon: Machine) -> None:
    plan = plan_startup(xeon, Needs(workers=3))
    assert plan.qat is not None
    assert (plan.qat.queue_pairs, len(plan.qat.devices)) == (4, 2)


def test_dpdk_has_hugepages_of_its_own_beside_the_buffers(xeon: Machine) -> None:
    """43 for the buffers and 128 for DPDK: with one less QAT would come up without memory, and not register."""

    def with_pages(free: int) -> Machine:
        pools = tuple(replace(pool, total=free, free=free) for pool in xeon.pools if pool.page_bytes == 2 * MEGABYTE)
        return replace(xeon, pools=pools)

    assert plan_startup(with_pages(43 + 128)).qat is not None
    assert plan_startup(with_pages(43 + 128 - 1)).qat is None


def test_without_iommu_qat_is_left_out(xeon: Machine) -> None:
    plan = plan_startup(replace(xeon, iommu=False))
    assert plan.qat is None
    assert "dpdk_plugin.so" not in plan.plugins
    assert "intel_iommu=on" in finding(plan, "qat").way_out


def test_functions_without_a_group_have_no_iommu(xeon: Machine) -> None:
    crypto = tuple(replace(device, iommu_group=None) for device in xeon.crypto)
    assert "IOMMU" in finding(plan_startup(replace(xeon, crypto=crypto)), "qat").text


def test_functions_that_the_kernel_uses_are_not_taken(xeon: Machine) -> None:
    physical, *virtual = xeon.crypto
    some = [replace(device, driver="4xxxvf") for device in virtual[:3]]
    plan = plan_startup(replace(xeon, crypto=(physical, *some, *virtual[3:])))
    assert plan.qat is not None
    assert plan.qat.devices == tuple(f"0000:76:00.{number}" for number in range(4, 8))
    most = [replace(device, driver="4xxxvf") for device in virtual[:4]]
    plan = plan_startup(replace(xeon, crypto=(physical, *most, *virtual[4:])))
    assert plan.qat is None
    assert "driverctl set-override 0000:76:00.1 vfio-pci" in finding(plan, "qat").way_out


def test_with_too_few_functions_qat_is_left_out(xeon: Machine) -> None:
    plan = plan_startup(replace(xeon, crypto=xeon.crypto[:4]))
    assert plan.qat is None
    assert "echo 4 > /sys/bus/pci/devices/0000:76:00.0/sriov_numvfs" in finding(plan, "qat").way_out


def test_without_hugepages_qat_is_left_out_and_prepare_makes_room_for_it(xeon: Machine) -> None:
    pools = tuple(replace(pool, total=0, free=0) for pool in xeon.pools)
    plan = plan_startup(replace(xeon, pools=pools))
    assert plan.qat is None
    assert "prepare" in finding(plan, "qat").way_out
    wanted = plan.settings[0].wanted
    after = replace(xeon, pools=tuple(replace(one, total=wanted, free=wanted) for one in pools[1:]))
    prepared = plan_startup(after)
    assert prepared.qat is not None
    assert prepared.heap_page == "2M"
    assert prepared.settings == ()


def test_qat_without_functions_is_only_mentioned(two_sockets: Machine) -> None:
    plan = plan_startup(two_sockets)
    assert plan.qat is None
    assert finding(plan, "qat").severity is Severity.NOTE


def test_qat_that_is_not_wanted_is_not_used(xeon: Machine) -> None:
    plan = plan_startup(xeon, Needs(qat=False))
    assert plan.qat is None
    assert "qat" not in {one.subject for one in plan.findings}


def test_one_thread_that_polls_qat_sleeps_in_between(xeon: Machine) -> None:
    assert plan_startup(xeon, Needs(workers=0)).poll_sleep_usec > 0
    assert plan_startup(xeon, Needs(workers=2)).poll_sleep_usec == 0


def test_workers_are_spread_over_the_nodes_of_the_interfaces(two_sockets: Machine) -> None:
    workers = set(plan_startup(two_sockets).workers)
    node = {cpu.number: cpu.node for cpu in two_sockets.cpus}
    assert sorted(node[number] for number in workers) == [0] * 14 + [1] * 14


def test_one_thread_a_core(two_sockets: Machine) -> None:
    plan = plan_startup(two_sockets)
    cores = [cpu.core for cpu in two_sockets.cpus if cpu.number in {plan.main_core, *plan.workers}]
    assert len(cores) == len(set(cores)) == 1 + len(plan.workers)


def test_the_interfaces_that_are_named_decide_the_node(two_sockets: Machine) -> None:
    plan = plan_startup(two_sockets, Needs(interfaces=("ens2f0",)))
    node = {cpu.number: cpu.node for cpu in two_sockets.cpus}
    assert {node[number] for number in plan.workers} == {1}
    assert plan.idle_nodes == (0,)


def test_a_node_with_an_interface_only_has_buffers(two_sockets: Machine) -> None:
    assert plan_startup(two_sockets, Needs(workers=0)).idle_nodes == ()


def test_nodes_without_threads_and_interfaces_get_no_buffers() -> None:
    plan = plan_startup(probe("epyc-four-nodes"))
    assert plan.idle_nodes == (0, 1, 3)
    assert plan.buffer_page == "2M"
    assert [one.path for one in plan.settings] == ["proc/sys/kernel/numa_balancing"]


def test_an_interface_that_is_not_there_is_an_error(xeon: Machine) -> None:
    assert "eno1, eno2" in refusal(xeon, Needs(interfaces=("eno1", "eno9"))).way_out


def test_more_workers_than_cores_are_an_error(small: Machine, xeon: Machine) -> None:
    assert refusal(small, Needs(workers=2)).subject == "cpu"
    assert plan_startup(small, Needs(workers=1)).workers == (0,)
    assert refusal(xeon, Needs(workers=32)).subject == "cpu"
    assert len(plan_startup(xeon, Needs(workers=7)).workers) == 7


def test_the_control_groups_time_limits_the_workers() -> None:
    plan = plan_startup(probe("atom-qat"))
    assert len(plan.workers) == 3
    assert "cpu.max" in finding(plan, "cpu").way_out


def test_where_all_cores_are_isolated_one_is_for_the_main_thread(small: Machine) -> None:
    plan = plan_startup(replace(small, isolated=frozenset({0, 1}), tickless=frozenset({0, 1})))
    assert (plan.main_core, plan.workers) == (1, (0,))
    alone = plan_startup(replace(small, isolated=frozenset({0, 1}), allowed=frozenset({1})))
    assert (alone.main_core, alone.workers) == (1, ())


def test_isolated_cores_that_still_tick_are_mentioned(small: Machine) -> None:
    plan = plan_startup(replace(small, isolated=frozenset({0})))
    assert plan.workers == (0,)
    assert "nohz_full=0" in finding(plan, "cpu").way_out


def test_no_cpu_at_all_is_an_error(small: Machine) -> None:
    assert refusal(replace(small, allowed=frozenset())).subject == "cpu"


def test_an_mtu_above_the_limit_is_an_error_where_it_was_chosen() -> None:
    machine = probe("cloud-jumbo")
    assert finding(plan_startup(machine), "mtu").severity is Severity.WARNING
    assert "mtu 1774" in refusal(machine, Needs(interfaces=("ens5",))).way_out
    assert refusal(machine, Needs(mtu=3567)).subject == "mtu"


def test_with_hugepages_a_larger_mtu_fits(small: Machine) -> None:
    pools = tuple(replace(pool, total=600, free=600) for pool in small.pools if pool.page_bytes == 2 * MEGABYTE)
    large = replace(small, pools=pools)
    assert plan_startup(large, Needs(mtu=3566)).data_bytes == 3840
    assert plan_startup(large, Needs(mtu=1774)).data_bytes == 2048
    assert "with hugepages" in refusal(small, Needs(mtu=3566)).way_out


def test_a_nic_without_xdp_is_a_warning() -> None:
    assert finding(plan_startup(probe("laptop")), "interface").severity is Severity.WARNING


def test_statistics_grow_with_sas_and_threads(xeon: Machine) -> None:
    sizes = [
        plan_startup(xeon, Needs(sas=sas, workers=workers)).statseg_bytes
        for sas, workers in ((4096, 0), (100_000, 0), (100_000, 8))
    ]
    assert sizes == sorted(set(sizes))
    assert sizes[2] >= 100_000 * 9 * 144


def test_too_little_memory_is_an_error(small: Machine) -> None:
    poor = replace(small, memory_available=400 * MEGABYTE)
    assert "MB" in refusal(poor).text
    assert plan_startup(poor, Needs(sas=100, tunnels=50, sessions=1000)).ordinary_bytes < 400 * MEGABYTE


def test_the_control_groups_memory_counts(small: Machine) -> None:
    limited = replace(small, limits=Limits(memory_bytes=400 * MEGABYTE))
    assert "limit" in refusal(limited).way_out


def test_the_control_groups_hugepages_count() -> None:
    machine = probe("container")
    plan = plan_startup(machine)
    assert (plan.buffer_page, plan.heap_page) == ("2M", "4K")
    assert "hugetlb" in finding(plan, "hugepages").way_out
    assert finding(plan, "container").way_out


def test_nat_gre_and_vxlan_are_enabled_where_they_are_installed(small: Machine) -> None:
    optional = {"nat_plugin.so", "gre_plugin.so", "vxlan_plugin.so"}
    installed = replace(small.vpp, plugins=small.vpp.plugins | optional)
    plugins = plan_startup(replace(small, vpp=installed)).plugins
    assert plugins == ("af_xdp_plugin.so", "nat_plugin.so", "gre_plugin.so", "vxlan_plugin.so")
    without = replace(small.vpp, plugins=small.vpp.plugins - optional)
    assert plan_startup(replace(small, vpp=without)).plugins == ("af_xdp_plugin.so",)


def test_a_missing_af_xdp_plugin_is_said(small: Machine) -> None:
    assert "af_xdp" in refusal(replace(small, vpp=replace(small.vpp, plugins=frozenset()))).text


def test_a_vpp_without_crypto_engines_is_refused(small: Machine) -> None:
    assert refusal(replace(small, vpp=replace(small.vpp, engines=frozenset()))).subject == "crypto"


def test_a_kernel_without_af_xdp_is_refused(small: Machine) -> None:
    assert refusal(replace(small, kernel=Kernel("4.19.0", (4, 19)))).subject == "kernel"


def test_all_that_is_wrong_is_said_at_once(small: Machine) -> None:
    machine = replace(small, vpp=VppOffer((26, 6), frozenset(), frozenset()), allowed=frozenset())
    with pytest.raises(PlanRefused, match=r"af_xdp.*CPU.*engine"):
        plan_startup(machine)


@pytest.mark.parametrize(
    ("release", "text"), [((23, 6), "older"), ((26, 10), "newer"), ((0, 0), "cannot be read"), ((25, 10), None)]
)
def test_unknown_releases_are_named(small: Machine, release: tuple[int, int], text: str | None) -> None:
    plan = plan_startup(replace(small, vpp=replace(small.vpp, release=release)))
    found = [one.text for one in plan.findings if one.subject == "vpp"]
    assert len(found) == (1 if text else 0)
    assert all(text is not None and text in one for one in found)


@pytest.mark.parametrize(
    ("release", "commits"),
    [
        ((23, 6), {"ef5a3e9eaac", "421964a8d1e"}),
        ((25, 6), {"ef5a3e9eaac", "421964a8d1e"}),
        ((25, 10), {"ef5a3e9eaac"}),
        ((26, 2), {"ef5a3e9eaac", "9eed09d0f46"}),
        ((26, 6), {"9eed09d0f46"}),
    ],
)
def test_known_defects_of_a_release_are_told_with_the_way_out(
    small: Machine, release: tuple[int, int], commits: set[str]
) -> None:
    plan = plan_startup(replace(small, vpp=replace(small.vpp, release=release)))
    found = [one for one in plan.findings if one.subject == "defect"]
    assert {one.text.rpartition("VPP's ")[2].rstrip(")") for one in found} == commits
    assert all(one.way_out for one in found)


def test_ipsecmb_is_chosen_only_where_it_is_faster(small: Machine, xeon: Machine) -> None:
    assert plan_startup(small).handlers == ()
    (handler,) = plan_startup(xeon).handlers
    assert handler.engine == "ipsecmb"
    without = replace(xeon, vpp=replace(xeon.vpp, engines=frozenset({"native", "openssl"})))
    assert plan_startup(without).handlers == ()


def test_policies_get_the_fast_path(small: Machine) -> None:
    assert plan_startup(small).policy_buckets == 0
    assert plan_startup(small, Needs(policies=5000)).policy_buckets == 8192


def test_more_tunnels_than_vpp_has_interfaces_are_a_warning(xeon: Machine) -> None:
    assert finding(plan_startup(xeon, Needs(tunnels=20_000, sas=40_000)), "tunnels").severity is Severity.WARNING


def test_settings_of_the_kernel() -> None:
    settings = {one.path: one for one in plan_startup(probe("cloud-jumbo")).settings}
    assert settings["proc/sys/net/core/bpf_jit_enable"].command == "sysctl -w net.core.bpf_jit_enable=1"
    mappings = settings["proc/sys/vm/max_map_count"]
    assert (mappings.now, mappings.wanted) == (1024, 65530)
    huge = settings["sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages"]
    assert huge.command == f"echo {huge.wanted} > /{huge.path}"


def test_only_isolated_cores_poll(small: Machine, xeon: Machine, two_sockets: Machine) -> None:
    assert plan_startup(xeon).rx_mode is RxMode.POLLING
    shared = replace(xeon, isolated=frozenset())
    assert plan_startup(shared).workers
    assert plan_startup(shared).rx_mode is RxMode.INTERRUPT
    partly = replace(xeon, isolated=frozenset({2, 3, 34, 35}))
    assert plan_startup(partly, Needs(workers=4)).rx_mode is RxMode.INTERRUPT, "one of four shares its core"
    assert plan_startup(small).rx_mode is RxMode.INTERRUPT
    for machine in (small, xeon, shared):
        plan = plan_startup(machine)
        assert not (plan.rx_mode is RxMode.POLLING and plan.poll_sleep_usec)


def test_queues_go_to_workers_on_their_node_in_turn(two_sockets: Machine, small: Machine) -> None:
    plan = plan_startup(two_sockets)
    node_of = {cpu.number: cpu.node for cpu in two_sockets.cpus}
    nics = {nic.name: nic for nic in two_sockets.nics}
    assert {nics[one.name].node for one in plan.interfaces} == {0, 1}
    busy: Counter[int] = Counter()
    for one in plan.interfaces:
        assert len(one.placement) == one.queues
        assert {node_of[plan.workers[index]] for index in one.placement} == {nics[one.name].node}
        busy.update(one.placement)
    for node in (0, 1):
        counts = [busy[index] for index, cpu in enumerate(plan.workers) if node_of[cpu] == node]
        assert max(counts) - min(counts) <= 1, "no worker has two queues more than another one"
    assert {number.name for number in plan.numbers} >= {f"rx placement {name}" for name in nics if nics[name].link_up}
    narrow = replace(two_sockets, nics=tuple(replace(nic, node=0, rx_queues=1) for nic in two_sockets.nics))
    placements = [one.placement for one in plan_startup(narrow, Needs(workers=4)).interfaces]
    assert len(set(placements)) == len(placements) == 2, "each interface goes on where the one before stopped"
    far = replace(two_sockets, nics=tuple(replace(nic, node=None) for nic in two_sockets.nics))
    assert {index for one in plan_startup(far).interfaces for index in one.placement} > {0}
    assert all(one.placement == () for one in plan_startup(small).interfaces), "there are no workers"


def test_sockets_are_for_root_and_the_counters_for_a_group_that_is_there(small: Machine) -> None:
    assert {one.permissions for one in plan_startup(small).sockets} == {"0600 root"}
    with pytest.raises(PlanRefused, match=r"there is no group monitor .*groupadd --system monitor"):
        plan_startup(small, Needs(stats_group="monitor"))
    known = replace(small, groups=frozenset({"root", "monitor"}))
    plan = plan_startup(known, Needs(stats_group="monitor"))
    assert {one.name: one.permissions for one in plan.sockets} == {
        "api.sock": "0600 root",
        "cli.sock": "0600 root",
        "stats.sock": "0660 monitor",
    }
    values = {number.name: number.value for number in plan.numbers}
    assert (values["socket api.sock"], values["socket stats.sock"]) == ("0600 root", "0660 monitor")


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_reason(name: str) -> None:
    machine = probe(name)
    for release in TESTED:
        plan = plan_startup(replace(machine, vpp=complete_offer(release)))
        assert len(plan.numbers) > 10
        assert all(number.reason and number.value for number in plan.numbers)
        assert len({number.name for number in plan.numbers}) == len(plan.numbers)


@pytest.mark.parametrize("data", [2048, 3840])
@pytest.mark.parametrize("extension", [0, 128])
@pytest.mark.parametrize("page", [4096, 65536, 2 * MEGABYTE])
def test_pages_yield_the_buffers_that_vpp_makes_of_them(data: int, extension: int, page: int) -> None:
    """Buffer by buffer, as VPP lays them out: none may cross a page, the first begins aligned to its size."""
    pages = pages_for(3000, page, data, extension)
    each = allocation(data, extension)
    if each > page:
        assert pages is None
        return
    assert pages is not None
    assert pages.count == -(-pages.asked // (page // each))
    for base in (0x1000000000, 0x1000000000 + page, 0x7F0000000000):
        start = base + each - base % each
        offsets = range(start, base + pages.count * page - each, each)
        made = sum(one // page == (one + each) // page for one in offsets)
        assert made >= pages.usable >= 3000


def test_the_largest_mtu_leaves_room_for_the_kernel_and_a_tag() -> None:
    assert largest_mtu(2048) == 2048 - 256 - 18
