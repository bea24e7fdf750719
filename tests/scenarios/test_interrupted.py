"""Whatever ends a run in its middle, nothing of it stays on the machine."""

import signal

import pytest

from tests.scenarios.lab_command import await_end, descendants, finish, kill_group, start, traces, wait_for_line

pytestmark = [pytest.mark.scenario, pytest.mark.root, pytest.mark.timeout(240)]

# Natively even a kernel without ESP gets as far as two running charons.
NATIVE = ("run", "site-to-site", "--baseline", "--environment", "native")


@pytest.fixture
def run(request):
    """Starts the lab; a failed test takes its processes with it."""
    started = []

    def begin(*arguments):
        started.append(start(*arguments))
        return started[-1]

    yield begin
    for process in started:
        kill_group(process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_native_run_is_interrupted(run, number):
    before = traces()
    process = run(*NATIVE)
    wait_for_line(process, "build the network")
    assert traces().minus(before), "the run had made nothing to be cleared up"
    children = descendants(process.pid)
    process.send_signal(number)
    code, _, lines = finish(process)
    assert code == 130, lines
    assert await_end(children) == []
    assert traces().minus(before) == []


def test_impatience_does_not_stop_the_clearing_up(run):
    before = traces()
    process = run(*NATIVE)
    wait_for_line(process, "build the network")
    for _ in range(3):
        process.send_signal(signal.SIGINT)
    code, _, lines = finish(process)
    assert code == 130, lines
    assert traces().minus(before) == []


def test_the_next_run_removes_what_a_killed_one_left(run):
    before = traces()
    process = run(*NATIVE)
    wait_for_line(process, "build the network")
    children = descendants(process.pid)
    process.kill()
    finish(process)
    assert traces().minus(before), "a killed run cannot clear up"
    assert await_end(children) == [], "children must not outlive a killed run"
    code, _, lines = finish(run("down"))
    assert code == 0, lines
    assert traces().minus(before) == []


def test_an_unknown_scenario_names_the_known_ones(run):
    before = traces()
    process = run("run", "no-such-scenario")
    code, _, lines = finish(process)
    assert code == 1
    assert "no scenario no-such-scenario - known: site-to-site" in lines
    assert traces().minus(before) == []


@pytest.mark.parametrize("words", ["boot the virtual machine", "initiate the tunnel"])
def test_the_virtual_machine_goes_too(run, words):
    before = traces()
    process = run("run", "site-to-site", "--baseline", "--environment", "vm")
    wait_for_line(process, words)
    children = descendants(process.pid)
    assert children, "no virtual machine is running"
    process.send_signal(signal.SIGINT)
    code, _, lines = finish(process)
    assert code == 130, lines
    assert await_end(children) == []
    assert traces().minus(before) == []


def test_a_killed_run_takes_its_virtual_machine_along(run):
    before = traces()
    process = run("run", "site-to-site", "--baseline", "--environment", "vm")
    wait_for_line(process, "boot the virtual machine")
    children = descendants(process.pid)
    assert children
    process.kill()
    finish(process)
    assert await_end(children) == []
    code, _, lines = finish(run("down"))
    assert code == 0, lines
    assert traces().minus(before) == []
