"""Sequences of packets, biased to what is interesting, made while they run: replies answer what really came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from random import Random

from ipsec_gw.model.ids import IpNetwork
from ipsec_gw.model.snapshot import PolicyDirection, XfrmPolicy
from tests.reference import build, odd
from tests.reference.fib import key_bytes
from tests.reference.flows import End, Flow, Place, Shape, dress, ip_of, l4_of, protocol_of, tag_of
from tests.reference.model import Outcome
from tests.reference.nat64 import embed
from tests.reference.network import HOSTS, LINKS, SILENT, TRANSLATOR_PORT, TUNNEL_PORT, Link
from tests.reference.packets import ACK, FIN, FRAGMENT, ICMP, RST, SYN, TCP, UDP
from tests.reference.rulesets import CLIENT_PORTS, PORTS
from tests.reference.translator import Vpp
from xdp_steer.reasons import Reason


@dataclass(frozen=True, slots=True)
class Send:
    """A frame that comes in by an interface."""

    ingress: int
    frame: bytes
    note: str
    flow: Flow | None = None
    reverse: bool = False


@dataclass(frozen=True, slots=True)
class Age:
    """Time passes."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Replace:
    """Other IPsec policies hold from here on."""

    tunnels: tuple[XfrmPolicy, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """New flows of pools that are VPP's at times go to VPP, or stay in XDP."""

    to_vpp: bool


Step = Send | Age | Replace | Move

REMOTES = {
    4: ("203.0.113.9", "8.8.8.8", "192.0.2.1", "192.0.2.17", "192.0.2.33", "192.0.2.50", "192.0.2.66"),
    6: (
        "2001:4860::8",
        "2001:db8:f0::1",
        "2001:db8:f1::1",
        "2001:db8:f2::1",
        "2001:db8:f3::1",
        "2001:db8:f4::1",
        "2001:db8:b:ffff::a",
    ),
}
TRANSLATED = {
    4: (
        "198.51.100.50",
        "198.51.100.49",
        "198.51.100.51",
        "198.51.100.74",
        "198.51.100.100",
        "198.51.100.116",
        "198.51.100.202",
        "198.51.100.207",
        "10.0.0.10",
    ),
    6: (
        "2001:db8:d::50",
        "2001:db8:d::51",
        "2001:db8:d:50::a",
        "2001:db8:d:1::a",
        "2001:db8:d::100",
        "2001:db8:d::110",
        "2001:db8:e0::a",
        "2001:db8:e0:ffff::a",
        "2001:db8:e0:0:ffff:ffff:ffff:ffff",
        "2001:db8:e1:7:ffff::b",
    ),
}
"""External addresses of rules, and of pools."""


BEHIND = ("10.0.0.10", "10.0.1.10", "10.0.2.11", "10.0.100.12", "203.0.113.9", "8.8.8.8", "192.0.2.50", "192.0.2.17")
"""Hosts of IPv4 that IPv6 asks for by NAT64; the next ones it should not."""
NEVER = ("10.0.0.1", "127.0.0.1", "224.0.0.5", "0.0.0.0", "255.255.255.255", "10.0.0.119")


class Traffic:
    """The steps of one sequence. Tell it with :meth:`saw` what became of each frame."""

    def __init__(
        self,
        random: Random,
        indexes: Mapping[str, int],
        zoned: Sequence[str],
        timeouts: tuple[int, ...],
        prefixes: tuple[IpNetwork, ...] = (),
        tunnels: tuple[XfrmPolicy, ...] = (),
        vpp: Vpp | None = None,
        *,
        moves: bool = False,
    ) -> None:
        self._moves = moves
        self._vpp = vpp
        self._translator = indexes[TRANSLATOR_PORT]
        self._prefixes = prefixes  # of NAT64
        self._tunnels = tunnels
        self._out = tuple(policy for policy in tunnels if policy.direction is PolicyDirection.OUT)
        self._tunnel_place = (indexes[TUNNEL_PORT], 0)
        self.random = random
        self._zoned = tuple(link for link in LINKS if link.name in zoned and link.forwarding) or LINKS
        self._places = {link.name: (indexes[link.parent or link.name], link.vid) for link in LINKS}
        self._timeouts = timeouts
        self._flows: list[Flow] = []
        self._pending: list[Step] = []
        self._sent: list[tuple[bytes, Place]] = []
        self._ages = 0
        self._identification = random.getrandbits(16)

    def next(self) -> Step:
        """Another step."""
        if self._pending:
            return self._pending.pop(0)
        if not self._flows or self.random.random() < 0.12:
            return self._new_flow()
        kinds: tuple[tuple[Callable[[], Step], int], ...] = (
            (self._new_flow, 8),
            (self._go_on, 60),
            (self._odd_flags, 6),
            (self._error, 10),
            (self._fragments, 6),
            (self._search, 3),
            (self._age, 4),
            (self._oddity, 10),
            (self._replace, 2 if self._tunnels else 0),
            (self._move, 2 if self._moves else 0),
        )
        return self.random.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]()

    def saw(self, step: Send, outcome: Outcome) -> None:
        """What became of a step's frame. What VPP was given comes back from it, nearly always."""
        if outcome.reason is Reason.TRANSLATE and self._vpp is not None and self.random.random() < 0.97:
            made = self._vpp.answer(outcome.frame)
            if made is not None:
                self._pending.insert(0, Send(self._translator, made, "VPP", step.flow, step.reverse))
            if step.flow is not None and self.random.random() < 0.1:
                self._pending.append(self._past_vpp(step.flow))
        if outcome.action not in ("PASS", "REDIRECT") or outcome.egress is None:
            return
        self._sent.append((outcome.frame, outcome.egress))
        if step.flow is not None and not step.reverse:
            step.flow.learn(outcome.frame, outcome.egress, self.random)

    def _past_vpp(self, flow: Flow) -> Step:
        """Somebody answers who knows the addresses inside."""
        client = flow.client
        end = End(self._places[self._link().name], client.dst, client.src, client.dport, client.sport)
        return self._packet(flow, end, Shape(), reverse=True)

    # Flows

    def _new_flow(self) -> Step:
        random = self.random
        if self._flows and random.random() < 0.25:
            flow = self._sibling(random.choice(self._flows))
        else:
            family = random.choice((4, 4, 6))
            link = self._link()
            kind = random.choice((TCP, TCP, TCP, UDP, UDP, ICMP, ICMP, 47, 132, 50, 1 if family == 6 else 58))
            sport, dport = random.choice(CLIENT_PORTS), random.choice(PORTS)
            if kind == ICMP:
                dport = sport
            begins = self._through_tunnel(family)
            begins = begins or (self._places[link.name], self._source(link, family), self._target(link, family))
            client = End(*begins, sport, dport)
            client.seq = random.getrandbits(32)
            flow = Flow(family, kind, client)
        self._flows.append(flow)
        shape = dress(random)
        if random.random() < 0.6:
            shape = replace(shape, ttl=64, size=min(shape.size, 100))
        return self._packet(flow, flow.client, shape, reverse=False)

    def _replace(self) -> Step:
        """Some of the policies, or all."""
        kept = tuple(one for one in self._tunnels if self.random.random() < 0.5)
        return Replace(self.random.choice((kept, (), self._tunnels, self._tunnels)))

    def _move(self) -> Step:
        return Move(self.random.random() < 0.5)

    def _through_tunnel(self, family: int) -> tuple[Place, bytes, bytes] | None:
        """Where a flow that a policy is about comes in, its source and its destination."""
        fitting = [policy for policy in self._out if policy.source.version == family]
        if not fitting or self.random.random() < 0.4:
            return None
        policy = self.random.choice(fitting)
        ours, theirs = (self._of(network) for network in (policy.source, policy.destination))
        if self.random.random() < 0.35:
            return self._tunnel_place, theirs, ours
        link = self._link()
        return self._places[link.name], self._source(link, family), theirs

    def _of(self, network: IpNetwork) -> bytes:
        """An address of it, most likely one of those that others use too."""
        known = [
            address
            for link in LINKS
            for host in HOSTS
            for address in (link.host4(host), link.host6(host))
            if address.version == network.version and address in network
        ]
        known += [ip_address(text) for text in (*REMOTES[network.version], *TRANSLATED[network.version])]
        inside = [address for address in known if address in network]
        return key_bytes(self.random.choice(inside) if inside else network[-1])

    def _search(self) -> Step:
        """A source asks for one thing after another, and does not wait for answers."""
        random = self.random
        family, kind, link = random.choice((4, 6)), random.choice((TCP, TCP, UDP, ICMP)), self._link()
        source, steps = self._source(link, family), []
        for _ in range(5):
            sport, dport = random.choice(CLIENT_PORTS), random.choice(PORTS)
            end = End(self._places[link.name], source, self._target(link, family), sport, dport)
            steps.append(self._packet(Flow(family, kind, end), end, Shape(), reverse=False))
        self._pending += steps[1:]
        return steps[0]

    def _sibling(self, flow: Flow) -> Flow:
        """Another client port or address for the same service: what competes for a pool."""
        random, end = self.random, flow.client
        sport = random.choice(CLIENT_PORTS)
        dport = sport if flow.kind == ICMP else end.dport
        src = end.src if random.random() < 0.7 else end.src[:15] + bytes([random.choice(HOSTS)])
        return Flow(flow.family, flow.kind, End(end.place, src, end.dst, sport, dport, random.getrandbits(32)))

    def _source(self, link: Link, family: int) -> bytes:
        random = self.random
        if random.random() < 0.08:  # from elsewhere than it says
            link = random.choice(LINKS)
        if random.random() < 0.04:
            return key_bytes(random.choice(REMOTES[family]))
        return self._host(link, family, random.choice(HOSTS))

    @staticmethod
    def _host(link: Link, family: int, host: int) -> bytes:
        return key_bytes(link.host4(host) if family == 4 else link.host6(host))

    def _link(self) -> Link:
        """Mostly one that has a zone."""
        return self.random.choice(LINKS if self.random.random() < 0.04 else self._zoned)

    def _target(self, client: Link, family: int) -> bytes:
        random = self.random
        roll = random.random()
        link = self._link()
        if link is client and random.random() < 0.8:
            link = self._link()
        if family == 6 and self._prefixes and random.random() < 0.5:
            prefix = random.choice(self._prefixes)
            hosts = BEHIND if random.random() < 0.9 else NEVER
            return embed(prefix.network_address.packed, prefix.prefixlen, key_bytes(random.choice(hosts)))
        if roll < 0.5:
            return self._host(link, family, random.choice(HOSTS))
        if roll < 0.7:
            return key_bytes(random.choice(REMOTES[family]))
        if roll < 0.85:
            return key_bytes(random.choice(TRANSLATED[family]))
        if roll < 0.95:
            return self._host(link, family, 1)
        return self._host(link, family, SILENT)

    def _packet(self, flow: Flow, end: End, shape: Shape, *, reverse: bool) -> Send:
        shape = self._extended(flow, end, shape)
        ip = ip_of(flow, end, shape)
        protocol = protocol_of(flow.kind, end.family)
        packet = build.packet(ip, protocol, l4_of(flow, end, ip, shape, self.random, reverse=reverse))
        frame = build.frame(end.family, packet, tag_of(end.place, shape))
        if len(frame) < 60 and self.random.random() < 0.2:
            frame += bytes(60 - len(frame))
        return Send(end.place[0], frame, "reverse" if reverse else "forward", flow, reverse)

    def _extended(self, flow: Flow, end: End, shape: Shape) -> Shape:
        """IPv6 extension headers at times."""
        if end.family == 4 or self.random.random() > 0.1:
            return shape
        kinds = [self.random.choice((0, 43, 60)) for _ in range(self.random.choice((1, 1, 2, 6, 7)))]
        headers = b""
        for following in (*kinds[1:], protocol_of(flow.kind, end.family)):
            header = build.extension(following, self.random.choice((0, 0, 1)))
            headers += (
                header if self.random.random() < 0.5 else header[:3] + b"\0" + header[4:]
            )  # a route is at its end
        return replace(shape, extensions=headers, first_extension=kinds[0])

    def _go_on(self) -> Step:
        flow = self._flows[-1] if self.random.random() < 0.7 else self.random.choice(self._flows)
        shape = dress(self.random)
        if flow.kind == TCP and self.random.random() < 0.1:
            shape = replace(shape, exact_seq=False)
        if flow.server is not None and (flow.stage in (0, 1) or self.random.random() < 0.5):
            return self._packet(flow, flow.server, shape, reverse=True)
        return self._packet(flow, flow.client, shape, reverse=False)

    def _odd_flags(self) -> Step:
        flow = self.random.choice(self._flows)
        flags = self.random.choice(
            (SYN, SYN, SYN, SYN | ACK, 0, FIN, RST, RST, RST | ACK, SYN | FIN, SYN | RST, FIN | RST, 63)
        )
        shape = replace(dress(self.random), flags=flags, exact_seq=self.random.random() < 0.6)
        if flow.server is not None and self.random.random() < 0.5:
            return self._packet(flow, flow.server, shape, reverse=True)
        return self._packet(flow, flow.client, shape, reverse=False)

    # Everything else

    def _error(self) -> Step:
        if not self._sent:
            return self._oddity()
        frame, place = self.random.choice(self._sent)
        made = odd.error_about(self.random, frame, place)
        return Send(place[0], made, "error") if made is not None else self._oddity()

    def _fragments(self) -> Step:
        """A datagram in pieces, mostly in order."""
        random = self.random
        crossing = [flow for flow in self._flows if flow.server and flow.server.family != flow.client.family]
        flow = random.choice(crossing if crossing and random.random() < 0.5 else self._flows)
        reverse = flow.server is not None and random.random() < 0.5
        end = flow.server if reverse else flow.client
        assert end is not None
        self._identification = (self._identification + 1) & 0xFFFF
        shape = Shape(
            size=random.choice((40, 200, 900)),
            zero_checksum=random.random() < (0.6 if end.family != flow.client.family else 0.1),
            identification=self._identification,
        )
        ip = ip_of(flow, end, shape)
        l4 = l4_of(flow, end, ip, shape, random, reverse=reverse)
        frames = [self._fragment(flow, end, shape, l4, *cut) for cut in self._cuts(len(l4))]
        steps: list[Step] = [Send(end.place[0], frame, "fragment", flow, reverse) for frame in frames]
        if random.random() < 0.3:
            random.shuffle(steps)
        if random.random() < 0.1:
            steps.insert(1, self._age())
        self._pending += steps[1:]
        return steps[0]

    def _cuts(self, length: int) -> list[tuple[int, int]]:
        first = self.random.choice((8, 24, 32, 64))
        if first >= length:
            return [(0, length)]
        middle = first + 8 * self.random.randint(1, 4)
        return [(0, first), (first, length)] if middle >= length else [(0, first), (first, middle), (middle, length)]

    def _fragment(self, flow: Flow, end: End, shape: Shape, l4: bytes, start: int, stop: int) -> bytes:
        more = stop < len(l4)
        ip = ip_of(flow, end, shape)
        protocol = protocol_of(flow.kind, end.family)
        if end.family == 6:
            header = build.fragment_header(protocol, start, more, shape.identification)
            ip = replace(ip, extensions=header, first_extension=FRAGMENT)
        packet = build.packet(ip, protocol, l4[start:stop], more=more, offset=start)
        return build.frame(end.family, packet, tag_of(end.place, shape))

    def _age(self) -> Step:
        """Never close to a whole number of seconds, so that the clock's own progress does not decide."""
        if self._ages == 3:
            return self._new_flow()
        self._ages += 1
        return Age(self.random.choice((*self._timeouts, 1, 28, 31)) + self.random.choice((-1, 0, 1)) + 0.25)

    def _oddity(self) -> Step:
        place = self._places[self._link().name]
        template = self._flows[-1] if self._flows else None
        base = None
        if template is not None:
            base = self._packet(template, template.client, Shape(), reverse=False).frame
            if self.random.random() < 0.5:
                place = template.client.place
        note, ingress, frame = odd.oddity(self.random, place, base)
        return Send(ingress, frame, note)
