"""Chaos: what can happen to daemon, engine and SAs happens in random order under traffic, and then all converges."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import GatewayUnderTest, ShownSa
from ipsec_gw.lab.noise import make_noise
from ipsec_gw.lab.process import CommandFailed
from ipsec_gw.lab.process import run as call
from ipsec_gw.lab.scenarios.failover import begin, by_last_look, finish, flowing, replay
from ipsec_gw.lab.scenarios.tunnel import Story, spis
from ipsec_gw.lab.scenarios.verdicts import Evidence
from ipsec_gw.lab.topology import Role
from ipsec_gw.lab.traffic import Tally, UdpFlow, until

CONVERGE_SECONDS = 300.0
PAUSES = (0.0, 0.5, 2.0, 5.0)
"""Seconds between two events: at once, before anything is noticed, in the middle of what follows, after it."""

DELAYS = (0.2, 1.0, 2.0)
"""Seconds that VPP's API, or charon, does not answer: less than what a VPP is ended for here."""

FLAP_SECONDS, NOTICE_SECONDS = (0.2, 1.0, 3.0), 60.0
MISSED = 40_000
"""Notifications about an XFRM policy that nobody needs: more than the daemon's socket holds, 16 MiB of buffers."""


@dataclass
class Chaos:
    """The gateway and what is the matter with it now. ``replayed`` counts what the host behind A got twice of what was
    recorded on the WAN and sent again.
    """

    story: Story
    gateway: GatewayUnderTest
    dice: random.Random
    daemon_lives: bool = True
    replayed: int = 0

    async def kill_vpp(self) -> None:
        """If one runs."""
        self._signal_vpp(signal.SIGKILL)

    async def stop_vpp(self) -> None:
        """If one runs."""
        self._signal_vpp(signal.SIGSTOP)

    def _signal_vpp(self, number: signal.Signals) -> None:
        process = self.gateway.vpp
        if process is not None:
            with contextlib.suppress(ProcessLookupError):  # it is on its way out
                process.send(number)

    async def delay_vpp(self) -> None:
        """Its API answers late, and its rings fill."""
        process = self.gateway.vpp
        if process is not None:
            await self._delay(process.pid)

    async def delay_charon(self) -> None:
        """Vici answers late, and so does IKE."""
        await self._delay(self.story.a.daemon.pid)

    async def _delay(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(self.dice.choice(DELAYS))
        with contextlib.suppress(ProcessLookupError):  # taken for hung and ended
            os.kill(pid, signal.SIGCONT)

    async def flap_link(self) -> None:
        """The WAN loses its carrier for a while."""
        where = self.story.lab.topology.namespace(Role.WAN)
        for state in ("down", "up"):
            await call(["ip", "link", "set", "to-a", state], namespace=where)
            if state == "down":
                await asyncio.sleep(self.dice.choice(FLAP_SECONDS))

    async def lose_messages(self) -> None:
        """More notifications than the daemon's socket holds while it does not listen, and a rekey among them."""
        if not self.daemon_lives:
            return
        with self.gateway.deaf():
            await self.rekey()
            await asyncio.to_thread(make_noise, self.story.a.site.namespace, MISSED)
        await self.gateway.status_when(lambda now: now.overruns > 0, NOTICE_SECONDS, "lost notifications")

    async def send_again(self) -> None:
        """What an attacker has recorded, older than the guardian's last look."""
        older, _ = by_last_look(self.story)
        self.replayed += await replay(self.story, older)

    async def vpp_up(self) -> None:
        """If none runs; one that hangs and is killed meanwhile is no error."""
        if self.gateway.vpp is None:
            await self.gateway.vpp_up()

    async def kill_daemon(self) -> None:
        """If one runs."""
        await self.gateway.kill()
        self.daemon_lives = False

    async def run_daemon(self) -> None:
        """If none runs."""
        if not self.daemon_lives:
            await self.gateway.run_again()
            self.daemon_lives = True

    async def rekey(self) -> None:
        """From either side; charon may be at one already."""
        await self.dice.choice([self.story.a, self.story.b]).rekey()

    async def fallback(self) -> None:
        """By the operator's hand."""
        if self.daemon_lives:
            await self.gateway.by_hand("fallback")

    async def give_back(self) -> None:
        """By the operator's hand."""
        if self.daemon_lives:
            await self.gateway.by_hand("return")

    def events(self) -> list[Callable[[], Awaitable[None]]]:
        """What may happen; more often what others need to happen at all."""
        found: list[Callable[[], Awaitable[None]]] = [self.kill_daemon, self.run_daemon, self.run_daemon]
        found += [self.rekey, self.rekey, self.fallback, self.give_back, self.give_back]
        found += [self.flap_link, self.lose_messages, self.delay_charon, self.send_again]
        if self._has_vpp:
            found += [self.kill_vpp, self.stop_vpp, self.delay_vpp, self.vpp_up, self.vpp_up]
        return found

    @property
    def _has_vpp(self) -> bool:
        return self.gateway.engine == "vpp"

    async def calm(self) -> None:
        """Everything that may run does again; what hangs is ended by the daemon first."""
        await self.run_daemon()
        await self.give_back()
        if self._has_vpp:
            self._signal_vpp(signal.SIGCONT)
            await self.vpp_up()


async def run(lab: Lab) -> None:
    """Play it for ``minutes`` of the options; its ``seed`` makes it repeatable as far as a machine is."""
    story, gateway, evidence = await begin(lab)
    await disorder(story, gateway, evidence, lab.options.minutes)
    await finish(story, gateway, evidence, lossy=True, flapped=True)


async def disorder(story: Story, gateway: GatewayUnderTest, evidence: Evidence, minutes: float) -> None:
    """For so many minutes; then everything has to converge."""
    lab = story.lab
    chaos = Chaos(story, gateway, random.Random(lab.options.seed))  # noqa: S311 - repeatable, not secret
    await flowing(story)
    marks = [flow.next for flow in story.flows]
    with lab.step(f"chaos with seed {lab.options.seed} for {minutes:g} minutes"):
        counts = await _disturb(chaos, minutes * 60)
    began = time.monotonic()
    with lab.step("converge"):
        await chaos.calm()
        sas = await _converged(story, gateway)
        evidence.engine_took(sas)
        await flowing(story)
    lab.check("everything is back in the engine", len(sas) == 2, "both SAs", ", ".join(f"{sa.key}" for sa in sas))
    seconds = time.monotonic() - began
    lab.note(f"events: {', '.join(f'{count} {name}' for name, count in sorted(counts.items()))}")
    again = (0, chaos.replayed)  # only what goes to A is recorded
    for flow, mark, replayed in zip(story.flows, marks, again, strict=True):
        fate = fate_of(flow, mark, replayed, seconds)
        lab.note(str(fate))
        ok = (fate.tally.duplicated, fate.tally.corrupted) == (replayed, 0)
        what = f"nothing {flow.source} -> {flow.destination} comes twice or changed, but what was replayed"
        lab.check(what, ok, f"{replayed} and 0", fate.tally)


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one direction of a tunnel. ``blocked`` is the longest time without a packet that arrived,
    ``converged`` the time from the last event until everything was back, both in seconds.
    """

    way: str
    tally: Tally
    replayed: int
    blocked: float
    converged: float

    def __str__(self) -> str:
        return (
            f"{self.way}: {self.tally}, {self.replayed} replayed, {self.blocked:.2f} s blocked at most, converged"
            f" {self.converged:.1f} s after the last event"
        )


def fate_of(flow: UdpFlow, mark: int, replayed: int, converged: float) -> Fate:
    """Of the packets from ``mark`` on."""
    blocked = longest_run(flow.missing(mark)) / flow.rate
    return Fate(f"{flow.source} -> {flow.destination}", flow.tally(mark), replayed, blocked, converged)


async def _disturb(chaos: Chaos, seconds: float) -> Counter[str]:
    """Events by name."""
    deadline, counts = time.monotonic() + seconds, Counter[str]()
    while time.monotonic() < deadline:
        event = chaos.dice.choice(chaos.events())
        try:
            await event()
        except CommandFailed as error:  # a rekey of an SA that goes just now, a VPP that hangs while it starts
            chaos.story.lab.note(f"{event.__name__}: {error}")
        counts[event.__name__] += 1
        await asyncio.sleep(chaos.dice.choice(PAUSES))
    return counts


async def _converged(story: Story, gateway: GatewayUnderTest) -> tuple[ShownSa, ...]:
    await until(lambda: len(spis(story)) == 2, CONVERGE_SECONDS, "one pair of SAs")
    return await gateway.sas_when(
        lambda sas: len(sas) == 2 and {sa.spi for sa in sas if sa.state == gateway.engine} == spis(story),
        CONVERGE_SECONDS,
        f"both SAs in {gateway.engine}",
    )


def longest_run(numbers: Sequence[int]) -> int:
    """How many follow one another at most, without a gap."""
    longest = current = 0
    for before, number in zip([None, *numbers], numbers, strict=False):
        current = current + 1 if before is not None and number == before + 1 else 1
        longest = max(longest, current)
    return longest
