"""What the steps of the scenario `screens` have in common: clients that are new each, and counters held together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ipsec_gw.lab.capture import Capture
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import GatewayUnderTest
from ipsec_gw.lab.packets import Packet, packet_of
from ipsec_gw.lab.scenarios.border import lost_on_the_wan
from ipsec_gw.lab.streams import TcpStream, call
from ipsec_gw.lab.topology import HOST, Role
from ipsec_gw.lab.traffic import Host

SERVED, SIZE = 7400, 100_000
"""The port that is flooded and called, and bytes of every call."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Verdicts, and counters of rules and screens, at one moment; ``lost`` are frames that found no room on the WAN."""

    verdicts: Counter[str]
    rules: Counter[str]
    lost: int

    def since(self, earlier: Reading) -> Reading:
        """What came in between."""
        return Reading(self.verdicts - earlier.verdicts, self.rules - earlier.rules, self.lost - earlier.lost)


@dataclass(frozen=True, slots=True)
class Story:
    """Those who take part: ``lan`` sees what enters the LAN, ``far`` what callers send. Each caller is used once."""

    lab: Lab
    gateway: GatewayUnderTest
    lan: Capture
    far: Capture
    callers: dict[int, list[Host]]
    called: dict[int, Host]
    stream: TcpStream

    async def reading(self) -> Reading:
        """All counters."""
        status, rules = await asyncio.gather(self.gateway.status(), self.gateway.rules())
        return Reading(Counter(status.verdicts), Counter(rules), lost_on_the_wan(self.lab))

    def fresh(self, version: int) -> Host:
        """A client with an address that was never used."""
        return self.callers[version].pop()

    async def call(self, caller: Host) -> int:
        """A client calls the server. How often it was reset; raises TrafficError."""
        return await call(caller, self.called[caller.address.version], SERVED, size=SIZE, seed=int(caller.address))

    def count(self, capture: Capture, wanted: Callable[[Packet], bool], *, outgoing: bool) -> int:
        """Captured packets that are wanted."""
        capture.drain()
        frames = (frame for frame in capture.frames if frame.outgoing is outgoing)
        return sum(1 for frame in frames if (packet := packet_of(frame)) and wanted(packet))


def callers_of(lab: Lab) -> dict[int, list[Host]]:
    """The server's further addresses by their version."""
    namespace = lab.topology.namespace(Role.SERVER)
    hosts = [Host(namespace, one.ip) for one in lab.topology.port(Role.SERVER, HOST).further]
    return {version: [host for host in hosts if host.address.version == version] for version in (4, 6)}


def judge_screen(story: Story, name: str, verdict: str, between: Reading, fewest: int) -> None:
    """The verdict and the zone's counter of the screen tell the same."""
    counted, shown = between.verdicts[verdict], between.rules[f"untrust {verdict.removeprefix('screen-')}"]
    expected = f"{fewest} or more of {verdict}, `show firewall` the same"
    ok = counted == shown and counted >= fewest > 0
    story.lab.check(f"{name}: the screen has counted", ok, expected, f"{counted:,}, {shown:,}")
