"""What the evidence of a site-to-site run proves: each function turns measurements into checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from ipsec_gw.lab.capture import Captures, Frame, header, without_hops
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import GuardCount, ShownSa, Status, SteerCount
from ipsec_gw.lab.kernel_sas import SaDiary
from ipsec_gw.lab.oracle import EspPacket
from ipsec_gw.lab.packets import ip_packet, too_big
from ipsec_gw.lab.sites import seen_addresses
from ipsec_gw.lab.topology import HOST, LAN, Role
from ipsec_gw.lab.wire import (
    Opening,
    clear_packets,
    esp_packets,
    furthest_back,
    ip_packets,
    not_among,
    numbers,
    open_all,
    stragglers,
    together,
    without_returned,
)
from ipsec_gw.model.ids import IpAddress, IpNetwork


@dataclass
class Evidence:
    """Where in each WAN capture the tunnel came up and went down, and which outbound SAs an engine had."""

    up: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)
    engine_sas: set[str] = field(default_factory=set)

    def engine_took(self, sas: Sequence[ShownSa]) -> None:
        """Note the outbound SAs that an engine carries."""
        self.engine_sas |= {sa.key for sa in sas if sa.direction == "out" and sa.state != "kernel"}


def few(items: Sequence[object], shown: int = 3) -> str:
    """The number of items and the first of them; "none" for none."""
    if not items:
        return "none"
    return f"{len(items)}: {'; '.join(str(item) for item in items[:shown])}{' ...' if len(items) > shown else ''}"


def judge_carriers(lab: Lab, engine: str, sas: Sequence[ShownSa]) -> None:
    """Each direction is where it should be; what the kernel keeps has its reason."""
    for direction in ("in", "out"):
        mine = [sa for sa in sas if sa.direction == direction]
        carried = [sa for sa in mine if sa.state == engine]
        said = "; ".join(f"{sa.key} {sa.state}{f' ({sa.reason})' if sa.reason else ''}" for sa in mine)
        ok = bool(carried) and all(sa.reason for sa in mine if sa.state == "kernel")
        wanted = f"carried by {engine}" + (", with a reason" if engine == "kernel" else "")
        lab.check(f"{engine} carries direction {direction}", ok, wanted, said or "no SA")


@dataclass(frozen=True, slots=True)
class Reading:
    """What ipsec-gw said at a quiet moment."""

    status: Status
    sas: tuple[ShownSa, ...]

    def packets(self, key: str) -> int:
        """Packets of an SA by `show sas`, whoever carried them."""
        return sum(sa.packets for sa in self.sas if sa.key == key)

    def steered(self, key: str) -> SteerCount:
        """What XDP did with an inbound SA; an SA without an entry was not steered."""
        return self.status.steer.get(key, SteerCount(0, 0))

    def guarded(self, key: str) -> GuardCount:
        """What the guard did with an outbound SA; one without an entry was never sent by the kernel."""
        return self.status.guard.get(key, GuardCount(0, 0))


def judge_counters(
    lab: Lab,
    name: str,
    before: Reading,
    after: Reading,
    carried: Counter[str],
    which: Callable[[ShownSa], bool] = lambda _: True,
) -> None:
    """Hold the gateway's counters against the wire, over a span that began and ended quiet, for those SAs ``which`` had
    something to carry.
    """
    engine = lab.options.engine
    for sa in filter(which, after.sas):
        on_wire, shown = carried[sa.key], after.packets(sa.key) - before.packets(sa.key)
        lab.check(
            f"{name}: `show sas` counts what the wire carried, {sa.direction}",
            on_wire > 0 and shown == on_wire,
            f"{on_wire} packets of {sa.key}",
            f"{shown}",
        )
        if engine != "kernel":
            judge = _judge_steered if sa.direction == "in" else _judge_guarded
            judge(lab, name, sa.key, before, after, on_wire)
    if engine == "kernel":
        claimed = [*after.status.steer, *after.status.guard]
        lab.check(f"{name}: nothing is steered or guarded", not claimed, "none", few(claimed))


def _judge_steered(lab: Lab, name: str, key: str, before: Reading, after: Reading, on_wire: int) -> None:
    was, now = before.steered(key), after.steered(key)
    got = (now.to_engine - was.to_engine, now.to_kernel - was.to_kernel)
    lab.check(
        f"{name}: XDP gives all inbound ESP to the engine",
        on_wire > 0 and got == (on_wire, 0),
        f"{on_wire} packets of {key} to {lab.options.engine}, 0 to the kernel",
        f"{got[0]} to {lab.options.engine}, {got[1]} to the kernel",
    )
    if was.to_kernel:
        lab.note(f"{key}: {was.to_kernel} packets went to the kernel before the hand-over")


def _judge_guarded(lab: Lab, name: str, key: str, before: Reading, after: Reading, on_wire: int) -> None:
    was, now = before.guarded(key), after.guarded(key)
    passed, dropped = now.passed - was.passed, now.dropped - was.dropped
    lab.check(
        f"{name}: the kernel sends no outbound ESP past the guard",
        on_wire > 0 and passed == 0,
        f"0 of {on_wire} packets of {key} passed",
        f"{passed} passed, {dropped} dropped",
    )
    if was.passed or was.dropped:
        lab.note(f"{key}: before the hand-over {was.passed} packets passed the guard and {was.dropped} were dropped")


ONE_RING = 1024
"""Packets that may overtake one another where the kernel takes over: what a ring of VPP's holds."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a capture may show besides the ordinary.

    ``taken_over``: the kernel went on with numbers of the engine, a margin ahead, so that some are left out.
    ``lossy``: what passed the WAN need not have arrived.
    ``gaps``: B's numbers were moved on by hand, or B had no address to send from.
    ``roamed``: where gateways A and B were besides their own addresses.
    ``links``: networks in which they talk to each other inside the tunnel, and so never in clear.
    ``flapped``: the WAN had no carrier now and then.
    ``bridged``: gateway B is a bridge, and tells hosts in the name of others what is too long.
    """

    taken_over: bool = False
    lossy: bool = False
    gaps: bool = False
    roamed: tuple[frozenset[IpAddress], frozenset[IpAddress]] = (frozenset(), frozenset())
    links: frozenset[IpNetwork] = frozenset()
    flapped: bool = False
    bridged: bool = False

    def __or__(self, other: Judged) -> Judged:
        return Judged(
            self.taken_over or other.taken_over,
            self.lossy or other.lossy,
            self.gaps or other.gaps,
            (self.roamed[0] | other.roamed[0], self.roamed[1] | other.roamed[1]),
            self.links | other.links,
            self.flapped or other.flapped,
            self.bridged or other.bridged,
        )


def judge_capture(
    lab: Lab,
    evidence: Evidence,
    wan: Captures,
    lans: Captures,
    diaries: Sequence[SaDiary],
    judged: Judged,
    *,
    earlier: Sequence[Evidence] = (),
) -> None:
    """Everything that the capture can tell, by the oracle and the kernels' own keys; ``earlier`` is of tunnels before
    this one.
    """
    with lab.step("open the capture with the kernels' keys"):
        wan.drain()
        lans.drain()
        lost = wan.lost() + lans.lost()
        lab.check("the captures are complete", lost == 0, "0 frames lost", f"{lost} frames lost")
        sas = {index: sa for diary in diaries for index, sa in diary.all().items()}
        sent = without_returned(*(esp_packets(capture.frames) for capture in wan.captures))
        openings = [open_all(packets, sas) for packets in sent]
        opening = together(openings)
    _judge_opening(lab, opening, sum(map(len, sent)))
    roles = (Role.GATEWAY_A, Role.GATEWAY_B)
    ends = [{*seen_addresses(lab.topology, role), *more} for role, more in zip(roles, judged.roamed, strict=True)]
    _judge_inner(lab, opening, lans, ends, judged)
    tunnels = (*earlier, evidence)
    engine_sas = frozenset[str]().union(*(tunnel.engine_sas for tunnel in tunnels))
    _judge_numbers(lab, openings, engine_sas, judged)
    _judge_clear(lab, tunnels, wan, judged.links)


def _judge_opening(lab: Lab, opening: Opening, packets: int) -> None:
    bad = [*opening.unknown, *opening.forged]
    ways = Counter((item.esp.source, item.esp.destination) for item in opening.opened)
    measured = ", ".join(f"{count} {source} -> {destination}" for (source, destination), count in ways.items())
    both = bool(ways) and all((destination, source) in ways for source, destination in ways)
    ok = not bad and both and len(opening.opened) == packets
    lab.check(
        "the oracle opens every ESP packet of both directions", ok, f"all of {packets}", f"{measured}; bad: {few(bad)}"
    )


def _judge_inner(
    lab: Lab, opening: Opening, lans: Captures, ends: Sequence[Collection[IpAddress]], judged: Judged
) -> None:
    """Hold what was inside against what the hosts sent and received."""
    client, server = lans.captures
    ends_a, ends_b = ends
    client_addresses = lab.topology.addresses(Role.CLIENT, HOST)
    server_addresses = lab.topology.addresses(Role.SERVER, HOST)
    to_b = [item.inner for item in opening.opened if item.esp.source in ends_a]
    to_a = [item.inner for item in opening.opened if item.esp.source in ends_b]
    from_client = [packet for packet in to_b if header(packet).source in client_addresses]
    from_server = [packet for packet in to_a if header(packet).source in server_addresses]
    received = ip_packets(server.frames, outgoing=False)
    lan = lab.topology.network(Role.GATEWAY_A, LAN)
    from_a = [packet for packet in received.elements() if header(packet).source in lan]
    if judged.bridged:
        from_a = [packet for packet in from_a if (told := ip_packet(packet)) is None or too_big(told) is None]
    arrived = (
        ("what the server receives is what A encrypts", from_a, Counter(map(without_hops, to_b)))
        if judged.lossy
        else ("what A encrypts is what the server receives", to_b, received)
    )
    for name, inner, reference in (
        ("what A encrypts is what the client sent", from_client, ip_packets(client.frames, outgoing=True)),
        arrived,
        ("what B encrypts is what the server sent", from_server, ip_packets(server.frames, outgoing=True)),
    ):
        wrong = not_among(inner, reference)
        lab.check(
            name,
            bool(inner) and not wrong,
            f"{len(inner)} equal packets",
            f"{len(inner)} compared, differing: {few(wrong)}",
        )


def judge_numbers(lab: Lab, openings: Sequence[Opening], evidence: Evidence, *, taken_over: bool) -> None:
    """Numbers and nonces of every SA of one tunnel, A's capture first."""
    _judge_numbers(lab, openings, frozenset(evidence.engine_sas), Judged(taken_over=taken_over))


def _judge_numbers(lab: Lab, openings: Sequence[Opening], engine_sas: frozenset[str], judged: Judged) -> None:
    """Numbers and nonces of every SA on the WAN, by sender.

    Not judged: a kernel with several processors takes numbers in order but may send packets out of order (an engine has
    one thread for an SA, and nothing may overtake there); and where an engine is wanted, the guard drops numbered
    packets of SAs that stay in the kernel.
    """
    for opening, gateway in zip(openings, ("A", "B"), strict=True):
        packets = [item.esp for item in opening.opened]
        found = numbers(packets)
        for sa in found:
            lab.note(f"sent by {gateway}: {sa}")
        guarded = gateway == "A" and bool(engine_sas)
        whole = [sa for sa in found if not guarded or sa.name in engine_sas]
        reused, gaps = [sa for sa in found if not sa.unique], [sa for sa in whole if not sa.gapless]
        measured = f"{len(found)} SAs, {sum(sa.packets for sa in found)} packets"
        lab.check(
            f"{gateway} uses no sequence number and no nonce twice",
            bool(found) and not reused,
            "every one once",
            few(reused) if reused else measured,
        )
        if judged.taken_over and guarded:
            _judge_order(lab, packets, gateway, judged)
            continue
        if judged.gaps and gateway == "B":
            continue
        lab.check(
            f"{gateway} leaves no sequence number out",
            bool(whole) and not gaps,
            "1, 2, 3, ... in every SA" + (" of the engine" if guarded else ""),
            few(gaps) if gaps else f"{len(whole)} of {len(found)} SAs judged",
        )
        if guarded:
            unordered = [sa for sa in whole if not sa.increasing]
            name = "sequence numbers from the engine strictly increase"
            lab.check(name, bool(whole) and not unordered, "in order", few(unordered))


def _judge_order(lab: Lab, packets: Sequence[EspPacket], gateway: str, judged: Judged) -> None:
    """Whoever sends. While the WAN has no carrier, packets stay in an engine's ring. They leave behind the kernel's if
    it has taken over meanwhile, a margin ahead.
    """
    name = f"no number of {gateway} goes back beyond the reordering of one ring, whoever sends"
    if judged.flapped:
        late, wanted = stragglers(packets, ONE_RING), f"{ONE_RING} packets of an SA at most"
    else:
        late, wanted = furthest_back(packets), f"{ONE_RING} at most"
    lab.check(name, bool(packets) and late <= ONE_RING, wanted, late)


def _judge_clear(lab: Lab, tunnels: Sequence[Evidence], wan: Captures, links: Collection[IpNetwork]) -> None:
    behind = [network for role in (Role.GATEWAY_A, Role.GATEWAY_B) for network in lab.topology.behind(role)]
    protected = [*behind, *links]
    earlier: list[Frame] = []
    during: list[Frame] = []
    for capture, up in zip(wan.captures, tunnels[0].up, strict=True):
        earlier += capture.frames[:up]
    for evidence in tunnels:
        for capture, up, down in zip(wan.captures, evidence.up, evidence.down, strict=True):
            during += capture.frames[up:down]
    before = len(clear_packets(earlier, protected))
    lab.note(f"clear packets of the protected networks on the WAN before the tunnel: {before}")
    leaked = clear_packets(during, protected)
    lab.check(
        "nothing of the protected networks crosses the WAN in clear while the tunnel is up",
        not leaked,
        "none",
        few(leaked),
    )
