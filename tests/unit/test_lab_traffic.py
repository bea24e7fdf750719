"""Traffic that knows every byte: what it counts as lost, doubled or changed."""

import asyncio
from ipaddress import IPv4Address, IPv6Address

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.packet import raw

from ipsec_gw.lab import netns, session
from ipsec_gw.lab.process import run
from ipsec_gw.lab.traffic import (
    Host,
    Tally,
    TrafficError,
    UdpFlow,
    checksum,
    echo_request,
    ping,
    tcp_echo,
    udp_echo,
    until,
)


@pytest.mark.parametrize("payload", [b"", b"x", b"xy", bytes(range(256)) * 5])
def test_echo_requests_are_as_scapy_makes_them(payload):
    assert echo_request(0x1234, 7, payload) == raw(ICMP(type=8, id=0x1234, seq=7) / payload)


def test_checksum_of_a_whole_header_is_zero():
    assert checksum(raw(IP(src="10.1.0.1", dst="10.2.0.1"))) == 0


@pytest.mark.parametrize(
    ("tally", "perfect"),
    [
        (Tally(5, 5, 0, 0, 0), True),
        (Tally(0, 0, 0, 0, 0), False),
        (Tally(5, 4, 1, 0, 0), False),
        (Tally(5, 5, 0, 1, 0), False),
        (Tally(5, 5, 0, 0, 1), False),
    ],
)
def test_only_all_once_and_intact_is_perfect(tally, perfect):
    assert tally.perfect is perfect


async def test_until_gives_up_by_name():
    await until(lambda: True, 1.0, "nothing")
    with pytest.raises(TrafficError, match="the moon: not within 0 s"):
        await until(lambda: False, 0.05, "the moon")


@pytest.fixture
async def loopback():
    """A namespace of its own with a loopback interface, and two ends in it."""
    name = f"{session.new_tag()}-t"
    await run(["ip", "netns", "add", name])
    await run(["ip", "-n", name, "link", "set", "dev", "lo", "up"])
    yield Host(name, IPv4Address("127.0.0.1")), Host(name, IPv4Address("127.0.0.2"))
    await netns.remove([name])


@pytest.fixture
def flow(loopback):
    made = UdpFlow(3, *loopback, rate=500.0, size=64, port=7777)
    yield made
    made.close()


@pytest.mark.root
async def test_all_arrives(flow):
    task = asyncio.create_task(flow.run())
    await until(lambda: flow.next >= 20, 10.0, "twenty packets")
    task.cancel()
    tally = await flow.settle(0)
    assert tally.perfect
    assert tally.sent >= 20


@pytest.mark.root
async def test_a_paused_flow_sends_nothing(flow):
    task = asyncio.create_task(flow.run())
    await until(lambda: flow.next >= 2, 10.0, "two packets")
    flow.pause()
    await until(lambda: not flow.missing(0), 10.0, "their arrival")
    sent = flow.next
    for _ in range(50):
        await asyncio.sleep(0)
    assert flow.next == sent
    flow.resume()
    await until(lambda: flow.next > sent, 10.0, "going on")
    task.cancel()


@pytest.mark.root
async def test_losses_doubles_and_changes_are_counted(flow):
    to = (str(flow.destination.address), flow.port)
    for sequence in range(4):
        flow.send_one()
        if sequence == 1:
            flow._out.sendto(flow.payload(1), to)
    flow._next += 1  # sent by nobody: lost
    changed = bytearray(flow.payload(2))
    changed[-1] ^= 1
    flow._out.sendto(bytes(changed), to)
    flow._out.sendto(b"tiny", to)
    await until(lambda: flow.tally(0).corrupted == 2, 10.0, "both changed packets")
    tally = flow.tally(0)
    assert (tally.sent, tally.received, tally.lost, tally.duplicated, tally.corrupted) == (5, 4, 1, 1, 2)
    assert flow.missing(0) == [4]
    assert flow.tally(2, 4).lost == 0


@pytest.mark.root
async def test_conversations(loopback):
    here, there = loopback
    assert "100000 bytes there and back" in await tcp_echo(here, there, port=8001, size=100_000, seed=1)
    assert "3 datagrams" in await udp_echo(here, there, port=8002, sizes=(1, 500, 1300), seed=2)
    assert "2 echoes" in await ping(here, there, identifier=77, sizes=(1, 1300), seed=3)


@pytest.mark.root
async def test_conversations_of_ipv6(loopback):
    here, there = (Host(end.namespace, IPv6Address("::1")) for end in loopback)
    assert "1000 bytes there and back" in await tcp_echo(here, there, port=8001, size=1000, seed=1)
    assert "2 datagrams" in await udp_echo(here, there, port=8002, sizes=(1, 1300), seed=2)
    assert "2 echoes" in await ping(here, there, identifier=77, sizes=(1, 1300), seed=3)


@pytest.mark.root
async def test_nobody_there(loopback):
    here, there = loopback
    nowhere = Host(there.namespace, IPv4Address("192.0.2.1"))
    with pytest.raises((TrafficError, OSError)):
        await tcp_echo(here, nowhere, port=8001, size=10, seed=1, seconds=1.0)
