"""Events of the pipeline that find the ring full: counted, all of them, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from firewall_kit import LAN, WAN, World, ifindex, zones
from firewall_packets import tcp, udp

from ipsec_gw.model.firewall import Action, Policy, Ruleset
from xdp_steer.events import EventReader
from xdp_steer.flow_layout import EVENT_RING_BYTES, EventKind
from xdp_steer.prog_run import XdpAction, prog_run
from xdp_steer.reasons import Reason

pytestmark = pytest.mark.root

RULES = Ruleset(
    zones=zones(),
    policies=(
        Policy("open", Action.PERMIT, "lan", "wan", log_open=True, log_close=True),
        Policy("stop", Action.DENY, "lan", "dmz", log_open=True),
        Policy("quiet", Action.DENY, "lan", "vlan"),
    ),
)
DENIED = "10.3.0.9"


@pytest.fixture
def reader(arena: World) -> Iterator[EventReader]:
    arena.clear()
    arena.apply(RULES)
    with closing(EventReader(arena.steering.events_map, arena.steering.lost_events)) as made:
        while made.read().events:
            pass
        yield made


def drain(reader: EventReader) -> tuple[int, int]:
    """How many events there were, and how many were lost."""
    kept = lost = 0
    while True:
        drained = reader.read()
        assert drained.malformed == 0
        lost += drained.lost
        if not drained.events:
            return kept, lost
        kept += len(drained.events)


def fill(world: World) -> int:
    """Deny more packets than the ring has room for. Returns their number."""
    count = EVENT_RING_BYTES // 128
    result = prog_run(world.steering.pipeline_fd, bytes(LAN.frame(udp(LAN.host4, DENIED))), count, ifindex=ifindex(LAN))
    assert XdpAction(result.retval) is XdpAction.DROP
    return count


def test_what_fits_is_not_counted(arena: World, reader: EventReader) -> None:
    before = arena.steering.lost_events()
    assert arena.send(LAN, udp(LAN.host4, DENIED)).reason is Reason.POLICY_DENY
    arena.send(LAN, tcp(LAN.host4, WAN.host4))
    assert arena.steering.lost_events() == before
    assert drain(reader) == (2, 0)


def test_denials_without_room_are_counted(arena: World, reader: EventReader) -> None:
    before = arena.steering.lost_events()
    sent = fill(arena)
    lost = arena.steering.lost_events() - before
    assert 0 < lost < sent
    assert drain(reader) == (sent - lost, lost)
    arena.send(LAN, udp(LAN.host4, DENIED))
    assert drain(reader) == (1, 0)


def test_sessions_whose_records_find_no_room_are_counted(arena: World, reader: EventReader) -> None:
    """One that opens, and one that the datapath ends: its SYN comes again after a RST."""
    fill(arena)
    before = arena.steering.lost_events()
    arena.send(LAN, tcp(LAN.host4, WAN.host4))
    assert arena.steering.lost_events() == before + 1
    arena.send(LAN, tcp(LAN.host4, WAN.host4, flags="R"))
    arena.send(LAN, tcp(LAN.host4, WAN.host4))
    assert arena.steering.lost_events() == before + 3, "the end of the first, the beginning of the second"
    drain(reader)
    arena.send(LAN, tcp(LAN.host4, WAN.host4, flags="R"))
    arena.send(LAN, tcp(LAN.host4, WAN.host4))
    assert [event.kind for event in reader.read().events] == [EventKind.CLOSE, EventKind.OPEN]
    assert arena.steering.lost_events() == before + 3


def test_what_is_not_logged_is_not_missed(arena: World, reader: EventReader) -> None:
    fill(arena)
    before = arena.steering.lost_events()
    assert arena.send(LAN, udp(LAN.host4, "10.2.0.9")).reason is Reason.POLICY_DENY
    assert arena.steering.lost_events() == before
    drain(reader)
