"""Measure crypto engines in a running VPP that serves nothing else, on the path that tunnels take.

VPP's packet generator sends UDP packets into a protected IPsec interface, one for each algorithm. They take the nodes
of :data:`PATH`, and the outer route drops what comes out of them. No NIC and no other VPP is involved. Engines take
turns within each round, so that what the machine does meanwhile meets all of them. An engine decrypts what it encrypts,
and for both it takes nearly the same clocks: encryption stands for both.

After each switch VPP is asked who encrypts and decrypts now, and after each run how many packets every node had: a
switch that did nothing, or packets on another path, are errors and never figures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_network

from ipsec_gw.errors import EngineError
from ipsec_gw.model.algorithms import ALGORITHMS, SALT_BYTES, EspAlgorithm
from ipsec_gw.model.secret import Secret
from vpp_conf.api import VppApi
from vpp_conf.crypto import HANDLER_NAMES, SimpleHandler, parse_simple_handlers
from vpp_conf.descriptors.interface import interfaces
from vpp_conf.descriptors.ipsec_itf import IpsecInterface, IpsecInterfaceDescriptor
from vpp_conf.descriptors.protect import Protect, ProtectDescriptor
from vpp_conf.descriptors.route import OUTER_TABLE, Route, RouteDescriptor
from vpp_conf.descriptors.sa import SadEntry, SaDescriptor
from vpp_conf.startup.syntax import ENGINES, Release, handler_names
from vpp_conf.tuning.runtime import parse_clock, parse_runtime, streams_running
from vpp_conf.tuning.values import Measurement

PATH = ("ip4-input", "ip4-lookup", "ip4-midchain", "esp4-encrypt-tun", "adj-midchain-tx")
"""Nodes whose clocks count; making and dropping packets is left out. The last one has only what was encrypted."""

GENERATOR = "pg0"
OWN = IPv4Address("192.0.2.1")
PEERS = IPv4Address("198.51.100.0")
INNER = IPv4Address("203.0.113.0")
"""Addresses for documentation (RFC 5737), each algorithm has the next one of PEERS and INNER."""

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

    algorithms: tuple[EspAlgorithm, ...] = ALGORITHMS
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
    cases = [
        (algorithm, engine) for algorithm in effort.algorithms for engine in ENGINES if engine in offers[algorithm]
    ]
    await bench.build()
    total = len(cases) * len(effort.sizes) * effort.rounds
    clocks: dict[tuple[EspAlgorithm, str, int], list[float]] = {}
    done = 0
    for number in range(effort.rounds):
        # Every other round the other way around: nobody is always first after a pause.
        for algorithm, engine in cases if number % 2 == 0 else reversed(cases):
            await bench.switch(algorithm, engine)
            for size in effort.sizes:
                progress(done, total, f"{HANDLER_NAMES[algorithm]} {engine} {size}")
                clocks.setdefault((algorithm, engine, size), []).append(await bench.run(algorithm, size))
                done += 1
    progress(done, total, "")
    measurements = tuple(
        Measurement(HANDLER_NAMES[algorithm], engine, size, tuple(clocks[algorithm, engine, size]))
        for algorithm, engine in cases
        for size in effort.sizes
    )
    absent = tuple(
        (HANDLER_NAMES[algorithm], engine)
        for algorithm in effort.algorithms
        for engine in installed
        if engine not in offers[algorithm]
    )
    return Figures(clock_hz, measurements, absent)


class Bench:
    """A tunnel for each algorithm and a stream for each of its sizes, in one VPP."""

    def __init__(self, api: VppApi, release: Release, effort: Effort) -> None:
        self._api = api
        self._release = release
        self._effort = effort

    async def offers(self) -> Mapping[EspAlgorithm, frozenset[str]]:
        """Engines that have all handlers of an algorithm. Raises EngineError naming an algorithm that nobody has."""
        handlers = await self._handlers()
        offers = {}
        for algorithm in self._effort.algorithms:
            rows = [handlers[name].engines for name in self._names(algorithm) if name in handlers]
            if len(rows) < len(self._names(algorithm)) or not frozenset.intersection(*rows):
                raise EngineError(
                    f"no crypto engine of this VPP has {' and '.join(self._names(algorithm))} - "
                    "install vpp-crypto-engines, or choose others by --algorithm"
                )
            offers[algorithm] = frozenset.intersection(*rows)
        return offers

    async def build(self) -> None:
        """Make interfaces, SAs, protections, routes and streams."""
        await self._command(f"create packet-generator interface {GENERATOR} mode ip4")
        await self._command(f"set interface ip address {GENERATOR} {OWN}/24")
        await self._command(f"set interface state {GENERATOR} up")
        await self._command(f"ip route add {PEERS}/24 via drop")
        lender = next(one.sw_if_index for one in (await interfaces(self._api)).values() if one.name == GENERATOR)
        for number, algorithm in enumerate(self._effort.algorithms):
            await self._tunnel(number, algorithm, lender)
            for size in self._effort.sizes:
                await self._command(self._stream(number, size))

    async def switch(self, algorithm: EspAlgorithm, engine: str) -> None:
        """Give an algorithm to an engine. Raises EngineError if that changed nothing."""
        for name in self._names(algorithm):
            # Without the word `simple` VPP 26.06 says nothing and does nothing.
            await self._command(f"set crypto handler simple {name} {engine}")
        await self.check(algorithm, engine)

    async def check(self, algorithm: EspAlgorithm, engine: str) -> None:
        """Raises EngineError unless this engine both encrypts and decrypts the algorithm."""
        handlers = await self._handlers()
        for name in self._names(algorithm):
            actual = handlers.get(name)
            if actual is None or (actual.encrypts, actual.decrypts) != (engine, engine):
                does = f"{actual.encrypts} and {actual.decrypts} do" if actual else "nobody does"
                raise EngineError(f"VPP was told that {engine} does {name}, and {does} - nothing was measured")

    async def run(self, algorithm: EspAlgorithm, size: int) -> float:
        """Send a stream and return CPU clocks for each packet. Raises EngineError if packets went astray."""
        stream = _stream_name(self._effort.algorithms.index(algorithm), size)
        await self._command("clear runtime")
        await self._command(f"packet-generator enable {stream}")
        deadline = time.monotonic() + RUN_SECONDS
        while streams_running(await self._api.cli("show packet-generator")).get(stream):
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{self._effort.packets} packets take VPP more than {RUN_SECONDS:.0f} s - use fewer by --packets"
                )
            await asyncio.sleep(POLL_SECONDS)
        nodes = parse_runtime(await self._api.cli("show runtime"))
        for name in PATH:
            packets = nodes[name].packets if name in nodes else 0
            if packets != self._effort.packets:
                came = f"{packets} of {self._effort.packets} packets came to VPP's node {name}"
                raise EngineError(f"{HANDLER_NAMES[algorithm]}: {came} - this release takes another path")
        return sum(nodes[name].clocks for name in PATH)

    async def _tunnel(self, number: int, algorithm: EspAlgorithm, lender: int) -> None:
        """An IPsec interface with both SAs, and the route into it. These keys protect nothing."""
        peer = ip_address(int(PEERS) + 1 + number)
        outbound, inbound = 2 * number + 1, 2 * number + 2
        interface = await IpsecInterfaceDescriptor(self._api).create(IpsecInterface(OUTER_TABLE, MTU, lender))
        for sad_id, source, destination in ((outbound, OWN, peer), (inbound, peer, OWN)):
            await SaDescriptor(self._api).create(
                SadEntry(
                    sad_id=sad_id,
                    spi=FIRST_SPI + sad_id,
                    inbound=sad_id == inbound,
                    source=source,
                    destination=destination,
                    algorithm=algorithm,
                    secret=Secret(bytes(range(algorithm.key_bytes))),
                    salt=Secret(bytes(SALT_BYTES)),
                    esn=False,
                    window=0,
                )
            )
        await ProtectDescriptor(self._api).create(Protect(interface.sw_if_index, outbound, frozenset({inbound})))
        inner = ip_network(int(INNER) + 1 + number)
        await RouteDescriptor(self._api).create(Route(OUTER_TABLE, inner, interface.sw_if_index))

    def _stream(self, number: int, size: int) -> str:
        inner = INNER + 1 + number
        packet = f"UDP: {OWN + 1} -> {inner} UDP: 1000 -> 2000 incrementing {size - HEADERS_BYTES}"
        return (
            f"packet-generator new {{ name {_stream_name(number, size)} limit {self._effort.packets} "
            f"size {size}-{size} rate {RATE} interface {GENERATOR} node {PATH[0]} data {{ {packet} }} }}"
        )

    def _names(self, algorithm: EspAlgorithm) -> tuple[str, ...]:
        return handler_names(self._release, (HANDLER_NAMES[algorithm],))

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
