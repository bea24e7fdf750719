"""Packets that are no ordinary part of a flow: errors about others, damage, multicast, IKE, unknown VLANs."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from random import Random

from tests.reference import build
from tests.reference.build import Ip, Tcp
from tests.reference.fib import key_bytes
from tests.reference.flows import Place, parse
from tests.reference.network import HOSTS, LINKS
from tests.reference.packets import ERRORS, FRAGMENT, RST, SYN, TCP, UDP, Packet

Made = tuple[str, int, bytes]
"""What it is, the interface that it comes in by, the frame."""


def error_about(random: Random, frame: bytes, place: Place) -> bytes | None:
    """An ICMP error about a frame that left by a port, coming back there."""
    packet = parse(frame)
    if packet is None:
        return None
    sender = packet.dst
    if random.random() < 0.4:  # a router on the way
        sender = sender[:15] + bytes([random.choice((*HOSTS, 254))])
    quoted = bytearray(frame[packet.l3 : packet.end])
    headers = packet.l4 - packet.l3
    if packet.family == 6 and random.random() < 0.3:
        chain = _chain(random, quoted[6])
        quoted[40:40] = chain[1]
        quoted[6] = chain[0]
        headers += len(chain[1])
    room = headers + random.choice((8, 8, 8, 20, 28, 200, 6, 5, 4, 3, 0, -4))
    quoted = quoted[:room] if random.random() < 0.95 else quoted[: random.choice((0, 12, 19))]
    if random.random() < 0.1 and len(quoted) > headers + 1:
        quoted[headers] ^= 1  # of another port
    kind = random.choice(ERRORS[packet.family])
    rest = random.choice((0, 1280))
    ip = Ip(packet.family, sender, packet.src, random.choice((64, 64, 64, 1)))
    l4 = build.icmp(ip, kind, random.choice((0, 1, 4)), rest, bytes(quoted))
    padding = random.randbytes(random.choice((0, 0, 0, 1, 12)))
    return build.frame(packet.family, build.packet(ip, 1 if packet.family == 4 else 58, l4) + padding, place[1] or None)


def _chain(random: Random, following: int) -> tuple[int, bytes]:
    """Extension headers that nobody sent, up to more than a chain may have: the first one's number, and their bytes."""
    kinds = [random.choice((0, 43, 60, 60, FRAGMENT)) for _ in range(random.choice((1, 1, 2, 5, 6, 7)))]
    made = b""
    for kind, after in zip(kinds, (*kinds[1:], following), strict=True):
        if kind == FRAGMENT:
            made += build.fragment_header(after, random.choice((0, 0, 0, 8)), random.random() < 0.5, 7)
        else:
            made += build.extension(after, random.choice((0, 0, 1, 3)))
    return kinds[0], made


def oddity(random: Random, place: Place, base: bytes | None) -> Made:
    """Any of the kinds below. ``base`` is a frame of a flow to damage or to dress."""
    kinds = [_screened, _screened, _multicast, _ndp, _ike, _other_icmp, _not_ip, _noise, _own, _mapped, _unknown_port]
    if base is not None:
        kinds += [_damaged(base), _damaged(base), _cut(base), _tagged(base)]
    return random.choice(kinds)(random, place)


def _ip(random: Random, place: Place, dst4: str, dst6: str) -> Ip:
    link = random.choice(LINKS)
    host = random.choice(HOSTS)
    if random.random() < 0.5:
        return Ip(4, key_bytes(link.host4(host)), key_bytes(dst4), random.choice((1, 64)))
    return Ip(6, key_bytes(link.host6(host)), key_bytes(dst6), random.choice((1, 64)))


def _framed(ip: Ip, protocol: int, l4: bytes, place: Place) -> bytes:
    return build.frame(ip.family, build.packet(ip, protocol, l4), place[1] or None)


def _multicast(random: Random, place: Place) -> Made:
    ip = _ip(
        random,
        place,
        random.choice(("224.0.0.5", "239.1.2.3", "255.255.255.255")),
        random.choice(("ff02::1", "ff05::2")),
    )
    if random.random() < 0.15:
        nobody = key_bytes("0.0.0.0" if ip.family == 4 else "::")
        ip = Ip(ip.family, nobody, ip.dst, ip.ttl)
    l4, protocol = build.udp(ip, 5353, random.choice((53, 5353))), UDP
    if random.random() < 0.3:
        l4, protocol = build.tcp(ip, Tcp(1024, 80, SYN)), TCP
    elif random.random() < 0.3:
        l4, protocol = bytes(16), 89
    return "multicast", place[0], _framed(ip, protocol, l4, place)


def _ndp(random: Random, place: Place) -> Made:
    ip = _ip(random, place, "10.0.0.1", "ff02::1:ff00:1")
    ip = Ip(6, key_bytes("2001:db8:a::a"), key_bytes(random.choice(("ff02::1:ff00:1", "2001:db8:a::1"))))
    ip = Ip(6, ip.src, ip.dst, random.choice((255, 255, 64)))
    l4 = build.icmp(ip, random.choice((132, 133, 135, 136, 137, 138)), 0, 0, bytes(16))
    return "neighbour discovery", place[0], _framed(ip, 58, l4, place)


def _ike(random: Random, place: Place) -> Made:
    ip = _ip(
        random,
        place,
        random.choice(("198.51.100.1", "10.0.0.1", "10.0.1.10")),
        random.choice(("2001:db8:d::1", "2001:db8:b::a")),
    )
    if random.random() < 0.5:
        protocol = random.choice((50, 51))
        return "IPsec", place[0], _framed(ip, protocol, struct.pack("!II", 0x99, 1) + bytes(24), place)
    l4 = build.udp(ip, random.choice((500, 4500, 1024)), random.choice((500, 4500)), bytes(4) + b"ike")
    return "IKE", place[0], _framed(ip, UDP, l4, place)


def _other_icmp(random: Random, place: Place) -> Made:
    ip = _ip(random, place, random.choice(("10.0.1.10", "10.0.0.1")), random.choice(("2001:db8:b::a", "2001:db8:a::1")))
    kinds = (0, 8, 9, 10, 13, 14, 17, 3, 11) if ip.family == 4 else (128, 129, 130, 143, 160, 1, 3, 100)
    l4 = build.icmp(
        ip, random.choice(kinds), random.choice((0, 1)), random.getrandbits(32), bytes(random.choice((0, 12, 40)))
    )
    return "other ICMP", place[0], _framed(ip, 1 if ip.family == 4 else 58, l4, place)


def _own(random: Random, place: Place) -> Made:
    """From or to addresses that nobody should use."""
    link = random.choice(LINKS)
    addresses = (link.host4(1), link.host4(255), link.host4(10))
    src, dst = (key_bytes(random.choice(addresses)) for _ in range(2))
    if random.random() < 0.2:
        src = key_bytes(random.choice(("0.0.0.0", "224.0.0.1", "127.0.0.1")))
    ip = Ip(4, src, dst)
    if random.random() < 0.4:
        return "strange addresses", place[0], _framed(ip, 1, build.icmp(ip, 8, 0, 7 << 16), place)
    l4 = build.tcp(ip, Tcp(80, 80, random.choice((SYN, SYN, RST))))
    return "strange addresses", place[0], _framed(ip, TCP, l4, place)


def _screened(random: Random, place: Place) -> Made:
    """What screens are there for."""
    link, other = random.choice(LINKS), random.choice(LINKS)
    host, more = link.host4(random.choice(HOSTS)), random.random() < 0.5
    ip = Ip(
        4, key_bytes(host), key_bytes(random.choice((host, other.host4(10)))), identification=random.getrandbits(16)
    )
    kind = random.choice((_nuke, _piece, _small_piece, _far_piece, _source_routed, _syn_piece))
    return kind.__name__[1:].replace("_", " "), place[0], kind(random, place, ip, more)


def _nuke(random: Random, place: Place, ip: Ip, more: bool) -> bytes:
    flags = random.choice((0x38, 0x20, 0x30, SYN | 0x20))
    return _framed(ip, TCP, build.tcp(ip, Tcp(1024, 139 if more else 80, flags)), place)


def _syn_piece(random: Random, place: Place, ip: Ip, more: bool) -> bytes:
    l4 = build.tcp(ip, Tcp(1024, 80, random.choice((SYN, SYN | 0x10, 0x10, 0, 1))))
    return build.frame(4, build.packet(ip, TCP, l4, more=True), place[1] or None)


def _piece(random: Random, place: Place, ip: Ip, more: bool) -> bytes:
    packet = build.packet(
        ip, UDP, bytes(random.choice((0, 1, 7, 8, 9, 24))), more=more, offset=random.choice((8, 1480))
    )
    return build.frame(4, packet, place[1] or None)


def _small_piece(random: Random, place: Place, ip: Ip, more: bool) -> bytes:
    header = build.fragment_header(UDP, 1480, more, 77)
    link = random.choice(LINKS)
    ip = Ip(6, key_bytes(link.host6(10)), key_bytes(link.host6(10 + more)), extensions=header, first_extension=44)
    return build.frame(6, build.packet(ip, UDP, bytes(random.choice((1, 7, 8)))), place[1] or None)


def _far_piece(random: Random, place: Place, ip: Ip, more: bool) -> bytes:
    options = random.choice((b"", b"", b"\x01" * 4))
    ip = replace(ip, options=options)
    reach = random.choice((0, 0, 8, 16, 24, -8, -32))
    packet = build.packet(ip, 1, bytes(15 + len(options)), more=more, offset=65535 // 8 * 8 - 32 + reach)
    return build.frame(4, packet, place[1] or None)


def _source_routed(random: Random, place: Place, ip: Ip, more: bool) -> bytes:
    link = random.choice(LINKS)
    if more:
        options = random.choice((b"\x94\x04\0\0", b"\x83\x07\x04" + bytes(4), b"\x01", b"\x01" * 40))
        return _framed(replace(ip, options=options), UDP, build.udp(ip, 1, 5000), place)
    kinds = [random.choice((0, 43, 60)) for _ in range(random.choice((1, 2, 6)))]
    headers = b"".join(
        struct.pack("!BBBB", following, 0, random.choice((0, 0, 2)), 1) + bytes(4) for following in (*kinds[1:], UDP)
    )
    ip = Ip(6, key_bytes(link.host6(10)), key_bytes("2001:db8:b::a"), extensions=headers, first_extension=kinds[0])
    return _framed(ip, UDP, build.udp(ip, 1, 5000), place)


def _mapped(random: Random, place: Place) -> Made:
    """IPv6 with IPv4 addresses."""
    link, other = random.choice(LINKS), random.choice(LINKS)
    src, dst = key_bytes(link.host4(10)), key_bytes(other.host4(10))
    ip = Ip(6, src, dst if random.random() < 0.5 else key_bytes(other.host6(10)))
    return "IPv4 in IPv6", place[0], _framed(ip, UDP, build.udp(ip, 5000, 53), place)


def _not_ip(random: Random, place: Place) -> Made:
    ethertype = random.choice((0x0806, 0x88CC, 0x8100, 0x88A8, 0x0600))
    frame = build.MACS + struct.pack("!H", ethertype) + random.choice((b"", bytes(2), bytes(46)))
    if random.random() < 0.5:
        frame = build.MACS + struct.pack("!HHHHH", 0x88A8, place[1], 0x8100, 5, 0x0800) + bytes(40)
    return "not IP", place[0], frame


def _noise(random: Random, place: Place) -> Made:
    family = random.choice((4, 6))
    return "noise", place[0], build.frame(family, random.randbytes(random.randrange(60)), place[1] or None)


def _unknown_port(random: Random, place: Place) -> Made:
    ip = _ip(random, place, "10.0.1.10", "2001:db8:b::a")
    frame = build.frame(ip.family, build.packet(ip, UDP, build.udp(ip, 1, 2)), random.choice((100, 101, 4095)))
    return "perhaps unknown VLAN", place[0], frame


def _damaged(base: bytes) -> Callable[[Random, Place], Made]:
    def damage(random: Random, place: Place) -> Made:
        frame = bytearray(base)
        at = random.randrange(14, min(len(frame), 80))
        frame[at] = random.choice((0, 255, frame[at] ^ 1 << random.randrange(8), random.randrange(256)))
        return f"damaged at {at}", place[0], bytes(frame)

    return damage


def _cut(base: bytes) -> Callable[[Random, Place], Made]:
    def cut(random: Random, place: Place) -> Made:
        return "cut off", place[0], base[: random.randrange(14, len(base))]

    return cut


def _tagged(base: bytes) -> Callable[[Random, Place], Made]:
    def tag(random: Random, place: Place) -> Made:
        vid = random.choice((0, 0, 100))
        tpid = random.choice((0x8100, 0x88A8))
        return "another tag", place[0], base[:12] + struct.pack("!HH", tpid, vid | 0x6000) + base[12:]

    return tag


__all__ = ["Packet", "error_about", "oddity"]
