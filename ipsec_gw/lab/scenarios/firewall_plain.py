"""The firewall without tunnels: policies, NAT, fragments, path MTU and the gateway itself, IPv4 and IPv6."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from ipsec_gw.lab import edge
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.packets import TooBig
from ipsec_gw.lab.scenarios.border import Story, set_up
from ipsec_gw.lab.scenarios.conversations import TCP_BYTES, answers_ping, both, judged
from ipsec_gw.lab.scenarios.rules import BARE, DENIED, INTERNAL, OPEN, POOLED, PUBLISHED, REJECTED, plain_rules
from ipsec_gw.lab.talk import Address, Attempt, Echo, tcp, udp
from ipsec_gw.lab.topology import HOST, LAN, MTU, WAN, Role
from ipsec_gw.lab.traffic import Host, TrafficError, until

FRAGMENTED = (2000, 4000, 8000)
COUNT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Places:
    """Everybody's ends in one address family, and the pool of source NAT there."""

    family: str
    pool: tuple[Address, ...]
    client: Host
    inner: Host
    lan: Host
    wan: Host
    router: Host
    server: Host


async def run(lab: Lab) -> None:
    """Play it."""
    story = await set_up(lab, plain_rules(lab.topology))
    for places in _families(lab):
        await _conversations(story, places)
        await _refusals(story, places)
        await _path_mtu(story, places)
        await _gateway_itself(story, places)
    lost = story.lan.lost() + story.wan.lost()
    lab.check("the captures are complete", lost == 0, "0 frames lost", lost)
    with lab.step("ipsec-gw off"):
        await story.gateway.off()


def _families(lab: Lab) -> tuple[Places, Places]:
    ends = (
        (Role.CLIENT, HOST),
        (Role.INNER, HOST),
        (Role.GATEWAY_A, LAN),
        (Role.GATEWAY_A, WAN),
        (Role.WAN, edge.TO_GATEWAY),
        (Role.SERVER, HOST),
    )
    return (
        Places("IPv4", tuple(edge.POOL), *(lab.host(*end) for end in ends)),
        Places("IPv6", tuple(edge.POOL6), *(lab.host6(*end) for end in ends)),
    )


async def _conversations(story: Story, at: Places) -> None:
    lab, family = story.lab, at.family
    with lab.step(f"{family}: what is permitted"):
        mine, wan = (at.client.address,), (at.wan.address,)
        await both(lab, f"{family} permit", at.client, (at.router, BARE), mine, "the client")
        await both(lab, f"{family} source NAT to the WAN address", at.client, (at.router, OPEN), wan, "the gateway")
        await both(lab, f"{family} source NAT from a pool", at.client, (at.router, POOLED), at.pool, "a pool address")
        published = (at.wan.address, PUBLISHED)
        await judged(
            lab,
            f"{family} destination NAT",
            "the server sees the caller",
            tcp(at.server, published, at.inner, INTERNAL, size=TCP_BYTES, seed=1),
            lambda heard: heard.peer == at.server.address,
        )
        await judged(
            lab,
            f"{family} hairpin",
            "the server sees the gateway",
            tcp(at.client, published, at.inner, INTERNAL, size=TCP_BYTES, seed=2),
            lambda heard: heard.peer == at.lan.address,
        )
        await _fragments(story, at)


async def _fragments(story: Story, at: Places) -> None:
    def fragments() -> int:
        ours = (at.wan.address, *at.pool)
        return len(story.arrived(story.wan, lambda packet: packet.fragment and packet.source in ours))

    before = fragments()
    name, expected = f"{at.family} fragments both ways, translated", "the server sees the gateway"
    talk = udp(at.client, (at.router.address, OPEN), at.router, OPEN, sizes=FRAGMENTED, seed=3)
    await judged(story.lab, name, expected, talk, lambda heard: heard.peer == at.wan.address)
    crossed, needed = fragments() - before, sum(size // MTU + 1 for size in FRAGMENTED)
    name = f"{at.family} fragments cross the WAN as fragments"
    story.lab.check(name, crossed == needed, f"{needed} with the gateway's address", crossed)


async def _refusals(story: Story, at: Places) -> None:
    lab, family = story.lab, at.family
    with lab.step(f"{family}: what is refused"):
        before = await story.gateway.rules()
        denied = Attempt(at.client, at.router.address, DENIED)
        rejected = Attempt(at.client, at.router.address, REJECTED)
        with closing(denied), closing(rejected):
            try:
                await until(lambda: rejected.refused, COUNT_SECONDS, "both are rejected")
            except TrafficError as error:
                lab.note(f"{family} reject: {error}")
            # Of TCP the second SYN as well: no answer has ended the attempt.
            rules = await story.gateway.rules_when(
                lambda rules: rules["denied"] >= before["denied"] + 3, COUNT_SECONDS, "refused packets are counted"
            )
            denied.look()
            lab.check(f"{family} deny", not denied.tcp and not denied.udp, "TCP silence, UDP silence", denied)
            tcp_name, udp_name = "ECONNREFUSED", "EHOSTUNREACH" if family == "IPv4" else "EACCES"
            lab.check(f"{family} reject, TCP", rejected.tcp == tcp_name, f"RST: {tcp_name}", rejected.tcp or "silence")
            unreachable = f"ICMP unreachable: {udp_name}"
            lab.check(f"{family} reject, UDP", rejected.udp == udp_name, unreachable, rejected.udp or "silence")
        counted = rules["rejected"] - before["rejected"]
        lab.check(f"{family} refused packets are counted by rule", counted == 2, "2 rejected", f"{counted} rejected")
        ports = (DENIED, REJECTED)
        through = story.arrived(story.wan, lambda packet: packet.destination_port in ports)
        lab.check(f"{family} nothing refused reaches the WAN", not through, "0 packets", f"{len(through)} packets")


async def _path_mtu(story: Story, at: Places) -> None:
    lab, family = story.lab, at.family
    with lab.step(f"{family}: path MTU discovery"):
        await judged(
            lab,
            f"{family} path MTU: the TCP stream goes on",
            f"the client learns the path MTU {edge.PATH_MTU}",
            tcp(at.client, (at.server.address, OPEN), at.server, OPEN, size=TCP_BYTES, seed=4),
            lambda heard: (heard.peer, heard.mtu) == (at.wan.address, edge.PATH_MTU),
        )
        wanted = TooBig(at.router.address, edge.PATH_MTU, at.client.address, at.server.address)
        found = {error for error in story.mtu_errors(story.lan) if error.destination == at.server.address}
        lab.check(
            f"{family} path MTU: the error comes back translated",
            found == {wanted},
            str(wanted),
            "; ".join(map(str, found)) or "none",
        )


async def _gateway_itself(story: Story, at: Places) -> None:
    lab, family = story.lab, at.family
    with lab.step(f"{family}: traffic of the gateway itself"):
        ours = (at.wan.address,)
        await both(lab, f"{family} gateway to WAN", at.wan, (at.router, OPEN), ours, "the gateway")
        await answers_ping(lab, f"{family} gateway answers ping from the LAN", at.client, at.lan, 1)
        before = (await story.gateway.status()).verdicts.get("default-deny", 0)
        echo = Echo(at.router, at.wan.address, 2, 64)
        with closing(echo):
            await story.gateway.status_when(
                lambda status: status.verdicts.get("default-deny", 0) > before,
                COUNT_SECONDS,
                "a ping from the WAN is denied",
            )
            answered = echo.answered()
        said = "answered" if answered else "silence, default-deny"
        lab.check(f"{family} gateway is silent to the WAN", not answered, "silence, default-deny", said)
