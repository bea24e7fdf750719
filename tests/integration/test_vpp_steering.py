"""VPP behind the product's own docks: joined, steered to, killed, and back."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from ipsec_gw.engines.vpp import VppEngine
from ipsec_gw.errors import EnvironmentMissing
from tests.contract.values import inbound_packet, make_site, oracle, outbound_packet
from tests.contract.world import UP_ENGINE, WAN, Wire, World
from tests.integration.vpp_world import docked_world
from vpp_conf import lifecycle
from vpp_conf.locate import locate_vpp
from vpp_conf.process import identify

pytestmark = [pytest.mark.root, pytest.mark.vpp, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    try:
        locate_vpp()
    except EnvironmentMissing as missing:
        pytest.skip(str(missing))
    with docked_world(tmp_path, "vpps") as built:
        lifecycle.up(tmp_path)
        yield built


@pytest.fixture
def kernel(world: World) -> Iterator[Wire]:
    """What reaches the gateway's kernel on the WAN."""
    wire = Wire(WAN)
    yield wire
    wire.close()


def is_esp(spi: int, sequence: int) -> Callable[[Ether], bool]:
    start = spi.to_bytes(4, "big") + sequence.to_bytes(4, "big")
    return lambda frame: IP in frame and bytes(frame[IP].payload).startswith(start)


async def test_vpp_gets_what_is_steered_and_the_kernel_the_rest(world: World, kernel: Wire) -> None:
    engine = VppEngine(world.context)
    await engine.open()
    site = await make_site(engine)
    peer, key = oracle(site.inbound), site.inbound.key
    world.to_engine_wan(peer.encrypt(inbound_packet(1)))
    kernel.receive(is_esp(key.spi, 1))  # not steered yet

    world.steering.steer(key)
    world.to_engine_wan(peer.encrypt(inbound_packet(2)))
    world.plaintext(lambda ip: ip.id == 2)
    world.to_engine_up(outbound_packet(3))
    world.ciphertext(site.outbound.key.spi)
    assert world.steering.dock_counts(WAN).to_engine == 1
    assert world.steering.dock_counts(UP_ENGINE).to_engine == 1

    world.steering.set_engine(False)
    world.to_engine_wan(peer.encrypt(inbound_packet(4)))
    kernel.receive(is_esp(key.spi, 3))
    world.steering.set_engine(True)

    pid = lifecycle.status(world.run_dir).pid
    assert pid is not None
    process = identify(pid)
    assert process is not None
    os.kill(pid, signal.SIGKILL)
    assert process.stop(5.0, 5.0)
    world.to_engine_wan(peer.encrypt(inbound_packet(5)))
    kernel.receive(is_esp(key.spi, 4))  # the very next packet, nobody did anything

    lifecycle.up(world.run_dir)
    await engine.open()
    site = await make_site(engine)
    world.steering.steer(site.inbound.key)
    world.to_engine_wan(oracle(site.inbound).encrypt(inbound_packet(6)))
    world.plaintext(lambda ip: ip.id == 6)
    await engine.close()


async def test_stopping_vpp_leaves_the_docks(world: World, kernel: Wire) -> None:
    engine = VppEngine(world.context)
    await engine.open()
    site = await make_site(engine)
    world.steering.steer(site.inbound.key)
    peer = oracle(site.inbound)
    world.to_engine_wan(peer.encrypt(inbound_packet(1)))
    world.plaintext(lambda ip: ip.id == 1)
    await engine.close()
    lifecycle.down(world.run_dir)
    world.to_engine_wan(peer.encrypt(inbound_packet(2)))
    kernel.receive(is_esp(site.inbound.key.spi, 2))
    assert world.steering.docked() == {WAN, UP_ENGINE}
    assert world.steering.dock_counts(WAN).fell_to_kernel == 1
