"""The gateway under test, known only by its command line, as its user knows it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.process import Daemon, run
from ipsec_gw.lab.session import Session
from ipsec_gw.observe import control
from vpp_conf.paths import VppPaths
from vpp_conf.process import ProcessId, recorded

COMMAND_SECONDS = 420.0
"""Starting VPP under emulation takes 12 s, compiling XDP programs 19 s; a loaded machine needs more."""

FIREWALL_SECONDS = 1200.0
"""The firewall's programs are ten times as much to compile."""

CARRY_SECONDS = 240.0
"""The first SA may need a rekey before an engine can have it: its number may be used by then."""

CONFIG = "ipsec-gw.toml"
HANG_SECONDS = 3.0
"""An emulated VPP on a loaded machine may be silent for longer than the default's share of half a second, and well."""

AWAY_SECONDS = 300.0
"""An emulated daemon takes a minute and more to come back, which is when it counts as away by default."""


def patient(*, hang_seconds: float = HANG_SECONDS, away_seconds: float = AWAY_SECONDS) -> str:
    """The gateway's options on emulated machines, where a decision may take longer than the two seconds that it has by
    default.
    """
    return f"[gateway]\nhang_seconds = {hang_seconds}\nhold_seconds = 15.0\ndaemon_away_seconds = {away_seconds}\n"


PLAIN = patient()
"""Without a firewall."""

POLL_SECONDS = 0.5
DAEMON_STOP_SECONDS = 30.0

Answer = TypeVar("Answer")


class GatewayMisbehaved(IpsecGwError):
    """The gateway under test did not do in time what it should; what it said last is in the text."""


@dataclass(frozen=True, slots=True)
class ShownSa:
    """An SA as `show sas --json` has it; ``spi`` in host order."""

    direction: str
    spi: int
    source: str
    destination: str
    engine: str
    state: str
    reason: str
    packets: int
    child: str = ""

    @property
    def key(self) -> str:
        """As the status counters name it: destination/SPI."""
        return f"{self.destination}/{self.spi:08x}"


@dataclass(frozen=True, slots=True)
class SteerCount:
    """What XDP did with ESP of one inbound SA, in packets."""

    to_engine: int
    to_kernel: int


@dataclass(frozen=True, slots=True)
class GuardCount:
    """What the TC egress guard did with the kernel's ESP of one outbound SA, in packets; ``waited`` went on later."""

    passed: int
    dropped: int
    waited: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """`show status --json`; counters by SA ("destination/spi"), of packets by verdict. ``overruns`` counts how often
    notifications of the kernel were lost; ``life`` is about a VPP that runs while it is needed. ``warmed``: of how many
    SAs the last look at the engine has brought the copies in the kernel up to it.
    """

    engine: str
    note: str
    in_sync: bool
    steer: dict[str, SteerCount]
    guard: dict[str, GuardCount]
    verdicts: dict[str, int] = field(default_factory=dict)
    life: str = ""
    overruns: int = 0
    overlays: tuple[str, ...] = ()
    warmed: int = 0


def parse_sas(text: str) -> tuple[ShownSa, ...]:
    """Read `show sas --json`. Raises GatewayMisbehaved for anything else."""
    try:
        listed: list[dict[str, Any]] = json.loads(text)["sas"]
        return tuple(
            ShownSa(
                direction=sa["direction"],
                spi=int(sa["spi"], 16),
                source=sa["source"],
                destination=sa["destination"],
                engine=sa["engine"],
                state=sa["state"],
                reason=sa["reason"] or "",
                packets=sa["packets"],
                child=sa["child"],
            )
            for sa in listed
        )
    except (ValueError, KeyError, TypeError) as error:
        raise GatewayMisbehaved(f"show sas --json cannot be read ({error!r}): {text[:200]}") from error


def parse_status(text: str) -> Status:
    """Read `show status --json`. Raises GatewayMisbehaved for anything else."""
    try:
        data: dict[str, Any] = json.loads(text)
        return Status(
            engine=data["engine"]["name"],
            note=data["engine"]["note"],
            in_sync=data["inSync"],
            steer={row["sa"]: SteerCount(row["toEngine"], row["toKernel"]) for row in data.get("steer") or ()},
            guard={
                row["sa"]: GuardCount(row["passed"], row["dropped"], row["waited"]) for row in data.get("guard") or ()
            },
            verdicts={reason: int(packets) for reason, packets in (data.get("verdicts") or {}).items()},
            life=data["engine"].get("life", ""),
            overruns=int(data.get("netlinkOverruns") or 0),
            overlays=tuple(data.get("overlays") or ()),
            warmed=int((data.get("guardian") or {}).get("written", 0)),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise GatewayMisbehaved(f"show status --json cannot be read ({error!r}): {text[:200]}") from error


def parse_rules(text: str) -> dict[str, int]:
    """First packets by rule, from `show firewall --json`. Raises GatewayMisbehaved for anything else."""
    try:
        return {rule["name"]: int(rule["packets"]) for rule in json.loads(text)["rules"]}
    except (ValueError, KeyError, TypeError) as error:
        raise GatewayMisbehaved(f"show firewall --json cannot be read ({error!r}): {text[:200]}") from error


def command() -> list[str]:
    """How to call ipsec-gw: the script beside this Python, or the same entry point without it."""
    script = Path(sys.executable).with_name("ipsec-gw")
    if script.exists():
        return [sys.executable, str(script)]
    return [sys.executable, "-c", "from ipsec_gw.cli.main import main; main()"]


class GatewayUnderTest:
    """`ipsec-gw run` in gateway A's namespace. Use :meth:`start`, and :meth:`off` whatever happened.

    ``config`` is the text of its configuration file: without one, the gateway has no firewall. ``on_demand``: it starts
    VPP itself, by its configuration.
    """

    def __init__(
        self,
        session: Session,
        namespace: str,
        vici: str,
        engine: str,
        config: str = "",
        *,
        on_demand: bool = False,
    ) -> None:
        self.engine = engine
        self._on_demand = on_demand
        self._session, self._namespace, self._vici, self._config = session, namespace, vici, config
        self._daemon: Daemon | None = None
        self._vpp, self._off = False, False

    @property
    def _options(self) -> list[str]:
        return ["--config", str(self._session.run_dir / CONFIG), "--run-dir", str(self._session.gateway_dir)]

    async def _call(self, *arguments: str, check: bool = True) -> str:
        done = await run(
            [*command(), *self._options, *arguments],
            namespace=self._namespace,
            timeout=COMMAND_SECONDS,
            check=check,
        )
        return done.stdout

    async def _pinned(self, *arguments: str, check: bool = True) -> str:
        return await self._call("--pins", str(self._session.pins), *arguments, check=check)

    async def start(self) -> None:
        """Bring the engine and the daemon up and wait until it answers. Raises CommandFailed or GatewayMisbehaved."""
        self._session.gateway_dir.mkdir(mode=0o700, exist_ok=True)
        (self._session.run_dir / CONFIG).write_text(self._config or PLAIN)
        if self.engine == "vpp":
            self._vpp = True
            if not self._on_demand:
                await self._pinned("vpp", "up")
        await self._run_daemon()
        await self.status_when(lambda _: True, FIREWALL_SECONDS if self._config else COMMAND_SECONDS, "an answer")

    async def _run_daemon(self) -> None:
        self._daemon = await Daemon.start(
            "ipsec-gw",
            [
                *(*command(), *self._options, "--pins", str(self._session.pins)),
                *("run", "--engine", self.engine, "--vici", self._vici),
            ],
            self._session.run_dir / "ipsec-gw.log",
            namespace=self._namespace,
        )

    async def run_again(self) -> None:
        """Start the daemon after :meth:`kill`, and wait until it answers. Raises CommandFailed or GatewayMisbehaved."""
        await self._run_daemon()
        await self.status_when(lambda _: True, COMMAND_SECONDS, "an answer")

    async def reload(self, config: str) -> None:
        """Another configuration: `ipsec-gw reload`. Raises CommandFailed."""
        self._config = config
        (self._session.run_dir / CONFIG).write_text(config)
        await self._call("reload")

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """The daemon is stopped meanwhile (SIGSTOP), and an engine that lives in it."""
        pids = self.pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    async def kill(self) -> None:
        """The daemon dies, without a chance to do anything."""
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            await daemon.kill()

    async def by_hand(self, command: str) -> None:
        """`fallback` or `return`, for everything. Raises CommandFailed."""
        await self._call(command)

    def said(self, words: str) -> int:
        """How often the log of all its daemons has these words."""
        return (self._session.run_dir / "ipsec-gw.log").read_text(errors="replace").count(words)

    @property
    def vpp(self) -> ProcessId | None:
        """The VPP process, None if none runs."""
        return recorded(VppPaths(self._session.gateway_dir).pid_file)

    async def vpp_up(self) -> None:
        """Start VPP again. Raises CommandFailed."""
        await self._pinned("vpp", "up")

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes that the lab started for it."""
        return (self._daemon.pid,) if self._daemon else ()

    async def sas(self) -> tuple[ShownSa, ...]:
        """`show sas`."""
        return parse_sas(await self._call("show", "sas", "--json"))

    async def sas_now(self) -> tuple[ShownSa, ...]:
        """What `show sas` would print, by the daemon's own socket: the command takes seconds under emulation.

        Raises IpsecGwError.
        """
        answer = await asyncio.to_thread(control.ask, self._session.gateway_dir, "sas")
        return parse_sas(json.dumps(answer))

    async def status_now(self) -> Status:
        """What `show status` would print, asked as in :meth:`sas_now`."""
        return parse_status(json.dumps(await asyncio.to_thread(control.ask, self._session.gateway_dir, "status")))

    async def nat_now(self) -> dict[str, Any]:
        """What `show nat --json` would print, asked as in :meth:`sas_now`."""
        answer: dict[str, Any] = await asyncio.to_thread(control.ask, self._session.gateway_dir, "nat")
        return answer

    async def in_sync(self) -> bool:
        """Whether all that is wanted is in place, asked as in :meth:`sas_now`."""
        return (await self.status_now()).in_sync

    async def planned(self) -> list[str]:
        """What `plan` would print, asked as in :meth:`sas_now`."""
        answer = await asyncio.to_thread(control.ask, self._session.gateway_dir, "plan")
        return [*answer["changes"], *answer["operations"]]

    async def steps(self) -> int:
        """How many operations `show history` tells of, asked as in :meth:`sas_now`; it keeps the last 256 passes."""
        answer = await asyncio.to_thread(control.ask, self._session.gateway_dir, "history")
        return sum(len(record["steps"]) for record in answer["passes"])

    async def status(self) -> Status:
        """`show status`."""
        return parse_status(await self._call("show", "status", "--json"))

    async def rules(self) -> dict[str, int]:
        """`show firewall`: first packets by rule."""
        return parse_rules(await self._call("show", "firewall", "--json"))

    async def sessions(self, *filters: str) -> list[dict[str, Any]]:
        """`show sessions`, with its options."""
        shown: dict[str, Any] = json.loads(await self._call("show", "sessions", "--json", *filters))
        return list(shown["sessions"])

    async def rules_when(self, holds: Callable[[dict[str, int]], bool], seconds: float, what: str) -> dict[str, int]:
        """Ask `show firewall` until a condition holds, as :meth:`sas_when` does."""
        return await self._when(self.rules, holds, seconds, what)

    async def sas_when(
        self, holds: Callable[[tuple[ShownSa, ...]], bool], seconds: float, what: str
    ) -> tuple[ShownSa, ...]:
        """Ask as in :meth:`sas_now` until a condition holds. Raises GatewayMisbehaved with the last answer after
        ``seconds``.
        """
        return await self._when(self.sas_now, holds, seconds, what)

    async def carrying(self) -> tuple[ShownSa, ...]:
        """`show sas` once the engine has both directions; the kernel only says why. Raises GatewayMisbehaved."""

        def settled(sas: tuple[ShownSa, ...]) -> bool:
            taken = sas if self.engine == "kernel" else [sa for sa in sas if sa.state == self.engine]
            decided = self.engine != "kernel" or all(sa.state == "kernel" and sa.reason for sa in sas)
            return decided and {sa.direction for sa in taken} == {"in", "out"}

        return await self.sas_when(settled, CARRY_SECONDS, f"both directions in {self.engine}")

    async def status_when(self, holds: Callable[[Status], bool], seconds: float, what: str) -> Status:
        """Ask what `show status` would print until a condition holds, as :meth:`sas_when` does."""
        return await self._when(self.status_now, holds, seconds, what)

    async def _when(
        self, ask: Callable[[], Awaitable[Answer]], holds: Callable[[Answer], bool], seconds: float, what: str
    ) -> Answer:
        deadline = time.monotonic() + seconds
        while True:
            said: Answer | IpsecGwError
            if self._daemon is not None:
                self._daemon.ensure_running()
            try:
                said = await ask()
                if holds(said):
                    return said
            except IpsecGwError as error:
                said = error
            if time.monotonic() > deadline:
                log = self._daemon.tail() if self._daemon else ""
                raise GatewayMisbehaved(f"waited {seconds:.0f} s for {what}, last answer: {said}; log: {log}")
            await asyncio.sleep(POLL_SECONDS)

    async def off(self) -> None:
        """Stop the daemon and give everything back, like an operator does. Done once; later calls do nothing."""
        if self._off:
            return
        self._off = True
        if self._daemon is not None:
            await self._daemon.stop(DAEMON_STOP_SECONDS)
        try:
            await self._pinned("off")
        finally:
            if self._vpp:
                await self._pinned("vpp", "down")
