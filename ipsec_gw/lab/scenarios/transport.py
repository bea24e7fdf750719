"""The two gateways themselves talk: in transport mode, where their packets keep their header, and in tunnel mode.

Rekeys and deaths of the engine under traffic, datagrams that are fragmented, and IKE all the while: it is between the
same addresses, and goes on in clear.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import ip_network

from ipsec_gw.lab.capture import IPPROTO_ESP, IPPROTO_UDP, Frame, header
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import GatewayUnderTest
from ipsec_gw.lab.scenarios.failover import death, kill_daemon, kill_vpp
from ipsec_gw.lab.scenarios.site_to_site import bracketed_exchange, charon_counts, leave, rekey_under_traffic
from ipsec_gw.lab.scenarios.tunnel import Story, Talkers, bring_up, carry, quiet, set_up, start_flows, terminate
from ipsec_gw.lab.scenarios.verdicts import Evidence, few, judge_numbers
from ipsec_gw.lab.sites import site_of
from ipsec_gw.lab.strongswan import Site
from ipsec_gw.lab.topology import WAN, Role
from ipsec_gw.lab.traffic import TrafficError, udp_echo
from ipsec_gw.lab.wire import esp_packets, is_ike, open_all, together, without_returned

GATEWAYS = (Role.GATEWAY_A, Role.GATEWAY_B)
LARGE, LARGE_PORT = (1473, 4000, 20000), 7600
"""Payloads that do not fit a WAN of 1500 bytes."""


async def run(lab: Lab) -> None:
    """Play it in transport mode."""
    await _play(lab, "transport")


async def run_tunnel(lab: Lab) -> None:
    """The same in tunnel mode, with the same addresses inside as outside."""
    await _play(lab, "tunnel")


async def _play(lab: Lab, mode: str) -> None:
    story = await set_up(lab, [_site(lab, role, mode) for role in GATEWAYS])
    start_flows(story, _talkers(lab))
    evidence = Evidence()
    await bring_up(story, evidence)
    await carry(story, evidence)
    await bracketed_exchange(story, "payload exchange")
    await rekey_under_traffic(story, evidence)
    if story.gateway is not None and story.gateway.engine != "kernel":
        await _engine_dies(story, story.gateway, evidence)
    await bracketed_exchange(story, "payload exchange at the end")
    await _finish(story, evidence)


def _site(lab: Lab, role: Role, mode: str) -> Site:
    site = site_of(lab.topology, role, lab.options.proposal)
    return replace(
        site,
        local_network=ip_network(site.local),
        remote_network=ip_network(site.remote),
        child_options=(f"mode = {mode}",),
    )


def _talkers(lab: Lab) -> Talkers:
    a, b = (lab.host(role, WAN) for role in GATEWAYS)
    return Talkers(a, b, a)


async def _large(story: Story) -> None:
    """Each is protected as one packet, and its ESP is fragmented."""
    (talkers,) = story.talkers
    for number, (left, right) in enumerate(((talkers.client, talkers.server), (talkers.server, talkers.client))):
        name, wanted = f"datagrams beyond the MTU, {left} to {right}", "payloads come back unchanged"
        try:
            told = await udp_echo(left, right, port=LARGE_PORT + number, sizes=LARGE, seed=number)
            story.lab.check(name, True, wanted, told)
        except TrafficError as error:
            story.lab.check(name, False, wanted, error)


async def _engine_dies(story: Story, gateway: GatewayUnderTest, evidence: Evidence) -> None:
    if gateway.engine == "vpp":
        await death(story, gateway, evidence, "kill of VPP", kill_vpp, gateway.vpp_up)
    else:
        await death(story, gateway, evidence, "kill of daemon and engine", kill_daemon, gateway.run_again)


async def _finish(story: Story, evidence: Evidence) -> None:
    lab = story.lab
    await quiet(story)
    await charon_counts(story)
    await _large(story)  # at the end: what opens ESP does not put fragments together
    await terminate(story, evidence)
    with lab.step("open the capture with the kernels' keys"):
        story.drain()
        lost = story.wan.lost()
        lab.check("the captures are complete", lost == 0, "0 frames lost", f"{lost} frames lost")
        sas = {index: sa for diary in story.diaries for index, sa in diary.all().items()}
        sent = without_returned(*(esp_packets(capture.frames) for capture in story.wan.captures))
        openings = [open_all(packets, sas) for packets in sent]
    opening, whole = together(openings), sum(map(len, sent))
    bad = [*opening.unknown, *opening.forged]
    ways = Counter((item.esp.source, item.esp.destination) for item in opening.opened)
    lab.check(
        "the oracle opens every ESP packet of both directions",
        not bad and len(ways) == len(GATEWAYS) and len(opening.opened) == whole,
        f"all of {whole}",
        f"{', '.join(f'{count} {source} -> {to}' for (source, to), count in ways.items())}; bad: {few(bad)}",
    )
    protocols = Counter(header(item.inner).protocol for item in opening.opened)
    kept = all(
        (header(item.inner).source, header(item.inner).destination) == (item.esp.source, item.esp.destination)
        for item in opening.opened
    )
    lab.check("packets keep their addresses", kept and bool(protocols), "those outside", f"by protocol: {protocols}")
    judge_numbers(lab, openings, evidence, taken_over=bool(story.gateway))
    clear = _clear(story, evidence)
    lab.check(
        "nothing but IKE passes between the gateways in clear while the SAs are there", not clear, "none", few(clear)
    )
    ike = sum(
        1 for frame in _during(story, evidence) if (packet := frame.ip) is not None and is_ike(packet, header(packet))
    )
    lab.check("IKE passes all the while", ike > 0, "some", ike)
    await leave(story)


def _during(story: Story, evidence: Evidence) -> Iterable[Frame]:
    spans: Sequence[tuple[int, int]] = list(zip(evidence.up, evidence.down, strict=True))
    for capture, (up, down) in zip(story.wan.captures, spans, strict=True):
        yield from capture.frames[up:down]


def _clear(story: Story, evidence: Evidence) -> list[str]:
    ends = {story.lab.topology.address(role, WAN) for role in GATEWAYS}
    found = []
    for frame in _during(story, evidence):
        packet = frame.ip
        if frame.outgoing or packet is None:
            continue
        told = header(packet)
        if {told.source, told.destination} == ends and told.protocol != IPPROTO_ESP and not is_ike(packet, told):
            later = " (a fragment)" if told.protocol == IPPROTO_UDP and told.fragment else ""
            found.append(f"{told.source} -> {told.destination} protocol {told.protocol}{later}")
    return found
