"""The parts of a gateway are joined as the invariants need it."""

from __future__ import annotations

from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ipsec_gw.config.model import Config
from ipsec_gw.engines.port import Counters
from ipsec_gw.errors import EngineError, SteeringError
from ipsec_gw.gateway import Gateway, Plumbing, Senses, _join
from ipsec_gw.ike.observer import Observer
from ipsec_gw.ike.xfrm import XfrmMonitor, XfrmSocket
from ipsec_gw.mirror.kernel import KernelView
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.objects import Lead, Selector, UdpPeer
from ipsec_gw.model.snapshot import LeadLimits, XfrmPolicy
from ipsec_gw.ownership.bypass import Bypass
from ipsec_gw.ownership.engine_link import EngineLink
from ipsec_gw.ownership.guard import HAND_BACK_MARGIN, KEPT_AHEAD
from ipsec_gw.ownership.steer import SteerDriver
from tests.support.fakes import FakeDriver, FakeEngine, FakeSource
from tests.support.world import LOCAL, REMOTE, established, policy
from tests.unit.test_ownership import Kernel, Maps

OUT = SaKey(REMOTE, 0x22)
LEAD = Lead(Selector(ip_network("192.168.1.0/24"), ip_network("192.168.2.0/24")), None, 1446)


class Steering(Maps):
    """Guard and steering maps in one, as the real one is. ``broken`` is an entry that cannot be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.on = False
        self.entries: dict[SaKey, UdpPeer | None] = {}
        self.broken: SaKey | None = None

    def set_engine(self, on: bool) -> None:
        self.on = on

    def steer(self, key: SaKey, peer: UdpPeer | None) -> None:
        self.entries[key] = peer

    def unsteer(self, key: SaKey) -> None:
        if key == self.broken:
            raise SteeringError("no")
        self.entries.pop(key, None)

    def peers(self) -> dict[SaKey, UdpPeer | None]:
        return dict(self.entries)


def gateway(engine: FakeEngine, kernel: Kernel, steering: Steering) -> Gateway:
    senses = SimpleNamespace(kernel=kernel, observer=FakeSource(established()))
    wan = (SimpleNamespace(name="wan0"),)
    leads = {"lead": FakeDriver(), "hosts": FakeDriver(), "interfaces": FakeDriver()}
    plumbing = SimpleNamespace(steering=steering, **leads, wan=wan, up_index=1)
    return _join(Config(), cast(Senses, senses), EngineLink(engine), cast(Plumbing, plumbing))


async def test_what_cannot_be_led_is_asked_for_with_every_snapshot_of_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = iter([LeadLimits(local6="once"), LeadLimits(), LeadLimits(all6="thrice")])
    monkeypatch.setattr(Bypass, "ensure", lambda _bypass, _policies: next(limits))
    senses = gateway(FakeEngine(), Kernel(), Steering()).senses

    async def none(*_peers: object) -> dict[object, object]:
        return {}

    inside: list[XfrmPolicy] = [policy(0x22)]
    observer = Observer(
        cast(XfrmSocket, SimpleNamespace(sas=list, policies=lambda: inside)),
        cast(XfrmMonitor, SimpleNamespace(changes=0, drain=lambda: None)),
        cast(KernelView, SimpleNamespace(addresses=none, next_hops=none, source_hints=none)),
        cast(Any, SimpleNamespace(version="6.0.1")),
        names_decide=False,
        named=lambda: None,
    )
    observer.limits = senses.observer.limits
    assert (await observer.snapshot()).limits == LeadLimits(), "IPv4 alone: not asked for"
    inside.append(policy(0x22, source=ip_network("fd01::/64"), destination=ip_network("fd02::/64")))
    seen = [(await observer.snapshot()).limits for _ in range(3)]
    assert seen == [LeadLimits(local6="once"), LeadLimits(), LeadLimits(all6="thrice")]


async def test_marks_are_put_back_with_every_snapshot() -> None:
    made = gateway(FakeEngine(), Kernel(), Steering())
    assert made.plumbing is not None
    hosts = cast(FakeDriver, made.plumbing.hosts)
    for looks in (1, 2):
        assert made.senses.observer.limits([]) == LeadLimits()
        assert hosts.renewed == looks


async def test_every_look_at_the_engine_keeps_the_kernel_ahead() -> None:
    engine, kernel, steering = FakeEngine(), Kernel(*established().sas), Steering()
    made = gateway(engine, kernel, steering)
    await made.link.open()
    await made.reconciler.run_pass()
    assert steering.claimed() == {OUT}
    sent = 3 * HAND_BACK_MARGIN
    engine.sent[OUT] = Counters(sent, 0)
    await made.link.look()
    assert kernel.sas[OUT].replay.oseq == sent + KEPT_AHEAD


@pytest.mark.parametrize("fate", ["dead", "restarted", "silent"])
async def test_only_an_engine_that_is_alive_moves_the_kernels_numbers(fate: str) -> None:
    engine, kernel, steering = FakeEngine(), Kernel(*established().sas), Steering()
    made = gateway(engine, kernel, steering)
    await made.link.open()
    await made.reconciler.run_pass()
    before = kernel.sas[OUT].replay.oseq
    engine.sent[OUT] = Counters(3 * HAND_BACK_MARGIN, 0)

    async def refuse() -> dict[SaKey, Counters]:
        raise EngineError("no counters")

    match fate:
        case "dead":
            engine.broken = True
        case "restarted":
            engine.epoch += 1
        case _:
            engine.counters = refuse  # type: ignore[method-assign]
    await made.link.look()
    assert kernel.sas[OUT].replay.oseq == before
    (told,) = [record.trouble for record in made.reconciler.history if record.trouble]
    assert {"dead": "the engine was lost", "restarted": "the engine was lost", "silent": "cannot be read"}[fate] in told


async def test_a_number_that_cannot_be_kept_ahead_is_in_the_history() -> None:
    engine, kernel, steering = FakeEngine(), Kernel(*established().sas), Steering()
    made = gateway(engine, kernel, steering)
    await made.link.open()
    await made.reconciler.run_pass()
    kernel.refuses.add(OUT)
    engine.sent[OUT] = Counters(HAND_BACK_MARGIN + 1, 0)
    await made.link.look()
    (told,) = [record.trouble for record in made.reconciler.history if record.trouble]
    assert f"the kernel's number of SA {OUT} is not kept ahead" in told


@pytest.mark.parametrize("when", ["before the look at its number", "before the write"])
async def test_an_sa_that_a_rekey_has_removed_is_no_trouble(when: str) -> None:
    engine, kernel, steering = FakeEngine(), Kernel(*established().sas), Steering()
    made = gateway(engine, kernel, steering)
    await made.link.open()
    await made.reconciler.run_pass()
    if when == "before the write":
        kernel.gone.add(OUT)
    else:
        del kernel.sas[OUT]
    written = list(kernel.written)
    engine.sent[OUT] = Counters(HAND_BACK_MARGIN + 1, 0)
    await made.link.look()
    assert kernel.written == written
    assert [record.trouble for record in made.reconciler.history if record.trouble] == []


async def test_what_an_engine_counted_last_is_read_when_it_is_lost() -> None:
    engine, kernel, steering = FakeEngine(), Kernel(*established().sas), Steering()
    made = gateway(engine, kernel, steering)
    await made.link.open()
    await made.reconciler.run_pass()
    await made.link.look()
    engine.sent[OUT] = Counters(KEPT_AHEAD, 0)
    made.link.lose("its process ended")
    await made.reconciler.run_pass()
    assert steering.owner[OUT] == "kernel"
    assert kernel.sas[OUT].replay.oseq == KEPT_AHEAD + HAND_BACK_MARGIN, "behind what nobody had looked at before"


async def test_an_engine_that_opens_ends_the_takeover() -> None:
    engine, kernel, steering = FakeEngine(), Kernel(*established().sas), Steering()
    made = gateway(engine, kernel, steering)
    steering.owner[OUT], steering.gone = "engine", True
    assert made.plumbing is not None
    drivers = [made.plumbing.lead, made.plumbing.hosts, made.plumbing.interfaces]
    leads = [cast(FakeDriver, driver) for driver in drivers]
    for driver in leads:
        driver.objects[LEAD.key] = LEAD
    await made.link.open()
    assert (steering.owner, steering.gone, steering.on) == ({OUT: "kernel"}, False, True)
    assert not any(driver.objects for driver in leads), "an engine's numbers are behind: it is led nothing, ever"
    leads[0].objects[LEAD.key] = LEAD
    await made.link.open()
    assert leads[0].objects, "nothing was taken over"


def test_clearing_takes_every_entry_off_and_says_if_it_cannot() -> None:
    steering = Steering()
    steering.entries = {SaKey(LOCAL, 1): None, SaKey(LOCAL, 2): UdpPeer(REMOTE, 4500)}
    SteerDriver(steering).clear()
    assert steering.entries == {}
    steering.entries, steering.broken = {SaKey(LOCAL, 3): None}, SaKey(LOCAL, 3)
    with pytest.raises(SteeringError):
        SteerDriver(steering).clear()
