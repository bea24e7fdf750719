"""Chaos: what can happen to daemon, engine and SAs happens in random order under traffic, and then all converges."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import GatewayUnderTest, ShownSa
from ipsec_gw.lab.process import CommandFailed
from ipsec_gw.lab.scenarios.failover import begin, finish, flowing
from ipsec_gw.lab.scenarios.tunnel import Story, spis
from ipsec_gw.lab.traffic import UdpFlow, until

CONVERGE_SECONDS = 300.0
PAUSES = (0.0, 0.5, 2.0, 5.0)
"""Seconds between two events: at once, before anything is noticed, in the middle of what follows, after it."""


@dataclass
class Chaos:
    """The gateway and what is the matter with it now."""

    story: Story
    gateway: GatewayUnderTest
    dice: random.Random
    daemon_lives: bool = True

    async def kill_vpp(self) -> None:
        """If one runs."""
        self._signal_vpp(signal.SIGKILL)

    async def stop_vpp(self) -> None:
        """If one runs."""
        self._signal_vpp(signal.SIGSTOP)

    def _signal_vpp(self, number: signal.Signals) -> None:
        process = self.gateway.vpp
        if process is not None:
            os.kill(process.pid, number)

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
        if self._has_vpp:
            found += [self.kill_vpp, self.stop_vpp, self.vpp_up, self.vpp_up]
        return found

    @property
    def _has_vpp(self) -> bool:
        return self.gateway.engine == "vpp"

    async def calm(self) -> None:
        """Everything that may run does again; what hangs is ended by the daemon first."""
        await self.run_daemon()
        await self.give_back()
        if self._has_vpp:
            process = self.gateway.vpp
            if process is not None:
                os.kill(process.pid, signal.SIGCONT)  # it may be well by now, or on its way out
            await self.vpp_up()


async def run(lab: Lab) -> None:
    """Play it for ``minutes`` of the options; its ``seed`` makes it repeatable as far as a machine is."""
    story, gateway, evidence = await begin(lab)
    chaos = Chaos(story, gateway, random.Random(lab.options.seed))  # noqa: S311 - repeatable, not secret
    await flowing(story)
    marks = [flow.next for flow in story.flows]
    with lab.step(f"chaos with seed {lab.options.seed} for {lab.options.minutes:g} minutes"):
        count = await _disturb(chaos, lab.options.minutes * 60)
    began = time.monotonic()
    with lab.step("converge"):
        await chaos.calm()
        sas = await _converged(story, gateway)
        evidence.engine_took(sas)
        await flowing(story)
    lab.check("everything is back in the engine", len(sas) == 2, "both SAs", ", ".join(f"{sa.key}" for sa in sas))
    lab.note(f"{count} events, converged {time.monotonic() - began:.1f} s after the last")
    for flow, mark in zip(story.flows, marks, strict=True):
        tally = flow.tally(mark)
        lab.note(f"{flow.source} -> {flow.destination}: {tally}, {_blocked(flow, mark):.2f} s blocked at most")
        intact = (tally.duplicated, tally.corrupted) == (0, 0)
        lab.check(f"nothing {flow.source} -> {flow.destination} comes twice or changed", intact, "0 and 0", tally)
    await finish(story, gateway, evidence, lossy=True)


async def _disturb(chaos: Chaos, seconds: float) -> int:
    deadline, count = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        event = chaos.dice.choice(chaos.events())
        try:
            await event()
        except CommandFailed as error:  # a rekey of an SA that goes just now, a VPP that hangs while it starts
            chaos.story.lab.note(f"{event.__name__}: {error}")
        count += 1
        await asyncio.sleep(chaos.dice.choice(PAUSES))
    return count


async def _converged(story: Story, gateway: GatewayUnderTest) -> tuple[ShownSa, ...]:
    await until(lambda: len(spis(story)) == 2, CONVERGE_SECONDS, "one pair of SAs")
    return await gateway.sas_when(
        lambda sas: len(sas) == 2 and {sa.spi for sa in sas if sa.state == gateway.engine} == spis(story),
        CONVERGE_SECONDS,
        f"both SAs in {gateway.engine}",
    )


def _blocked(flow: UdpFlow, mark: int) -> float:
    """Seconds of the longest run of packets that did not arrive."""
    longest = current = 0
    last = mark
    for number in flow.missing(mark):
        current = current + 1 if number == last + 1 else 1
        last, longest = number, max(longest, current)
    return longest / flow.rate
