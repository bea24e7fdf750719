"""NAT traversal: gateway B is behind a router with NAT, which forgets its mappings under traffic and chooses others."""

from __future__ import annotations

from collections import Counter

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.nat import Nat
from ipsec_gw.lab.netns import send_in_one_piece
from ipsec_gw.lab.oracle import EspPacket
from ipsec_gw.lab.scenarios.site_to_site import bracketed_exchange, conclude, rekey_under_traffic
from ipsec_gw.lab.scenarios.tunnel import Story, bring_up, carry, packets, resume, set_up, spis
from ipsec_gw.lab.scenarios.verdicts import Evidence
from ipsec_gw.lab.sites import seen_address
from ipsec_gw.lab.topology import OUTSIDE, WAN, Role
from ipsec_gw.lab.traffic import until
from ipsec_gw.lab.wire import esp_packets

FIRST, SECOND, THIRD = range(20000, 20100), range(30000, 30100), range(40000, 40100)
"""UDP source ports of the NAT: at first, and after each time that it has forgotten."""

FOLLOW_SECONDS = 60.0
LATEST = 40
"""Frames of a capture that are looked through for an answer."""

MOMENT = 3
"""Packets of B that may be lost: charon deletes an SA to move it, and the kernel drops what comes until it is back."""

STEADY = 25
"""Packets of each flow that have to arrive after a change before it counts as over."""


async def run(lab: Lab) -> None:
    """Play it."""
    nat = Nat(lab.topology.namespace(Role.NAT), OUTSIDE)
    await nat.use(FIRST)
    for role in (Role.GATEWAY_A, Role.GATEWAY_B):
        send_in_one_piece(lab.topology.namespace(role), WAN)
    story = await set_up(lab)
    evidence = Evidence()
    flow_marks = await bring_up(story, evidence)
    await carry(story, evidence)
    await bracketed_exchange(story, "payload exchange")
    _judge_ports(story, FIRST, "behind the NAT")
    await _map_anew(story, nat, SECOND, "a first time")
    await bracketed_exchange(story, "payload exchange after the remap")
    await rekey_under_traffic(story, evidence)
    await _map_anew(story, nat, THIRD, "a second time")
    await bracketed_exchange(story, "payload exchange at the end")
    await conclude(story, evidence, flow_marks)


def _sent(story: Story, *, by_a: bool, since: int = 0) -> list[EspPacket]:
    """ESP that gateway A (or B, as the WAN sees it) has sent, without the first ``since`` packets of all."""
    source = seen_address(story.lab.topology, Role.GATEWAY_A if by_a else Role.GATEWAY_B)
    return [packet for packet in packets(story)[since:] if packet.source == source]


def _judge_ports(story: Story, mapped: range, when: str) -> None:
    """Every ESP packet is in UDP, and A sends to where B's come from."""
    for name, by_a, place in (("A", True, 1), ("B", False, 0)):
        sent = _sent(story, by_a=by_a)
        used = Counter(packet.ports[place] if packet.ports else 0 for packet in sent)
        ok = bool(used) and all(port in mapped for port in used)
        lab_name = f"{name} sends ESP in UDP, {when}"
        shown = ", ".join(f"{count} with {port}" for port, count in used.items())
        story.lab.check(lab_name, ok, f"all with ports {mapped.start} to {mapped.stop - 1}", shown)


async def _map_anew(story: Story, nat: Nat, ports: range, when: str) -> None:
    """The NAT forgets and maps to other ports: the same SAs go on, towards the new port."""
    lab, gateway = story.lab, story.gateway
    resume(story)
    there, back = story.flows
    await until(lambda: all(flow.next > 0 for flow in story.flows), 5.0, "steady traffic")
    before = spis(story)
    verdicts = (await gateway.status()).verdicts if gateway else {}
    marks = (there.next, back.next)
    with lab.step(f"the NAT maps anew {when}, under traffic"):
        await nat.use(ports)
        await until(lambda: _answered(story, ports), FOLLOW_SECONDS, f"ESP of A to ports from {ports.start}")
        over = (there.next, back.next)
        if gateway is not None:
            await gateway.sas_when(
                lambda sas: {sa.spi for sa in sas} == before and all(sa.state == gateway.engine for sa in sas),
                FOLLOW_SECONDS,
                f"the same SAs in {gateway.engine}",
            )
        await until(lambda: min(f.next - o for f, o in zip(story.flows, over, strict=True)) >= STEADY, 30.0, "more")
    lab.check(
        f"the SAs are the same after the NAT mapped anew {when}", spis(story) == before, "no rekey", _spi_text(story)
    )
    if gateway is not None and gateway.engine != "kernel":
        moved = (await gateway.status()).verdicts.get("moved", 0) - verdicts.get("moved", 0)
        lab.check(f"the kernel was shown where B is, {when}", moved > 0, "some packets", f"{moved} packets")
    for flow in story.flows:
        flow.pause()
    towards_b, towards_a = await there.settle(marks[0]), await back.settle(marks[1])
    whole = (towards_a.duplicated, towards_a.corrupted) == (0, 0) and towards_a.lost <= MOMENT
    lab.check(
        f"what B sends arrives while the NAT maps anew, {when}",
        whole,
        f"at most {MOMENT} lost, 0 twice, 0 corrupted",
        towards_a,
    )
    # What A sends to the old port until it knows the new one is lost: nobody can help that.
    lab.note(f"sent by A while the NAT mapped anew, {when}: {towards_b}")
    later = await there.settle(over[0])
    lab.check(f"what A sends arrives again, {when}", later.perfect, "0 lost, 0 twice, 0 corrupted", later)
    resume(story)


def _answered(story: Story, ports: range) -> bool:
    """Whether A sends to one of the new ports. Looks at the latest frames alone: the flows wait meanwhile."""
    story.drain()
    sent = esp_packets(story.wan.captures[0].frames[-LATEST:])
    return any(packet.ports and packet.ports[1] in ports for packet in sent)


def _spi_text(story: Story) -> str:
    return ", ".join(f"{spi:08x}" for spi in sorted(spis(story)))
