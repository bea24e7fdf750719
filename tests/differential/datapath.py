"""The real firewall: compiled rulesets in real maps, packets through BPF_PROG_TEST_RUN."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from ipsec_gw.model.filters import Policer
from ipsec_gw.model.firewall import TRANSLATOR_PORT, TUNNEL_INTERFACES
from ipsec_gw.model.snapshot import XfrmPolicy
from tests.differential.world import TUNNEL_ENTRY
from tests.reference.network import LINKS, SEED
from tests.reference.packets import Key
from tests.reference.rules import Ids
from tests.reference.rulesets import Configuration
from xdp_steer import compile as compiler
from xdp_steer import filter_layout, flow_layout, libbpf, screen_layout, tables
from xdp_steer.compile.tunnels import tunnel_lists
from xdp_steer.firewall import Firewall
from xdp_steer.flow_layout import FragmentLeaf, SessionLeaf
from xdp_steer.gateway import Steering
from xdp_steer.layout import Control, MapSpec, VerdictCountLeaf
from xdp_steer.prog_run import TcAction, XdpAction, prog_run, prog_run_egress
from xdp_steer.reasons import Reason
from xdp_steer.screen_layout import Screen, count_index
from xdp_steer.tunnels import TunnelTable

CLOCK_MONOTONIC_COARSE = 6
SESSION_ENTRIES = 20
"""Few, so that the table gets full at times."""


_FLOODS = (ctypes.c_uint32 * screen_layout.SCREEN_FLOODS.entries)(*range(screen_layout.SCREEN_FLOODS.entries))
_NO_FLOOD = (ctypes.c_uint64 * screen_layout.SCREEN_FLOODS.entries)()


class Datapath:
    """Opened in a namespace with the network in it."""

    def __init__(self, pins: Path, indexes: Mapping[str, int]) -> None:
        self._pins = pins
        self._indexes = indexes
        tables.close_maps(tables.open_maps(pins / "maps", sessions=SESSION_ENTRIES))
        self._steering = Steering.open(pins)
        self._maps = tables.open_maps(pins / "maps")
        self.firewall = Firewall(self._maps, self._maps["control"])
        tables.set_control(self._maps["control"], Control.SEED, SEED)
        tables.set_control(self._maps["control"], Control.ANSWER_RATE, 0)
        self._tunnels = TunnelTable(self._maps)
        self._steering.set_tunnel_port(indexes[TUNNEL_ENTRY], indexes[TUNNEL_INTERFACES[1]])
        self._steering.set_translator_port(indexes[TRANSLATOR_PORT])
        self._counts = (VerdictCountLeaf * libbpf.possible_cpus())()
        self._verdicts = self.verdicts()
        self._names: compiler.Ids = compiler.Ids()

    def apply(self, configuration: Configuration) -> Ids:
        """Make a configuration hold. The numbers that its names got."""
        ruleset = configuration.ruleset
        self._names = compiler.assign(compiler.Ids(), ruleset)
        ports = {link.name: self._port(configuration, link.name) for link in LINKS}
        inner = (*TUNNEL_INTERFACES, TRANSLATOR_PORT)
        ports |= {name: compiler.PortInfo(self._indexes[name], self._indexes[name]) for name in inner}
        rows = compiler.compile_ruleset(ruleset, self._names, ports, now=datetime(2026, 1, 1))
        self.firewall.apply(rows, self._names)
        self.replace_tunnels(configuration.tunnels)
        if configuration.vpp:
            self._steering.begin_translation(1, anew=True)
        else:
            self._steering.end_translation()
        self.move(configuration.vpp_at_times)
        rules = {(kind.name.lower().replace("_", "-"), name): n for (kind, name), n in self._names.rules.items()}
        return Ids(dict(self._names.zones), rules)

    def replace_tunnels(self, policies: Iterable[XfrmPolicy]) -> bool:
        """Other IPsec policies hold, and routes are looked up anew; False if they are the same."""
        changed = self._tunnels.replace(tunnel_lists(policies).lists)
        if changed:
            self._steering.routes_changed()
        return changed

    def _port(self, configuration: Configuration, name: str) -> compiler.PortInfo:
        link = next(link for link in LINKS if link.name == name)
        traits = configuration.traits[name]
        return compiler.PortInfo(
            self._indexes[link.parent or name],
            self._indexes[name],
            link.vid,
            link.address4.ip if traits.address4 else None,
            link.address6.ip if traits.address6 else None,
            traits.redirect,
            traits.partial,
            bool(link.parent),
        )

    def run(self, ingress: int, frame: bytes) -> tuple[str, bytes]:
        """What the pipeline does with a frame, and the frame afterwards."""
        result = prog_run(self._steering.pipeline_fd, frame, ifindex=ingress)
        return XdpAction(result.retval).name, result.packet

    def run_egress(self, port: tuple[int, int], ingress: int, frame: bytes) -> tuple[str, bytes]:
        """What TC does with a frame that the kernel forwards out by a port, and the frame afterwards. It has the port's
        tag.
        """
        result = prog_run_egress(self._steering._programs.guard, frame, port[0], ingress)
        return TcAction(result.retval).name, result.packet

    def counted(self, expected: Reason) -> list[Reason]:
        """The reasons counted since the last call: one, if all is well. Only ``expected`` is looked at if it is one."""
        packets = self._packets(expected)
        if packets == self._verdicts[expected] + 1:
            self._verdicts[expected] = packets
            return [expected]
        now = self.verdicts()
        found = [reason for reason in Reason for _ in range(now[reason] - self._verdicts[reason])]
        self._verdicts = now
        return found

    def verdicts(self) -> dict[Reason, int]:
        return {reason: self._packets(reason) for reason in Reason}

    def _packets(self, reason: Reason) -> int:
        libbpf.map_lookup(self._maps["verdicts"], ctypes.c_uint32(reason), self._counts)
        return sum(count.packets for count in self._counts)

    def rule_count(self, rule: int) -> tuple[int, int]:
        """Packets and octets of a rule."""
        libbpf.map_lookup(self._maps["rule_counts"], ctypes.c_uint32(rule), self._counts)
        return sum(count.packets for count in self._counts), sum(count.octets for count in self._counts)

    def screen_count(self, zone: int, screen: Screen) -> tuple[int, int]:
        """Packets and octets that hit a screen."""
        libbpf.map_lookup(self._maps["screen_counts"], ctypes.c_uint32(count_index(zone, screen)), self._counts)
        return sum(count.packets for count in self._counts), sum(count.octets for count in self._counts)

    def pool_count(self, tag: int) -> tuple[int, int, int]:
        """New flows and packets that a pool was asked for, and flows that got no port."""
        count = self._steering.pools.count(tag)
        return count.flows, count.packets, count.refused

    def move(self, to_vpp: bool) -> None:
        """Of all pools that are VPP's at times."""
        for tag in range(1, flow_layout.MAX_TAGS):
            self._steering.pools.give(tag, to_vpp=to_vpp)

    def entry(self, key: Key) -> SessionLeaf | None:
        """One direction of a session."""
        try:
            return libbpf.map_lookup(self._maps["sessions"], _key(key), SessionLeaf())
        except FileNotFoundError:
            return None

    def age(self, keys: Iterable[Key], seconds: float) -> None:
        """As if time had passed for sessions and fragments."""
        step = int(seconds * 1e9)
        sessions = self._maps["sessions"]
        for key in keys:
            entry = self.entry(key)
            if entry is not None:
                entry.last_seen_ns -= step
                entry.fib_ns -= step if entry.out_ifindex else 0
                libbpf.map_update(sessions, _key(key), entry)
        fragments = self._maps["fragments"]
        for fragment_key in list(libbpf.map_keys(fragments, flow_layout.FragmentKeyLeaf)):
            fragment = libbpf.map_lookup(fragments, fragment_key, FragmentLeaf())
            fragment.seen_ns -= step
            libbpf.map_update(fragments, fragment_key, fragment)

    def age_policers(self, policers: Iterable[Policer], seconds: float) -> None:
        """As if time had passed for buckets."""
        ticks = int(seconds * 1e9) * filter_layout.POLICER_TICKS
        for policer in policers:
            number = ctypes.c_uint32(self._names.rules[flow_layout.NameKind.POLICER, policer.name])
            states = self._maps[filter_layout.POLICER_STATES.name]
            state = libbpf.map_lookup(states, number, filter_layout.PolicerStateLeaf())
            state.full = (state.full - ticks) % (1 << 64)
            state.peak = (state.peak - ticks * (policer.peak_rate is not None)) % (1 << 64)
            libbpf.map_update(states, number, state)

    def fill_policers(self, policers: Iterable[Policer]) -> None:
        """Full buckets."""
        for policer in policers:
            number = ctypes.c_uint32(self._names.rules[flow_layout.NameKind.POLICER, policer.name])
            libbpf.map_update(self._maps[filter_layout.POLICER_STATES.name], number, filter_layout.PolicerStateLeaf())

    def next_window(self) -> None:
        """As if what screens have counted in this window had been another one."""
        self._empty(screen_layout.SCREEN_WORDS)
        self._empty(screen_layout.SCREEN_ITEMS)
        floods = screen_layout.SCREEN_FLOODS
        libbpf.map_update_batch(self._maps[floods.name], _FLOODS, _NO_FLOOD, floods.entries)

    def _empty(self, spec: MapSpec) -> None:
        for key in list(libbpf.map_keys(self._maps[spec.name], spec.key)):
            libbpf.map_delete(self._maps[spec.name], key)

    def forget(self, keys: Iterable[Key], *, fragments: bool, screens: bool) -> list[bytes]:
        """Remove the sessions of these keys, fragments, and what screens have counted. The keys of sessions that are
        left.
        """
        for key in keys:
            try:
                libbpf.map_delete(self._maps["sessions"], _key(key))
            except FileNotFoundError:
                continue
        if fragments:
            for fragment_key in list(libbpf.map_keys(self._maps["fragments"], flow_layout.FragmentKeyLeaf)):
                libbpf.map_delete(self._maps["fragments"], fragment_key)
        if screens:  # their maps are long, and to walk through them takes its time
            self.next_window()
            self._empty(screen_layout.SESSION_COUNTS)
        left = []
        for leaf in list(libbpf.map_keys(self._maps["sessions"], flow_layout.FlowKeyLeaf)):
            left.append(bytes(leaf))
            libbpf.map_delete(self._maps["sessions"], leaf)
        return left

    def close(self) -> None:
        tables.close_maps(self._maps)
        self._steering.remove()


def _key(key: Key) -> ctypes.Array[ctypes.c_char]:
    ports = struct.pack("!HH", key.sport, key.dport)
    return (ctypes.c_char * 40).from_buffer_copy(
        key.src + key.dst + ports + struct.pack("=HBB", key.zone, key.protocol, 0)
    )


def coarse_now_ns() -> int:
    """The clock of ``last_seen_ns``."""
    return time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE)


def pins_of_this_run() -> Path:
    return Path(f"/sys/fs/bpf/ipsec-gw-differential-{os.getpid()}")
