"""What the kernel has counted of SAs outlives the daemon."""

from __future__ import annotations

from pathlib import Path

from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.warmth import SaState, Volume
from ipsec_gw.ownership import handovers
from ipsec_gw.ownership.handovers import FILE, SPARE, Handovers
from tests.support.world import LOCAL


def sa(spi: int, born: int = 1000) -> SaState:
    key = SaKey(LOCAL, spi)
    return SaState(key, oseq=0, seq=0, window=32, words=0, used=Volume(0, 0), add_time=born, use_time=0)


class Notes:
    """Handovers of a folder, and what they tell of."""

    def __init__(self, folder: Path) -> None:
        self.told: list[str] = []
        self.handovers = Handovers(folder, self.told.append)
        self.file = folder / FILE

    @property
    def lines(self) -> int:
        return len(self.file.read_text().splitlines())


ONE, TWO = sa(1), sa(2)
SOME, MORE = Volume(3, 300), Volume(4, 400)


def test_the_next_daemon_finds_what_the_last_one_kept(tmp_path: Path) -> None:
    first = Notes(tmp_path)
    assert not first.handovers.begun
    assert first.handovers.recall(ONE) is None
    first.handovers.keep([(ONE, SOME), (TWO, SOME)], [ONE, TWO])
    first.handovers.keep([(TWO, MORE)], [ONE, TWO])
    second = Notes(tmp_path)
    assert second.handovers.begun
    assert (second.handovers.recall(ONE), second.handovers.recall(TWO)) == (SOME, MORE)
    assert second.handovers.recall(sa(1, born=1001)) is None, "another SA that got the same SPI"
    assert first.told == second.told == []


def test_it_is_not_begun_by_looking(tmp_path: Path) -> None:
    Notes(tmp_path).handovers.only([ONE])
    Notes(tmp_path).handovers.keep([], [ONE])
    assert not Notes(tmp_path).handovers.begun


def test_what_is_gone_is_forgotten(tmp_path: Path) -> None:
    first = Notes(tmp_path)
    first.handovers.keep([(ONE, SOME), (TWO, SOME)], [ONE, TWO])
    second = Notes(tmp_path)
    second.handovers.only([TWO])
    assert second.lines == 1
    assert Notes(tmp_path).handovers.recall(ONE) is None
    second.handovers.only([])
    assert Notes(tmp_path).handovers.begun, "an SA that is not noted now is one that nobody took note of"


def test_a_line_that_was_cut_off_costs_that_line_alone(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    notes.handovers.keep([(ONE, SOME), (TWO, SOME)], [ONE, TWO])
    notes.file.write_text(notes.file.read_text()[:-8])
    later = Notes(tmp_path).handovers
    later.only([ONE, TWO])
    later.keep([(TWO, MORE)], [ONE, TWO])
    last = Notes(tmp_path).handovers
    assert (last.recall(ONE), last.recall(TWO)) == (SOME, MORE)


def test_the_file_does_not_grow_with_rekeys(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    for spi in range(1, 2 * SPARE):
        notes.handovers.keep([(sa(spi), SOME)], [sa(spi)])
    assert notes.lines <= SPARE + 2
    assert Notes(tmp_path).handovers.recall(sa(2 * SPARE - 1)) == SOME


def test_a_file_that_cannot_be_written_is_told_of_once(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "gone")
    for volume in (SOME, MORE):
        notes.handovers.keep([(ONE, volume)], [ONE])
    (told,) = notes.told
    assert str(tmp_path / "gone" / FILE) in told
    assert "No such file" in told
    assert notes.handovers.recall(ONE) == MORE


def test_it_is_removed(tmp_path: Path) -> None:
    Notes(tmp_path).handovers.keep([(ONE, SOME)], [ONE])
    handovers.forget(tmp_path)
    handovers.forget(tmp_path)
    assert list(tmp_path.iterdir()) == []
