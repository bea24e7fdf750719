"""Both gateways as a configuration wants them, and back to nothing again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.kernel_sas import Claim, claims
from ipsec_gw.lab.matrix.case import Act, Case, Connection
from ipsec_gw.lab.matrix.ends import PLACES, End
from ipsec_gw.lab.matrix.probes import Range
from ipsec_gw.lab.process import all_of, run
from ipsec_gw.lab.strongswan import MAKE_BEFORE_BREAK, Swan
from ipsec_gw.lab.topology import Role
from ipsec_gw.lab.traffic import until
from ipsec_gw.model.ids import IpAddress

UP_SECONDS, GONE_SECONDS = 20.0, 8.0
_NOTHING = "connections {\n}\n"

_STRANGE = (
    ("10.66.0.0/24", "10.1.0.0/24"),
    ("10.2.0.0/24", "10.67.0.0/24"),
    ("fd66::/64", "fd01::/64"),
    ("fd02::/64", "fd67::/64"),
)
"""Foreign sources, and foreign destinations, of packets that a dishonest gateway B sends through its tunnel."""

_CROSSED = (("10.2.0.0/25", "10.1.0.0/24"), ("10.12.0.0/25", "10.11.0.0/24"))
"""What belongs to the first of two tunnels, and what to the second."""


@dataclass(frozen=True, slots=True)
class Party:
    """A gateway's charon, with nothing configured."""

    identity: str
    namespace: str

    def conf(self) -> str:
        """Its swanctl.conf."""
        return _NOTHING


AGAIN = "again"
"""The child of gateway B's other connection for :attr:`Act.AGAIN`: to charon it is not the one that is up."""


class Sites:
    """Gateways A and B with a charon each."""

    def __init__(self, a: Swan, b: Swan) -> None:
        self.a, self.b = a, b
        self._strange: list[str] = []

    async def establish(self, case: Case, probes: Range) -> None:
        """Load it and bring it up. Raises CommandFailed, or TrafficError if it does not come up."""
        if case.make_before_break:
            await all_of(self.a.settle(MAKE_BEFORE_BREAK), self.b.settle(MAKE_BEFORE_BREAK))
        await all_of(self._commands(self.a, case.a), self._commands(self.b, case.b))
        await self._load(case, case.connections)
        for child in case.initiate:
            await self._initiate(case, child)
        if case.trigger is not None:
            await probes.outcome([case.trigger])
        if not case.initiate and case.tunnels:
            await until(self._both_up, UP_SECONDS, f"{case.name} comes up by itself")
        if case.forged:
            await self._be_strange(case)

    async def act(self, case: Case, act: Act) -> None:
        """Let something happen to its tunnels; they are up again afterwards. Raises CommandFailed or TrafficError."""
        before = {claim.spi for claim in self._sas(self.a)}
        match act:
            case Act.REKEY_A | Act.REKEY_B:
                await (self.a if act is Act.REKEY_A else self.b).swanctl("--rekey", "--child", case.initiate[0])
            case Act.BOTH_REKEY:
                await all_of(*(swan.swanctl("--rekey", "--child", case.initiate[0]) for swan in (self.a, self.b)))
            case Act.REAUTHENTICATE:
                await self.a.swanctl("--rekey", "--ike", case.connections[0].name, "--reauth")
            case Act.RELOAD:
                await self._load(case, case.reload)
                await self._initiate(case, case.initiate[0])
            case Act.AGAIN:
                await self.b.swanctl("--initiate", "--child", AGAIN, "--timeout", str(int(UP_SECONDS)))
        await until(
            lambda: bool({claim.spi for claim in self._sas(self.a)} - before), UP_SECONDS, f"{case.name}: {act}"
        )

    async def abandon(self, case: Case) -> None:
        """Take everything back. Raises TrafficError if SAs stay."""
        await self.be_honest()
        if case.lives_by_itself:
            await all_of(self._write(self.a, _NOTHING), self._write(self.b, _NOTHING))
        await self._terminate(case, force=False)
        try:
            await until(self._empty, GONE_SECONDS, f"{case.name} goes")
        except IpsecGwError:
            await self._terminate(case, force=True)
            await until(self._empty, GONE_SECONDS, f"{case.name} goes by force")
        await all_of(self._commands(self.a, case.undo_a), self._commands(self.b, case.undo_b))
        if case.make_before_break:
            await all_of(self.a.settle(), self.b.settle())

    def carried(self) -> frozenset[tuple[IpAddress, int]]:
        """Destination and SPI of the ESP SAs that gateway A has."""
        return frozenset((claim.destination, claim.spi) for claim in self._sas(self.a) if claim.esp)

    def _both_up(self) -> bool:
        """Who initiates has its SAs last."""
        return all(len(self._sas(swan)) >= 2 for swan in (self.a, self.b))

    def _empty(self) -> bool:
        return not self._sas(self.a) and not self._sas(self.b)

    @staticmethod
    def _sas(swan: Swan) -> list[Claim]:
        return [claim for claim in claims(swan.site.namespace) if claim.transforms]

    async def _initiate(self, case: Case, child: str) -> None:
        initiator = self.a if case.initiator is Role.GATEWAY_A else self.b
        await initiator.swanctl("--initiate", "--child", child, "--timeout", str(int(UP_SECONDS)))

    async def _load(self, case: Case, connections: tuple[Connection, ...]) -> None:
        texts = {role: case.conf(role, connections) for role in (Role.GATEWAY_A, Role.GATEWAY_B)}
        # Gateway B first: a trap or a start at A may need it at once.
        await self._write(self.b, texts[Role.GATEWAY_B])
        await self._write(self.a, texts[Role.GATEWAY_A])

    @staticmethod
    async def _write(swan: Swan, text: str) -> None:
        (swan.files.directory / "swanctl.conf").write_text(text)
        await swan.load()

    async def _terminate(self, case: Case, *, force: bool) -> None:
        names = {one.name for one in (*case.connections, *case.reload) if not one.shunts}
        ways = ["--force"] if force else []
        for name in sorted(names):
            for swan in (self.a, self.b) if force else (self.a,):
                await self._try(swan, "--terminate", "--ike", name, "--timeout", "5", *ways)

    @staticmethod
    async def _try(swan: Swan, *arguments: str) -> None:
        """What finds nothing to do fails, and that is fine."""
        env = {"STRONGSWAN_CONF": str(swan.files.directory / "strongswan.conf")}
        await run(["swanctl", *arguments, "--uri", swan.files.vici], env=env, check=False)

    @staticmethod
    async def _commands(swan: Swan, lines: tuple[str, ...]) -> None:
        for line in lines:
            await run(line.split(), namespace=swan.site.namespace)

    async def _be_strange(self, case: Case) -> None:
        """Gateway B encrypts for gateway A what no selector allows."""
        ours = {PLACES[End.OUTSIDE_B].address(version): PLACES[End.OUTSIDE_A].address(version) for version in (4, 6)}
        there = {a: b for b, a in ours.items()}
        outbound = [one for one in self._sas(self.b) if one.destination in there]
        any_one = min(outbound, key=lambda one: one.reqid)
        pairs = [(selector, any_one) for selector in _STRANGE]
        if case.crossed:
            # Not by the numbers that charon gives its children: it uses them again.
            by_spi = {one.spi: one for one in outbound}
            first, second = [by_spi[await self.a.inbound(child)] for child in case.initiate]
            pairs += list(zip(_CROSSED, (second, first), strict=True))
        await self._misuse([(f"src {left} dst {right}", there[one.destination], one) for (left, right), one in pairs])

    async def misuse(self, selectors: Sequence[str], sa: Claim) -> None:
        """Gateway B encrypts what fits these selectors (as ``ip xfrm policy`` has them) with this SA of its own, whose
        end points are IPv4. Until :meth:`be_honest`.
        """
        await self._misuse([(selector, PLACES[End.OUTSIDE_B].address(4), sa) for selector in selectors])

    async def _misuse(self, strange: Sequence[tuple[str, IpAddress, Claim]]) -> None:
        self._strange = [f"{selector} dir out" for selector, *_ in strange]
        lines = [
            f"xfrm policy add {selector} dir out priority 1"
            f" tmpl src {source} dst {sa.destination} proto esp reqid {sa.reqid} mode tunnel"
            for selector, source, sa in strange
        ]
        await self._ip(lines)

    async def be_honest(self) -> None:
        """Gateway B encrypts by its own policies alone."""
        lines = [f"xfrm policy delete {selector}" for selector in self._strange]
        self._strange = []
        if lines:
            await self._ip(lines)

    async def _ip(self, lines: list[str]) -> None:
        await run(["ip", "-n", self.b.site.namespace, "-batch", "-"], stdin="\n".join(lines) + "\n")
