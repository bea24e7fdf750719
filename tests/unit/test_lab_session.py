"""What runs write down, and how the leavings of dead ones are found and removed."""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab import netns, session
from ipsec_gw.lab.process import run
from ipsec_gw.lab.session import Session
from ipsec_gw.lab.traffic import until


@pytest.fixture
def state_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "STATE_DIR", tmp_path / "state")
    monkeypatch.setattr(session, "PIN_DIR", tmp_path / "bpf")
    monkeypatch.setattr(session.tempfile, "tempdir", str(tmp_path))
    return tmp_path / "state"


def dead_process():
    """A pid that was ours and is no more, with its start time."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = session.start_time(process.pid)
    process.communicate(b"\n")
    return process.pid, started


def orphan(tag="igw-0dead0", namespaces=()):
    pid, started = dead_process()
    return replace(session.begin(tag, namespaces), pid=pid, started=started)


def test_tags_are_unlike():
    tags = {session.new_tag() for _ in range(50)}
    assert len(tags) == 50
    assert all(len(tag) == len("igw-") + 6 for tag in tags)


def test_a_session_is_written_before_anything_is_made(state_dir):
    mine = session.begin("igw-000001", ("igw-000001-gwa",))
    assert session.sessions() == [mine]
    assert mine.run_dir.stat().st_mode & 0o777 == 0o700
    assert not session.is_dead(mine)


def test_a_tag_is_taken_once(state_dir):
    session.begin("igw-000001", ())
    with pytest.raises(IpsecGwError, match="lab down"):
        session.begin("igw-000001", ())


def test_a_used_again_pid_is_not_the_owner(state_dir):
    mine = session.begin("igw-000001", ())
    assert session.is_dead(replace(mine, started=mine.started - 1))


def test_an_ended_owner_is_dead(state_dir):
    pid, started = dead_process()
    assert session.is_dead(Session("igw-0dead0", pid, started, ()))


def test_a_zombie_is_dead():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    try:
        assert session.start_time(child) is None
    finally:
        os.waitpid(child, 0)


def test_unreadable_state_files_are_left_alone(state_dir):
    state_dir.mkdir()
    for name, text in (("a", ""), ("b", "{}"), ("c", "[1]"), ("d", json.dumps({"tag": "x", "namespaces": []}))):
        (state_dir / f"{name}.json").write_text(text)
    assert session.sessions() == []


async def test_sweep_removes_the_dead_and_spares_the_living(state_dir):
    alive = session.begin("igw-000001", ())
    dead = orphan()
    session.write(dead)
    dead.pins.mkdir(parents=True)
    (dead.pins / "xdp_link").touch()
    assert await session.sweep() == ["igw-0dead0"]
    assert not dead.run_dir.exists()
    assert not dead.pins.exists()
    assert not dead.state_file.exists()
    assert session.sessions() == [alive]


async def test_what_lab_up_made_stays_until_lab_down(state_dir):
    session.keep(orphan())
    assert await session.sweep() == []
    assert await session.down() == ["igw-0dead0"]
    assert session.sessions() == []


def _names_in(directory):
    return [str(path) for path in directory.iterdir()]


async def test_sweep_removes_exchange_directories_of_the_dead(state_dir, tmp_path):
    pid, started = dead_process()
    boot = session.BOOT_ID.read_text()[:8]
    dead = tmp_path / f"ipsec-gw-lab-{boot}-{pid}-{started}-abc_-d"
    foreign = tmp_path / "ipsec-gw-lab-something-else-again"
    of_the_host = tmp_path / f"ipsec-gw-lab-00000000-{pid}-{started}-abcd"
    for path in (dead, foreign, of_the_host):
        path.mkdir()
    with session.exchange_directory() as mine:
        assert await session.sweep() == [dead.name]
        assert mine in _names_in(tmp_path)
    assert not dead.exists()
    assert foreign.exists()
    assert of_the_host.exists(), "the virtual machine must not remove its host's"


async def test_down_spares_the_living(state_dir):
    session.begin("igw-000001", ())
    assert await session.down() == []


def test_leftovers_name_what_is_there(state_dir):
    mine = session.begin("igw-000001", ())
    mine.pins.mkdir(parents=True)
    (mine.pins / "prog").touch()
    left = session.leftovers(mine, {os.getpid(): session.start_time(os.getpid())})
    assert left.pins == (str(mine.pins / "prog"),)
    assert left.processes == (str(os.getpid()),)
    assert left.files == (str(mine.run_dir), str(mine.state_file))


@pytest.mark.root
async def test_sweep_ends_processes_and_removes_namespaces(state_dir):
    tag = session.new_tag()
    dead = orphan(tag, (f"{tag}-gwa",))
    session.write(dead)
    try:
        await run(["ip", "netns", "add", f"{tag}-gwa"])
        stubborn = await asyncio.create_subprocess_exec("nsenter", f"--net=/run/netns/{tag}-gwa", "sleep", "1000")
        await until(lambda: stubborn.pid in netns.processes(dead.namespaces), 10.0, "a process in the namespace")
        assert netns.present(dead.namespaces) == [f"{tag}-gwa"]
        assert await session.sweep() == [tag]
        assert await asyncio.wait_for(stubborn.wait(), 10) != 0
        assert netns.present(dead.namespaces) == []
        assert session.leftovers(dead, {}) == session.Leftovers((), (), (), ())
    finally:
        await netns.remove(dead.namespaces)


async def test_what_dies_by_itself_is_waited_for_and_no_survivor(monkeypatch):
    dying = await asyncio.create_subprocess_exec(sys.executable, "-c", "pass")
    lives = await asyncio.create_subprocess_exec("sleep", "1000")
    monkeypatch.setattr(netns, "processes", lambda _: {dying.pid: "", lives.pid: "sleep 1000"})
    mine = Session("igw-000001", os.getpid(), 0, ())
    assert await session.end_processes(mine) == ["sleep 1000"]
    assert await asyncio.wait_for(lives.wait(), 10) != 0
    assert await asyncio.wait_for(dying.wait(), 10) is not None
