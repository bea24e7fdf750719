"""What was found on a machine, as values. Pure; :mod:`vpp_conf.startup.probe` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field

NATIVE_XDP_DRIVERS = frozenset(
    "atlantic bnxt_en ena fec fsl_dpaa fsl_dpaa2_eth gve hv_netvsc i40e ice igb igc ixgbe ixgbevf mana mlx4_en "  # noqa: SIM905 - a list of 29 lines says less
    "mlx5_core mvneta mvpp2 nfp qede sfc stmmac thunder-nicvf tsnep tun veth virtio_net vmxnet3".split()
)
"""Drivers with ``ndo_bpf`` in Linux 6.1 or soon after (``drivers/net``)."""

ZERO_COPY_DRIVERS = {
    "i40e": (4, 20),
    "ixgbe": (4, 20),
    "mlx5_core": (5, 3),
    "ice": (5, 5),
    "stmmac": (5, 13),
    "igc": (5, 14),
    "nfp": (5, 18),
    "tsnep": (6, 4),
    "virtio_net": (6, 11),
    "igb": (6, 14),
}
"""Drivers with ``ndo_xsk_wakeup`` and the Linux release that brought it."""

QAT_PHYSICAL = {
    0x0435: "DH895xCC",
    0x18A0: "C4xxx",
    0x18EE: "200xx",
    0x19E2: "C3xxx",
    0x37C8: "C62x",
    0x4940: "4xxx",
    0x4942: "401xx",
    0x4944: "402xx",
    0x6F54: "D15xx",
}
"""Intel's PCI device ids of QAT; the id of the virtual functions is the next one."""

QAT_VIRTUAL = {number + 1 if number != 0x0435 else 0x0443: name for number, name in QAT_PHYSICAL.items()}
"""Those that VPP's dpdk plugin takes, all releases from 24.10 to 26.06 alike."""

INTEL = 0x8086


@dataclass(frozen=True, slots=True)
class Cpu:
    """A logical CPU that is online. ``core`` is (package, core id): siblings share it. ``node``: NUMA."""

    number: int
    core: tuple[int, int]
    node: int = 0


@dataclass(frozen=True, slots=True)
class HugePool:
    """Hugepages of one size on one NUMA node, in pages. ``path`` is the pool's folder below the root directory."""

    node: int
    page_bytes: int
    total: int
    free: int
    path: str


@dataclass(frozen=True, slots=True)
class Nic:
    """A network interface. ``driver`` is None for virtual ones, ``node`` is None if the bus does not tell."""

    name: str
    driver: str | None
    node: int | None
    rx_queues: int
    tx_queues: int
    mtu: int
    link_up: bool

    @property
    def native_xdp(self) -> bool:
        """The driver has an XDP hook of its own."""
        return self.driver in NATIVE_XDP_DRIVERS

    def zero_copy(self, kernel: Kernel) -> bool:
        """The driver can do AF_XDP without copies under this kernel."""
        since = ZERO_COPY_DRIVERS.get(self.driver or "")
        return since is not None and kernel.version >= since


@dataclass(frozen=True, slots=True)
class CryptoDevice:
    """A PCI device for cryptography. ``parent`` is the address of a virtual function's physical one.

    ``functions`` and ``functions_possible`` are virtual functions that a physical one has and could have.
    """

    address: str
    vendor: int
    device: int
    driver: str | None
    node: int
    parent: str | None
    functions: int
    functions_possible: int
    iommu_group: int | None

    @property
    def qat(self) -> str | None:
        """The generation of an Intel QAT, None for other devices."""
        known = QAT_VIRTUAL if self.parent else QAT_PHYSICAL
        return known.get(self.device) if self.vendor == INTEL else None


@dataclass(frozen=True, slots=True)
class Limits:
    """What the control groups allow. None: no limit. ``cpus`` may be a fraction; ``hugepages`` is in bytes by size."""

    memory_bytes: int | None = None
    cpus: float | None = None
    hugepages: tuple[tuple[int, int], ...] = ()

    def hugepage_bytes(self, page_bytes: int) -> int | None:
        """The limit for hugepages of this size."""
        return dict(self.hugepages).get(page_bytes)


@dataclass(frozen=True, slots=True)
class Kernel:
    """``release`` as ``uname -r`` prints it, ``version`` its first two numbers, ``parameters`` the command line."""

    release: str
    version: tuple[int, int]
    parameters: tuple[str, ...] = ()

    @property
    def af_xdp(self) -> bool:
        """Buffers that are not aligned to pages, and wake-ups on need: what VPP's sockets ask for (Linux 5.4)."""
        return self.version >= (5, 4)

    @property
    def poll_and_send(self) -> bool:
        """A socket may be polled and sent on at once (Linux 5.6): interrupt mode with workers needs it."""
        return self.version >= (5, 6)


@dataclass(frozen=True, slots=True)
class Sysctls:
    """Kernel settings that matter; None where the kernel does not have one."""

    max_map_count: int | None = None
    bpf_jit_enable: int | None = None
    numa_balancing: int | None = None


@dataclass(frozen=True, slots=True)
class VppOffer:
    """The installed VPP: ``release`` is (year, month), ``plugins`` are file names, ``engines`` names.

    ``version`` is what VPP says of itself without who built it, empty where nobody asked.
    """

    release: tuple[int, int]
    plugins: frozenset[str]
    engines: frozenset[str]
    version: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything :func:`vpp_conf.startup.plan.plan_startup` decides on. Sizes are in bytes.

    ``allowed`` are the CPUs that this process may use (affinity and cpuset). ``memory_available`` is what the kernel
    thinks can be had without swapping; hugepages are not in it. ``container`` names the kind, None on a host.
    ``groups`` are the names in ``/etc/group``.
    """

    model: str
    flags: frozenset[str]
    cpus: tuple[Cpu, ...]
    allowed: frozenset[int]
    isolated: frozenset[int]
    tickless: frozenset[int]
    pools: tuple[HugePool, ...]
    memory_total: int
    memory_available: int
    page_bytes: int
    hugepage_bytes: int
    nics: tuple[Nic, ...]
    crypto: tuple[CryptoDevice, ...]
    iommu: bool
    kernel: Kernel
    vpp: VppOffer
    limits: Limits = Limits()
    sysctls: Sysctls = Sysctls()
    container: str | None = None
    groups: frozenset[str] = frozenset()
    nodes: tuple[int, ...] = field(default=(0,))

    @property
    def usable(self) -> tuple[Cpu, ...]:
        """CPUs that are online and allowed."""
        return tuple(cpu for cpu in self.cpus if cpu.number in self.allowed)
