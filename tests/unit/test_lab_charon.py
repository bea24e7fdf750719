"""Which tales of charon are told, and what their captures may show."""

from ipaddress import IPv4Address

import pytest

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.scenarios import scenarios
from ipsec_gw.lab.scenarios.charon import TALES, chosen
from ipsec_gw.lab.scenarios.verdicts import Judged


def test_all_tales_are_scenarios_of_their_own_too():
    assert {tale.name for tale in chosen("all")} <= scenarios().keys()
    for tale in TALES:
        assert scenarios()[tale.name].baseline is tale.baseline, tale.name


def test_tales_are_chosen_by_name():
    assert [tale.name for tale in chosen("esn, trap")] == ["esn", "trap"]
    with pytest.raises(IpsecGwError, match="no tale junk of charon - known: reload, "):
        chosen("esn,junk")


def test_several_tales_may_show_what_any_of_them_may():
    away = IPv4Address("10.0.0.4")
    both = Judged(lossy=True) | Judged(taken_over=True, roamed=(frozenset({away}), frozenset()))
    assert both == Judged(taken_over=True, lossy=True, roamed=(frozenset({away}), frozenset()))
    assert Judged() | Judged() == Judged()
