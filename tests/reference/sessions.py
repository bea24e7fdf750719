"""The session table, the TCP states and the fragment table."""

from __future__ import annotations

from dataclasses import dataclass, field

from ipsec_gw.model.firewall import Timeouts
from tests.reference.nat64 import other_identification, other_protocol
from tests.reference.packets import ACK, FIN, RST, SYN, TCP, UDP, Inner, Key, Packet
from xdp_steer.flow_layout import SessionFlag, State

SECOND = 1_000_000_000
FRAGMENT_SECONDS = 30
ROUTE_SECONDS = 5
"""That a session's route is good for."""


@dataclass(slots=True)
class Entry:
    """One direction of a session; ``struct session`` says what the fields mean."""

    state: int
    timeout: int
    flags: int
    src: bytes = b""
    dst: bytes = b""
    sport: int = 0
    dport: int = 0
    out_zone: int = 0
    mss: int = 0
    app_timeout: int = 0
    rule: int = 0
    snat_rule: int = 0
    dnat_rule: int = 0
    last_seen_ns: int = 0
    packets: int = 0
    octets: int = 0
    ack: int = 0
    routed_ns: int = 0
    out_ifindex: int = 0
    out_vid: int = 0
    mtu: int = 0
    dmac: bytes = bytes(6)
    smac: bytes = bytes(6)
    embedded: int = 0
    generation: int = 0

    def peer_key(self, key: Key) -> Key:
        """The key of the other direction."""
        protocol = other_protocol(key.protocol) if self.flags & SessionFlag.NAT64 else key.protocol
        return Key(self.dst, self.src, self.dport, self.sport, protocol, self.out_zone)


@dataclass
class Sessions:
    """Entries by key. ``touched`` collects the keys that the last packet read, wrote or removed.

    ``maximum`` is the room of the table in entries.
    """

    timeouts: Timeouts
    maximum: int = 2 * 262_144
    entries: dict[Key, Entry] = field(default_factory=dict)
    touched: set[Key] = field(default_factory=set)

    def find(self, key: Key) -> Entry | None:
        self.touched.add(key)
        return self.entries.get(key)

    def pair(self, key: Key, entry: Entry) -> tuple[Entry, Entry]:
        """An entry and its peer."""
        peer = self.find(entry.peer_key(key))
        assert peer is not None, "both directions live and die together"
        return entry, peer

    def expired(self, key: Key, entry: Entry, now: int) -> bool:
        last = max(side.last_seen_ns for side in self.pair(key, entry))
        return now > last + entry.timeout * SECOND

    def remove(self, key: Key, entry: Entry) -> None:
        """Both directions."""
        for each in (key, entry.peer_key(key)):
            self.touched.add(each)
            self.entries.pop(each, None)

    def advance(self, packet: Packet, own: Entry, peer: Entry, *, out_of_tunnel: bool = False) -> None:
        """What a TCP packet changes in its session, counters and times apart."""
        state = next_state(packet, own, peer, out_of_tunnel=out_of_tunnel)
        if state != own.state:
            own.state = peer.state = state
            own.timeout = peer.timeout = self.seconds(state, TCP, own.app_timeout)
        if packet.flags & ACK:
            own.ack = packet.ack
            own.flags |= SessionFlag.ACKED

    def insert(self, key: Key, entry: Entry) -> bool:
        """False: taken already, or no room."""
        self.touched.add(key)
        if key in self.entries or len(self.entries) >= self.maximum:
            return False
        self.entries[key] = entry
        return True

    def seconds(self, state: int, protocol: int, application: int, *, is_icmp: bool = False) -> int:
        """The idle timeout of a state. ``is_icmp``: of the packet's own family."""
        times = self.timeouts
        if protocol == TCP and state != State.ESTABLISHED:
            return {
                State.OPENING: times.tcp_opening,
                State.ANSWERED: times.tcp_opening,
                State.CLOSING: times.tcp_closing,
                State.TIME_WAIT: times.tcp_time_wait,
                State.CLOSED: times.tcp_closed,
            }[State(state)]
        if application:
            return application
        if is_icmp:
            return times.icmp
        return {TCP: times.tcp_established, UDP: times.udp}.get(protocol, times.other)


def is_reopening(packet: Packet, entry: Entry) -> bool:
    """A SYN for a session that is over: it begins another one."""
    syn = packet.flags & (SYN | ACK) == SYN
    return packet.is_tcp and syn and entry.state in (State.TIME_WAIT, State.CLOSED)


def next_state(packet: Packet, own: Entry, peer: Entry, *, out_of_tunnel: bool = False) -> int:
    """Where a TCP packet of the direction of ``own`` takes a session that is not over. Notes who sent a FIN. What this
    machine answers into a tunnel leaves encrypted, unseen.
    """
    state = own.state
    if packet.flags & RST:  # closes, or changes nothing at all
        expected = peer.flags & SessionFlag.ACKED and packet.seq == peer.ack
        return State.CLOSED if expected or state in (State.OPENING, State.ANSWERED) else state
    reverse = bool(own.flags & SessionFlag.REVERSE)
    unseen = out_of_tunnel and own.flags & SessionFlag.TO_SELF
    if state == State.OPENING and reverse and packet.flags & (SYN | ACK) == SYN | ACK:
        state = State.ANSWERED
    elif packet.flags & (SYN | ACK) == ACK and (
        unseen if state == State.OPENING else state == State.ANSWERED and not reverse
    ):
        state = State.ESTABLISHED
    if packet.flags & FIN and state in (State.ANSWERED, State.ESTABLISHED, State.CLOSING):
        own.flags |= SessionFlag.FIN
        state = State.TIME_WAIT if peer.flags & SessionFlag.FIN else State.CLOSING
    return state


@dataclass(frozen=True, slots=True)
class FragmentKey:
    """Fragments of one datagram."""

    src: bytes
    dst: bytes
    identification: int
    protocol: int
    zone: int


@dataclass
class Fragments:
    """Which flow the fragments of a datagram belong to, for half a minute.

    ``left`` has them as they left: to which flow errors about them belong.
    """

    entries: dict[FragmentKey, tuple[Key, int]] = field(default_factory=dict)
    left: dict[FragmentKey, tuple[Key, int]] = field(default_factory=dict)

    @staticmethod
    def key(packet: Packet, zone: int) -> FragmentKey:
        return FragmentKey(packet.src, packet.dst, packet.fragment_id, packet.fragment_protocol, zone)

    def remember(self, packet: Packet, flow: Key, entry: Entry, now: int) -> None:
        """A first fragment of a flow, which becomes what its entry says."""
        self.entries[self.key(packet, flow.zone)] = (flow, now)
        if not entry.flags & SessionFlag.TO_SELF:
            identity = packet.fragment_id, packet.fragment_protocol
            if entry.flags & SessionFlag.NAT64:
                identity = other_identification(packet.fragment_id, packet.family), other_protocol(identity[1])
            left = FragmentKey(entry.src, entry.dst, *identity, entry.out_zone)
            self.left[left] = (entry.peer_key(flow), now)

    def flow(self, packet: Packet, zone: int, now: int) -> Key | None:
        """Of a later fragment."""
        return self._fresh(self.entries.get(self.key(packet, zone)), now)

    def of_quoted(self, inner: Inner, zone: int, now: int, *, left: bool) -> Key | None:
        """Of a later fragment that an error quotes: as it left this machine, or as it came in."""
        key = FragmentKey(inner.src, inner.dst, inner.fragment_id, inner.fragment_protocol, zone)
        return self._fresh((self.left if left else self.entries).get(key), now)

    @staticmethod
    def _fresh(found: tuple[Key, int] | None, now: int) -> Key | None:
        if found is None or now > found[1] + FRAGMENT_SECONDS * SECOND:
            return None
        return found[0]
