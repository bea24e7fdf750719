"""A real VPP that runs only while it is needed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipsec_gw.engines.vpp import VppEngine
from ipsec_gw.gateway import VPP_ABILITIES
from ipsec_gw.ownership.attendant import Attendant
from ipsec_gw.ownership.demand import Demand
from ipsec_gw.ownership.engine_link import EngineLink
from tests.contract.values import make_site, outbound_packet
from tests.contract.world import World
from tests.integration.conftest import Box, until
from tests.integration.vpp_world import docked_world
from vpp_conf.paths import VppPaths
from vpp_conf.process import recorded
from vpp_conf.service import VppService
from vpp_conf.start_options import StartOptions, remember
from vpp_conf.startup.expectation import expectation_from_json
from vpp_conf.startup.values import Needs

pytestmark = [pytest.mark.root, pytest.mark.vpp, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
IDLE = 30.0


@pytest.fixture
def world(tmp_path: Path, vpp: None) -> Iterator[World]:
    with docked_world(tmp_path, "vppd") as built:
        yield built


async def test_it_is_started_carries_and_is_stopped(world: World) -> None:
    """The time is the test's: nothing waits for the idle time."""
    paths = VppPaths(world.run_dir.resolve())
    link, now, needed, told = EngineLink(VppEngine(world.context), VPP_ABILITIES), [0.0], [False], list[str]()

    async def settle() -> None:
        assert not link.up, "nothing is given to it any more before it is stopped"

    attendant = Attendant(
        link,
        Demand(IDLE),
        VppService(world.run_dir),
        needed=lambda: needed[0],
        empty=lambda: True,
        settle=settle,
        look=lambda: None,
        tell=told.append,
        clock=lambda: now[0],
    )
    remember(world.run_dir, StartOptions(Needs(sas=64, tunnels=33)))
    await attendant.tick()
    assert recorded(paths.pid_file) is None
    needed[0] = True
    await attendant.tick()
    first = recorded(paths.pid_file)
    assert first is not None
    assert "33 tunnels" in paths.startup.read_text(), "the options of the last start"
    await link.open()
    site = await make_site(link.engine)
    world.steering.set_engine(True)
    world.to_engine_up(outbound_packet(1))
    world.ciphertext(site.outbound.key.spi)
    needed[0] = False
    await attendant.tick()
    now[0] += IDLE
    await attendant.tick()
    assert not first.is_alive()
    assert recorded(paths.pid_file) is None
    assert not paths.api_socket.exists()
    needed[0] = True
    await attendant.tick()
    again = recorded(paths.pid_file)
    assert again is not None
    assert again != first
    async with asyncio.timeout(30.0):
        await link.open()
    assert await link.retrieve() == {}
    assert expectation_from_json(paths.plan.read_text()).workers == ()
    assert told == []
    await link.engine.close()


def test_the_daemon_has_none_without_an_sa_and_stops_one_that_nothing_needs(box: Box, vpp: None) -> None:
    box.config = box.tmp / "needed.toml"
    box.config.write_text('[gateway]\nvpp = "needed"\nvpp_idle_seconds = 1.0\n')
    checked = box.gw("check", "--file-only")
    assert "VPP runs while it is needed" in checked.stdout, checked.stdout
    box.charon()
    child = box.daemon()
    status = until(lambda: (s := box.status())["inSync"] and s, "in sync")
    engine = status["engine"]
    assert (engine["name"], engine["absent"], status["wan"]) == ("vpp", "", ["wan0"])
    assert engine["life"] == "runs while it is needed: nothing needs it now"
    paths = VppPaths(box.run_dir.resolve())
    assert recorded(paths.pid_file) is None
    up = box.gw("vpp", "up")
    assert up.returncode == 0, up.stderr
    until(lambda: box.status()["engine"]["note"], "one that was started by hand is taken")
    until(lambda: recorded(paths.pid_file) is None, "it is stopped: nothing needs it")
    until(lambda: "nothing needs it now" in box.status()["engine"]["life"], "that is said")
    assert "VPP runs while it is needed" in box.gw("plan").stdout
    assert child.poll() is None
    assert "engine was lost" not in box.gw("show", "history", "--json").stdout
    assert "cannot be opened" not in box.gw("show", "history", "--json").stdout
    assert box.gw("off").returncode == 0
