"""Running a scenario here, or in the virtual machine, with nothing left behind either way."""

from __future__ import annotations

import platform
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import ipsec_gw
from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab import netns, session
from ipsec_gw.lab.autopsy import write_autopsy
from ipsec_gw.lab.context import Lab, Options
from ipsec_gw.lab.kernel import TOOLS, Environment, choose_environment, need_root, release
from ipsec_gw.lab.process import need_tools, stay_on_one_processor
from ipsec_gw.lab.progress import BOOTED, Listener, Note, StepDone, StepStarted, parse
from ipsec_gw.lab.report import Check, Report, Versions, from_json, merged
from ipsec_gw.lab.scenarios import Part, Scenario

EXPECTED = (IpsecGwError, OSError, TimeoutError)
"""What a step may fail with: it becomes a failed check. Anything else is a bug of the lab, and a traceback."""

FAILED, INTERRUPTED = 1, 130
"""Exit codes: a check failed; Ctrl-C or SIGTERM (128 + SIGINT)."""


async def run_native(name: str, part: Part, options: Options, listener: Listener) -> Report:
    """Run a part of the scenario called ``name`` in this kernel.

    Raises EnvironmentMissing; what fails later becomes a failed check of the report.
    """
    need_root()
    need_tools(TOOLS)
    await _sweep(listener)
    stay_on_one_processor()
    started = time.monotonic()
    tag = session.new_tag()
    topology = part.topology(tag)
    mine = session.begin(tag, topology.namespaces)
    lab = Lab(mine, topology, options, listener, AsyncExitStack())
    try:
        await _play(part, lab)
        _check_leftovers(lab)
    finally:
        await session.end(mine)
    return Report(
        scenario=name,
        environment=Environment.NATIVE,
        engine=options.engine,
        versions=Versions(release(), lab.strongswan, lab.vpp, platform.python_version(), ipsec_gw.__version__),
        checks=tuple(lab.checks),
        notes=tuple(lab.notes),
        seconds=round(time.monotonic() - started, 1),
    )


async def _sweep(listener: Listener) -> None:
    for name in await session.sweep():
        listener.tell(Note(f"removed what a dead run left: {name}"))


async def _play(part: Part, lab: Lab) -> None:
    try:
        async with lab.stack:
            lab.stack.push_async_callback(_take_down, lab)
            try:
                with lab.step("build the network"):
                    await netns.build(lab.topology)
                await part.run(lab)
            except EXPECTED as error:
                lab.check("the scenario runs to its end", False, "no error", f"{type(error).__name__}: {error}")
                await write_autopsy(lab)
    except EXPECTED as error:
        lab.check("everything can be taken down", False, "no error", f"{type(error).__name__}: {error}")


async def _take_down(lab: Lab) -> None:
    """Last of the stack: by now every process in the namespaces must have ended by itself."""
    with lab.step("remove the network"):
        lab.save_logs()
        survivors = await session.end_processes(lab.session)
        lab.check("no process is left in the namespaces", not survivors, "none", ", ".join(survivors) or "none")
        await netns.remove(lab.topology.namespaces)


def _check_leftovers(lab: Lab) -> None:
    left = session.leftovers(lab.session, lab.pids)
    for name, found in (
        ("no namespace is left", left.namespaces),
        ("no process is left", left.processes),
        ("no pin is left", left.pins),
    ):
        lab.check(name, not found, "none", ", ".join(found) or "none")


class Relay:
    """Passes the guest's lines on as events."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._started = time.monotonic()

    def __call__(self, line: str) -> None:
        """Take a line."""
        if line == BOOTED:
            self._listener.tell(StepDone("boot the virtual machine", time.monotonic() - self._started))
        else:
            self._listener.tell(parse(line))


async def run_vm(name: str, part: Part, options: Options, listener: Listener) -> Report:
    """Run a part of the scenario called ``name`` in the virtual machine. Raises EnvironmentMissing and GuestFailed."""
    # The guest never comes here, so it need not import this.
    from ipsec_gw.lab.vm import run_in_vm  # noqa: PLC0415

    need_root()
    await _sweep(listener)
    started = time.monotonic()
    with session.exchange_directory() as directory:
        exchange = Path(directory)
        report, artifacts = exchange / "report.json", exchange / "artifacts"
        argv = [sys.executable, "-m", "ipsec_gw.lab.guest", name, part.name, str(report)]
        argv += [options.engine, options.proposal, str(artifacts) if options.artifacts else ""]
        argv += [str(options.seed), str(options.minutes), options.cases, str(options.rounds)]
        argv += ["baseline"] if options.baseline else []
        artifacts.mkdir()
        listener.tell(Note("this kernel has no ESP: the scenario runs in a virtual machine"))
        listener.tell(StepStarted("boot the virtual machine"))
        guest = await run_in_vm(
            argv, exchange, Relay(listener), timeout=part.seconds_for(options.minutes, options.rounds)
        )
        if options.artifacts is not None:
            for file in artifacts.iterdir():
                (options.artifacts / file.name).write_bytes(file.read_bytes())
        if not report.exists():
            raise IpsecGwError(f"the guest's run ended with {guest.code} and no report - see its lines above")
        found = from_json(report.read_text())
    gone = session.start_time(guest.pid) is None
    check = Check("no virtual machine is left", gone, "none", "none" if gone else f"process {guest.pid}")
    return replace(
        found,
        environment=Environment.VM,
        checks=(*found.checks, check),
        seconds=round(time.monotonic() - started, 1),
    )


async def run(scenario: Scenario, options: Options, listener: Listener, environment: Environment | None) -> Report:
    """Run all parts where told; without an ``environment``, each where it can be. Raises EnvironmentMissing and
    GuestFailed, and IpsecGwError for a baseline that says nothing and for an engine that cannot play it.
    """
    if options.baseline and not scenario.baseline:
        raise IpsecGwError(f"{scenario.name} is about ipsec-gw alone - run it without --baseline")
    if scenario.only_vpp and options.engine != "vpp":
        raise IpsecGwError(f"{scenario.name}: {scenario.only_vpp} - run it with --engine vpp")
    need_root()
    reports = []
    for part in scenario.parts:
        where = environment or (await choose_environment() if part.needs_esp else Environment.NATIVE)
        chosen = run_native if where is Environment.NATIVE else run_vm
        reports.append(await chosen(scenario.name, part, _options(scenario, part, options), listener))
    return merged(reports)


def _options(scenario: Scenario, part: Part, options: Options) -> Options:
    """Artifacts of several parts have a directory each."""
    if options.artifacts is None or len(scenario.parts) == 1:
        return options
    directory = options.artifacts / part.name
    directory.mkdir(exist_ok=True)
    return replace(options, artifacts=directory)
