"""Packets that the guard has held back: each goes one way, once its SA's owner is known, or is given up."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import GRE, Ether

from ipsec_gw.desired import desired
from ipsec_gw.engines.soft.esp import EspPayload, EspTransform
from ipsec_gw.errors import EngineError, SteeringError
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.objects import (
    DeviceHeader,
    EngineSa,
    Lead,
    ManagedObject,
    ObjectKey,
    Selector,
    Steer,
    SteerKey,
    XfrmInterface,
)
from ipsec_gw.model.warmth import Volume
from ipsec_gw.ownership.waiting import (
    DECISION_SECONDS,
    EVERY_NUMBER,
    MOST,
    Carried,
    Passage,
    WaitingRoom,
    carried,
    had_alone,
)
from tests.support.world import HERE, LOCAL, OFFER, REMOTE, SETTINGS, THERE, policy, sa, snapshot
from xdp_steer.layout import MAX_WAITING_FRAME, SaKeyLeaf, WaitingLeaf
from xdp_steer.waiting import WaitingPacket

KEY = SaKey(REMOTE, 0x22)
WANTED = desired(OFFER, SETTINGS, snapshot(sa(0x11, inbound=True), sa(0x22), policies=(policy(0x22),))).objects
SA = WANTED[KEY]
SEED, ROUNDS = 20261129, 30
HOLD_SECONDS = 2.0
PATIENCE_SECONDS = HOLD_SECONDS + DECISION_SECONDS
WAN = 7


def inner(number: int, length: int = 60) -> bytes:
    return bytes(IP(src="192.168.1.1", dst="192.168.2.1", id=number) / UDP() / bytes(length))


def packet(number: int, *, plain: bytes | None = None, at: float = 0.0, next_header: int = 4) -> WaitingPacket:
    """As the guard leaves it: what the kernel made of a packet, with its sequence number."""
    assert isinstance(SA, EngineSa)
    transform = EspTransform(SA.key.spi, SA.algorithm, SA.secret, SA.salt, esn=SA.esn)
    esp = transform.seal(number, number.to_bytes(8, "big"), EspPayload(next_header, plain or inner(number)))
    frame = bytes(Ether() / IP(src=str(LOCAL), dst=str(REMOTE), proto=50)) + esp
    return WaitingPacket(KEY, int(at * 1e9), WAN, 14, 34, frame)


@dataclass
class World:
    """The ways as lists, and the owner of the SA as a word."""

    owner: str = ""
    now: float = 0.0
    led: list[bytes] = field(default_factory=list)
    sent: list[tuple[int, bytes]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    forsaken: list[SaKey] = field(default_factory=list)
    full: bool = False
    vlan: int = 0
    gre: bool = False

    def to_engine(self, plain: bytes, vlan: int) -> None:
        if self.full:
            raise BlockingIOError("no room")
        assert vlan == self.vlan
        self.led.append(plain)

    def to_wire(self, ifindex: int, frame: bytes) -> None:
        if self.full:
            raise BlockingIOError("no room")
        self.sent.append((ifindex, frame))

    def is_released(self, key: SaKey) -> bool:
        if self.owner == "unreadable":
            raise SteeringError("the map is gone")
        return self.owner == "kernel"

    def is_claimed(self, key: SaKey) -> bool:
        if self.owner == "unreadable":
            raise SteeringError("the map is gone")
        return self.owner in {"engine", "claimed"}

    def carried(self, key: SaKey) -> Carried | None:
        if self.owner != "engine" or not isinstance(SA, EngineSa):
            return None
        return Carried(replace(SA, gre=self.gre), self.vlan)

    def room(self) -> WaitingRoom:
        return WaitingRoom(
            self,
            is_released=self.is_released,
            is_claimed=self.is_claimed,
            carried=self.carried,
            tell=self.told.append,
            forsaken=self.forsaken.append,
            hold=HOLD_SECONDS,
            clock_ns=lambda: int(self.now * 1e9),
        )


@pytest.fixture
def world() -> World:
    return World()


def test_what_waits_for_the_engine_comes_to_it_in_clear_and_in_order(world: World) -> None:
    room = world.room()
    room.add([packet(1), packet(2)])
    assert (world.led, world.sent) == ([], [])
    world.owner = "engine"
    room.settle()
    room.add([packet(3)])
    assert world.led == [inner(1), inner(2), inner(3)]
    assert (world.sent, room.passage) == ([], Passage(to_engine=3))


def test_what_waits_for_a_tunnel_of_an_interface_comes_behind_its_vlan_id(world: World) -> None:
    world.owner, world.vlan = "engine", 77
    world.room().add([packet(1)])
    assert world.led == [inner(1)]


@pytest.mark.parametrize(
    "plain", [inner(1), bytes(IPv6(src="fd00::1", dst="fd00::2") / UDP() / bytes(7))], ids=["4", "6"]
)
def test_what_waits_for_a_gre_device_comes_without_its_header(world: World, plain: bytes) -> None:
    """But with its length: the kernel has counted it."""
    world.owner, world.vlan, world.gre = "engine", 77, True
    room = world.room()
    ethertype = 0x0800 if plain[0] >> 4 == 4 else 0x86DD
    room.add([packet(1, plain=bytes(2) + ethertype.to_bytes(2, "big") + plain, next_header=47)])
    assert (world.led, world.sent) == ([plain], [])
    assert room.through(KEY) == Volume(1, len(plain) + 4)
    room.add([packet(2, plain=b"\x20\0\x08\0" + bytes(4) + plain, next_header=47)])
    assert room.passage == Passage(to_engine=1, lost=1), "of somebody else with a key"


def test_what_waits_for_a_device_over_tunnel_mode_comes_without_all_that_is_around_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But with the length that the kernel has counted. Pieces of a packet are the device's too, and no engine's."""
    assert isinstance(SA, EngineSa)
    ours, theirs = ip_address("192.0.2.1"), ip_address("192.0.2.2")
    header = DeviceHeader(ours, theirs, gre=True)
    monkeypatch.setattr(world, "carried", lambda _key: Carried(SA, 77, header))
    world.vlan = 77
    whole = [
        bytes(IP(**{"src": str(ours), "dst": str(theirs), **fields}) / GRE(proto=0x0800) / inner(1))
        for fields in ({}, {"flags": "MF"}, {"dst": "192.0.2.3"})
    ]
    room = world.room()
    room.add([packet(n, plain=plain) for n, plain in enumerate(whole, 1)])
    assert world.led == [inner(1)]
    assert room.passage == Passage(to_engine=1, lost=2)
    assert room.through(KEY) == Volume(1, len(whole[0]))


def test_what_waits_in_transport_mode_comes_with_its_own_header(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(SA, EngineSa)
    plain = IP(bytes(IP(src=str(LOCAL), dst=str(REMOTE), id=9, ttl=3, tos=8) / UDP(sport=1, dport=2) / b"transport"))
    transform = EspTransform(SA.key.spi, SA.algorithm, SA.secret, SA.salt, esn=SA.esn)
    esp = transform.seal(1, bytes(8), EspPayload(17, bytes(plain.payload)))
    outer = IP(bytes(IP(src=str(LOCAL), dst=str(REMOTE), id=9, ttl=3, tos=8, proto=50) / esp))
    held = replace(packet(1), frame=bytes(Ether()) + bytes(outer))
    monkeypatch.setattr(world, "carried", lambda _key: Carried(replace(SA, transport=True), 0))
    room = world.room()
    room.add([held])
    assert world.led == [bytes(plain)]
    assert room.through(KEY) == Volume(1, len(plain.payload)), "as the kernel counts it"


def test_what_the_kernel_keeps_leaves_as_it_is(world: World) -> None:
    room = world.room()
    room.add([packet(1), packet(2)])
    world.owner = "kernel"
    room.settle()
    room.settle()
    assert world.sent == [(WAN, packet(1).frame), (WAN, packet(2).frame)]
    assert (world.led, room.passage) == ([], Passage(to_wire=2))


def test_what_waits_leaves_before_the_kernel_gets_its_sa(world: World) -> None:
    room = world.room()
    other = SaKey(REMOTE, 0x33)
    room.add([packet(1), replace(packet(2), key=other), packet(3)])
    room.send(KEY)
    room.send(KEY)
    assert world.sent == [(WAN, packet(1).frame), (WAN, packet(3).frame)]
    world.owner = "kernel"
    room.settle()
    assert world.sent[2:] == [(WAN, packet(2).frame)]
    assert room.passage == Passage(to_wire=3)


def test_a_number_of_the_engine_never_leaves_again(world: World) -> None:
    room = world.room()
    room.add([packet(5), packet(6)])
    world.owner = "unreadable"
    room.send(KEY, above=5)
    room.settle()
    world.owner = "kernel"
    room.add([packet(4), packet(5), packet(7)])  # on their way to the guard meanwhile
    assert [frame for _, frame in world.sent] == [packet(6).frame, packet(7).frame]
    assert room.passage == Passage(to_wire=2, lost=3)


def test_nothing_waits_for_ever(world: World) -> None:
    world.owner = "claimed"
    room = world.room()
    room.add([packet(1, at=0.0), packet(2, at=2.0)])
    world.now = PATIENCE_SECONDS
    room.settle()
    assert world.forsaken == []
    world.now = PATIENCE_SECONDS + 0.1
    room.settle()
    assert world.forsaken == [KEY], "no policy names its SA, it seems"
    world.owner = "engine"
    room.settle()
    assert (world.led, room.passage) == ([inner(2)], Passage(to_engine=1, lost=1))


def test_what_nobody_decides_on_leaves_when_the_guard_lets_the_kernel_send(world: World) -> None:
    """Seen with rekeys that came faster than the daemon looked: each SA was gone before anything was decided."""
    room = world.room()
    room.add([packet(1, at=0.0), packet(2, at=1.0)])
    world.now = HOLD_SECONDS
    room.settle()
    assert world.sent == []
    world.now = HOLD_SECONDS + 0.1
    room.settle()
    assert world.sent == [(WAN, packet(1).frame), (WAN, packet(2).frame)]
    assert (world.led, room.passage) == ([], Passage(to_wire=2))


def test_what_waits_of_an_sa_that_is_gone_leaves_at_once(world: World) -> None:
    room = world.room()
    room.add([packet(1)])
    room.forget({KEY})
    room.forget(set())
    assert world.sent == [], "that look may be older than the SA"
    room.add([packet(2)])
    room.forget(set())
    assert world.sent == [(WAN, packet(1).frame), (WAN, packet(2).frame)]
    room.add([packet(3)])
    room.forget(set())
    room.forget({KEY})
    world.owner = "claimed"
    room.forget(set())
    room.forget(set())
    assert len(world.sent) == 2, "a claimed one is handed back by whoever claimed it"


def test_what_an_engine_may_have_used_does_not_leave_with_an_sa_that_is_gone(world: World) -> None:
    world.owner = "claimed"
    room = world.room()
    room.add([packet(1), packet(2)])
    room.send(KEY, above=EVERY_NUMBER)
    world.owner, world.now = "", HOLD_SECONDS + 0.1
    room.settle()
    assert (world.sent, world.led, room.passage) == ([], [], Passage(lost=2))


def test_each_packet_goes_one_way_once_whatever_happens(world: World) -> None:
    dice = random.Random(SEED)
    print(f"seed {SEED}")
    made = {number: packet(number) for number in range(1, ROUNDS + 1)}
    known = {inner(n): n for n in made} | {one.frame: n for n, one in made.items()}
    for _ in range(300):
        world = World()
        room, number = world.room(), 0
        for _ in range(ROUNDS):
            world.now += dice.choice((0.0, 0.01, 1.0))
            world.owner = dice.choice(("", "claimed", "engine", "kernel", "unreadable"))
            world.full = dice.random() < 0.1
            if dice.random() < 0.5:
                number += 1
                room.add([replace(made[number], seen_ns=int(world.now * 1e9))])
            else:
                room.settle()
        world.now += PATIENCE_SECONDS + 1
        world.owner = "claimed"
        room.settle()
        gone = [*world.led, *(frame for _, frame in world.sent)]
        numbers = [known[one] for one in gone]
        assert len(set(numbers)) == len(numbers), "one went twice"
        assert len(numbers) + room.passage.lost == number
        for went in (world.led, [frame for _, frame in world.sent]):
            assert [known[one] for one in went] == sorted(known[one] for one in went)


def test_a_map_that_cannot_be_read_loses_nothing(world: World) -> None:
    room = world.room()
    world.owner = "unreadable"
    room.add([packet(1)])
    world.owner = "kernel"
    room.settle()
    assert world.sent == [(WAN, packet(1).frame)]
    assert world.told == [f"it is not known who owns SA {KEY}, what was held back of it waits: the map is gone"]


def test_room_has_an_end(world: World) -> None:
    room = world.room()
    one = packet(1)
    room.add([one] * (MOST + 3))
    world.owner = "kernel"
    room.settle()
    room.add([one])
    assert room.passage == Passage(to_wire=MOST + 1, lost=3)


@pytest.mark.parametrize(
    "bad",
    [
        replace(packet(1), frame=packet(1).frame[:-1] + bytes([packet(1).frame[-1] ^ 1])),
        replace(packet(1), frame=packet(1).frame[:40]),
        packet(1, next_header=59),
        packet(1, next_header=41),
        packet(1, plain=b"E"),
    ],
    ids=["tampered", "cut", "dummy", "another version", "no packet"],
)
def test_what_cannot_be_opened_is_lost_alone(world: World, bad: WaitingPacket) -> None:
    world.owner = "engine"
    room = world.room()
    room.add([bad, packet(2)])
    assert (world.led, room.passage) == ([inner(2)], Passage(to_engine=1, lost=1))


def test_a_cipher_that_openssl_lacks_loses_what_waits_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_arguments: object, **_options: object) -> EspTransform:
        raise EngineError("OpenSSL here has no such cipher")

    waiting = packet(1)
    monkeypatch.setattr("ipsec_gw.ownership.waiting.EspTransform", lacking)
    world.owner = "engine"
    room = world.room()
    room.add([waiting])
    assert (world.led, room.passage) == ([], Passage(lost=1))
    assert world.told == [
        f"what was held back of SA {KEY} is lost, it cannot be opened: OpenSSL here has no such cipher"
    ]


def test_ipv6_inside_and_padding_behind_it(world: World) -> None:
    world.owner = "engine"
    plain = bytes(IPv6(src="fd00:1::1", dst="fd00:2::1") / UDP() / b"six")
    room = world.room()
    room.add([packet(1, plain=plain + bytes(40), next_header=41), packet(2, plain=inner(2) + bytes(8))])
    assert world.led == [plain, inner(2)]


def test_without_ethernet_nothing_goes_to_the_wire(world: World) -> None:
    world.owner = "kernel"
    room = world.room()
    room.add([replace(packet(1), l3=0)])
    assert (world.sent, room.passage) == ([], Passage(lost=1))


def without(kind: type[ManagedObject]) -> dict[ObjectKey, ManagedObject]:
    return {key: obj for key, obj in WANTED.items() if not isinstance(obj, kind)}


def test_a_tunnel_is_carried_once_it_is_whole() -> None:
    assert carried(KEY, WANTED, WANTED) == Carried(SA, 0)
    assert carried(KEY, without(Lead), WANTED) is None
    assert carried(KEY, WANTED, {}) is None, "its key is not known"
    assert carried(SaKey(LOCAL, 0x11), WANTED, WANTED) is None, "inbound"
    assert isinstance(WANTED[Selector(HERE, THERE)], Lead)


def test_a_tunnel_of_an_interface_is_carried_once_that_is_led() -> None:
    ipsec0, anything = XfrmInterface(76, "ipsec0"), ip_network("0.0.0.0/0")
    state = snapshot(
        sa(0x11, inbound=True, if_id=42),
        sa(0x22, if_id=42),
        policies=(policy(0x22, source=anything, destination=anything, if_id=42),),
        interfaces={42: ipsec0},
    )
    wanted = desired(OFFER, SETTINGS, state).objects
    assert carried(KEY, wanted, wanted) == Carried(SA, ipsec0.vlan)
    assert carried(KEY, {key: obj for key, obj in wanted.items() if key != ipsec0}, wanted) is None


def test_the_engine_has_alone_what_is_steered_and_what_is_led_whole() -> None:
    steer = Steer(SteerKey(SaKey(LOCAL, 0x99)))
    assert had_alone({**WANTED, steer.key: steer}) - had_alone(WANTED) == {SaKey(LOCAL, 0x99)}
    assert KEY in had_alone(WANTED)
    assert KEY not in had_alone(without(Lead)), "the kernel gets what is not led yet"
    assert had_alone({}) == frozenset()


def test_records_of_the_guard() -> None:
    one = packet(9, at=1.5)
    leaf = WaitingLeaf(one.seen_ns, SaKeyLeaf.of(KEY), WAN, len(one.frame), 14, 34)
    raw = bytearray(bytes(leaf))
    raw[WaitingLeaf.frame.offset : WaitingLeaf.frame.offset + len(one.frame)] = one.frame
    assert len(raw) == 2048
    assert WaitingPacket.of(bytes(raw)) == one
    for odd in (
        bytes(raw[:-1]),
        bytes(WaitingLeaf(length=MAX_WAITING_FRAME + 1)),
        bytes(WaitingLeaf(length=20, esp=20)),
    ):
        with pytest.raises(ValueError, match="waiting packet"):
            WaitingPacket.of(odd)
