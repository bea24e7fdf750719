"""VXLAN devices an engine serves: real ones, of which the kernel's own VXLAN packets are seen behind them."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw
from xdp_kit import DEADLINE, await_frames, ip

from ipsec_gw.model.objects import FRAMES
from xdp_steer import tables
from xdp_steer.gateway import Role, Steering
from xdp_steer.layout import Control
from xdp_steer.reasons import Reason
from xdp_steer.xfrmi import Uplink
from xdp_steer.xsk import XskSocket

pytestmark = pytest.mark.root

UP, VP, UNDER, FAR, DEVICE = "up9", "vp9", "und9", "far9", "vx9"
HERE, THERE = "10.9.0.1", "10.9.0.2"
"""On the device; the ends under it are 10.8.0.1 and 10.8.0.2."""
VLAN, MTU, THEIRS, PORT = 77, 1400, 1500, 7001
OTHERS = "02:00:00:00:00:99"
ANY_FRAME = frozenset({FRAMES})
ETH_P_ALL, PACKET_OUTGOING = 0x0003, 4
SOL_PACKET, PACKET_AUXDATA = 263, 8
AUXDATA = struct.Struct("=IIIHHHH")  # linux/if_packet.h: struct tpacket_auxdata


@dataclass
class Bench:
    steering: Steering
    uplink: Uplink
    index: int
    mac: str
    far: socket.socket

    def lead(self) -> None:
        self.steering.xfrm_interfaces.admit(self.index, VLAN, ANY_FRAME, policed=True)
        self.steering.xfrm_interfaces.lead(self.index, VLAN, MTU, ANY_FRAME, self.uplink)

    def count(self, reason: Reason) -> int:
        return self.steering.verdicts()[reason].packets

    def kernel_sends(self) -> Ether:
        """The next frame that the kernel itself has put into VXLAN."""
        while True:
            frame, address = self.far.recvfrom(4096)
            if address[2] != PACKET_OUTGOING and UDP in (whole := Ether(frame)) and whole[UDP].dport == 4789:
                return Ether(bytes(whole[VXLAN].payload))


def mac(name: str) -> str:
    shown = subprocess.run(["ip", "-o", "link", "show", name], check=True, capture_output=True, text=True).stdout
    return shown.split("link/ether ")[1].split()[0]


def raw(name: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    made.bind((name, 0))
    made.settimeout(DEADLINE)
    return made


@pytest.fixture
def bench(steering: Steering) -> Iterator[Bench]:
    ip(f"link add {UP} numtxqueues 1 type veth peer name {VP} numrxqueues 2")  # all comes to queue 0
    ip(f"link add {UNDER} type veth peer name {FAR}")
    for name in ("lo", UP, VP, UNDER, FAR):
        ip(f"link set {name} up")
    subprocess.run(["ethtool", "-K", UP, "tx", "off"], check=True, capture_output=True)
    ip(f"addr add 10.8.0.1/24 dev {UNDER}")
    ip(f"neigh add 10.8.0.2 lladdr {mac(FAR)} dev {UNDER}")
    ip(f"link add {DEVICE} type vxlan id 42 local 10.8.0.1 remote 10.8.0.2 dstport 4789")
    ip(f"link set {DEVICE} mtu {THEIRS} up")
    ip(f"addr add {HERE}/24 dev {DEVICE}")
    ip(f"neigh add {THERE} lladdr {OTHERS} dev {DEVICE}")
    steering.dock(VP, Role.TO_ENGINE)
    steering.join_uplink(UP, VP)
    steering.set_engine(True)
    steering.set_engine_gone(False)
    macs = (bytes.fromhex(mac(name).replace(":", "")) for name in (UP, VP))
    index = socket.if_nametoindex(DEVICE)
    made = Bench(steering, Uplink(socket.if_nametoindex(UP), *macs), index, mac(DEVICE), raw(FAR))
    yield made
    steering.xfrm_interfaces.unlead(index)
    steering.xfrm_interfaces.shut(index, VLAN)
    made.far.close()


@pytest.fixture
def xsk(bench: Bench) -> Iterator[XskSocket]:
    made = XskSocket(VP, 0)
    made.enter(bench.steering.xsks_map(VP))
    yield made
    made.close()


def send(payload: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((HERE, PORT))
        sender.sendto(payload, (THERE, PORT))


def tagged(frame: Packet) -> bytes:
    """As the engine gives it back."""
    whole = bytes(frame)
    return whole[:12] + struct.pack("!HH", 0x8100, VLAN) + whole[12:]


def test_what_goes_out_by_it_comes_to_the_engine_as_it_is_behind_a_tag(bench: Bench, xsk: XskSocket) -> None:
    bench.lead()
    before = bench.count(Reason.XFRMI_OUT)
    send(b"to the engine")
    frame = Ether(await_frames(xsk, 1)[0])
    assert (frame.src, frame.dst, frame[Dot1Q].vlan) == (bench.mac, OTHERS, VLAN)
    assert (frame[IP].src, frame[IP].dst, bytes(frame[Raw])) == (HERE, THERE, b"to the engine")
    checked = IP(bytes(frame[IP]))
    del checked[UDP].chksum
    assert IP(bytes(checked))[UDP].chksum == frame[UDP].chksum, "an engine needs the checksum filled in"
    assert bench.count(Reason.XFRMI_OUT) == before + 1


def test_whatever_protocol_a_frame_has(bench: Bench, xsk: XskSocket) -> None:
    """ARP above all, as broadcast."""
    bench.lead()
    ask = Ether(src=OTHERS, dst="ff:ff:ff:ff:ff:ff") / ARP(psrc=HERE, pdst="10.9.0.77")
    with raw(DEVICE) as wire:
        wire.send(bytes(ask))
    frame = await_frames(xsk, 1)[0]
    assert frame == tagged(ask)


def test_long_segments_come_one_by_one(bench: Bench, xsk: XskSocket) -> None:
    bench.lead()
    ip(f"route replace {THERE}/32 dev {DEVICE} mtu {MTU}")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        client.bind((HERE, PORT))
        assert client.connect_ex((THERE, PORT)) != 0
        syn = Ether(await_frames(xsk, 1)[0])
        options = [("MSS", 1460), ("WScale", 7)]
        reply = TCP(sport=PORT, dport=PORT, flags="SA", seq=1, ack=syn[TCP].seq + 1, window=60000, options=options)
        with raw(VP) as engine:
            engine.send(tagged(Ether(src=OTHERS, dst=bench.mac) / IP(src=THERE, dst=HERE) / reply))
            await_frames(xsk, 1)
            client.setblocking(True)
            client.settimeout(DEADLINE)
            left = bench.count(Reason.XFRMI_LEFT)
            client.sendall(bytes(range(256)) * 48)
            segments = [Ether(frame) for frame in await_frames(xsk, 9)]
    assert max(one[IP].len for one in segments) == MTU
    assert all(one[Dot1Q].vlan == VLAN and one.dst == OTHERS for one in segments)
    assert bench.count(Reason.XFRMI_LEFT) == left


def test_what_the_engine_gives_back_comes_in_by_it(bench: Bench) -> None:
    bench.lead()
    before = bench.count(Reason.XFRMI_IN)
    packet = IP(src=THERE, dst=HERE) / UDP(sport=PORT, dport=PORT) / Raw(b"from the engine")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, raw(VP) as engine:
        receiver.settimeout(DEADLINE)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, DEVICE.encode())
        receiver.bind((HERE, PORT))
        engine.send(tagged(Ether(src=OTHERS, dst=bench.mac) / packet))
        assert receiver.recv(100) == b"from the engine"
    assert bench.count(Reason.XFRMI_IN) == before + 1


def test_in_a_bridge_frames_of_others_pass_both_ways(bench: Bench, xsk: XskSocket) -> None:
    bench.lead()
    ip("link add br9 type bridge mcast_snooping 0")
    ip("link add lan9 type veth peer name host9")
    ip(f"addr flush dev {DEVICE}")
    for name in (DEVICE, "lan9"):
        ip(f"link set {name} master br9")
    for name in ("br9", "lan9", "host9"):
        ip(f"link set {name} up")
    mine = "02:00:00:00:00:11"
    with raw("host9") as host, raw(VP) as engine:
        out = Ether(src=mine, dst=OTHERS) / IP(src=HERE, dst=THERE) / UDP(sport=1, dport=2) / Raw(b"out")
        host.send(bytes(out))
        frames = [frame for frame in await_frames(xsk, 1) if frame == tagged(out)]
        while not frames:  # others are the bridge's own
            frames = [frame for frame in await_frames(xsk, 1) if frame == tagged(out)]
        back = Ether(src=OTHERS, dst=mine) / IP(src=THERE, dst=HERE) / UDP(sport=2, dport=1) / Raw(b"back")
        engine.send(tagged(back))
        while True:
            frame, address = host.recvfrom(2048)
            if frame == bytes(back):
                assert address[2] != PACKET_OUTGOING
                break


def test_a_frame_that_has_a_tag_comes_in_with_it(bench: Bench) -> None:
    bench.lead()
    inner = Ether(src=OTHERS, dst=bench.mac) / Dot1Q(vlan=5) / IP(src=THERE, dst=HERE) / UDP(sport=1, dport=PORT)
    with raw(DEVICE) as listener, raw(VP) as engine:
        listener.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        engine.send(tagged(inner / Raw(b"tagged")))
        frame, beside = b"", b""
        while b"tagged" not in frame:
            frame, ((_, _, beside),), _, _ = listener.recvmsg(2048, socket.CMSG_SPACE(AUXDATA.size))
    assert AUXDATA.unpack(beside[: AUXDATA.size])[5] == 5
    assert Ether(frame)[IP].dst == HERE


def test_what_is_too_long_is_left_to_the_kernel(bench: Bench, xsk: XskSocket) -> None:
    bench.lead()
    before = bench.count(Reason.XFRMI_LEFT)
    send(bytes(MTU - 28 + 1))
    assert bench.kernel_sends()[IP].len == MTU + 1
    assert bench.count(Reason.XFRMI_LEFT) == before + 1
    send(bytes(MTU - 28))
    assert Ether(await_frames(xsk, 1)[0])[IP].len == MTU


def test_so_are_segments_that_are_too_long(bench: Bench, xsk: XskSocket) -> None:
    """By no MTU known yet, as of hosts behind a bridge."""
    bench.lead()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((HERE, PORT))
        sender.setsockopt(socket.IPPROTO_UDP, 103, 1472)  # UDP_SEGMENT
        sender.sendto(bytes(2 * 1472), (THERE, PORT))
        assert bench.kernel_sends()[IP].len == THEIRS
        sender.setsockopt(socket.IPPROTO_UDP, 103, MTU - 28)
        sender.sendto(bytes(2 * (MTU - 28)), (THERE, PORT))
    assert [Ether(frame)[IP].len for frame in await_frames(xsk, 2)] == [MTU, MTU]


def test_a_second_tag_is_left_to_the_kernel(bench: Bench, xsk: XskSocket) -> None:
    bench.lead()
    frame = Ether(src=bench.mac, dst=OTHERS) / Dot1Q(vlan=5) / IP(src=HERE, dst=THERE) / UDP(sport=1, dport=PORT)
    with raw(DEVICE) as wire:
        wire.send(bytes(frame))
    assert bytes(bench.kernel_sends()) == bytes(frame)


def test_without_an_engine_frames_come_back_and_the_kernel_does_vxlan(bench: Bench) -> None:
    """The first one finds no socket, which tells that the engine is gone; the next ones do not even try."""
    bench.lead()
    before = {reason: bench.count(reason) for reason in (Reason.XFRMI_OUT, Reason.XFRMI_BACK)}
    for number in range(3):
        send(b"frame %d" % number)
        sent = bench.kernel_sends()
        assert (sent.src, sent.dst, bytes(sent[Raw])) == (bench.mac, OTHERS, b"frame %d" % number)
    assert bench.steering.engine_gone()
    assert bench.count(Reason.XFRMI_OUT) == before[Reason.XFRMI_OUT] + 1
    assert bench.count(Reason.XFRMI_BACK) == before[Reason.XFRMI_BACK] + 1


def test_while_it_is_not_led_the_kernel_has_it(bench: Bench, xsk: XskSocket) -> None:
    bench.lead()
    bench.steering.xfrm_interfaces.unlead(bench.index)
    send(b"kernel")
    assert bytes(bench.kernel_sends()[Raw]) == b"kernel"


def test_its_mtu_stays(bench: Bench) -> None:
    interfaces = bench.steering.xfrm_interfaces
    bench.lead()
    shown = subprocess.run(["ip", "-o", "link", "show", DEVICE], check=True, capture_output=True, text=True).stdout
    assert f" mtu {THEIRS} " in shown
    assert interfaces.led() == {bench.index: (VLAN, MTU, ANY_FRAME)}
    assert interfaces.admitted() == {bench.index: (VLAN, ANY_FRAME)}


def test_a_firewall_sees_what_comes_in_by_it(bench: Bench) -> None:
    """Where it is on the device: on the veth pair it lets the tag pass."""
    bench.lead()
    for name in (UP, DEVICE):
        bench.steering.dock(name, Role.INSIDE)
    control, before = bench.steering._control, bench.count(Reason.NO_ZONE)
    passed = bench.count(Reason.XFRMI_PASSED)
    tables.set_control(control, Control.FIREWALL, 1)
    packet = IP(src=THERE, dst=HERE) / UDP(sport=PORT, dport=PORT) / Raw(b"policed")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, raw(VP) as engine:
            receiver.bind((HERE, PORT))
            receiver.settimeout(DEADLINE)
            engine.send(tagged(Ether(src=OTHERS, dst=bench.mac) / packet))
            tables.set_control(control, Control.FIREWALL, 0)
            engine.send(tagged(Ether(src=OTHERS, dst=bench.mac) / IP(src=THERE, dst=HERE) / UDP(dport=PORT)))
            assert receiver.recv(100) == b""
    finally:
        tables.set_control(control, Control.FIREWALL, 0)
    assert bench.count(Reason.XFRMI_PASSED) == passed + 1
    assert bench.count(Reason.NO_ZONE) == before + 1
