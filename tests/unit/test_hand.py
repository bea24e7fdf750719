"""What the operator moves to the kernel, and what comes back; and how much of a key is used up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ipsec_gw.desired import MOVED, Moved, Owner, desired
from ipsec_gw.engines.port import Counters
from ipsec_gw.errors import IpsecGwError
from ipsec_gw.model.ids import EngineName, SaKey, TunnelId
from ipsec_gw.model.warmth import Volume
from ipsec_gw.observe.views import Carried, NonceView, sa_view
from ipsec_gw.ownership import hand
from ipsec_gw.ownership.budget import NonceBudget
from ipsec_gw.ownership.rekey import RekeyPacer
from tests.support.world import OFFER, REMOTE, SETTINGS, established

TUNNEL = TunnelId(1, REMOTE)
LOOK = established()


def ask(words: str, moved: Moved | None = None) -> Moved:
    return hand.answer(words, moved or Moved(), LOOK)


@pytest.mark.parametrize("spi", ["11", "00000022", "0x22"])
def test_an_sa_stands_for_its_tunnel_in_both_directions(spi: str) -> None:
    moved = ask(hand.question("fallback", spi, None))
    assert moved == Moved(tunnels=frozenset({TUNNEL}))
    assert ask(hand.question("return", spi, None), moved) == Moved()


def test_a_connection_and_everything() -> None:
    moved = ask(hand.question("fallback", None, "site"))
    assert moved == Moved(connections=frozenset({"site"}))
    assert ask(hand.question("return", None, "site"), moved) == Moved()
    assert ask(hand.question("fallback", None, None), moved).everything
    assert ask(hand.question("return", None, None), replace(moved, everything=True)) == Moved()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("fallback sa 77", "no SA has the SPI 77"),
        ("fallback sa mine", "is no SPI"),
        ("fallback connection other", "no SA of a connection 'other'"),
        ("return connection site", "was not moved"),
        ("return sa 22", "was not moved"),
    ],
)
def test_what_names_nothing_is_refused(words: str, says: str) -> None:
    with pytest.raises(IpsecGwError, match=says):
        ask(words)


def test_one_tunnel_does_not_come_back_from_everything() -> None:
    with pytest.raises(IpsecGwError, match="without an option"):
        ask("return sa 22", Moved(everything=True))


@pytest.mark.parametrize(
    "moved", [Moved(everything=True), Moved(connections=frozenset({"site"})), Moved(tunnels=frozenset({TUNNEL}))]
)
def test_what_is_moved_is_the_kernels_with_that_reason(moved: Moved) -> None:
    decision = desired(OFFER, replace(SETTINGS, moved=moved), LOOK)
    assert not decision.objects
    assert {(v.owner, v.reason) for v in decision.verdicts} == {(Owner.KERNEL, MOVED)}
    assert desired(OFFER, SETTINGS, LOOK).objects


def test_others_stay_in_the_engine() -> None:
    moved = Moved(connections=frozenset({"other"}), tunnels=frozenset({TunnelId(2, REMOTE)}))
    assert desired(OFFER, replace(SETTINGS, moved=moved), LOOK).objects == desired(OFFER, SETTINGS, LOOK).objects


def test_it_outlives_the_daemon(tmp_path: Path) -> None:
    moved = Moved(True, frozenset({"a", "b"}), frozenset({TUNNEL}))
    assert hand.load(tmp_path) == Moved()
    hand.save(tmp_path, moved)
    assert hand.load(tmp_path) == moved
    (tmp_path / hand.FILE).write_text("{")
    assert hand.load(tmp_path) == Moved()
    hand.forget(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_down_is_said(tmp_path: Path) -> None:
    with pytest.raises(IpsecGwError, match="nothing was moved"):
        hand.save(tmp_path / "missing", Moved())


def test_no_rekey_is_asked_for_while_an_sa_is_held() -> None:
    pacer, key = RekeyPacer(), SaKey(REMOTE, 0x22)
    pacer.request(key)
    assert pacer.due(1.0, {key}.__contains__) is None
    assert pacer.due(2.0) == key


def test_the_budget_of_a_key() -> None:
    assert (NonceBudget(0, 0).share, NonceBudget(0, 0).collision) == (0, 0)
    assert NonceBudget(1 << 31, 1 << 31).share == 1
    assert NonceBudget(1 << 33, 1 << 20).collision == 2**-11
    assert NonceBudget(1 << 40, 1 << 40).collision == 1


def test_show_sas_tells_the_budget_of_outbound_keys_alone() -> None:
    decision = desired(OFFER, SETTINGS, LOOK)
    carried = {SaKey(REMOTE, 0x22): Carried(Counters(1 << 31, 0), Volume(5, 50), 1 << 21)}
    rows = {row.direction: row for row in (sa_view(v, LOOK.names, EngineName.VPP, carried) for v in decision.verdicts)}
    assert rows["in"].nonces is None
    assert rows["out"].nonces == NonceView(1 << 31, 1 << 21, 0.5 + 2**-11, 2**-12)
    assert (rows["out"].packets, rows["out"].bytes) == (5, 50), "what is in the kernel's counters is not counted twice"
