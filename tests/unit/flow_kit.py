"""A session of the firewall, for what tells of sessions."""

from __future__ import annotations

from ipaddress import ip_address

from ipsec_gw.firewall.ageing import SECOND
from ipsec_gw.observe.flowlog import Decoder
from xdp_steer.flow_layout import SessionFlag, State
from xdp_steer.sessions import Flow, Session, Traffic

BOOT = 1_700_000_000 * SECOND
"""Of the wall clock when the monotonic one was 0: 2023-11-14T22:13:20Z."""
FLOW = Flow(ip_address("10.0.0.1"), ip_address("192.0.2.80"), 40000, 443, 6, 1)
BECAME = Flow(ip_address("198.51.100.1"), ip_address("192.0.2.80"), 2000, 443, 6, 2)
DECODER = Decoder(zones={1: "trust", 2: "untrust"}, rules={7: "web", 8: "out"}.get, offset_ns=BOOT)
SESSION = Session(
    id=12,
    flow=FLOW,
    translated=BECAME,
    state=State.TIME_WAIT,
    timeout=120,
    created_ns=10 * SECOND,
    last_seen_ns=30 * SECOND,
    forward=Traffic(5, 500),
    reverse=Traffic(4, 4000),
    rule=7,
    snat_rule=8,
    dnat_rule=0,
    flags=SessionFlag.LOG_CLOSE | SessionFlag.NAT,
)
