"""What differs between VPP's releases in startup.conf. Pure.

From VPP's sources, tags v24.10 to v26.06: ``vnet/crypto/config.c`` (the ``crypto-engines`` section came with 25.06),
``crypto_engines/`` (engines left the plugins with 25.02), ``vnet/crypto/crypto.h`` and ``vnet/ipsec/ipsec_sa.c`` (ESP
takes handlers by combined names since 26.06), and the sections that each release registers. ``ipsec``, ``dpdk``,
``af_xdp`` (no section at all), ``linux-cp`` and NAT (by its API) are alike in all of them.
"""

from __future__ import annotations

from enum import Enum, auto

from vpp_conf.startup.machine import VppOffer

Release = tuple[int, int]

TESTED: tuple[Release, ...] = ((24, 10), (25, 2), (25, 6), (25, 10), (26, 2), (26, 6))
"""Releases whose syntax is known."""

ENGINES_LEFT_PLUGINS: Release = (25, 2)
ENGINES_SECTION: Release = (25, 6)
COMBINED_HANDLERS: Release = (26, 6)

ENGINES = ("native", "ipsecmb", "openssl")
"""Every software engine that VPP knows, by their priority: 100, 80, 50."""

GCM = ("aes-128-gcm", "aes-192-gcm", "aes-256-gcm")
AEADS = (*GCM, "chacha20-poly1305")
"""What the gateway accelerates, by VPP's plain names."""

CBCS = ("aes-128-cbc-sha2-256", "aes-256-cbc-sha2-256")
"""Names that VPP 26.06 has for AES-CBC with SHA-256, as far as they are measured."""

SECTIONS_SINCE: dict[str, Release] = {
    "crypto_sw_scheduler": (25, 2),
    "crypto-engines": (25, 6),
    "l3fib": (25, 6),
    "calico-policy-plugin": (26, 2),
    "sfdp": (26, 2),
    "selog": (26, 2),
    "interface": (26, 6),
    "trace": (26, 6),
}
SECTIONS_UNTIL: dict[str, Release] = {"tap": (25, 10), "heapsize": (25, 10), "ikev2": (26, 2)}
"""The last release that has the section."""

SECTION_PLUGINS: dict[str, str] = {
    "acl-plugin": "acl_plugin.so",
    "calico-policy-plugin": "npol_plugin.so",
    "cnat": "cnat_plugin.so",
    "crypto_sw_scheduler": "crypto_sw_scheduler_plugin.so",
    "ct6": "ct6_plugin.so",
    "dns": "dns_plugin.so",
    "dpdk": "dpdk_plugin.so",
    "dsa": "dma_intel_plugin.so",
    "dslite": "dslite_plugin.so",
    "fateshare": "fateshare_plugin.so",
    "http": "http_plugin.so",
    "ikev2": "ikev2_plugin.so",
    "l2tp": "l2tp_plugin.so",
    "linux-cp": "linux_cp_plugin.so",
    "linux-nl": "linux_nl_plugin.so",
    "mactime": "mactime_plugin.so",
    "nsim": "nsim_plugin.so",
    "pvti": "pvti_plugin.so",
    "quic": "quic_plugin.so",
    "selog": "selog_plugin.so",
    "vhost-user": "vhost_plugin.so",
}
"""Sections that VPP knows only while their plugin is enabled."""

CORE_SECTIONS = frozenset(
    "api-queue api-segment api-trace buffers cpu crypto-engines devices ethernet interface ip ip6 ipsec l2fib l2learn "  # noqa: SIM905 - a list of 34 lines says less
    "l3fib logging mc memory mpls node physmem plugins punt session sfdp socksvr statseg tap tcp tls trace tuntap udp "
    "unix unix-cli vlib".split()
)
"""Sections of VPP itself, of all releases together."""


class EngineStyle(Enum):
    """Crypto engines are plugins, or all in their folder are loaded, or there is a section to choose them by."""

    PLUGINS = auto()
    FOLDER = auto()
    SECTION = auto()


KNOWN_PLUGINS = frozenset(
    {
        "af_xdp_plugin.so",
        "nat_plugin.so",
        "gre_plugin.so",
        "vxlan_plugin.so",
        *(f"crypto_{engine}_plugin.so" for engine in ENGINES),
    }
)
"""Plugins that the plan enables and that have no section."""


def engine_style(release: Release) -> EngineStyle:
    """How a release takes its crypto engines."""
    if release >= ENGINES_SECTION:
        return EngineStyle.SECTION
    return EngineStyle.FOLDER if release >= ENGINES_LEFT_PLUGINS else EngineStyle.PLUGINS


def engine_plugin(engine: str) -> str:
    """The plugin of an engine in releases that have them as such."""
    return f"crypto_{engine}_plugin.so"


def handler_names(release: Release, algorithms: tuple[str, ...]) -> tuple[str, ...]:
    """The names by which ESP looks up its handlers: setting the plain ones does nothing since 26.06."""
    if release < COMBINED_HANDLERS:
        return algorithms
    return tuple(name for algorithm in algorithms for name in _combined(algorithm))


def _combined(algorithm: str) -> tuple[str, ...]:
    """An AEAD has additional data of 8 bytes, and of 12 with ESN; others have none."""
    if algorithm in CBCS:
        return (f"{algorithm}-icv16",)
    return tuple(f"{algorithm}-icv16-aad{aad}" for aad in (8, 12))


def section_problem(release: Release, section: str, plugins: frozenset[str]) -> str | None:
    """Why a release with these plugins enabled does not take a section, None if nothing is known against it.

    A section of no known name may belong to a plugin of somebody else's.
    """
    since, until = SECTIONS_SINCE.get(section), SECTIONS_UNTIL.get(section)
    if since and release < since:
        return f"VPP {show(release)} has no section {section}, it came with {show(since)} - remove it"
    if until and release > until:
        return f"VPP {show(release)} has no section {section}, {show(until)} was the last - remove it"
    plugin = SECTION_PLUGINS.get(section)
    if plugin and plugin not in plugins:
        return f"section {section} needs its plugin - add: plugins {{ plugin {plugin} {{ enable }} }}"
    foreign = plugins - KNOWN_PLUGINS - set(SECTION_PLUGINS.values())
    if not plugin and section not in CORE_SECTIONS and not foreign:
        return f"VPP has no section {section} - correct its name, or enable the plugin that it belongs to"
    return None


def show(release: Release) -> str:
    """``26.06``."""
    return f"{release[0]}.{release[1]:02}"


def complete_offer(release: Release) -> VppOffer:
    """What a VPP of this release has when all its packages are installed, as far as it matters here."""
    plugins = {"af_xdp_plugin.so", "dpdk_plugin.so", "gre_plugin.so", "nat_plugin.so", "vxlan_plugin.so"}
    if engine_style(release) is EngineStyle.PLUGINS:
        plugins |= {engine_plugin(engine) for engine in ENGINES}
    return VppOffer(release, frozenset(plugins), frozenset(ENGINES), f"vpp v{show(release)}")
