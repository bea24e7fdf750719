"""The lab's network for real: built, used, captured, removed."""

import contextlib
import subprocess
from pathlib import Path

import pytest

from ipsec_gw.lab import netns, session
from ipsec_gw.lab.capture import Capture
from ipsec_gw.lab.process import CommandFailed, Daemon, run
from ipsec_gw.lab.topology import HOST, LAN, WAN, Role, site_to_site
from ipsec_gw.lab.traffic import Host, ping, until

pytestmark = pytest.mark.root

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
OUR_NETWORK = Path("/proc/thread-self/ns/net")


@pytest.fixture
async def network():
    topology = site_to_site(session.new_tag())
    try:
        await netns.build(topology)
        yield topology
    finally:
        await netns.remove(topology.namespaces)
    assert netns.present(topology.namespaces) == []


def _forwards():
    return FORWARDING.read_text().strip() == "1"


def host(topology, role, interface):
    return Host(topology.namespace(role), topology.address(role, interface))


async def test_neighbours_reach_each_other_and_the_wan_sees_it(network):
    capture = Capture(network.namespace(Role.WAN), "to-a")
    try:
        gateway_a, gateway_b = (host(network, role, WAN) for role in (Role.GATEWAY_A, Role.GATEWAY_B))
        await ping(gateway_a, gateway_b, identifier=5, sizes=(8,), seed=1)
        await ping(
            host(network, Role.CLIENT, HOST), host(network, Role.GATEWAY_A, LAN), identifier=6, sizes=(8,), seed=2
        )
        await until(lambda: capture.drain() or any(frame.ipv4 for frame in capture.frames), 10.0, "a captured echo")
        echoes = [frame for frame in capture.frames if frame.ipv4 and frame.ipv4[9] == 1]
        assert {frame.outgoing for frame in echoes} == {True, False}
        assert capture.lost() == 0
    finally:
        capture.close()


async def test_hosts_send_wire_size_packets_with_checksums(network):
    for role, interface in ((Role.CLIENT, HOST), (Role.SERVER, HOST), (Role.WAN, "to-a")):
        shown = await run(["ethtool", "-k", interface], namespace=network.namespace(role))
        for feature in ("tx-checksumming", "tx-tcp-segmentation", "generic-segmentation-offload"):
            assert f"{feature}: off" in shown.stdout, (role, feature)


async def test_gateways_forward_and_nobody_else(network):
    for role in network.roles:
        with netns.inside(network.namespace(role)):
            assert _forwards() is (role in network.forwarding), role


async def test_a_failed_command_says_what_and_why(network):
    with pytest.raises(CommandFailed, match=r"ip link show nothing.*does not exist"):
        await run(["ip", "link", "show", "nothing"], namespace=network.namespace(Role.CLIENT))


async def test_a_command_that_never_ends_is_killed():
    with pytest.raises(CommandFailed, match="no end after"):
        await run(["sleep", "1000"], timeout=0.1)


async def test_a_daemon_lives_in_its_namespace_until_stopped(network, tmp_path):
    name = network.namespace(Role.CLIENT)
    daemon = await Daemon.start("sleeper", ["sleep", "1000"], tmp_path / "log", namespace=name)
    await until(lambda: daemon.pid in netns.processes([name]), 10.0, "the daemon in its namespace")
    await daemon.stop()
    assert session.start_time(daemon.pid) is None
    with pytest.raises(CommandFailed, match="sleeper ended"):
        daemon.ensure_running()


async def test_a_daemon_that_ignores_sigterm_is_killed(tmp_path):
    deaf = "import signal, sys; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    log = tmp_path / "log"
    daemon = await Daemon.start("deaf", ["python3", "-c", deaf], log)
    await until(lambda: "deaf" in log.read_text(), 10.0, "a deaf daemon")
    with contextlib.suppress(TimeoutError):
        await daemon.stop(0.2)
    assert session.start_time(daemon.pid) is None


def test_entering_a_namespace_is_undone_after_an_error(tmp_path):
    tag = session.new_tag()
    subprocess.run(["ip", "netns", "add", tag], check=True)
    try:
        before = OUR_NETWORK.stat().st_ino
        with pytest.raises(RuntimeError, match="inside"), netns.inside(tag):
            raise RuntimeError("inside" if OUR_NETWORK.stat().st_ino != before else "still outside")
        assert OUR_NETWORK.stat().st_ino == before
    finally:
        subprocess.run(["ip", "netns", "del", tag], check=True)


async def test_a_capture_outlives_a_link_that_goes_down(network):
    client, gateway = host(network, Role.CLIENT, HOST), host(network, Role.GATEWAY_A, LAN)
    capture = Capture(network.namespace(Role.CLIENT), HOST)
    try:
        await ping(client, gateway, identifier=1, sizes=(100,), seed=1)
        before = capture.drain()
        for state in ("down", "up"):
            await run(["ip", "link", "set", HOST, state], namespace=network.namespace(Role.CLIENT))
            capture.drain()
        await run(["ip", "route", "replace", "default", "via", str(gateway.address)], namespace=client.namespace)
        await ping(client, gateway, identifier=2, sizes=(100,), seed=2)
        assert before > 0
        assert capture.drain() > 0
    finally:
        capture.close()
