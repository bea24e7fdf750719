"""Any machine gives a plan that fits it, or a refusal that says what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import event, given
from hypothesis import strategies as st

from vpp_conf.locate import VppInstallation
from vpp_conf.paths import VppPaths
from vpp_conf.startup.machine import (
    INTEL,
    NATIVE_XDP_DRIVERS,
    Cpu,
    CryptoDevice,
    HugePool,
    Kernel,
    Limits,
    Machine,
    Nic,
    Sysctls,
)
from vpp_conf.startup.plan import plan_startup
from vpp_conf.startup.plan_buffers import largest_mtu
from vpp_conf.startup.render import render_startup
from vpp_conf.startup.syntax import TESTED, complete_offer
from vpp_conf.startup.values import Needs, PlanRefused, Severity, StartupPlan

MEGABYTE = 1 << 20
GIGABYTE = 1 << 30
PAGES = (2 * MEGABYTE, 512 * MEGABYTE, GIGABYTE)
BYTES_PER_SA_AND_THREAD = 144

NAMES = ("eth0", "eth1", "wan", "lan")


@st.composite
def interfaces(draw: st.DrawFn) -> tuple[Nic, ...]:
    nic = st.builds(
        Nic,
        name=st.just(""),
        driver=st.sampled_from((None, "e1000e", *sorted(NATIVE_XDP_DRIVERS))),
        node=st.sampled_from((None, 0, 1, 2, 7)),
        rx_queues=st.integers(1, 128),
        tx_queues=st.integers(1, 128),
        mtu=st.sampled_from((1500, 1500, 1280, 1774, 1775, 3566, 3567, 9000)),
        link_up=st.booleans(),
    )
    return tuple(replace(one, name=name) for one, name in zip(draw(st.lists(nic, max_size=4)), NAMES, strict=False))


@st.composite
def crypto_devices(draw: st.DrawFn) -> tuple[CryptoDevice, ...]:
    functions = draw(st.integers(0, 16))
    node = draw(st.integers(0, 2))
    physical = CryptoDevice("0000:3d:00.0", INTEL, 0x37C8, "c6xx", node, None, functions, 16, None)
    virtual = (
        CryptoDevice(
            f"0000:3d:{1 + number // 8:02x}.{number % 8}",
            INTEL,
            0x37C9,
            "vfio-pci",
            node,
            physical.address,
            0,
            0,
            number,
        )
        for number in range(functions)
    )
    return (physical, *virtual)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    nodes = tuple(range(draw(st.integers(1, 4))))
    threads = draw(st.integers(1, 2))
    cores = draw(st.integers(1, 40))
    cpus = tuple(
        Cpu(number=core + sibling * cores, core=(core % len(nodes), core), node=core % len(nodes))
        for sibling in range(threads)
        for core in range(cores)
    )
    numbers = st.frozensets(st.integers(0, cores * threads - 1))
    available = draw(st.integers(64, 2_000) | st.integers(2_000, 300_000)) * MEGABYTE
    page_bytes = draw(st.sampled_from((4096, 4096, 4096, 65536)))
    pools = []
    for size in draw(st.lists(st.sampled_from(PAGES), unique=True)):
        for node in nodes:
            total = draw(st.integers(0, 40 * GIGABYTE // size))
            free = draw(st.integers(0, total))
            pools.append(HugePool(node, size, total, free, f"sys/node{node}/hugepages-{size >> 10}kB"))
    hugepages = draw(st.lists(st.tuples(st.sampled_from(PAGES), st.integers(0, 8 * GIGABYTE)), max_size=2))
    return Machine(
        model="any",
        flags=draw(st.sampled_from((frozenset(), frozenset({"avx512f", "vaes"})))),
        cpus=cpus,
        allowed=draw(st.just(frozenset(range(cores * threads))) | numbers),
        isolated=draw(st.just(frozenset()) | numbers),
        tickless=draw(st.just(frozenset()) | numbers),
        pools=tuple(pools),
        memory_total=available * 2,
        memory_available=available,
        page_bytes=page_bytes,
        hugepage_bytes=draw(st.sampled_from((0, *PAGES))),
        nics=draw(interfaces()),
        crypto=draw(st.just(()) | crypto_devices()),
        iommu=draw(st.sampled_from((True, True, False))),
        kernel=draw(st.sampled_from((Kernel("6.1", (6, 1)), Kernel("6.18", (6, 18))))),
        vpp=complete_offer(draw(st.sampled_from(TESTED))),
        limits=Limits(
            memory_bytes=draw(st.none() | st.integers(64 * MEGABYTE, 64 * GIGABYTE)),
            cpus=draw(st.none() | st.floats(0.1, 64, allow_nan=False)),
            hugepages=tuple(dict(hugepages).items()),
        ),
        sysctls=Sysctls(
            draw(st.sampled_from((None, 1024, 65530))),
            draw(st.sampled_from((None, 0, 1))),
            draw(st.sampled_from((None, 0, 1))),
        ),
        container=draw(st.sampled_from((None, "docker"))),
        nodes=nodes,
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Machine, Needs]:
    machine = draw(machines())
    names = [nic.name for nic in machine.nics]
    chosen = st.lists(st.sampled_from(names), unique=True).map(tuple) if names else st.just(())
    wanted = Needs(
        sas=draw(st.integers(1, 200_000)),
        tunnels=draw(st.integers(1, 20_000)),
        sessions=draw(st.integers(0, 1_000_000)),
        interfaces=draw(st.just(()) | chosen),
        mtu=draw(st.none() | st.integers(68, 3_600)),
        workers=draw(st.none() | st.integers(0, 12)),
        policies=draw(st.integers(0, 100_000)),
        qat=draw(st.sampled_from((True, True, False))),
    )
    return machine, wanted


def plan_or_refusal(machine: Machine, wanted: Needs) -> StartupPlan | None:
    """A refusal names at least one error, and the way out of each."""
    try:
        plan = plan_startup(machine, wanted)
    except PlanRefused as error:
        refused = error
    else:
        assert not [one for one in plan.findings if one.severity is Severity.ERROR]
        event("planned, with QAT" if plan.qat else "planned")
        return plan
    errors = [one for one in refused.findings if one.severity is Severity.ERROR]
    assert errors
    assert all(one.text and one.way_out and one.text in str(refused) for one in errors)
    event(f"refused: {errors[0].subject}")
    return None


@given(cases())
def test_threads_never_share_a_core(case: tuple[Machine, Needs]) -> None:
    machine, wanted = case
    plan = plan_or_refusal(machine, wanted)
    if plan is None:
        return
    used = [plan.main_core, *plan.workers]
    by_number = {cpu.number: cpu for cpu in machine.usable}
    assert set(used) <= set(by_number)
    assert len({by_number[number].core for number in used}) == len(used)
    assert wanted.workers is None or len(plan.workers) == wanted.workers
    if machine.limits.cpus is not None and plan.workers:
        assert len(used) <= machine.limits.cpus
    if plan.qat:
        assert plan.qat.queue_pairs >= len(plan.workers)
        assert len(set(plan.qat.devices)) == len(plan.qat.devices)


def hugepages_used(plan: StartupPlan) -> dict[int, int]:
    """Bytes by page size; buffers and heap may be in different ones."""
    sizes = {f"{one >> 20}M": one for one in PAGES} | {"1G": GIGABYTE}
    heap_page = sizes.get(plan.heap_page, 0)
    heap = -(-plan.heap_bytes // heap_page) * heap_page if heap_page else 0
    used = {heap_page: heap}
    buffer_page = sizes.get(plan.buffer_page, 0)
    used[buffer_page] = used.get(buffer_page, 0) + plan.hugepage_bytes - heap
    assert (plan.hugepage_bytes > 0) == (set(used) != {0})
    return {size: amount for size, amount in used.items() if size}


@given(cases())
def test_never_more_memory_than_there_is(case: tuple[Machine, Needs]) -> None:
    machine, wanted = case
    plan = plan_or_refusal(machine, wanted)
    if plan is None:
        return
    allowed = min(machine.memory_available, machine.limits.memory_bytes or machine.memory_available)
    assert plan.ordinary_bytes < allowed
    for size, used in hugepages_used(plan).items():
        nodes = [node for node in machine.nodes if node not in plan.idle_nodes]
        pools = [pool for pool in machine.pools if pool.node in nodes and pool.page_bytes == size]
        assert used <= sum(pool.free for pool in pools) * size
        limit = machine.limits.hugepage_bytes(size)
        assert limit is None or used <= limit
    assert plan.statseg_bytes >= wanted.sas * (1 + len(plan.workers)) * BYTES_PER_SA_AND_THREAD
    assert plan.buffers_usable > 0


@given(cases())
def test_frames_that_do_not_fit_are_never_kept_quiet(case: tuple[Machine, Needs]) -> None:
    machine, wanted = case
    plan = plan_or_refusal(machine, wanted)
    if plan is None:
        return
    chosen = [nic.mtu for nic in machine.nics if nic.name in wanted.interfaces]
    assert (wanted.mtu or max(chosen, default=0)) <= largest_mtu(plan.data_bytes)


@given(cases())
def test_preparing_once_is_enough(case: tuple[Machine, Needs]) -> None:
    """What `vpp prepare` makes leaves nothing to prepare, and takes no memory that VPP or others need."""
    machine, wanted = case
    plan = plan_or_refusal(machine, wanted)
    if plan is None:
        return
    done = {one.path: one.wanted for one in plan.settings}
    pools, taken = [], 0
    for pool in machine.pools:
        more = done.get(f"{pool.path}/nr_hugepages", pool.total) - pool.total
        assert more >= 0
        taken += more * pool.page_bytes
        pools.append(replace(pool, total=pool.total + more, free=pool.free + more))
    assert taken <= machine.memory_available // 2
    sysctls = Sysctls(
        done.get("proc/sys/vm/max_map_count", machine.sysctls.max_map_count),
        done.get("proc/sys/net/core/bpf_jit_enable", machine.sysctls.bpf_jit_enable),
        done.get("proc/sys/kernel/numa_balancing", machine.sysctls.numa_balancing),
    )
    after = replace(machine, pools=tuple(pools), memory_available=machine.memory_available - taken, sysctls=sysctls)
    again = plan_startup(after, wanted)
    assert again.settings == ()


@given(cases())
def test_every_plan_can_be_written(case: tuple[Machine, Needs]) -> None:
    machine, wanted = case
    plan = plan_or_refusal(machine, wanted)
    if plan is None:
        return
    installed = VppInstallation(Path("/usr/bin/vpp"), "vpp", plan.release, Path("/usr"), None, Path("/p"), None, None)
    text = render_startup(plan, VppPaths(Path("/run/ipsec-gw")), installed)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert sum(line.count("{") for line in lines) == sum(line.count("}") for line in lines)
    assert "None" not in text
    assert f"  main-core {plan.main_core}" in lines
