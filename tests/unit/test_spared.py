"""Clients that charon never rekeys are not rekeyed by us either."""

from __future__ import annotations

from ipsec_gw.errors import IkeError
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.snapshot import ChildName, ConfiguredChild
from ipsec_gw.ownership.rekey import RekeyPacer
from ipsec_gw.ownership.spared import Spared
from tests.support.world import REMOTE

NAMES = {0x22: ChildName("clients", "any", 1, 1, "INSTALLED"), 0x33: ChildName("site", "net", 2, 2, "INSTALLED")}
CLIENT, SITE, UNNAMED = SaKey(REMOTE, 0x22), SaKey(REMOTE, 0x33), SaKey(REMOTE, 0x44)


class Charon:
    def __init__(self) -> None:
        self.answers: list[frozenset[ConfiguredChild] | IkeError] = []
        self.now = 0.0

    async def never_rekeyed(self) -> frozenset[ConfiguredChild]:
        answer = self.answers.pop(0)
        if isinstance(answer, IkeError):
            raise answer
        return answer

    def spared(self) -> Spared:
        return Spared(self.never_rekeyed, lambda: self.now)


async def test_they_wait_and_hold_up_nobody() -> None:
    charon = Charon()
    charon.answers = [frozenset({ConfiguredChild("clients", "any")})]
    spared, pacer = charon.spared(), RekeyPacer()
    await spared.renew()
    for key in (CLIENT, SITE, UNNAMED):
        pacer.request(key)
    asked = [pacer.due(float(now), lambda key: spared.has(key, NAMES)) for now in range(0, 10)]
    assert [key for key in asked if key is not None] == [SITE, UNNAMED]
    assert pacer.waiting == {CLIENT}


async def test_a_change_of_the_configuration_is_noticed_and_a_silent_charon_changes_nothing() -> None:
    charon = Charon()
    charon.answers = [frozenset({ConfiguredChild("clients", "any")}), IkeError("away"), frozenset()]
    spared = charon.spared()
    for now, has, left in ((0.0, True, 2), (59.0, True, 2), (60.0, True, 1), (119.0, True, 1), (120.0, False, 0)):
        charon.now = now
        await spared.renew()
        assert (spared.has(CLIENT, NAMES), len(charon.answers)) == (has, left)
