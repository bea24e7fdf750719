"""What people are told of VXLAN devices: who does VXLAN and who does ESP, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address

import pytest

from ipsec_gw.desired import desired
from ipsec_gw.device_words import device_words
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.objects import ANY_PORT, InterfaceKind, XfrmInterface
from ipsec_gw.model.snapshot import PolicyDirection, Snapshot, Vxlan
from tests.support.world import LOCAL, OFFER, REMOTE, SETTINGS, policy
from tests.unit.test_hosts import IN_REACH, TO, WEB, beside, pair, selects

VXLAN1 = Vxlan(XfrmInterface(61, "vxlan1", InterfaceKind.VXLAN), LOCAL, REMOTE, 4789, 42)
ABLE = replace(OFFER, vxlan=True)
SPLIT = "the kernel does VXLAN ({}), vpp does ESP"
USED = {SaKey(REMOTE, 0x20 + TO): "the kernel has sent with it"}
DEVICES: dict[str, tuple[Snapshot, dict[SaKey, str], str]] = {
    "in the engine": (beside(vxlans=(VXLAN1,)), {}, "vpp does VXLAN and ESP"),
    "from any address": (
        beside(vxlans=(replace(VXLAN1, local=None),)),
        {},
        SPLIT.format("the device has no address of its own (local)"),
    ),
    "in the kernel": (
        beside(vxlans=(VXLAN1,)),
        USED,
        "the kernel does VXLAN and ESP (the kernel has sent with it)",
    ),
    "not known yet": (
        beside(vxlans=(VXLAN1,), next_hops={}),
        {},
        "the kernel does VXLAN, and ESP until it is decided"
        f" (the kernel has no resolved next hop towards {REMOTE} yet)",
    ),
    "no way out": (beside(selects(TO, direction=PolicyDirection.IN), sas=pair(TO), vxlans=(VXLAN1,)), {}, ""),
    "another port": (beside(vxlans=(replace(VXLAN1, port=8472),)), {}, ""),
    "another peer": (beside(vxlans=(replace(VXLAN1, remote=ip_address("10.0.0.77")),)), {}, ""),
    "no IPsec": (beside(sas=(), vxlans=(VXLAN1,)), {}, ""),
    "for some of its ports alone": (
        beside(selects(TO, source_port=IN_REACH), sas=pair(TO), vxlans=(VXLAN1,)),
        {},
        "",
    ),
}


@pytest.mark.parametrize(("state", "refused", "words"), DEVICES.values(), ids=DEVICES.keys())
def test_people_are_told_who_does_what_for_a_vxlan_device(
    state: Snapshot, refused: dict[SaKey, str], words: str
) -> None:
    told = words_of(state, refused)
    assert told == ((f"VXLAN device vxlan1: {words}",) if words else ())


def words_of(state: Snapshot, refused: Mapping[SaKey, str], *, done: bool = True) -> tuple[str, ...]:
    found = desired(ABLE, SETTINGS, state, refused)
    return device_words(state, found.verdicts, found.kept_devices, found.objects if done else {}, ABLE.name)


def test_what_is_not_in_place_yet_is_not_said_to_be() -> None:
    (told,) = words_of(beside(vxlans=(VXLAN1,)), {}, done=False)
    assert told == f"VXLAN device vxlan1: {SPLIT.format('the engine is to do that, and does not yet')}"


def test_the_policy_that_xfrm_tries_first_says_it() -> None:
    everything = selects(WEB, index=24, upper=0, destination_port=ANY_PORT, priority=policy(0).priority + 1)
    state = beside(selects(TO), everything, sas=(*pair(TO), *pair(WEB)), vxlans=(VXLAN1,))
    verdicts = desired(OFFER, SETTINGS, state).verdicts
    later = {sa.key for sa in pair(WEB)}
    told = device_words(state, [one for one in verdicts if one.sa.key not in later], {}, {}, OFFER.name)
    assert len(told) == 1
    assert device_words(state, [one for one in verdicts if one.sa.key in later], {}, {}, OFFER.name) == ()
