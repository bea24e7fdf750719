"""XFRM interfaces an engine serves. Here a TUN device stands for one: like it, it has no Ethernet, and what the kernel
sends out by it can be read.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw
from xdp_kit import DEADLINE, await_frames, ip

from xdp_steer import guard, tables, xfrmi
from xdp_steer.gateway import Role, Steering
from xdp_steer.layout import Control
from xdp_steer.reasons import Reason
from xdp_steer.xfrmi import Uplink
from xdp_steer.xsk import XskSocket

pytestmark = pytest.mark.root

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
IP_PKTINFO = 8
UP, VP, ROUTED = "up9", "vp9", "ipsec9"
VLAN, MTU, THEIRS = 77, 1400, 1500
HERE, THERE = "10.9.0.1", "10.9.1.1"
PORT = 7001
IPV4 = frozenset({4})


class Device:
    """The stand-in."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self._fd, TUNSETIFF, struct.pack("16sH22x", ROUTED.encode(), IFF_TUN | IFF_NO_PI))
        ip(f"link set {ROUTED} mtu {THEIRS} up")
        ip(f"addr add {HERE}/32 dev {ROUTED}")
        ip(f"route add {THERE}/32 dev {ROUTED}")
        self.index = socket.if_nametoindex(ROUTED)

    def sent(self) -> IP | None:
        """What the kernel itself is to encrypt next; None if there is nothing within the deadline."""
        if not select.select([self._fd], [], [], DEADLINE)[0]:
            return None
        return IP(os.read(self._fd, 4096))

    def close(self) -> None:
        os.close(self._fd)


@dataclass
class Bench:
    steering: Steering
    device: Device
    uplink: Uplink

    def lead(self) -> None:
        self.steering.xfrm_interfaces.admit(self.device.index, VLAN, IPV4)
        self.steering.xfrm_interfaces.lead(self.device.index, VLAN, MTU, IPV4, self.uplink)

    def count(self, reason: Reason) -> int:
        return self.steering.verdicts()[reason].packets


def link_mtu() -> int:
    shown = subprocess.run(["ip", "-o", "link", "show", ROUTED], check=True, capture_output=True, text=True).stdout
    return int(shown.split(" mtu ")[1].split()[0])


def policy_is_off(version: int) -> bool:
    family = "ipv6" if version == 6 else "ipv4"
    return Path(f"/proc/sys/net/{family}/conf/{ROUTED}/disable_policy").read_text().strip() == "1"


def mac(name: str) -> bytes:
    shown = subprocess.run(["ip", "-o", "link", "show", name], check=True, capture_output=True, text=True).stdout
    return bytes.fromhex(shown.split("link/ether ")[1].split()[0].replace(":", ""))


@pytest.fixture
def bench(steering: Steering) -> Iterator[Bench]:
    ip(f"link add {UP} numtxqueues 1 type veth peer name {VP} numrxqueues 2")  # all comes to queue 0
    for name in ("lo", UP, VP):
        ip(f"link set {name} up")
    subprocess.run(["ethtool", "-K", UP, "tx", "off"], check=True, capture_output=True)
    device = Device()
    steering.dock(VP, Role.TO_ENGINE)
    steering.join_uplink(UP, VP)
    steering.set_engine(True)
    steering.set_engine_gone(False)
    made = Bench(steering, device, Uplink(socket.if_nametoindex(UP), mac(UP), mac(VP)))
    yield made
    for index in steering.xfrm_interfaces.led():
        steering.xfrm_interfaces.unlead(index)
    for index, (vlan, _) in steering.xfrm_interfaces.admitted().items():
        steering.xfrm_interfaces.shut(index, vlan)
    device.close()


def send(payload: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((HERE, PORT))
        sender.sendto(payload, (THERE, PORT))


def open_socket(bench: Bench, queue: int = 0) -> XskSocket:
    made = XskSocket(VP, queue)
    made.enter(bench.steering.xsks_map(VP))
    return made


def test_what_goes_out_by_it_comes_to_the_engine_tagged(bench: Bench) -> None:
    bench.lead()
    xsk, before = open_socket(bench), bench.count(Reason.XFRMI_OUT)
    send(b"to the engine")
    (frame,) = map(Ether, await_frames(xsk, 1))
    assert (frame.dst, frame.src) == (bench.uplink.engine_mac.hex(":"), bench.uplink.kernel_mac.hex(":"))
    assert frame[Dot1Q].vlan == VLAN
    assert (frame[IP].src, frame[IP].dst, frame[UDP].dport, bytes(frame[Raw])) == (HERE, THERE, PORT, b"to the engine")
    assert frame[IP] == IP(bytes(frame[IP]))
    checked = IP(bytes(frame[IP]))
    del checked[UDP].chksum
    assert IP(bytes(checked))[UDP].chksum == frame[UDP].chksum, "an engine needs the checksum filled in"
    assert bench.count(Reason.XFRMI_OUT) == before + 1
    xsk.close()


def test_long_segments_come_one_by_one(bench: Bench) -> None:
    """A TCP stack hands out several at once where nothing else is said; each has to fit into the tunnel."""
    bench.lead()
    xsk = open_socket(bench)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        client.bind((HERE, PORT))
        assert client.connect_ex((THERE, PORT)) != 0
        (syn,) = map(Ether, await_frames(xsk, 1))
        answer = IP(src=THERE, dst=HERE) / TCP(sport=PORT, dport=PORT, flags="SA", seq=1, ack=syn[TCP].seq + 1)
        with inside_of(VP) as wire:
            wire.send(tagged(bench, IP(bytes(answer))))
            await_frames(xsk, 1)
            client.setblocking(True)
            client.settimeout(DEADLINE)
            data = bytes(range(256)) * 16
            client.sendall(data)
            segments = [Ether(frame) for frame in await_frames(xsk, 8)]
        lengths = [len(bytes(one[TCP].payload)) for one in segments]
    assert len(segments) >= 2
    assert all(one[IP].len <= MTU for one in segments)
    assert max(lengths) > 500
    xsk.close()


def inside_of(interface: str) -> socket.socket:
    """As the engine sends."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    made.bind((interface, 0))
    return made


def tagged(bench: Bench, packet: IP, vlan: int = VLAN) -> bytes:
    addresses = bench.uplink.kernel_mac + bench.uplink.engine_mac
    return addresses + struct.pack("!HHH", 0x8100, vlan, 0x0800) + bytes(packet)


def test_what_the_engine_tags_comes_in_by_it(bench: Bench) -> None:
    bench.lead()
    packet = IP(src=THERE, dst=HERE) / UDP(sport=PORT, dport=PORT) / Raw(b"from the engine")
    before = bench.count(Reason.XFRMI_IN)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, inside_of(VP) as wire:
        receiver.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        receiver.settimeout(DEADLINE)
        receiver.bind((HERE, PORT))
        wire.send(tagged(bench, packet))
        data, told, _, _ = receiver.recvmsg(100, socket.CMSG_SPACE(12))
    assert data == b"from the engine"
    assert struct.unpack("=I8x", told[0][2])[0] == bench.device.index
    assert bench.count(Reason.XFRMI_IN) == before + 1


def test_an_unknown_tag_is_dropped_and_counted(bench: Bench) -> None:
    bench.lead()
    packet = IP(src=THERE, dst=HERE) / UDP(sport=PORT, dport=PORT) / Raw(b"x")
    before = bench.count(Reason.XFRMI_UNKNOWN)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, inside_of(VP) as wire:
        receiver.settimeout(DEADLINE)
        receiver.bind((HERE, PORT))
        wire.send(tagged(bench, packet, VLAN + 1))
        wire.send(tagged(bench, packet))
        assert receiver.recv(100) == b"x"
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(100)
    assert bench.count(Reason.XFRMI_UNKNOWN) == before + 1


def test_without_an_engine_it_comes_back_and_the_kernel_has_it(bench: Bench) -> None:
    """The first packet finds no socket, which tells that the engine is gone; the next ones do not even try."""
    bench.lead()
    before = {reason: bench.count(reason) for reason in (Reason.XFRMI_OUT, Reason.XFRMI_BACK)}
    for number in range(3):
        send(b"packet %d" % number)
        sent = bench.device.sent()
        assert sent is not None
        assert (sent.src, sent.dst, bytes(sent[Raw])) == (HERE, THERE, b"packet %d" % number)
    assert bench.steering.engine_gone()
    assert bench.count(Reason.XFRMI_OUT) == before[Reason.XFRMI_OUT] + 1
    assert bench.count(Reason.XFRMI_BACK) == before[Reason.XFRMI_BACK] + 1


def test_a_queue_without_socket_makes_no_packet_go_round(bench: Bench) -> None:
    """The engine is there: the kernel has the packet, whose guard holds it back for the daemon to send again."""
    bench.lead()
    other = open_socket(bench, queue=1)
    before = {reason: bench.count(reason) for reason in (Reason.XFRMI_OUT, Reason.XFRMI_BACK)}
    send(b"once")
    sent = bench.device.sent()
    assert sent is not None
    assert bytes(sent[Raw]) == b"once"
    assert other.receive() == []
    assert bench.count(Reason.XFRMI_OUT) == before[Reason.XFRMI_OUT] + 1
    assert bench.count(Reason.XFRMI_BACK) == before[Reason.XFRMI_BACK] + 1
    assert not bench.steering.engine_gone()
    other.close()


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < end


def test_while_steering_is_off_the_kernel_has_it(bench: Bench) -> None:
    bench.lead()
    xsk = open_socket(bench)
    bench.steering.set_engine(False)
    send(b"kernel")
    sent = bench.device.sent()
    assert sent is not None
    assert bytes(sent[Raw]) == b"kernel"
    xsk.close()


def test_settings_are_changed_and_given_back(bench: Bench) -> None:
    interfaces = bench.steering.xfrm_interfaces
    bench.lead()
    assert (link_mtu(), policy_is_off(4), policy_is_off(6)) == (MTU, True, False)
    assert interfaces.led() == {bench.device.index: (VLAN, MTU, IPV4)}
    assert interfaces.admitted() == {bench.device.index: (VLAN, IPV4)}
    interfaces.admit(bench.device.index, VLAN, frozenset({4, 6}))
    assert (policy_is_off(4), policy_is_off(6)) == (True, True)
    interfaces.unlead(bench.device.index)
    assert (link_mtu(), policy_is_off(4)) == (THEIRS, True)
    interfaces.shut(bench.device.index, VLAN)
    assert (policy_is_off(4), policy_is_off(6)) == (False, False)
    assert (interfaces.led(), interfaces.admitted()) == ({}, {})


def test_nothing_is_lost_when_it_is_led_or_not_any_more(bench: Bench) -> None:
    """The kernel takes the queues away for a moment when clsact comes or goes."""
    interfaces, index = bench.steering.xfrm_interfaces, bench.device.index
    bench.steering.set_engine(False)
    bench.lead()

    def change() -> None:
        for _ in range(20):
            interfaces.unlead(index)
            bench.lead()

    with ThreadPoolExecutor(1) as other:
        changing = other.submit(change)
        number = 0
        while not changing.done():
            send(b"packet %d" % number)
            assert bench.device.sent() is not None, f"packet {number} is lost"
            number += 1
        changing.result()


def test_a_smaller_mtu_of_the_operator_stays(bench: Bench) -> None:
    ip(f"link set {ROUTED} mtu 1300")
    bench.lead()
    assert link_mtu() == 1300
    ip(f"link set {ROUTED} mtu 1290")
    bench.steering.xfrm_interfaces.unlead(bench.device.index)
    assert link_mtu() == 1290


def test_an_mtu_that_changes_meanwhile_is_the_operators(bench: Bench) -> None:
    bench.lead()
    ip(f"link set {ROUTED} mtu 1350")
    bench.steering.xfrm_interfaces.unlead(bench.device.index)
    assert link_mtu() == 1350


def test_another_mtu_of_the_tunnel_keeps_what_was_before(bench: Bench) -> None:
    bench.lead()
    bench.steering.xfrm_interfaces.lead(bench.device.index, VLAN, MTU - 20, IPV4, bench.uplink)
    assert link_mtu() == MTU - 20
    bench.steering.xfrm_interfaces.lead(bench.device.index, VLAN, MTU, IPV4, bench.uplink)
    assert link_mtu() == MTU
    bench.steering.xfrm_interfaces.unlead(bench.device.index)
    assert link_mtu() == THEIRS


def test_where_xfrm_judges_its_check_stays_on(bench: Bench) -> None:
    """A GRE or IPIP device: what comes in by it has no state of XFRM's with the kernel alone either."""
    interfaces, index = bench.steering.xfrm_interfaces, bench.device.index
    interfaces.admit(index, VLAN, frozenset({4, 6}), policed=True)
    assert (policy_is_off(4), policy_is_off(6)) == (False, False)
    assert interfaces.admitted() == {index: (VLAN, frozenset({4, 6}))}
    interfaces.admit(index, VLAN, IPV4)
    assert policy_is_off(4)
    interfaces.admit(index, VLAN, IPV4, policed=True)
    assert not policy_is_off(4)
    interfaces.lead(index, VLAN, MTU, IPV4, bench.uplink)
    xsk, before = open_socket(bench), bench.count(Reason.XFRMI_OUT)
    send(b"led all the same")
    assert len(await_frames(xsk, 1)) == 1
    assert bench.count(Reason.XFRMI_OUT) == before + 1
    xsk.close()


def test_leftovers_are_removed_without_a_map(bench: Bench, pins: Path) -> None:
    bench.lead()
    xfrmi.remove_leftovers(pins)
    assert (link_mtu(), policy_is_off(4)) == (THEIRS, False)
    assert not guard.attached(bench.device.index, guard.Hook.XFRMI_EGRESS)
    assert not list((pins / "xfrmi").iterdir())


def test_a_lead_without_its_program_shows(bench: Bench) -> None:
    """Somebody has taken it off: what is in place is not what is wanted."""
    bench.lead()
    guard.take_off(bench.device.index, guard.Hook.XFRMI_EGRESS)
    assert bench.steering.xfrm_interfaces.led() == {bench.device.index: (VLAN, 0, IPV4)}


def test_an_interface_that_is_gone_is_forgotten(bench: Bench) -> None:
    bench.lead()
    bench.device.close()
    interfaces = bench.steering.xfrm_interfaces
    interfaces.unlead(bench.device.index)
    interfaces.shut(bench.device.index, VLAN)
    assert (interfaces.led(), interfaces.admitted()) == ({}, {})
    bench.device = Device()


def test_the_firewall_looks_at_it_where_it_comes_in(bench: Bench) -> None:
    """On the veth pair it is let through, behind the tag of an interface alone."""
    bench.lead()
    bench.steering.dock(UP, Role.INSIDE)
    control = bench.steering._control
    before = {reason: bench.count(reason) for reason in (Reason.XFRMI_PASSED, Reason.NO_ZONE)}
    packet = IP(src=THERE, dst=HERE) / UDP(sport=PORT, dport=PORT) / Raw(b"policed later")
    tables.set_control(control, Control.FIREWALL, 1)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, inside_of(VP) as wire:
            receiver.settimeout(DEADLINE)
            receiver.bind((HERE, PORT))
            wire.send(tagged(bench, packet, VLAN + 1))
            wire.send(bench.uplink.kernel_mac + bench.uplink.engine_mac + b"\x08\x00" + bytes(packet))
            wire.send(tagged(bench, packet))
            assert receiver.recv(100) == b"policed later"
            receiver.setblocking(False)
            with pytest.raises(BlockingIOError):
                receiver.recv(100)
    finally:
        tables.set_control(control, Control.FIREWALL, 0)
    assert bench.count(Reason.XFRMI_PASSED) == before[Reason.XFRMI_PASSED] + 1
    assert bench.count(Reason.NO_ZONE) == before[Reason.NO_ZONE] + 2


def test_no_other_interface_lets_a_tag_through(bench: Bench) -> None:
    bench.lead()
    ip("link add other9 type veth peer name far9")
    for name in ("other9", "far9"):
        ip(f"link set {name} up")
    bench.steering.dock("other9", Role.INSIDE)
    control, before = bench.steering._control, bench.count(Reason.NO_ZONE)
    tables.set_control(control, Control.FIREWALL, 1)
    try:
        with inside_of("far9") as wire:
            wire.send(tagged(bench, IP(src=THERE, dst=HERE) / UDP(sport=PORT, dport=PORT) / Raw(b"x")))
            wait_until(lambda: bench.count(Reason.NO_ZONE) > before)
    finally:
        tables.set_control(control, Control.FIREWALL, 0)
    assert bench.count(Reason.NO_ZONE) == before + 1


def test_an_ip_version_without_selectors_passes_neither_way(bench: Bench) -> None:
    """The kernel would drop it for want of a policy; multicast would not meet the engine's check."""
    Path(f"/proc/sys/net/ipv6/conf/{ROUTED}/disable_ipv6").write_text("0")
    ip(f"addr add fd09::1/128 dev {ROUTED} nodad")
    ip(f"route add fd09:1::/64 dev {ROUTED}")
    bench.lead()
    xsk, before = open_socket(bench), bench.count(Reason.XFRMI_VERSION)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.bind(("fd09::1", PORT))
        sender.sendto(b"six", ("fd09:1::1", PORT))
    send(b"four")
    (frame,) = map(Ether, await_frames(xsk, 1))
    assert bytes(frame[Raw]) == b"four"
    assert bench.count(Reason.XFRMI_VERSION) == before + 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, inside_of(VP) as wire:
        receiver.settimeout(DEADLINE)
        receiver.bind((HERE, PORT))
        six = IPv6(src="fd09:1::1", dst="fd09::1") / UDP(sport=PORT, dport=PORT) / Raw(b"six")
        addresses = bench.uplink.kernel_mac + bench.uplink.engine_mac
        wire.send(addresses + struct.pack("!HHH", 0x8100, VLAN, 0x86DD) + bytes(six))
        wire.send(tagged(bench, IP(src=THERE, dst=HERE) / UDP(sport=PORT, dport=PORT) / Raw(b"four")))
        assert receiver.recv(100) == b"four"
    assert bench.count(Reason.XFRMI_VERSION) == before + 2
    xsk.close()
