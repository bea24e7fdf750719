"""nmap against screens: what it finds without them, and with them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from ipsec_gw.lab import nmap
from ipsec_gw.lab.scenarios.edge_rules import screens_rules
from ipsec_gw.lab.scenarios.screened import Reading, Story, judge_screen
from ipsec_gw.lab.topology import HOST, Role
from ipsec_gw.lab.traffic import Host

NOTHING = "winnuke = true\n"
"""A screen that nothing of this hits."""

SCANNED_PORTS, ALLOWED_PORTS, SCAN_WINDOW = 40, 10, 60
SCANS = f"no_flag = true\nfin_no_ack = true\nport_scan = {ALLOWED_PORTS}\nwindow = {SCAN_WINDOW}\n"
STEALTHY = (
    ("null", "-sN", "screen-no-flag"),
    ("FIN", "-sF", "screen-fin-no-ack"),
    ("Xmas", "-sX", "screen-fin-no-ack"),
)
"""Kinds of scans, nmap's options for them, and the verdict on their packets."""

STEALTHY_PORTS = 20
PAUSE = 0.1
"""Seconds between calls."""


async def scans(story: Story) -> None:
    """Without screens first, so that it is they that make the difference."""
    lab, scanner, scanned = story.lab, story.lab.host(Role.SERVER, HOST), story.called[4]
    if not nmap.installed():
        lab.note("no scans: nmap is not installed - apt install nmap, or make setup")
        return
    kinds = [(f"{what} scan", option, STEALTHY_PORTS) for what, option, _ in STEALTHY]
    with lab.step("nmap without screens"):
        for name, option, ports in (*kinds, ("SYN scan", "-sS", SCANNED_PORTS)):
            found = await nmap.scan(option, scanner, scanned, ports)
            lab.check(f"{name} without screens", found == {"closed": ports}, f"{ports} closed", _told(found))
    await story.gateway.reload(screens_rules(SCANS, syn_check=False))
    with lab.step("nmap with screens"):
        before = await story.reading()
        for what, option, verdict in STEALTHY:
            expected, name = {"open|filtered": STEALTHY_PORTS}, f"{what} scan"
            found = await _scan_and_call(story, name, nmap.scan(option, scanner, scanned, STEALTHY_PORTS))
            lab.check(f"{name} finds nothing", found == expected, _told(Counter(expected)), _told(found))
            judge_screen(story, name, verdict, (after := await story.reading()).since(before), STEALTHY_PORTS)
            before = after
        await _port_scan(story, scanner, scanned, before)


async def _port_scan(story: Story, scanner: Host, scanned: Host, before: Reading) -> None:
    lab, name = story.lab, "SYN scan"
    found = await _scan_and_call(story, name, nmap.scan("-sS", scanner, scanned, SCANNED_PORTS))
    most = 2 * ALLOWED_PORTS  # it may touch two windows
    ok = 0 < found["closed"] <= most and found["closed"] + found["filtered"] == SCANNED_PORTS
    expected = f"{most} closed at most, the others of {SCANNED_PORTS} filtered"
    lab.check(f"{name} is cut short", ok, expected, _told(found))
    judge_screen(story, name, "screen-port-scan", (await story.reading()).since(before), found["filtered"])


async def _scan_and_call(story: Story, name: str, scan: Coroutine[Any, Any, Counter[str]]) -> Counter[str]:
    """A client from elsewhere calls again and again until the scan has ended."""
    caller, resets, calls = story.fresh(4), 0, 0
    scanning = asyncio.create_task(scan)
    try:
        while not scanning.done():
            resets, calls = resets + await story.call(caller), calls + 1
            await asyncio.wait([scanning], timeout=PAUSE)
    finally:
        scanning.cancel()
        await asyncio.gather(scanning, return_exceptions=True)
    ok, expected = calls > 0 and not resets, "every call served at once"
    story.lab.check(f"{name}: a client is served meanwhile", ok, expected, f"{calls} calls, {resets} resets")
    return scanning.result()


def _told(states: Counter[str]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items()) if count) or "none"
