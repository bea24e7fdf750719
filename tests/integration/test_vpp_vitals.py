"""A real VPP that dies or hangs is noticed, and one that hangs is ended; its numbers are read without vpp_papi."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipsec_gw.engines.vpp import VppEngine
from ipsec_gw.ownership.engine_link import EngineLink
from ipsec_gw.ownership.sentry import Sentry
from tests.contract.values import inbound_packet, make_site, oracle, outbound_packet
from tests.contract.world import World
from tests.integration.conftest import until
from tests.integration.vpp_world import docked_world
from vpp_conf import lifecycle
from vpp_conf.api import VppApi
from vpp_conf.paths import VppPaths
from vpp_conf.process import ProcessId, identify, recorded
from vpp_conf.raw_api import RawApi
from vpp_conf.recorder import Recorder
from vpp_conf.traffic import TrafficReader
from vpp_conf.vitals import VppVitals

pytestmark = [pytest.mark.root, pytest.mark.vpp, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def world(tmp_path: Path, vpp: None) -> Iterator[World]:
    with docked_world(tmp_path, "vppv") as built:
        lifecycle.up(tmp_path)
        yield built


def process_of(world: World) -> ProcessId:
    found = recorded(VppPaths(world.run_dir.resolve()).pid_file)
    assert found is not None
    return found


class Watched:
    """A link to VPP under a sentry, until it is lost."""

    def __init__(self, world: World, bound: float) -> None:
        self.link = EngineLink(VppEngine(world.context))
        self.told: list[str] = []
        self.lost = asyncio.Event()
        self.sentry = Sentry(self.link, world.steering, bound, lost=self.lost.set, tell=self.told.append)
        world.steering.set_engine(True)

    async def until_lost(self) -> None:
        async with asyncio.timeout(20.0):
            await self.lost.wait()
        await self.link.engine.close()


@pytest.mark.parametrize(
    ("number", "why", "bound"),
    [(signal.SIGKILL, "has ended", 15.0), (signal.SIGSTOP, "did not answer", 0.5)],  # a process may be long in dying
)
async def test_a_vpp_that_dies_or_hangs_is_lost_and_its_last_counters_are_kept(
    world: World, number: signal.Signals, why: str, bound: float
) -> None:
    watched = Watched(world, bound)
    await watched.link.open()
    site = await make_site(watched.link.engine)
    process = process_of(world)
    task = asyncio.create_task(watched.sentry.run())
    world.to_engine_up(outbound_packet(1))
    world.ciphertext(site.outbound.key.spi)
    await asyncio.sleep(1.0)  # it must not be lost while it is well, for twice the bound
    assert watched.link.up
    begun = time.monotonic()
    os.kill(process.pid, number)
    await watched.until_lost()
    print(f"\n{number.name}: lost after {1000 * (time.monotonic() - begun):.1f} ms")
    assert why in watched.link.trouble
    assert identify(process.pid) != process, "nothing of it can send any more"
    sent = watched.link.sent(site.outbound.key)
    assert sent is not None
    assert sent.packets == 1
    world.to_engine_up(outbound_packet(2))
    until(world.steering.engine_gone, "the guard is open to the kernel")
    task.cancel()


async def test_numbers_of_sas_come_by_a_lean_connection(world: World) -> None:
    engine = VppEngine(world.context)
    await engine.open()
    site = await make_site(engine)
    api = await RawApi.connect(VppPaths(world.run_dir.resolve()).api_socket)
    assert api.tells_numbers
    before = {tuple(numbers) for numbers in (await api.numbers()).values()}
    assert before == {(0, 0)}
    world.steering.set_engine(True)
    world.steering.steer(site.inbound.key)
    peer = oracle(site.inbound)
    for serial in range(1, 4):
        world.to_engine_wan(peer.encrypt(inbound_packet(serial)))
        world.plaintext(lambda ip, serial=serial: ip.id == serial)
    world.to_engine_up(outbound_packet(4))
    world.ciphertext(site.outbound.key.spi)
    await api.ping()
    assert sorted((await api.numbers()).values()) == [(0, 3), (1, 0)]
    assert await engine.numbers() == {site.inbound.key: 3}
    api.close()
    await engine.close()


async def test_another_process_with_that_number_is_not_killed(world: World) -> None:
    """What the PID file names has to be the very process that answers."""
    paths = VppPaths(world.run_dir.resolve())
    process = process_of(world)
    recorded_text = paths.pid_file.read_text()
    paths.pid_file.write_text(f"{os.getpid()} 1\n")
    recorder = Recorder(paths, VppApi(paths.api_socket, None))
    vitals = await VppVitals.open(paths, process, TrafficReader(), recorder)
    assert not vitals.fence()
    assert vitals.evidence("it is somebody else's") == ""
    vitals.close()
    paths.pid_file.write_text(recorded_text)
    assert process.is_alive()
