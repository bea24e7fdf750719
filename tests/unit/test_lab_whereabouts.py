"""Where a packet was seen that did not arrive."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from scapy.layers.l2 import Ether

from ipsec_gw.lab.scenarios.whereabouts import PATIENCE, places
from tests.unit.lab_kit import B, clear_frame, esp_frame, frame, inner, kernel_sa, scapy_sa

SENT = 1000.0
SAS = {(IPv4Address(B), 0x1000ABCD): kernel_sa()}


def test_a_packet_is_followed_through_the_captures() -> None:
    lan = [
        clear_frame(),
        frame(Ether() / inner(b"this one"), when=SENT, interface="host", outgoing=True),
        frame(Ether() / inner(b"another"), when=SENT, interface="host", outgoing=True),
    ]
    esp = esp_frame(scapy_sa(), inner(b"this one"), seq=7)
    other = esp_frame(scapy_sa(), inner(b"another"), seq=8)
    wan = [replace(esp, when=SENT + 0.02), replace(other, when=SENT + 0.03), replace(esp, when=SENT + PATIENCE + 1)]
    out = "out of host after 0 ms"
    assert places(b"this one", lan, wan, SAS) == f"{out}; into to-a as 1000abcd number 7 after 20 ms"
    assert places(b"this one", lan, wan, {}) == out, "ESP that nobody can open"
    assert places(b"a third", lan, wan, SAS) == "never sent"
    arrived = replace(lan[1], when=SENT + 0.05, interface="peer", outgoing=False)
    assert places(b"another", [*lan, arrived], [], SAS) == out
    assert places(b"this one", [*lan, arrived], [], SAS) == f"{out}; into peer after 50 ms"
