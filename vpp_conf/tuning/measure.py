"""Measure crypto engines in a running VPP that serves nothing else, on the path that tunnels take.

VPP's packet generator sends UDP packets into a protected IPsec interface, one for each cipher. What comes out of it is
led back by a loopback interface, in a table where the peer's address is VPP's own, and decrypted by a second protected
interface, in whose table nothing leads on. So one run tells both directions, node by node. No NIC and no other VPP is
involved. Engines take turns within each round, so that what the machine does meanwhile meets all of them.

Then the same packets go the asynchronous way, where the installation has its scheduler for software: its nodes do both
directions, so their clocks tell what both take together. It runs in the same thread here, which shows what it costs;
what it is for, several workers for the packets of one SA, one thread cannot show.

After each switch VPP is asked who encrypts and decrypts now, and after each run how many packets every node had: a
switch that did nothing, or packets on another path, are errors and never figures.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_network

from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import IpAddress
from vpp_conf.api import VppApi
from vpp_conf.crypto import SimpleHandler, parse_simple_handlers
from vpp_conf.descriptors.interface import interfaces
from vpp_conf.descriptors.ipsec_itf import IpsecInterface, IpsecInterfaceDescriptor
from vpp_conf.descriptors.protect import Protect, ProtectDescriptor
from vpp_conf.descriptors.route import OUTER_TABLE, Route, RouteDescriptor
from vpp_conf.descriptors.sa import (
    DEFAULT_PORT,
    IS_INBOUND,
    IS_TUNNEL,
    PROTOCOL_ESP,
    SMALLEST_WINDOW,
    outer_tunnel,
)
from vpp_conf.reality import parse_plugins
from vpp_conf.startup.syntax import ENGINES, Release, handler_names
from vpp_conf.tuning.ciphers import CIPHERS, Cipher
from vpp_conf.tuning.runtime import NodeRun, parse_clock, parse_runtime, streams_running
from vpp_conf.tuning.values import Measurement, Work

PATHS = {
    Work.ENCRYPT: ("ip4-input", "ip4-lookup", "ip4-midchain", "esp4-encrypt-tun", "adj-midchain-tx"),
    Work.DECRYPT: ("ip4-receive", "ipsec4-tun-input", "esp4-decrypt-tun", "ip4-input-no-checksum", "ip4-lookup"),
}
"""Nodes whose clocks count; making, looping and dropping packets is left out."""

DETOUR = ("crypto-enq", "crypto-enq", "esp4-encrypt-tun-post", "esp4-decrypt-tun-post")
"""What the asynchronous way has besides, for a packet that is encrypted and decrypted."""

DEQUEUE = "crypto-deq"
"""Where the crypto itself is done then. It counts an operation as often as it looks at it."""

VISITS = {"ip4-input": 2, "ip4-lookup": 3}
"""How often a packet comes to a node, where it is not once: looped packets come again."""

SCHEDULER = "crypto_sw_scheduler_plugin.so"
ASYNC_SECONDS = 5.0
"""For what is still under way when the last packet has been sent."""

GENERATOR = "pg0"
OWN, FAR = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.200")
LOOP, LOOP_PEER = IPv4Address("198.18.0.1"), IPv4Address("198.18.0.2")
LOOP_MAC = "02:00:00:00:00:77"
LOOP_TABLE, CLEAR_TABLE = 8, 7
CLEAR = IPv4Address("203.0.113.254")
PEERS = IPv4Address("198.51.100.0")
INNER = IPv4Address("203.0.113.0")
"""Addresses for documentation and benchmarks (RFC 5737, RFC 2544), each cipher has the next one of PEERS and INNER."""

MTU = 1500
HEADERS_BYTES = 28
"""IPv4 and UDP."""

FIRST_SPI = 0x1000
RATE = "1e9"
"""Packets a second that the generator is asked for: more than any machine does, so it sends whole vectors of 256."""

RUN_SECONDS = 60.0
POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Effort:
    """``packets`` for each figure, ``sizes`` of inner IP packets in bytes."""

    ciphers: tuple[Cipher, ...] = CIPHERS
    sizes: tuple[int, ...] = (64, 1400)
    rounds: int = 5
    packets: int = 200_000


@dataclass(frozen=True, slots=True)
class Figures:
    """What came out. ``absent`` are pairs of algorithm and engine that this VPP does not have on this CPU."""

    clock_hz: float
    measurements: tuple[Measurement, ...]
    absent: tuple[tuple[str, str], ...]


Progress = Callable[[int, int, str], None]
"""Called with runs that are done, all runs, and what is measured next."""


async def measure(
    api: VppApi, release: Release, installed: Sequence[str], effort: Effort, progress: Progress
) -> Figures:
    """Measure every engine that has an algorithm, for all algorithms.

    Raises EngineError if VPP offers no engine for an algorithm, does not switch, or lets packets take another path;
    EngineUnavailable if it dies.
    """
    clock_hz = parse_clock(await api.cli("show clock verbose"))
    if clock_hz is None:
        raise EngineError("VPP does not tell its clock's frequency (`show clock verbose`) - another release?")
    bench = Bench(api, release, effort)
    offers = await bench.offers()
    cases = [(cipher, engine) for cipher in effort.ciphers for engine in ENGINES if engine in offers[cipher]]
    await bench.build()
    total = len(cases) * len(effort.sizes) * effort.rounds
    clocks: dict[tuple[Cipher, str, int, Work], list[float]] = {}
    done = 0
    for number in range(effort.rounds):
        # Every other round the other way around: nobody is always first after a pause.
        for cipher, engine in cases if number % 2 == 0 else reversed(cases):
            await bench.switch(cipher, engine)
            for size in effort.sizes:
                progress(done, total, f"{cipher.name} {engine} {size}")
                for work, figure in (await bench.run_all(cipher, size)).items():
                    clocks.setdefault((cipher, engine, size, work), []).append(figure)
                done += 1
    progress(done, total, "")
    measurements = tuple(
        Measurement(cipher.name, engine, size, tuple(clocks[cipher, engine, size, work]), work)
        for cipher, engine in cases
        for size in effort.sizes
        for work in Work
        if (cipher, engine, size, work) in clocks
    )
    absent = tuple(
        (cipher.name, engine) for cipher in effort.ciphers for engine in installed if engine not in offers[cipher]
    )
    return Figures(clock_hz, measurements, absent)


class Bench:
    """A pair of tunnels for each cipher and a stream for each of its sizes, in one VPP."""

    def __init__(self, api: VppApi, release: Release, effort: Effort) -> None:
        self._api = api
        self._release = release
        self._effort = effort
        self._scheduled = False

    async def offers(self) -> Mapping[Cipher, frozenset[str]]:
        """Engines that have all handlers of a cipher. Raises EngineError naming a cipher that nobody has."""
        handlers = await self._handlers()
        offers = {}
        for cipher in self._effort.ciphers:
            rows = [handlers[name].engines for name in self._names(cipher) if name in handlers]
            if len(rows) < len(self._names(cipher)) or not frozenset.intersection(*rows):
                raise EngineError(
                    f"no crypto engine of this VPP has {' and '.join(self._names(cipher))} - "
                    "install vpp-crypto-engines, or choose others by --algorithm"
                )
            offers[cipher] = frozenset.intersection(*rows)
        return offers

    async def build(self) -> None:
        """Make interfaces, SAs, protections, routes and streams."""
        for command in (
            f"create packet-generator interface {GENERATOR} mode ip4",
            f"set interface ip address {GENERATOR} {OWN}/24",
            f"set interface state {GENERATOR} up",
            f"ip table add {LOOP_TABLE}",
            f"ip table add {CLEAR_TABLE}",
            f"ip6 table add {CLEAR_TABLE}",
        ):
            await self._command(command)
        await self._loop()
        lenders = {one.name: one.sw_if_index for one in (await interfaces(self._api)).values()}
        for number, cipher in enumerate(self._effort.ciphers):
            await self._tunnels(number, cipher, lenders[GENERATOR], lenders["loop1"])
            for size in self._effort.sizes:
                await self._command(self._stream(number, size))
        self._scheduled = SCHEDULER in parse_plugins(await self._api.cli("show plugins"))

    async def switch(self, cipher: Cipher, engine: str) -> None:
        """Give a cipher to an engine. Raises EngineError if that changed nothing."""
        for name in self._names(cipher):
            # Without the word `simple` VPP 26.06 says nothing and does nothing.
            await self._command(f"set crypto handler simple {name} {engine}")
        await self.check(cipher, engine)

    async def check(self, cipher: Cipher, engine: str) -> None:
        """Raises EngineError unless this engine both encrypts and decrypts the cipher."""
        handlers = await self._handlers()
        for name in self._names(cipher):
            actual = handlers.get(name)
            if actual is None or (actual.encrypts, actual.decrypts) != (engine, engine):
                does = f"{actual.encrypts} and {actual.decrypts} do" if actual else "nobody does"
                raise EngineError(f"VPP was told that {engine} does {name}, and {does} - nothing was measured")

    async def run_all(self, cipher: Cipher, size: int) -> Mapping[Work, float]:
        """:meth:`run`, and by the asynchronous way where there is one."""
        found = dict(await self.run(cipher, size))
        if self._scheduled:
            await self._command("set ipsec async mode on")
            try:
                nodes = await self._send(cipher, size, asynchronous=True)
            finally:
                await self._command("set ipsec async mode off")
            path = (*PATHS[Work.ENCRYPT], *PATHS[Work.DECRYPT], *DETOUR)
            dequeued = nodes[DEQUEUE].packets * nodes[DEQUEUE].clocks / self._effort.packets
            found[Work.ASYNC] = dequeued + sum(nodes[name].clocks for name in path)
        return found

    async def run(self, cipher: Cipher, size: int) -> Mapping[Work, float]:
        """Send a stream; CPU clocks for each packet to encrypt and to decrypt it. Raises EngineError if packets went
        astray.
        """
        nodes = await self._send(cipher, size, asynchronous=False)
        return {work: sum(nodes[name].clocks for name in path) for work, path in PATHS.items()}

    async def _send(self, cipher: Cipher, size: int, *, asynchronous: bool) -> Mapping[str, NodeRun]:
        """Send a stream, and look at the nodes when all of it has come through them."""
        stream = _stream_name(self._effort.ciphers.index(cipher), size)
        await self._command("clear runtime")
        await self._command(f"packet-generator enable {stream}")
        deadline = time.monotonic() + RUN_SECONDS
        while streams_running(await self._api.cli("show packet-generator")).get(stream):
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{self._effort.packets} packets take VPP more than {RUN_SECONDS:.0f} s - use fewer by --packets"
                )
            await asyncio.sleep(POLL_SECONDS)
        deadline = time.monotonic() + (ASYNC_SECONDS if asynchronous else 0.0)
        while True:
            nodes = parse_runtime(await self._api.cli("show runtime"))
            wrong = self._astray(nodes, asynchronous=asynchronous)
            if not wrong:
                return nodes
            if time.monotonic() >= deadline:
                raise EngineError(f"{cipher.name}: {wrong} - this release takes another path")
            await asyncio.sleep(POLL_SECONDS)

    def _astray(self, nodes: Mapping[str, NodeRun], *, asynchronous: bool) -> str:
        """Which node had other packets than all of them, or nothing."""
        visits = Counter(name for path in PATHS.values() for name in path if name not in VISITS)
        visits.update(VISITS)
        if asynchronous:
            visits.update(DETOUR)
            if DEQUEUE not in nodes:
                return f"no packets came to VPP's node {DEQUEUE}"
        for name, times in visits.items():
            packets, wanted = nodes[name].packets if name in nodes else 0, times * self._effort.packets
            if packets != wanted:
                return f"{packets} of {wanted} packets came to VPP's node {name}"
        return ""

    async def _loop(self) -> None:
        """What is sent by ``loop0`` comes in there again, in a table of its own; ``loop1`` lends an address to the
        interfaces that clear packets come in by.
        """
        for instance in (0, 1):
            await self._api.cli(f"create loopback interface instance {instance}")
        for command in (
            f"set interface ip table loop0 {LOOP_TABLE}",
            f"set interface ip table loop1 {CLEAR_TABLE}",
            f"set interface ip6 table loop1 {CLEAR_TABLE}",
            f"set interface mac address loop0 {LOOP_MAC}",
            f"set interface ip address loop0 {LOOP}/24",
            f"set interface ip address loop1 {CLEAR}/32",
            "set interface state loop0 up",
            "set interface state loop1 up",
            f"ip neighbor loop0 {LOOP_PEER} {LOOP_MAC} static",
            f"ip route add {PEERS}/24 via {LOOP_PEER} loop0",
            f"ip route add {FAR}/32 table {LOOP_TABLE} via {LOOP_PEER} loop0",
        ):
            await self._command(command)

    async def _tunnels(self, number: int, cipher: Cipher, out_lender: int, in_lender: int) -> None:
        """One interface that encrypts, and one that decrypts what it sent. These keys protect nothing."""
        peer = ip_address(int(PEERS) + 1 + number)
        await self._command(f"set interface ip address loop0 {peer}/32")
        first = 4 * number + 1
        for offset, source, destination in ((0, FAR, peer), (1, peer, FAR), (2, FAR, peer), (3, peer, FAR)):
            # Both ends of an SA have its SPI. The way back exists because a protection asks for it.
            await self._sa(first + offset, FIRST_SPI + 2 * number + offset % 2, cipher, source, destination)
        outward = await IpsecInterfaceDescriptor(self._api).create(IpsecInterface(OUTER_TABLE, MTU, out_lender))
        inward = await IpsecInterfaceDescriptor(self._api).create(IpsecInterface(CLEAR_TABLE, MTU, in_lender))
        protections = ProtectDescriptor(self._api)
        await protections.create(Protect(outward.sw_if_index, first, frozenset({first + 1})))
        await protections.create(Protect(inward.sw_if_index, first + 3, frozenset({first + 2})))
        inner = ip_network(int(INNER) + 1 + number)
        await RouteDescriptor(self._api).create(Route(OUTER_TABLE, inner, outward.sw_if_index))

    async def _sa(self, sad_id: int, spi: int, cipher: Cipher, source: IpAddress, destination: IpAddress) -> None:
        """Inbound at the second and third place of its group of four."""
        inbound = sad_id % 4 in (2, 3)
        integrity = bytes(range(cipher.integrity_bytes))
        await self._api.call(
            "ipsec_sad_entry_add_v2",
            entry={
                "sad_id": sad_id,
                "spi": spi,
                "protocol": PROTOCOL_ESP,
                "crypto_algorithm": cipher.crypto,
                "crypto_key": {"length": cipher.key_bytes, "data": bytes(range(cipher.key_bytes))},
                "integrity_algorithm": cipher.integrity,
                "integrity_key": {"length": len(integrity), "data": integrity},
                "flags": IS_TUNNEL | (IS_INBOUND if inbound else 0),
                "tunnel": outer_tunnel(source, destination),
                "salt": 0,
                "udp_src_port": DEFAULT_PORT,
                "udp_dst_port": DEFAULT_PORT,
                "anti_replay_window_size": SMALLEST_WINDOW,
            },
        )

    def _stream(self, number: int, size: int) -> str:
        inner = INNER + 1 + number
        packet = f"UDP: {OWN + 1} -> {inner} UDP: 1000 -> 2000 incrementing {size - HEADERS_BYTES}"
        return (
            f"packet-generator new {{ name {_stream_name(number, size)} limit {self._effort.packets} "
            f"size {size}-{size} rate {RATE} interface {GENERATOR} node {PATHS[Work.ENCRYPT][0]} data {{ {packet} }} }}"
        )

    def _names(self, cipher: Cipher) -> tuple[str, ...]:
        return handler_names(self._release, (cipher.name,))

    async def _handlers(self) -> Mapping[str, SimpleHandler]:
        return parse_simple_handlers(await self._api.cli("show crypto handlers"))

    async def _command(self, command: str) -> None:
        """A command that prints nothing when it did what it was told."""
        answer = (await self._api.cli(command)).strip()
        if answer:
            raise EngineError(f"VPP does not take `{command}`: {answer}")


def _stream_name(number: int, size: int) -> str:
    """Short: a name of 20 characters runs into what VPP prints behind it."""
    return f"s{number}-{size}"
