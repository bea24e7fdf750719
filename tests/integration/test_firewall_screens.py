"""Screens between real hosts: nmap's scans, floods, and SYN cookies before real TCP clients and servers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address

import pytest

from ipsec_gw.lab.nmap import port_states
from tests.integration.conftest import until
from tests.integration.firewall_world import CLIENT, GATEWAY, SERVER, WAN, FirewallBox, address, firewall_box, transfer
from tests.reference import build
from tests.reference.build import Ip, Tcp
from tests.reference.fib import key_bytes
from tests.reference.packets import SYN, TCP
from xdp_steer.reasons import Reason

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")]

V4, V6 = socket.AF_INET, socket.AF_INET6
WINDOW = 60
FORGED = 100
"""SYNs of a flood, each from another source."""
ALLOWED = 5

BASE = """
[gateway]
engine = "kernel"
wan = ["wan0"]
[zones.lan]
interfaces = ["lan0"]
[zones.wan]
interfaces = ["wan0"]
screen = "outside"
[firewall]
default_policy = "permit"
[screens.outside]
"""
NOTHING = BASE + "winnuke = true\n"


@pytest.fixture(scope="module")
def world() -> Iterator[FirewallBox]:
    with firewall_box() as box:
        box.route(SERVER, "10.0.0.0/8", WAN[0])
        box.write(NOTHING)
        box.run()
        yield box
        assert box.gw("off").returncode == 0


@pytest.fixture(autouse=True)
def _quiet(world: FirewallBox) -> Iterator[None]:
    """No screen of one test is in the next one."""
    yield
    screen(world, NOTHING)


def screen(box: FirewallBox, text: str) -> None:
    box.write(text if text == NOTHING else BASE + text)
    done = box.gw("reload")
    assert done.returncode == 0, done.stderr


def scan(box: FirewallBox, kind: str, ports: int) -> dict[str, int]:
    """Port states that nmap finds on the client, seen from the WAN."""
    if shutil.which("nmap") is None:
        pytest.skip("nmap is not installed - run make setup")
    words = ("-n", "-Pn", "--disable-arp-ping", "--max-retries", "0", "-T4", "-oG", "-", "-vv")
    said = box.on(SERVER, "nmap", kind, "-p", f"1-{ports}", *words, address(CLIENT, V4))
    return port_states(said)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("-sN", Reason.SCREEN_NO_FLAG), ("-sF", Reason.SCREEN_FIN_NO_ACK), ("-sX", Reason.SCREEN_FIN_NO_ACK)],
    ids=["null", "fin", "xmas"],
)
def test_stealth_scans_find_nothing(world: FirewallBox, kind: str, reason: Reason) -> None:
    """A host answers each of them with RST where nobody listens; zones that do not check for SYN would let them in."""
    relaxed = BASE.replace('screen = "outside"\n', 'screen = "outside"\nsyn_check = false\n')
    world.write(relaxed + "winnuke = true\n")
    assert world.gw("reload").returncode == 0
    assert scan(world, kind, 20) == {"closed": 20}
    world.write(relaxed + "no_flag = true\nfin_no_ack = true\n")
    assert world.gw("reload").returncode == 0
    before = world.verdict(reason)
    assert scan(world, kind, 20) == {"open|filtered": 20}
    assert world.verdict(reason) == before + 20


def test_a_port_scan_is_cut_short(world: FirewallBox) -> None:
    assert scan(world, "-sS", 40) == {"closed": 40}
    screen(world, f"port_scan = 10\nwindow = {WINDOW}\n")
    before = world.verdict(Reason.SCREEN_PORT_SCAN)
    found = scan(world, "-sS", 40)
    assert found["closed"] <= 20, "10 in each of the two windows that it may touch"
    assert found["closed"] + found["filtered"] == 40
    assert world.verdict(Reason.SCREEN_PORT_SCAN) == before + found["filtered"]


def flood(box: FirewallBox, family: int, port: int) -> None:
    """SYNs to a port of the client from sources that do not exist, sent on the WAN."""
    version = 4 if family == V4 else 6
    first, there = ip_address(address(SERVER, family)) + 16, key_bytes(ip_address(address(CLIENT, family)))
    (link,) = json.loads(box.on(GATEWAY, "ip", "-j", "link", "show", "wan0"))
    mac = bytes.fromhex(link["address"].replace(":", ""))
    with box.inside(SERVER):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        sender.bind(("s0", 0))
    with closing(sender):
        for number in range(FORGED):
            ip = Ip(version, key_bytes(first + number), there)
            segment = build.tcp(ip, Tcp(1024 + number, port, SYN, seq=number))
            frame = build.frame(version, build.packet(ip, TCP, segment))
            sender.send(mac + b"\x02\0\0\0\0\x01" + frame[12:])


def first_is_reset(box: FirewallBox, family: int, port: int) -> bool:
    """Whether a connection from the WAN ends at once."""
    with closing(box.tcp(SERVER, family)) as client:
        try:
            client.connect((address(CLIENT, family), port))
            return client.recv(1) == b""
        except ConnectionResetError:
            return True


@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
def test_cookies_let_real_clients_through_a_flood(world: FirewallBox, family: int) -> None:
    """Forged sources get no further than XDP; a real client is reset once, and then its connections carry data. A
    connection that was there before goes on.
    """
    port = 5000 + (family == V6)
    data = bytes(range(256)) * 4096
    with closing(world.listen(CLIENT, port, family)) as listener, closing(world.tcp(SERVER, family)) as early:
        early.connect((address(CLIENT, family), port))
        with closing(listener.accept()[0]) as other_end:
            screen(world, f"syn_flood = {ALLOWED}\nsyn_cookie = true\nwindow = {WINDOW}\n")
            answered, valid = world.verdict(Reason.SCREEN_SYN_COOKIE), world.verdict(Reason.SCREEN_COOKIE_VALID)
            sessions = len(world.sessions(port=port, limit=1000))
            flood(world, family, port)
            until(
                lambda: world.verdict(Reason.SCREEN_SYN_COOKIE) >= answered + FORGED - 2 * ALLOWED, "the flood is met"
            )
            assert len(world.sessions(port=port, limit=1000)) <= sessions + 2 * ALLOWED
            early.sendall(b"still here")
            assert other_end.recv(100) == b"still here"
            other_end.sendall(b"indeed")
            assert early.recv(100) == b"indeed"
            # Two windows' worth at most was let in: what of it waits in the listener's queue is no connection.
            assert first_is_reset(world, family, port)
            assert world.verdict(Reason.SCREEN_COOKIE_VALID) == valid + 1
            seen = transfer(world.tcp(SERVER, family), (address(CLIENT, family), port), listener, data)
            assert seen[0] == address(SERVER, family)
            assert world.verdict(Reason.SCREEN_COOKIE_VALID) == valid + 1


def test_a_flood_of_udp_is_cut_and_tcp_goes_on(world: FirewallBox) -> None:
    screen(world, f"udp_flood = {ALLOWED}\nwindow = {WINDOW}\n")
    before = world.verdict(Reason.SCREEN_UDP_FLOOD)
    with closing(world.udp(CLIENT, V4, 5010)) as victim, closing(world.udp(SERVER)) as attacker:
        for number in range(FORGED):
            attacker.sendto(struct.pack("!H", number), (address(CLIENT, V4), 5010))
        until(lambda: world.verdict(Reason.SCREEN_UDP_FLOOD) >= before + FORGED - 2 * ALLOWED, "the flood is cut")
        victim.setblocking(False)
        arrived = 0
        while True:
            try:
                victim.recv(100)
            except BlockingIOError:
                break
            arrived += 1
        assert arrived + world.verdict(Reason.SCREEN_UDP_FLOOD) - before == FORGED
    with closing(world.listen(CLIENT, 5011)) as listener:
        transfer(world.tcp(SERVER), (address(CLIENT, V4), 5011), listener, bytes(1 << 20))
