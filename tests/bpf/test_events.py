"""The ring of events: written by a small BPF program, read as the daemon does."""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

from xdp_steer import libbpf
from xdp_steer.compiler import kernel_source
from xdp_steer.events import Drained, Event, EventReader
from xdp_steer.flow_layout import EventKind, EventLeaf
from xdp_steer.headers import find_headers
from xdp_steer.prog_run import XdpAction, prog_run
from xdp_steer.reasons import Reason
from xdp_steer.sessions import Flow

pytestmark = pytest.mark.root

RING_BYTES = 1 << 14
RECORD_BYTES = ctypes.sizeof(EventLeaf) + 8
SOURCE = """
struct record { u64 words[%(words)d]; };
struct ring_t {
    int key;
    u32 leaf;
    int (*ringbuf_output)(void *, u64, u64);
    u32 max_entries;
};
__attribute__((section("maps/ringbuf:%(pin)s")))
struct ring_t ring = { .max_entries = %(ring)d };
BPF_ARRAY(lost, u64, 1);

int output(struct xdp_md *ctx)
{
    struct record *record = (void *)(long)ctx->data;
    struct record copy;
    u32 zero = 0;
    u64 *count = lost.lookup(&zero);

    if ((void *)(record + 1) > (void *)(long)ctx->data_end || !count)
        return XDP_ABORTED;
    __builtin_memcpy(&copy, record, sizeof(copy));
    if (ring.ringbuf_output(&copy, sizeof(copy), 0)) {
        __sync_fetch_and_add(count, 1);
        return XDP_DROP;
    }
    return XDP_PASS;
}
"""


@dataclass
class Writer:
    """Puts a packet of the length of an event into the ring, as it is."""

    ring: int
    program: int
    lost_map: int

    def put(self, raw: bytes) -> bool:
        """False when the ring was full, which the program then counts."""
        action = prog_run(self.program, raw).retval
        assert action in (XdpAction.PASS, XdpAction.DROP)
        return action == XdpAction.PASS

    def lost(self) -> int:
        return libbpf.map_lookup(self.lost_map, ctypes.c_uint32(0), ctypes.c_uint64()).value


@pytest.fixture(scope="module")
def writer(bpffs: Path) -> Iterator[Writer]:
    bcc = pytest.importorskip("bcc", reason="needs python3-bpfcc")
    pin = bpffs / f"ipsec-gw-ring-{os.getpid()}"
    ring = libbpf.map_create(libbpf.MAP_RINGBUF, "ring", 0, 0, RING_BYTES)
    libbpf.pin(ring, pin)
    headers = find_headers(os.environ.get("BCC_KERNEL_SOURCE"))
    text = SOURCE % {"words": ctypes.sizeof(EventLeaf) // 8, "pin": pin, "ring": RING_BYTES}
    try:
        with kernel_source(headers):
            bpf = bcc.BPF(text=text.encode(), cflags=["-Wno-macro-redefined", *headers.cflags])
        yield Writer(ring, bpf.load_func(b"output", bcc.BPF.XDP).fd, bpf[b"lost"].map_fd)
        bpf.cleanup()
    finally:
        pin.unlink()
        os.close(ring)


@pytest.fixture
def reader(writer: Writer) -> Iterator[EventReader]:
    reader = EventReader(writer.ring, writer.lost)
    reader.read(RING_BYTES)  # what another test left
    yield reader
    reader.close()


FLOW = Flow(ip_address("10.0.0.1"), ip_address("2001:db8::80"), 40000, 443, 6, 1)
BECAME = Flow(ip_address("198.51.100.1"), ip_address("2001:db8::80"), 2000, 443, 6, 2)


def leaf(session: int, kind: int = EventKind.OPEN, reason: int = 0) -> EventLeaf:
    target = BECAME.leaf()
    return EventLeaf(
        time_ns=1_000 + session,
        session=session,
        key=FLOW.leaf(),
        saddr=target.saddr,
        daddr=target.daddr,
        sport=target.sport,
        dport=target.dport,
        out_zone=BECAME.zone,
        kind=kind,
        rule=7,
        reason=reason,
    )


def event(session: int, kind: EventKind = EventKind.OPEN, reason: int = 0) -> Event:
    return Event(kind, 1_000 + session, session, FLOW, BECAME, 7, reason)


def readable(reader: EventReader) -> bool:
    return bool(select.select([reader], [], [], 0)[0])


def test_events_come_out_as_they_went_in(writer: Writer, reader: EventReader) -> None:
    sent = [(1, EventKind.OPEN, 0), (0, EventKind.DENY, Reason.POLICY_DENY), (2, EventKind.CLOSE, 0)]
    for values in sent:
        assert writer.put(bytes(leaf(*values)))
    assert reader.read() == Drained(tuple(event(*values) for values in sent), lost=0, malformed=0)
    assert reader.read() == Drained((), 0, 0)


def test_readable_until_all_is_read(writer: Writer, reader: EventReader) -> None:
    assert not readable(reader)
    for session in range(5):
        assert writer.put(bytes(leaf(session)))
    seen = []
    while readable(reader):
        got = reader.read(limit=2).events
        assert len(got) <= 2
        seen += [found.session for found in got]
    assert seen == [0, 1, 2, 3, 4]


async def test_asyncio_hears_of_an_event(writer: Writer, reader: EventReader) -> None:
    loop = asyncio.get_running_loop()
    heard: asyncio.Future[Drained] = loop.create_future()
    loop.add_reader(reader, lambda: heard.done() or heard.set_result(reader.read()))
    try:
        assert writer.put(bytes(leaf(3)))
        assert (await asyncio.wait_for(heard, 10)).events == (event(3),)
    finally:
        loop.remove_reader(reader)


def test_a_full_ring_loses_and_says_how_many(writer: Writer, reader: EventReader) -> None:
    room = RING_BYTES // RECORD_BYTES
    results = [writer.put(bytes(leaf(session))) for session in range(room + 20)]
    kept = sum(results)
    assert kept < len(results)
    assert results == [True] * kept + [False] * (len(results) - kept)
    drained = reader.read()
    assert [found.session for found in drained.events] == list(range(kept))
    assert drained.lost == len(results) - kept
    assert reader.read().lost == 0
    assert writer.put(bytes(leaf(9)))  # there is room again
    assert reader.read() == Drained((event(9),), 0, 0)


def test_the_counter_of_a_reloaded_datapath_starts_over(writer: Writer) -> None:
    lost = 5
    reader = EventReader(writer.ring, lambda: lost)
    lost = 8
    assert reader.read().lost == 3
    lost = 2
    assert reader.read().lost == 2
    reader.close()


def test_an_unknown_kind_is_counted_and_the_rest_is_read(writer: Writer, reader: EventReader) -> None:
    for session, kind in ((1, EventKind.OPEN), (2, 99), (3, EventKind.OPEN)):
        assert writer.put(bytes(leaf(session, kind)))
    assert reader.read() == Drained((event(1), event(3)), 0, malformed=1)


def test_another_length_is_no_event() -> None:
    with pytest.raises(ValueError, match="105 bytes"):
        Event.of(bytes(105))


def test_a_map_that_is_no_ring_is_refused() -> None:
    fd = libbpf.map_create(libbpf.MAP_ARRAY, "no_ring", 4, 4, 1)
    with pytest.raises(OSError, match="Invalid argument"):
        EventReader(fd)
    os.close(fd)


def test_a_closed_reader_leaves_the_rest_to_the_next(writer: Writer, reader: EventReader) -> None:
    for session in (1, 2, 3):
        assert writer.put(bytes(leaf(session)))
    first = EventReader(writer.ring)
    assert first.read(limit=1).events == (event(1),)
    first.close()
    first.close()
    with pytest.raises(ValueError, match="closed"):
        first.read()
    assert reader.read().events == (event(2), event(3))
