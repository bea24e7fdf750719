"""The scenarios of the lab, by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab import topology
from ipsec_gw.lab.topology import Topology

if TYPE_CHECKING:
    from ipsec_gw.lab.context import Lab


POOLS_OF_VPP = "no engine but VPP translates, and XDP keeps the pools of others"


@dataclass(frozen=True, slots=True)
class Part:
    """A story with checks, on a topology of its own. Without ``needs_esp`` it runs in any kernel. After
    ``vm_seconds`` a virtual machine that it runs in is taken for hung; ``round_seconds`` are for each round asked for.
    """

    name: str
    topology: Callable[[str], Topology]
    run: Callable[[Lab], Awaitable[None]]
    needs_esp: bool = True
    vm_seconds: float = 720.0
    round_seconds: float = 300.0

    def seconds_for(self, minutes: float, rounds: int) -> float:
        """What a virtual machine may take for a run of that length."""
        return self.vm_seconds + 60 * minutes + self.round_seconds * rounds


@dataclass(frozen=True, slots=True)
class Scenario:
    """Parts that are told as one, each run where it can be. ``baseline``: it means something without ipsec-gw too.
    ``only_vpp``: why no other engine can play it, if so.
    """

    name: str
    summary: str
    parts: tuple[Part, ...]
    baseline: bool = False
    only_vpp: str = ""


def scenarios() -> dict[str, Scenario]:
    """All of them, by name."""
    # Here and not above: scenarios import the lab, which imports this package.
    from ipsec_gw.lab.edge import beside_ipv4, crowded, edge, renumbered  # noqa: PLC0415
    from ipsec_gw.lab.scenarios import nat_pools  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.chaos import run as run_chaos  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.charon import run as run_charon  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.charon_restart import run as run_charon_restart  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.daemon_away import run as run_daemon_away  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.daemon_kill import run as run_daemon_kill  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.esn import run as run_esn  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.failover import run as run_failover  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.firewall import run as run_firewall  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.firewall_plain import run as run_firewall_plain  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.frr import run as run_frr  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.gre_over_ipsec import (  # noqa: PLC0415
        run_gre,
        run_gre_tunnel,
        run_gre_with_firewall,
        run_ipip,
        run_ipip_tunnel,
    )
    from ipsec_gw.lab.scenarios.hang import run as run_hang  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.hitless import run as run_hitless  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.idle import run as run_idle  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.ipv6 import run as run_ipv6  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.junk import run as run_junk  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.lost_netlink import run as run_lost_netlink  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.matrix import run as run_matrix  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.mobike import run as run_mobike  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.nat64 import run as run_nat64  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.nat_t import run as run_nat_t  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.nptv6 import run as run_nptv6  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.overlapping_sites import run as run_overlapping_sites  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.reauth import run as run_reauth  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.rekey_storm import run as run_rekey_storm  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.reload import run as run_reload  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.roadwarriors import run as run_roadwarriors  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.route_based import run as run_route_based  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.route_based import run_with_firewall as run_route_based_with_firewall  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.route_based import run_with_vti as run_route_based_with_vti  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.screens import run as run_screens  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.selectors import run as run_selectors  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.site_to_site import run as run_site_to_site  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.spd import run as run_spd  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.transport import run as run_transport  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.transport import run_tunnel as run_hosts_tunnel  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.trap import run as run_trap  # noqa: PLC0415
    from ipsec_gw.lab.scenarios.vxlan_over_ipsec import (  # noqa: PLC0415
        run_bridged,
        run_own_ends,
        run_routed,
        run_tunnel,
    )

    known = (
        Scenario(
            "site-to-site",
            "two unmodified strongSwans, a tunnel, its traffic opened by an oracle, a rekey from each side",
            (Part("tunnel", topology.site_to_site, run_site_to_site),),
            baseline=True,
        ),
        Scenario(
            "ipv6",
            "the same with IPv6: inside of IPv4, of IPv6 and around IPv4, and both versions in one tunnel",
            (Part("tunnels", topology.two_families, run_ipv6),),
            baseline=True,
        ),
        Scenario(
            "nat-t",
            "one gateway behind a NAT that forgets its mappings under traffic and chooses others",
            (Part("tunnel", topology.behind_nat, run_nat_t),),
            baseline=True,
        ),
        Scenario(
            "roadwarriors",
            "three clients with virtual addresses, two of them behind one NAT, which then maps them anew",
            (Part("tunnels", topology.roadwarriors, run_roadwarriors),),
            baseline=True,
        ),
        Scenario(
            "route-based",
            "XFRM interfaces and VTI devices: routing says what goes into the tunnel, also when the engine dies",
            (
                Part("tunnel", topology.site_to_site, run_route_based, vm_seconds=1400.0),
                Part("vti", topology.site_to_site, run_route_based_with_vti, vm_seconds=1400.0),
                Part("firewall", topology.site_to_site, run_route_based_with_firewall, vm_seconds=2400.0),
            ),
        ),
        Scenario(
            "transport",
            "the gateways themselves talk, in either mode: rekeys, fragments, the engine's death, and IKE beside it",
            (
                Part("hosts", topology.site_to_site, run_transport, vm_seconds=1400.0),
                Part("hosts-tunnel", topology.site_to_site, run_hosts_tunnel, vm_seconds=1400.0),
            ),
            baseline=True,
        ),
        Scenario(
            "frr",
            "BGP by FRR through the tunnel: routes come, go and move, and the session survives the engine's death",
            (Part("tunnel", topology.two_networks, run_frr, vm_seconds=2400.0),),
        ),
        Scenario(
            "gre-over-ipsec",
            "BGP by FRR over a GRE device, one behind a firewall, an IPIP device; tunnel mode too: rekeys and deaths",
            (
                Part("gre", topology.two_networks, run_gre, vm_seconds=2400.0),
                Part("gre-firewall", topology.site_to_site, run_gre_with_firewall, vm_seconds=1400.0),
                Part("ipip", topology.two_networks, run_ipip, vm_seconds=1400.0),
                Part("gre-tunnel", topology.two_networks, run_gre_tunnel, vm_seconds=1400.0),
                Part("ipip-tunnel", topology.two_networks, run_ipip_tunnel, vm_seconds=1400.0),
            ),
        ),
        Scenario(
            "vxlan-over-ipsec",
            "VXLAN devices, routed, in a bridge, over tunnel mode: rekeys, path MTU, the engine's death and return",
            (
                Part("routed", topology.site_to_site, run_routed, vm_seconds=1400.0),
                Part("bridged", topology.one_network, run_bridged, vm_seconds=1400.0),
                Part("tunnel", topology.site_to_site, run_tunnel, vm_seconds=1400.0),
                Part("tunnel-own-ends", topology.site_to_site, run_own_ends, vm_seconds=1400.0),
            ),
        ),
        Scenario(
            "matrix",
            "swanctl configurations of ordinary life: each packet fares as with the kernel alone",
            (Part("all", topology.crossroads, run_matrix, vm_seconds=4800.0),),
        ),
        Scenario(
            "rekey-storm",
            "rekeys from either side and both at once, one after the other, under steady traffic",
            (Part("tunnel", topology.site_to_site, run_rekey_storm, vm_seconds=2400.0),),
            baseline=True,
        ),
        Scenario(
            "reload",
            "swanctl loads other connections under traffic: a network, a cipher and a child more, and one less",
            (Part("tunnels", topology.guarded, run_reload, vm_seconds=1400.0),),
            baseline=True,
        ),
        Scenario(
            "charon-restart",
            "charon is stopped and started, then killed and started, under traffic: the engine has what the kernel has",
            (Part("tunnels", topology.guarded, run_charon_restart, vm_seconds=1400.0),),
            baseline=True,
        ),
        Scenario(
            "lost-netlink",
            "the daemon hears nothing of the kernel, then nothing of charon, while tunnels come, go and are rekeyed",
            (Part("tunnels", topology.guarded, run_lost_netlink, vm_seconds=1400.0),),
        ),
        Scenario(
            "reauth",
            "reauthentication from either side, break before make and make before break",
            (Part("tunnels", topology.guarded, run_reauth, vm_seconds=1400.0),),
            baseline=True,
        ),
        Scenario(
            "mobike",
            "the peer's outer address changes under traffic, then our own: the kernel carries on until a rekey",
            (Part("tunnels", topology.guarded, run_mobike, vm_seconds=1400.0),),
            baseline=True,
        ),
        Scenario(
            "trap",
            "a packet brings the tunnel up, from either side, and it goes by DELETE or for inactivity, again and again",
            (Part("tunnels", topology.guarded, run_trap, vm_seconds=1400.0),),
            baseline=True,
        ),
        Scenario(
            "charon",
            "reload, lost-netlink, reauth, charon-restart, trap, esn and mobike, one after the other",
            (Part("tunnels", topology.guarded, run_charon, vm_seconds=2400.0),),
        ),
        Scenario(
            "selectors",
            "a peer sends what belongs to one tunnel through another: ports, 0.0.0.0/0 and shared networks",
            (Part("tunnels", topology.crossroads, run_selectors, vm_seconds=1400.0),),
            baseline=True,
        ),
        Scenario(
            "esn",
            "the peer's extended sequence numbers pass 2^32, with several replay windows; then the kernel carries on",
            (Part("tunnels", topology.guarded, run_esn, vm_seconds=1400.0),),
        ),
        Scenario(
            "firewall",
            "zones, policies, NAT, fragments and path MTU; then the same firewall around a tunnel",
            (
                Part("plain", edge, run_firewall_plain, needs_esp=False),
                Part("tunnel", topology.site_to_site, run_firewall, vm_seconds=2400.0),
            ),
        ),
        Scenario(
            "overlapping-sites",
            "two sites with the same network: a gateway translates both, before encryption and after decryption",
            (Part("tunnel", topology.overlapping, run_overlapping_sites, vm_seconds=2400.0),),
        ),
        Scenario(
            "failover",
            "the engine is killed under traffic, with and without a daemon: the kernel carries on, and gives back",
            (Part("tunnel", topology.site_to_site, run_failover, vm_seconds=2400.0),),
        ),
        Scenario(
            "hang",
            "VPP is stopped under traffic: it is ended, and the kernel carries on",
            (Part("tunnel", topology.site_to_site, run_hang, vm_seconds=2400.0),),
            only_vpp="only VPP is a process that can hang",
        ),
        Scenario(
            "idle",
            "VPP runs only while it is needed: started for the first SA, stopped after the last, no packet lost",
            (Part("tunnel", topology.site_to_site, run_idle, vm_seconds=1400.0),),
            only_vpp="only VPP is a process that is started and stopped",
        ),
        Scenario(
            "daemon-kill",
            "the daemon is killed under traffic and rekeys: nobody notices",
            (Part("tunnel", topology.site_to_site, run_daemon_kill, vm_seconds=2400.0),),
            only_vpp="only VPP outlives the daemon",
        ),
        Scenario(
            "daemon-away",
            "the daemon is dead, then stopped, for too long: the kernel sends meanwhile, also after a rekey",
            (Part("tunnel", topology.site_to_site, run_daemon_away, vm_seconds=1400.0),),
            only_vpp="only VPP outlives the daemon",
        ),
        Scenario(
            "spd",
            "the tunnel is policies of VPP's: rekeys, deaths of the daemon and of VPP under traffic",
            (Part("tunnel", topology.site_to_site, run_spd, vm_seconds=2400.0),),
            only_vpp="only VPP has policies of its own",
        ),
        Scenario(
            "chaos",
            "kills, hangs, rekeys and the operator's hand in random order, and then everything converges",
            (Part("tunnel", topology.site_to_site, run_chaos, vm_seconds=2400.0),),
        ),
        Scenario(
            "hitless",
            "a little of failover, hang, daemon-kill and chaos, one after the other with one tunnel",
            (Part("tunnel", topology.site_to_site, run_hitless, vm_seconds=2400.0, round_seconds=600.0),),
            only_vpp="most of it is about VPP",
        ),
        Scenario(
            "junk",
            "100,000 packets of junk per second at the WAN while a permitted TCP stream goes on",
            (Part("junk", edge, run_junk, needs_esp=False),),
        ),
        Scenario(
            "screens",
            "nmap's scans, floods, and SYN cookies before real TCP clients and servers",
            (Part("screens", crowded, run_screens, needs_esp=False),),
        ),
        Scenario(
            "nat64",
            "hosts with IPv6 reach servers with IPv4, a thousand flows at once, path MTU and errors included",
            (Part("nat64", beside_ipv4, run_nat64, needs_esp=False),),
        ),
        Scenario(
            "nat-pool",
            "a pool of VPP's: two thousand flows at once, errors, fragments, path MTU and hairpin through it",
            (Part("pool", edge, nat_pools.run_pool, needs_esp=False),),
            only_vpp=POOLS_OF_VPP,
        ),
        Scenario(
            "nat-auto",
            "a pool that is VPP's during a surge: new flows move there and back, none is broken",
            (Part("pool", edge, nat_pools.run_auto, needs_esp=False),),
            only_vpp=POOLS_OF_VPP,
        ),
        Scenario(
            "nat-failover",
            "VPP dies and comes back under a pool of its own: new flows are XDP's meanwhile",
            (Part("pool", edge, nat_pools.run_failover, needs_esp=False),),
            only_vpp=POOLS_OF_VPP,
        ),
        Scenario(
            "nptv6",
            "the LAN's IPv6 prefix is another one outside, both ways, and no checksum changes",
            (Part("nptv6", renumbered, run_nptv6, needs_esp=False),),
        ),
    )
    return {scenario.name: scenario for scenario in known}


def find(name: str) -> Scenario:
    """A scenario by name. Raises IpsecGwError naming those that exist."""
    known = scenarios()
    if name not in known:
        raise IpsecGwError(f"no scenario {name} - known: {', '.join(known)}")
    return known[name]
