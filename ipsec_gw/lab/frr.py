"""FRR: a BGP router in a network namespace, Debian's zebra and bgpd, driven by vtysh as an operator would.

All their files are in a directory of the run: /etc/frr and /run/frr are left alone.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.process import Daemon, run, tool_path
from ipsec_gw.lab.traffic import until

TOOLS = {"vtysh": "frr"}
"""Its program on the path, and Debian's package."""

PROGRAMS = Path("/usr/lib/frr")
USER = "frr"
"""Who Debian's daemons become: root may not be it, as it is not in the group that owns vtysh's sockets."""

_OWN_TEMPORARY = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs frr /var/tmp && exec "$0" "$@"')
"""They write to /var/tmp/frr, and leave that directory."""

START_SECONDS, POLL_SECONDS = 60.0, 0.2
KEEPALIVE_SECONDS, HOLD_SECONDS = 20, 60
"""A session ends when nothing was heard for the latter (RFC 4271 §4.2)."""

CONNECT_SECONDS = 3

BGPD_CONF = """\
hostname {name}
router bgp {asn}
 bgp router-id {identity}
 bgp log-neighbor-changes
 no bgp ebgp-requires-policy
 timers bgp {keepalive} {hold}
{neighbors}
 address-family ipv4 unicast
{families}
 exit-address-family
"""


def installed() -> bool:
    """Whether there is one."""
    return all(shutil.which(name, path=tool_path()) is not None for name in TOOLS)


@dataclass(frozen=True, slots=True)
class Neighbor:
    """Another router on a link of ours; of two that announce the same, the one with the greater ``weight`` has it."""

    address: IPv4Address
    weight: int = 0


@dataclass(frozen=True, slots=True)
class Router:
    """A router of the autonomous system ``asn``; ``networks`` are what it announces, and it has to have them."""

    name: str
    namespace: str
    asn: int
    identity: IPv4Address
    neighbors: tuple[Neighbor, ...]
    networks: tuple[IPv4Network, ...]

    def conf(self) -> str:
        """Its bgpd.conf."""
        neighbors = [
            f" neighbor {one.address} {words}"
            for one in self.neighbors
            for words in ("remote-as external", f"timers connect {CONNECT_SECONDS}")
        ]
        families = [
            *(f"  neighbor {one.address} weight {one.weight}" for one in self.neighbors),
            *(f"  network {network}" for network in self.networks),
        ]
        return BGPD_CONF.format(
            name=self.name,
            asn=self.asn,
            identity=self.identity,
            keepalive=KEEPALIVE_SECONDS,
            hold=HOLD_SECONDS,
            neighbors="\n".join(neighbors),
            families="\n".join(families),
        )


@dataclass(frozen=True, slots=True)
class BgpSession:
    """What `show bgp summary json` says of a neighbor: its state, since when it is up (Unix time, 0: it is not), how
    often it came up and went down, and the messages received from it.
    """

    state: str
    since: int
    came: int
    went: int
    received: int

    @property
    def up(self) -> bool:
        """Routes are exchanged."""
        return self.state == "Established"

    def __str__(self) -> str:
        return f"{self.state}, up {self.came} times, down {self.went} times, since {self.since}"


def parse_summary(text: str, neighbor: IPv4Address) -> BgpSession:
    """Read `show bgp ipv4 unicast summary json` (FRR's ``bgp_vty.c`` writes it). Raises IpsecGwError."""
    try:
        found: dict[str, Any] = json.loads(text)["peers"][str(neighbor)]
        return BgpSession(
            state=str(found["state"]),
            since=int(found.get("peerUptimeEstablishedEpoch", 0)) if found["state"] == "Established" else 0,
            came=int(found["connectionsEstablished"]),
            went=int(found["connectionsDropped"]),
            received=int(found["msgRcvd"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise IpsecGwError(f"show bgp summary json has no {neighbor} ({error!r}): {text[:200]}") from error


def _write(router: Router, directory: Path) -> None:
    directory.mkdir(mode=0o711)
    directory.parent.chmod(0o711)  # the daemons are another user, and have to come through
    shutil.chown(directory, USER, USER)
    (directory / "zebra.conf").write_text(f"hostname {router.name}\n")
    (directory / "bgpd.conf").write_text(router.conf())


class Frr:
    """A running zebra and bgpd."""

    def __init__(self, router: Router, directory: Path, daemons: tuple[Daemon, ...]) -> None:
        self.router = router
        self._directory = directory
        self._daemons = daemons

    @classmethod
    async def start(cls, router: Router, directory: Path) -> Frr:
        """Write the configuration and start it; returns when vtysh would be answered. Raises CommandFailed or
        TrafficError.
        """
        _write(router, directory)
        started: list[Daemon] = []
        frr = cls(router, directory, ())
        try:
            for program in ("zebra", "bgpd"):
                started.append(await frr._run(program))
                frr._daemons = tuple(started)
                await until(frr._listens(program), START_SECONDS, f"socket of {program} of {router.name}")
            await frr._configured()
        except BaseException:
            await frr.stop()
            raise
        return frr

    async def _run(self, program: str) -> Daemon:
        here = self._directory
        own = ("-f", here / f"{program}.conf", "-i", here / f"{program}.pid", "-z", here / "zserv")
        words = (*own, "--vty_socket", here, "-P", "0", "--log", "stdout")
        return await Daemon.start(
            f"{program} of {self.router.name}",
            [*_OWN_TEMPORARY, str(PROGRAMS / program), *map(str, words)],
            here / f"{program}.log",
            namespace=self.router.namespace,
        )

    def _listens(self, program: str) -> Callable[[], bool]:
        def there() -> bool:
            self._daemons[-1].ensure_running()
            return (self._directory / f"{program}.vty").exists()

        return there

    async def _configured(self) -> None:
        """A daemon listens before it has read its configuration."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                for neighbor in self.router.neighbors:
                    await self.session(neighbor.address)
                return
            except IpsecGwError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(POLL_SECONDS)

    @property
    def pids(self) -> tuple[int, ...]:
        """Of its daemons."""
        return tuple(daemon.pid for daemon in self._daemons)

    async def vtysh(self, *commands: str) -> str:
        """What vtysh says to these. Raises CommandFailed."""
        words = [word for command in commands for word in ("-c", command)]
        where = ("--vty_socket", str(self._directory), "-H", "/dev/null")
        return (await run(["vtysh", *where, *words])).stdout

    async def configure(self, *lines: str) -> None:
        """Take these lines of the BGP router's IPv4 section, as of now. Raises CommandFailed."""
        where = ("configure terminal", f"router bgp {self.router.asn}", "address-family ipv4 unicast")
        await self.vtysh(*where, *lines)

    async def session(self, neighbor: IPv4Address) -> BgpSession:
        """How it stands with a neighbor. Raises CommandFailed or IpsecGwError."""
        return parse_summary(await self.vtysh("show bgp ipv4 unicast summary json"), neighbor)

    async def stop(self) -> None:
        """End it; zebra takes its routes away."""
        for daemon in reversed(self._daemons):
            await daemon.stop()
