"""A daemon that was not there for too long sees to what the kernel has taken over, and nobody else does."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from ipsec_gw.errors import SteeringError
from ipsec_gw.ownership.presence import Presence

AWAY = 60.0


@dataclass
class Place:
    """XDP, a clock, and an engine that begins anew, or cannot ``failures`` times."""

    gone: bool = False
    now: float = 1000.0
    beats: list[float] = field(default_factory=list)
    begun: int = 0
    failures: int = 0

    def heartbeat(self, away_seconds: float) -> None:
        self.beats.append(away_seconds)

    def engine_gone(self) -> bool:
        return self.gone

    async def begin(self) -> None:
        if self.failures:
            self.failures -= 1
            raise SteeringError("no")
        self.begun += 1
        self.gone = False


def shown(place: Place, *, away: float = AWAY, silent: float) -> Presence:
    """It has shown itself, and again after so many seconds."""
    presence = Presence(place, away, lambda: place.now)
    presence.show()
    place.now += silent
    presence.show()
    return presence


@pytest.mark.parametrize("away", [AWAY, 0.0])
async def test_each_sign_says_how_long_it_holds(away: float) -> None:
    place = Place()
    shown(place, away=away, silent=0.5)
    assert place.beats == [away, away]


async def test_what_was_taken_over_meanwhile_is_given_up_once() -> None:
    place = Place(gone=True)
    presence = shown(place, silent=AWAY)
    assert await presence.make_up(place.begin)
    place.gone = True
    assert not await presence.make_up(place.begin), "that is of an engine that dies, and another's business"
    assert place.begun == 1


@pytest.mark.parametrize(
    ("away", "silent", "gone"),
    [
        pytest.param(AWAY, 0.5, True, id="an engine that has just died"),
        pytest.param(AWAY, 2 * AWAY, False, id="nothing was sent meanwhile"),
        pytest.param(0.0, 1e6, True, id="it may be away for ever"),
    ],
)
async def test_nothing_is_begun_anew_without_a_reason(away: float, silent: float, gone: bool) -> None:
    place = Place(gone=gone)
    presence = shown(place, away=away, silent=silent)
    assert not await presence.make_up(place.begin)
    assert place.begun == 0


async def test_what_could_not_be_given_up_is_tried_again() -> None:
    place = Place(gone=True, failures=1)
    presence = shown(place, silent=AWAY)
    with pytest.raises(SteeringError):
        await presence.make_up(place.begin)
    place.now += 0.5
    presence.show()
    assert await presence.make_up(place.begin)
    assert place.begun == 1
