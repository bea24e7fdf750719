"""Real sockets through a pool of VPP: translated by the real VPP, judged by XDP; VPP killed, and back."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import closing

import pytest

from ipsec_gw.model.firewall import TRANSLATOR_PORT
from ipsec_gw.ownership.uplink import TRANSLATOR_END
from tests.integration.conftest import until
from tests.integration.firewall_world import (
    ADDRESSES,
    CLIENT,
    FAR,
    FAR_MTU,
    GATEWAY,
    INNER,
    SERVER,
    WAN,
    FirewallBox,
    exchange,
    firewall_box,
    nothing,
    ping,
    transfer,
)
from tests.integration.vpp_pool_world import (
    CONFIGURATION,
    DENIED,
    OF_VPP,
    OF_XDP,
    POOL,
    pool_box,
    udp_pair,
    where,
)
from vpp_conf.paths import VppPaths
from vpp_conf.process import recorded
from xdp_steer.reasons import Reason

pytestmark = [
    pytest.mark.root,
    pytest.mark.vpp,
    pytest.mark.usefixtures("vpp"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]

SEED = 20260
ECHO, CLOSED = 7000, 7002
IP_MTU_DISCOVER, PMTUDISC_DO, IP_TTL, IP_RECVTTL = 10, 2, 2, 12


@pytest.fixture(scope="module")
def arena(vpp_installed: None) -> Iterator[FirewallBox]:
    with pool_box(CONFIGURATION) as box:
        yield box


@pytest.fixture
def box(arena: FirewallBox) -> FirewallBox:
    until(lambda: arena.ask("nat")["state"] == "VPP", "VPP translates")
    return arena


def test_datagrams_there_and_back(box: FirewallBox) -> None:
    sender, receiver = udp_pair(box)
    with closing(sender), closing(receiver):
        seen = {tuple(exchange(sender, where(receiver), receiver, os.urandom(1 + 37 * n))) for n in range(30)}
        ((address, port),) = seen
        assert address in OF_VPP
        assert port == sender.getsockname()[1]


def test_streams_carry_what_was_sent(box: FirewallBox) -> None:
    data = random.Random(SEED).randbytes(3_000_000)
    with closing(box.listen(SERVER, ECHO)) as listener:
        for host in (CLIENT, INNER):
            source = transfer(box.tcp(host), (ADDRESSES[SERVER][0], ECHO), listener, data)
            assert source[0] in OF_VPP


def test_echo_is_answered(box: FirewallBox) -> None:
    with closing(ping(box, CLIENT, ADDRESSES[SERVER][0], b"there and back")) as made:
        assert made.recv(1 << 16)[8:] == b"there and back"


def test_one_hop_in_all(box: FirewallBox) -> None:
    sender, receiver = udp_pair(box)
    with closing(sender), closing(receiver):
        for one in (sender, receiver):
            one.setsockopt(socket.IPPROTO_IP, IP_TTL, 40)
            one.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        sender.sendto(b"there", where(receiver))
        left, peer = ttl(receiver)
        assert left == 39
        receiver.sendto(b"back", peer)
        assert ttl(sender)[0] == 39


def ttl(receiver: socket.socket) -> tuple[int, tuple[str, int]]:
    _, extra, _, peer = receiver.recvmsg(1 << 16, 256)
    ((_, _, raw),) = extra
    return struct.unpack("i", raw)[0], peer


def test_many_flows_have_ports_of_their_own(box: FirewallBox) -> None:
    with closing(box.udp(SERVER)) as receiver:
        senders = [box.udp(host) for host in (CLIENT, INNER) for _ in range(100)]
        seen = set()
        for number, sender in enumerate(senders):
            seen.add(tuple(exchange(sender, where(receiver), receiver, b"%d" % number)))
        for sender in senders:
            sender.close()
    assert len(seen) == len(senders)
    assert {address for address, _ in seen} <= OF_VPP


def test_fragments_pass_both_ways(box: FirewallBox) -> None:
    sender, receiver = udp_pair(box)
    with closing(sender), closing(receiver):
        assert exchange(sender, where(receiver), receiver, os.urandom(6000))[0] in OF_VPP


def test_path_mtu_is_found(box: FirewallBox) -> None:
    """Beyond the server the network is narrow: its router says so to the translated address."""
    with closing(box.udp(CLIENT)) as sender, closing(box.udp(FAR)) as receiver:
        box.route(SERVER, POOL, WAN[0])
        sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)
        sender.connect(where(receiver, FAR))
        sender.send(b"x" * (FAR_MTU - 28))
        assert len(receiver.recv(1 << 16)) == FAR_MTU - 28
        sender.send(b"x" * (FAR_MTU - 27))
        until(lambda: refused(sender, FAR_MTU - 27), "the sender knows the path MTU")
    assert nothing_left(box)


def refused(sender: socket.socket, octets: int) -> bool:
    try:
        sender.send(b"x" * octets)
    except OSError:
        return True
    return False


def nothing_left(box: FirewallBox) -> bool:
    return box.verdict(Reason.EGRESS_UNPOLICED) == 0


def test_a_closed_port_is_told(box: FirewallBox) -> None:
    with closing(box.udp(CLIENT)) as sender:
        sender.connect((ADDRESSES[SERVER][0], CLOSED))
        sender.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            sender.recv(1)


def test_policies_decide_and_count_as_ever(box: FirewallBox) -> None:
    sender, receiver = box.udp(CLIENT), box.udp(SERVER, port=DENIED)
    with closing(sender), closing(receiver):
        before = box.rule("denied")
        sender.sendto(b"no", (ADDRESSES[SERVER][0], DENIED))
        until(lambda: box.rule("denied") > before, "it was denied")
        assert nothing(receiver)
    permitted = box.rule("out"), box.rule("hide")
    one, other = udp_pair(box)
    with closing(one), closing(other):
        exchange(one, where(other), other)
        exchange(one, where(other), other)
    assert (box.rule("out"), box.rule("hide")) == (permitted[0] + 1, permitted[1] + 1)


def test_nobody_comes_in_by_the_pool(box: FirewallBox) -> None:
    before = box.verdict(Reason.TRANSLATE)
    with closing(box.udp(SERVER)) as sender, closing(box.udp(CLIENT, port=ECHO)) as receiver:
        for address in sorted(OF_VPP):
            sender.sendto(b"knock", (address, ECHO))
        until(lambda: box.verdict(Reason.TRANSLATE) >= before + len(OF_VPP), "VPP has seen them")
        assert nothing(receiver)


def test_the_tables_show_both_sides(box: FirewallBox) -> None:
    sender, receiver = udp_pair(box)
    with closing(sender), closing(receiver):
        address, port = exchange(sender, where(receiver), receiver)
        rows = box.sessions(port=receiver.getsockname()[1])
        assert [(row["translator"], row["natSource"]) for row in rows] == [("vpp", {"address": address, "port": port})]
    answer = box.ask("nat")
    (pool,) = answer["pools"]
    assert (pool["name"], pool["engine"], answer["state"]) == ("fast", "vpp", "VPP")
    until(lambda: 0 < box.ask("nat")["translations"] <= answer["most"], "VPP's counters are looked at by VPP")
    told = box.gw("show", "nat").stdout
    assert "new flows of VPP's pools are translated by VPP\n" in told
    assert "fast" in told


def test_killed_and_back(box: FirewallBox) -> None:
    """What VPP translated is dropped, what is new is XDP's at once; it stays XDP's, and new flows are VPP's again."""
    old, receiver = udp_pair(box)
    with closing(old), closing(receiver), closing(box.udp(CLIENT)) as new, closing(box.udp(CLIENT)) as third:
        assert exchange(old, where(receiver), receiver)[0] in OF_VPP
        away = box.verdict(Reason.TRANSLATOR_AWAY)
        process = recorded(VppPaths(box.run_dir.resolve()).pid_file)
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: box.ask("nat")["state"] != "VPP", "the daemon knows")
        old.sendto(b"lost", where(receiver))
        until(lambda: box.verdict(Reason.TRANSLATOR_AWAY) > away, "it is dropped and counted")
        assert nothing(receiver)
        moved = exchange(new, where(receiver), receiver)
        assert moved[0] == OF_XDP

        up = box.gw("vpp", "up")
        assert up.returncode == 0, up.stderr + up.stdout
        until(lambda: box.ask("nat")["state"] == "VPP", "VPP translates again")
        assert exchange(new, where(receiver), receiver) == moved
        assert exchange(third, where(receiver), receiver)[0] in OF_VPP
        assert exchange(old, where(receiver), receiver)[0] in OF_VPP  # begun anew


def test_without_the_daemon_the_dead_vpp_is_noticed_by_the_first_packet(box: FirewallBox) -> None:
    daemon = next(child for child in box.children if child.poll() is None and "run" in child.args)
    daemon.send_signal(signal.SIGSTOP)
    try:
        old, receiver = udp_pair(box)
        with closing(old), closing(receiver), closing(box.udp(CLIENT)) as new:
            exchange(old, where(receiver), receiver)
            process = recorded(VppPaths(box.run_dir.resolve()).pid_file)
            assert process is not None
            os.kill(process.pid, signal.SIGKILL)
            assert process.stop(5.0, 5.0)
            old.sendto(b"lost", where(receiver))
            assert exchange(new, where(receiver), receiver)[0] == OF_XDP
    finally:
        daemon.send_signal(signal.SIGCONT)
    assert box.gw("vpp", "up").returncode == 0
    until(lambda: box.ask("nat")["state"] == "VPP", "VPP translates again")


def test_a_daemon_that_comes_back_disturbs_no_flow(box: FirewallBox) -> None:
    sender, receiver = udp_pair(box)
    with closing(sender), closing(receiver):
        before = exchange(sender, where(receiver), receiver)
        daemon = next(child for child in box.children if child.poll() is None and "run" in child.args)
        assert box.stop(daemon) == 0
        assert exchange(sender, where(receiver), receiver) == before
        box.run()
        until(lambda: box.ask("nat")["state"] == "VPP", "VPP translates")
        assert exchange(sender, where(receiver), receiver) == before


def test_off_leaves_nothing(box: FirewallBox) -> None:
    assert box.gw("off").returncode == 0
    links = box.on(GATEWAY, "ip", "-o", "link")
    assert TRANSLATOR_PORT not in links
    assert TRANSLATOR_END not in links
    assert not any(box.traces().values())


def test_a_vpp_that_runs_while_it_is_needed_is_needed_by_pools(vpp_installed: None) -> None:
    """It is started for a pool, and stopped when a reload leaves XDP alone to translate."""
    needed = CONFIGURATION.replace("hang_seconds = 0\n", 'hang_seconds = 0\nvpp = "needed"\nvpp_idle_seconds = 1\n')
    with firewall_box() as box:
        box.route(SERVER, POOL, WAN[0])
        box.write(needed)
        pid_file = VppPaths(box.run_dir.resolve()).pid_file
        try:
            box.run()
            until(lambda: box.ask("nat")["state"] == "VPP", "VPP was started and translates")
            sender, receiver = udp_pair(box)
            with closing(sender), closing(receiver):
                assert exchange(sender, where(receiver), receiver)[0] in OF_VPP
            box.write(needed.replace('engine = "vpp"\n\n[[nat', "\n[[nat"))
            assert "engine vpp -> xdp" in box.gw("plan").stdout
            assert box.gw("reload").returncode == 0
            assert box.ask("nat")["state"] == ""
            until(lambda: recorded(pid_file) is None, "VPP was stopped")
            sender, receiver = udp_pair(box)
            with closing(sender), closing(receiver):
                assert exchange(sender, where(receiver), receiver)[0] in OF_VPP | {OF_XDP}
        finally:
            box.gw("vpp", "down")
