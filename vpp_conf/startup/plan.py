"""What VPP is started with, and why. Pure: a probe in, a plan out."""

from __future__ import annotations

from dataclasses import dataclass

from ipsec_gw.errors import EnvironmentMissing

MEGABYTE = 1 << 20
BUFFER_HEADROOM_BYTES = 256
"""vlib_buffer_t (metadata and pre-data) in front of the packet bytes, ``vlib/buffer.h``."""

DATA_BYTES = 2048
"""VPP's default, and the largest that AF_XDP takes on 4 KiB pages together with the buffer's own header."""

BUFFERS = 16384
"""Room for the 512-entry rings of a few queues in both directions and for what is under way between them."""

NEEDED_PLUGINS = ("af_xdp_plugin.so",)
"""Without these the gateway cannot work with VPP at all."""

CRYPTO_ENGINES = ("native", "ipsecmb", "openssl")
"""Every software engine that VPP knows; native has no ChaCha20-Poly1305, the others have."""

SPLIT_ENGINES_RELEASE = (25, 10)
"""From about here crypto engines live outside the plugin folder and have a ``crypto-engines`` section."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found on the machine. ``hugepages`` are of the default size, in pages."""

    cpus: int
    hugepage_bytes: int
    hugepages_total: int
    hugepages_free: int
    release: tuple[int, int]
    plugins: frozenset[str]
    crypto_engines: frozenset[str]


@dataclass(frozen=True, slots=True)
class StartupPlan:
    """The numbers of startup.conf. ``reasons`` says for each why it is so, in the order of the file.

    ``buffer_page`` and ``heap_page`` are VPP page sizes (``4K``, ``2M``). ``poll_sleep_usec`` 0 leaves it out.
    """

    buffers: int
    buffer_page: str
    data_bytes: int
    heap: str
    heap_page: str
    statseg: str
    poll_sleep_usec: int
    plugins: tuple[str, ...]
    crypto_engines: tuple[str, ...]
    crypto_section: bool
    reasons: tuple[tuple[str, str], ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """The reasons that an operator could do something about."""
        return tuple(reason for name, reason in self.reasons if name == "buffers" and self.buffer_page == "4K")


def plan_startup(probe: Probe) -> StartupPlan:
    """Plan a small VPP for this machine. Raises EnvironmentMissing if a needed plugin is not installed."""
    missing = [plugin for plugin in NEEDED_PLUGINS if plugin not in probe.plugins]
    if missing:
        raise EnvironmentMissing(
            f"VPP lacks {', '.join(missing)} - install vpp-plugin-core of the official fd.io packages"
        )
    engines = tuple(engine for engine in CRYPTO_ENGINES if engine in probe.crypto_engines)
    if not engines:
        raise EnvironmentMissing("VPP has no crypto engine - install vpp-plugin-core of the official fd.io packages")
    buffers, page, memory_reason = _buffers(probe)
    split = probe.release >= SPLIT_ENGINES_RELEASE
    plugins = NEEDED_PLUGINS if split else (*NEEDED_PLUGINS, *(f"crypto_{engine}_plugin.so" for engine in engines))
    return StartupPlan(
        buffers=buffers,
        buffer_page=page,
        data_bytes=DATA_BYTES,
        heap="512M",
        heap_page="4K",
        statseg="32M",
        poll_sleep_usec=0,
        plugins=plugins,
        crypto_engines=engines,
        crypto_section=split,
        reasons=(
            ("cpu", f"one thread, no workers: {probe.cpus} CPUs are shared with everything else"),
            ("poll-sleep-usec", "left out: receive queues are in interrupt mode, an idle VPP sleeps in epoll"),
            ("memory main-heap-size", "512M of address space, used as it fills: about 1.5 kB per SA, 4 kB per tunnel"),
            ("buffers", memory_reason),
            ("statseg size", "32M: 144 bytes per SA and thread, and VPP's own counters"),
            ("plugins", "everything off but what the gateway uses: less memory, no stray listeners"),
            ("crypto-engines", f"all that are installed: {', '.join(engines)}"),
        ),
    )


def _buffers(probe: Probe) -> tuple[int, str, str]:
    """Number of buffers, their page size and why.

    AF_XDP takes ordinary pages as well as hugepages: VPP lets no buffer cross a page. Hugepages save TLB misses.
    """
    frame = DATA_BYTES + BUFFER_HEADROOM_BYTES
    per_page = probe.hugepage_bytes // frame
    needed = -(-BUFFERS // per_page) if per_page else 0
    if needed and probe.hugepages_free >= needed:
        size = f"{probe.hugepage_bytes // MEGABYTE}M"
        return BUFFERS, size, f"{BUFFERS} buffers in {needed} of {probe.hugepages_free} free hugepages of {size}"
    way_out = f"; for speed: sysctl vm.nr_hugepages={probe.hugepages_total + needed}" if needed else ""
    reason = f"{BUFFERS} buffers in 4 KiB pages (64 MB): {probe.hugepages_free} hugepages are free"
    return BUFFERS, "4K", f"{reason}, {needed} would be needed{way_out}"
