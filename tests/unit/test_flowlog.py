"""The flow log: what is said, and that nothing said breaks a line."""

from __future__ import annotations

import ctypes
import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec_gw.firewall.ageing import SECOND, Close, CloseReason
from ipsec_gw.observe.flowlog import Decoder, Kind, name_of, structured, to_json
from tests.unit.flow_kit import BECAME, BOOT, DECODER, FLOW, SESSION
from xdp_steer.events import Event
from xdp_steer.flow_layout import EventKind, EventLeaf, SessionFlag, State
from xdp_steer.reasons import Reason
from xdp_steer.sessions import Traffic

CLOSE = Close(SESSION, CloseReason.TCP_FIN, 152 * SECOND + SECOND // 2)
OPEN = Event(EventKind.OPEN, 5 * SECOND, 12, FLOW, BECAME, 7, 0)


def test_an_event_of_the_ring() -> None:
    """Byte by byte as the datapath lays it out: ports in network order, IPv4 as v4-mapped."""
    raw = b"".join(
        [
            (77).to_bytes(8, "little"),
            (12).to_bytes(8, "little"),
            bytes(10) + b"\xff\xff" + bytes([10, 0, 0, 1]),
            bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 80]),
            (40000).to_bytes(2, "big"),
            (443).to_bytes(2, "big"),
            (1).to_bytes(2, "little"),
            bytes([6, 0]),
            bytes(10) + b"\xff\xff" + bytes([198, 51, 100, 1]),
            bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 80]),
            (2000).to_bytes(2, "big"),
            (443).to_bytes(2, "big"),
            (2).to_bytes(2, "little"),
            (EventKind.DENY).to_bytes(2, "little"),
            (7).to_bytes(4, "little"),
            (Reason.POLICY_DENY).to_bytes(4, "little"),
            (8).to_bytes(4, "little"),
            (9).to_bytes(4, "little"),
            *(number.to_bytes(8, "little") for number in (70, 1, 100, 2, 200)),
        ]
    )
    traffic = (Traffic(1, 100), Traffic(2, 200))
    assert Event.of(raw) == Event(EventKind.DENY, 77, 12, FLOW, BECAME, 7, Reason.POLICY_DENY, 8, 9, 70, *traffic)


@given(st.binary(min_size=ctypes.sizeof(EventLeaf), max_size=ctypes.sizeof(EventLeaf)), st.integers(0, 5))
def test_any_record_of_a_known_kind_is_an_event_that_can_be_told(raw: bytes, kind: int) -> None:
    leaf = EventLeaf.from_buffer_copy(raw)
    leaf.kind = kind
    if kind not in set(EventKind):
        with pytest.raises(ValueError, match="EventKind"):
            Event.of(bytes(leaf))
        return
    event = Event.of(bytes(leaf))
    assert bytes(event.flow.leaf())[:39] == bytes(leaf.key)[:39]  # all but the padding
    assert json.dumps(to_json(DECODER.event(event)))
    assert len(structured(DECODER.event(event)).splitlines()) == 1


def test_a_created_session() -> None:
    record = DECODER.event(OPEN)
    assert (record.kind, record.from_zone, record.to_zone, record.policy) == (Kind.CREATE, "trust", "untrust", "web")
    assert (record.translated, record.reason, record.client) == (BECAME, "", None)
    assert structured(record) == (
        "RT_FLOW_SESSION_CREATE [ipsec-gw@32473 "
        'source-address="10.0.0.1" source-port="40000" destination-address="192.0.2.80" destination-port="443" '
        'service-name="None" '
        'nat-source-address="198.51.100.1" nat-source-port="2000" '
        'nat-destination-address="192.0.2.80" nat-destination-port="443" '
        'src-nat-rule-name="N/A" dst-nat-rule-name="N/A" protocol-id="6" policy-name="web" '
        'source-zone-name="trust" destination-zone-name="untrust" session-id="12"]'
    )


def test_a_closed_session_has_its_counters() -> None:
    record = DECODER.close(CLOSE)
    line = structured(record)
    assert line.startswith('RT_FLOW_SESSION_CLOSE [ipsec-gw@32473 reason="TCP FIN" source-address="10.0.0.1" ')
    assert 'src-nat-rule-name="out" dst-nat-rule-name="N/A"' in line
    assert line.endswith(
        'session-id="12" packets-from-client="5" bytes-from-client="500" '
        'packets-from-server="4" bytes-from-server="4000" elapsed-time="142"]'
    )
    assert to_json(record) == {
        "time": "2023-11-14T22:15:52.500Z",
        "event": "close",
        "session": 12,
        "reason": "tcp-fin",
        "source": "10.0.0.1",
        "sourcePort": 40000,
        "destination": "192.0.2.80",
        "destinationPort": 443,
        "protocol": 6,
        "nat": {"source": "198.51.100.1", "sourcePort": 2000, "destination": "192.0.2.80", "destinationPort": 443},
        "fromZone": "trust",
        "toZone": "untrust",
        "policy": "web",
        "sourceNatRule": "out",
        "destinationNatRule": None,
        "client": {"packets": 5, "bytes": 500},
        "server": {"packets": 4, "bytes": 4000},
        "seconds": 142,
    }


@pytest.mark.parametrize(("state", "reason"), [(State.TIME_WAIT, "tcp-fin"), (State.CLOSED, "tcp-rst"), (0, "idle")])
def test_a_session_that_the_datapath_ended(state: int, reason: str) -> None:
    traffic = {"forward": Traffic(5, 500), "reverse": Traffic(4, 400)}
    rules = {"source_rule": 8, "created_ns": OPEN.time_ns - 3 * SECOND}
    record = DECODER.event(replace(OPEN, kind=EventKind.CLOSE, reason=state, **traffic, **rules))
    assert (record.kind, record.reason, record.seconds) == (Kind.CLOSE, reason, 3)
    assert (record.client, record.server) == (Traffic(5, 500), Traffic(4, 400))
    assert 'packets-from-client="5"' in structured(record)


def test_a_denied_packet() -> None:
    event = replace(OPEN, kind=EventKind.DENY, session=0, rule=0, reason=Reason.DEFAULT_DENY)
    record = DECODER.event(event)
    assert (record.policy, record.reason, record.translated) == ("default", "default-deny", None)
    line = structured(record)
    assert line.startswith('RT_FLOW_SESSION_DENY [ipsec-gw@32473 source-address="10.0.0.1"')
    assert line.endswith('session-id="0" reason="default deny"]')


@pytest.mark.parametrize(
    ("kind", "tag"), [(EventKind.SCREEN, "RT_FLOW_SCREEN_DROP"), (EventKind.ALARM, "RT_FLOW_SCREEN_ALARM")]
)
def test_what_a_screen_saw(kind: EventKind, tag: str) -> None:
    record = DECODER.event(replace(OPEN, kind=kind, session=0, rule=0, reason=Reason.SCREEN_SYN_FIN))
    assert (record.kind.name, record.reason, record.translated) == (kind.name, "screen-syn-fin", None)
    assert structured(record).startswith(f'{tag} [ipsec-gw@32473 screen="syn-fin" source-address="10.0.0.1"')
    assert structured(record).endswith('source-zone-name="trust"]')


def test_untranslated_flows_have_no_nat_in_json_and_themselves_in_the_line() -> None:
    same = replace(FLOW, zone=2)
    record = DECODER.event(replace(OPEN, translated=same))
    assert record.translated is None
    assert to_json(record)["nat"] is None
    assert 'nat-source-address="10.0.0.1" nat-source-port="40000"' in structured(record)


def test_names_of_what_has_none() -> None:
    record = DECODER.event(replace(OPEN, flow=replace(FLOW, zone=9), translated=replace(BECAME, zone=0), rule=99))
    assert (record.from_zone, record.to_zone, record.policy) == ("#9", "self", "#99")
    assert name_of({1: "a"}, 1) == name_of({1: "a"}.get, 1) == "a"
    assert name_of({}, 2) == name_of({}.get, 2) == "#2"


def test_a_reason_of_another_version_keeps_its_number() -> None:
    assert DECODER.event(replace(OPEN, kind=EventKind.DENY, reason=4000)).reason == "#4000"


@pytest.mark.parametrize("reason", CloseReason)
def test_every_reason_has_words(reason: CloseReason) -> None:
    line = structured(DECODER.close(replace(CLOSE, reason=reason)))
    found = re.search(r'reason="([A-Za-z ]+)"', line)
    assert found is not None
    assert to_json(DECODER.close(replace(CLOSE, reason=reason)))["reason"] == reason.value


@given(st.text())
def test_no_name_breaks_the_line(name: str) -> None:
    """RFC 5424 §6.3.3: quotes, backslashes and brackets are escaped, so the value can be read back."""
    line = structured(Decoder({}, {7: name}, BOOT).event(OPEN))
    assert len(line.splitlines()) == 1
    found = re.search(r'policy-name="((?:[^"\\\]]|\\["\\\]])*)" source-zone-name', line)
    assert found is not None
    back = re.sub(r"\\(.)", r"\1", found[1])
    assert back == "".join(char if char.isprintable() else " " for char in name)


def test_duration_and_flag_of_a_close() -> None:
    assert CLOSE.duration_ns == 142 * SECOND + SECOND // 2
    assert CLOSE.logged
    assert not replace(CLOSE, session=replace(SESSION, flags=SessionFlag.NAT)).logged
    assert replace(CLOSE, ended_ns=0).duration_ns == 0
