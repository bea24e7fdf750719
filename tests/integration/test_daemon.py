"""The daemon's life: start, restart, kill, off; and every kind of bad environment (nothing half-attached)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pytest

from ipsec_gw.errors import EnvironmentMissing
from ipsec_gw.gateway import Paths, check_machine
from ipsec_gw.observe.sdnotify import OFF_CODE
from tests.integration.conftest import Box, until
from vpp_conf.locate import locate_vpp

pytestmark = pytest.mark.root
NOTHING = {"pins": "", "veth": "", "xdp": "", "qdisc": "", "rules": ""}


def vpp_installed() -> bool:
    try:
        locate_vpp()
    except EnvironmentMissing:
        return False
    return True


def assert_refused(box: Box, *words: str, says: str, code: int = 1) -> None:
    """One line with the way out, the exit code, and no trace."""
    done = box.gw(*words)
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("ipsec-gw:")]
    assert len(lines) == 1, done.stderr
    assert says in lines[0]
    assert " - " in lines[0], "no way out is given"
    assert "Traceback" not in done.stderr
    assert box.traces() == NOTHING


def test_run_stop_restart_kill_and_off(box: Box) -> None:
    box.charon()
    first = box.daemon("--engine", "soft")
    status = until(lambda: (s := box.status())["inSync"] and s, "in sync")
    assert (status["engine"]["name"], status["engine"]["absent"], status["wan"]) == ("soft", "", ["wan0"])
    assert status["strongswan"] == "5.9.8"
    in_place = box.traces()
    assert all(in_place.values()), in_place
    refused = box.gw("run", "--vici", f"unix://{box.vici}")
    assert refused.returncode == 1
    assert "runs already" in refused.stderr

    assert box.stop(first) == 0
    assert not (box.run_dir / "control.sock").exists()
    assert all(box.traces().values()), "stopping changes nothing in the data path"

    second = box.daemon("--engine", "soft")
    until(lambda: box.status()["inSync"], "in sync after a restart")
    box.stop(second, signal.SIGKILL)
    assert all(box.traces().values())

    third = box.daemon("--engine", "soft")
    assert box.gw("off").returncode == 0
    assert third.wait(60) == OFF_CODE, "systemd does not start it again"
    assert box.traces() == NOTHING


def test_off_cleans_up_after_a_crash_without_a_daemon(box: Box) -> None:
    box.charon()
    box.stop(box.daemon("--engine", "soft"), signal.SIGKILL)
    assert all(box.traces().values())
    done = box.gw("off")
    assert done.returncode == 0, done.stderr
    assert box.traces() == NOTHING
    assert box.gw("off").returncode == 0, "off again is no error"


def test_the_operators_hand_outlives_the_daemon_and_goes_with_off(box: Box) -> None:
    box.charon()
    first = box.daemon("--engine", "soft")
    said = box.gw("fallback")
    assert (said.returncode, said.stdout) == (0, "0 SAs are in the kernel by `ipsec-gw fallback`\n"), said.stderr
    assert box.gw("return", "--connection", "site").returncode == 1
    assert "everything was moved" in box.gw("return", "--connection", "site").stderr
    assert box.gw("fallback", "--sa", "1", "--connection", "site").returncode == 2
    box.stop(first, signal.SIGKILL)
    box.daemon("--engine", "soft")
    assert "everything was moved" in box.gw("return", "--sa", "1").stderr, "another daemon knows of it"
    assert box.gw("return").returncode == 0
    assert "was not moved" in box.gw("return", "--connection", "site").stderr
    assert box.gw("fallback").returncode == 0
    assert box.gw("off").returncode == 0
    assert not (box.run_dir / "fallback.json").exists()


def test_without_an_engine_there_is_nothing_to_move(box: Box) -> None:
    box.charon()
    box.daemon("--engine", "kernel")
    assert_refused(box, "fallback", says="the kernel carries everything already")


def test_the_kernel_engine_touches_nothing(box: Box) -> None:
    box.charon()
    box.daemon("--engine", "kernel")
    status = until(lambda: (s := box.status())["inSync"] and s, "in sync")
    assert status["engine"]["name"] == "kernel"
    assert "nothing is accelerated" in status["engine"]["absent"]
    assert box.traces() == NOTHING


def test_without_vpp_auto_is_the_kernel_and_says_so(box: Box) -> None:
    box.charon()
    child = box.daemon()
    assert box.status()["engine"]["name"] == "kernel"
    assert "no VPP runs here" in box.log(child)


@pytest.mark.vpp
def test_auto_takes_a_vpp_that_comes_up_later_and_survives_its_death(box: Box) -> None:
    if not vpp_installed():
        pytest.skip("VPP is not installed")
    box.charon()
    child = box.daemon()
    assert box.status()["engine"]["name"] == "kernel"
    up = box.gw("vpp", "up")
    assert up.returncode == 0, up.stderr
    try:
        status = until(lambda: (s := box.status_or_none()) and s["engine"]["name"] == "vpp" and s, "VPP is taken")
        assert (status["engine"]["absent"], status["wan"]) == ("", ["wan0"])
        assert status["engine"]["note"]
        until(lambda: box.status()["inSync"], "in sync")
        assert box.gw("vpp", "down").returncode == 0
        until(lambda: "away" in box.status()["engine"]["absent"], "the loss is noticed")
        assert child.poll() is None
        assert box.gw("vpp", "up").returncode == 0
        until(lambda: (s := box.status())["engine"]["absent"] == "" and s["inSync"], "the return is noticed")
        box.stop(child, signal.SIGKILL)
        assert box.gw("vpp", "down").returncode == 0
        box.daemon("--engine", "vpp")  # beside what the other left, it need not wait for VPP to give that back
        assert "does not answer" in box.status()["engine"]["absent"]
        assert box.gw("vpp", "up").returncode == 0
        until(lambda: (s := box.status())["engine"]["absent"] == "" and s["inSync"], "a later return is noticed")
        assert box.gw("off").returncode == 0
        assert box.traces() == NOTHING
    finally:
        assert box.gw("vpp", "down").returncode == 0


def test_charon_comes_back(box: Box) -> None:
    charon = box.charon()
    child = box.daemon("--engine", "kernel")
    charon.kill()
    charon.wait()
    until(lambda: "charon is away" in box.log(child), "the loss is reported")
    box.vici.unlink()
    box.charon()
    until(lambda: "charon is back" in box.log(child), "the return is reported")
    assert child.poll() is None


def test_vici_absent(box: Box) -> None:
    assert_refused(box, "run", "--vici", f"unix://{box.vici}", says="is absent")


def test_vici_hung(box: Box) -> None:
    box.charon("hang")
    config = box.tmp / "c.toml"
    config.write_text(f'[gateway]\nvici = "unix://{box.vici}"\nvici_timeout = 0.2\nengine = "soft"\n')
    box.config = config
    done = box.gw("run")
    assert done.returncode == 1
    assert "did not answer vici 'version' within 0.2 s" in done.stderr
    assert box.traces() == NOTHING


def test_vpp_api_absent(box: Box) -> None:
    box.charon()
    way_out = "vpp up" if vpp_installed() else "VPP is not installed"
    assert_refused(box, "run", "--vici", f"unix://{box.vici}", "--engine", "vpp", says=way_out)


def test_interface_missing(box: Box) -> None:
    box.charon()
    assert_refused(
        box, "run", "--vici", f"unix://{box.vici}", "--engine", "soft", "--wan", "wan9", says="wan9 does not exist"
    )


def test_interface_that_xdp_cannot_steer_on(box: Box) -> None:
    box.charon()
    assert_refused(
        box, "run", "--vici", f"unix://{box.vici}", "--engine", "soft", "--wan", "lo", says="lo is not Ethernet"
    )


def test_no_wan_found(box: Box) -> None:
    box.charon()
    box.sh("ip", "addr", "del", "10.0.0.1/24", "dev", "wan0")
    assert_refused(box, "run", "--vici", f"unix://{box.vici}", "--engine", "soft", says="no WAN interface found")


def test_no_bpffs(box: Box) -> None:
    box.charon()
    box.pins = box.tmp / "pins"
    assert_refused(box, "run", "--vici", f"unix://{box.vici}", "--engine", "soft", says="mount -t bpf")


def _as_nobody(answer: SimpleQueue[str]) -> None:
    os.setuid(65534)
    try:
        check_machine(Paths(Path("/run/nowhere"), Path("/sys/fs/bpf/nowhere")))
    except EnvironmentMissing as error:
        answer.put(str(error))
    answer.put("no complaint")


def test_not_root(box: Box) -> None:
    """In a forked child: another user may not even reach this checkout's interpreter."""
    context = multiprocessing.get_context("fork")
    answer: SimpleQueue[str] = context.SimpleQueue()
    child = context.Process(target=_as_nobody, args=(answer,))
    child.start()
    child.join(30)
    assert "not root" in answer.get()


def test_a_foreign_xdp_program_is_left_alone(box: Box) -> None:
    box.charon()
    source = box.tmp / "x.c"
    source.write_text(
        '__attribute__((section("xdp"), used)) int foreign(void *ctx) { return 2; }\n'
        '__attribute__((section("license"), used)) char the_license[] = "GPL";\n'
    )
    subprocess.run(["clang", "-O2", "-target", "bpf", "-c", source, "-o", source.with_suffix(".o")], check=True)
    box.sh("ip", "link", "set", "wan0", "xdp", "obj", str(source.with_suffix(".o")), "sec", "xdp")
    before = box.sh("ip", "-d", "link", "show", "wan0")
    done = box.gw("run", "--vici", f"unix://{box.vici}", "--engine", "soft")
    assert done.returncode == 1
    assert "wan0" in done.stderr
    assert "XDP program" in done.stderr
    assert box.sh("ip", "-d", "link", "show", "wan0") == before
    assert {**box.traces(), "xdp": ""} == NOTHING


@pytest.mark.vpp
def test_without_hugepages_vpp_runs_and_says_what_would_help(box: Box) -> None:
    if not vpp_installed():
        pytest.skip("VPP is not installed")
    free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("HugePages_Free"))
    if int(free.split()[1]):
        pytest.skip("this machine has hugepages")
    up = box.gw("vpp", "up")
    try:
        assert up.returncode == 0, up.stderr
        assert "ipsec-gw vpp prepare" in up.stderr
    finally:
        assert box.gw("vpp", "down").returncode == 0
