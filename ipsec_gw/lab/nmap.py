"""nmap: what a port scan finds."""

from __future__ import annotations

import re
import shutil
from collections import Counter

from ipsec_gw.lab.process import run, tool_path
from ipsec_gw.lab.topology import HOST
from ipsec_gw.lab.traffic import Host

SECONDS = 60.0
_WORDS = ("-n", "-Pn", "--disable-arp-ping", "--max-retries", "1", "-T4", "-oG", "-", "-vv")


def installed() -> bool:
    """Whether there is one."""
    return shutil.which("nmap", path=tool_path()) is not None


async def scan(kind: str, scanner: Host, scanned: Host, ports: int) -> Counter[str]:
    """Ports from 1 on by the state that a scan gives them; ``kind`` is nmap's option for it. Raises CommandFailed."""
    words = ("nmap", kind, "-p", f"1-{ports}", *_WORDS, "-S", str(scanner.address), "-e", HOST, str(scanned.address))
    return port_states((await run(words, namespace=scanner.namespace, timeout=SECONDS)).stdout)


def port_states(said: str) -> Counter[str]:
    """Ports by state, out of nmap's grepable output, which sums up those of the commonest state."""
    states = Counter(re.findall(r"\d+/([a-z|]+)/tcp", said))
    for state, count in re.findall(r"Ignored State: ([a-z|]+) \((\d+)\)", said):
        states[state] += int(count)
    return states
