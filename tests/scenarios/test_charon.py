"""What charon does with its tunnels under the traffic of real strongSwans: the engine follows, for each engine."""

import pytest

from ipsec_gw.lab.scenarios.charon import TALES
from ipsec_gw.lab.scenarios.esn import WINDOWS
from ipsec_gw.lab.scenarios.selectors import SETS
from ipsec_gw.lab.scenarios.trap import ROUNDS
from tests.scenarios.lab_command import check_names, need, play, skip_slow_machine, skip_unless_all

pytestmark = [pytest.mark.scenario, pytest.mark.root, pytest.mark.timeout(3600)]

ENGINES = pytest.mark.parametrize("engine", ["soft", pytest.param("vpp", marks=pytest.mark.vpp)])

ALWAYS = (
    "the captures are complete",
    "the oracle opens every ESP packet of both directions",
    "A uses no sequence number and no nonce twice",
    "B uses no sequence number and no nonce twice",
    "nothing of the protected networks crosses the WAN in clear while the tunnel is up",
    "the engine holds no SA after termination",
    "the steering and guard maps are empty after termination",
    "no process is left",
    "no pin is left",
)
GAPLESS = ("A leaves no sequence number out", "sequence numbers from the engine strictly increase")
TAKEN_OVER = ("no number of A goes back beyond the reordering of one ring, whoever sends",)


def story(scenario, engine, request):
    """Play it where it is not too slow; what was checked. What all tales have in common was."""
    skip_slow_machine(request)
    need(engine)
    names = check_names(play(scenario, "--engine", engine))
    counted = f"{scenario}: charon counts what the wire carried"
    assert missing([*ALWAYS, counted] if scenario != "selectors" else [], names) == []
    return names


def lossless(names, what, *ways):
    """Whether it was checked that nothing is lost, for each way of traffic."""
    return all(f"no packet {way} is lost or doubled {what}" in names for way in ways)


def missing(wanted, names):
    return [name for name in wanted if name not in names]


THERE, BACK = "10.1.0.10 -> 10.2.0.10", "10.2.0.10 -> 10.1.0.10"
SECOND = ("10.11.0.10 -> 10.12.0.10", "10.12.0.10 -> 10.11.0.10")


@ENGINES
def test_what_is_up_stays_when_charon_loads_something_else(engine, request):
    names = story("reload", engine, request)
    loads = ("the same once more by --load-all", "the same once more by --load-conns", "a network more")
    loads += ("another cipher", "a second child", "the second child alone")
    wanted = [f"what is up stays when charon loads {what}" for what in loads]
    wanted += [f"nothing is planned and nothing is done when charon loads {what}" for what in loads]
    assert missing([*GAPLESS, *wanted], names) == []
    assert all(lossless(names, f"when charon loads {what}", THERE, BACK) for what in loads[:-1])
    assert lossless(names, "when the same selectors are made anew", THERE)
    assert lossless(names, "when a second child comes up", THERE, BACK)
    assert lossless(names, "when the first child is taken down", *SECOND)


@ENGINES
def test_charon_is_stopped_and_killed(engine, request):
    names = story("charon-restart", engine, request)
    wanted = (
        "nothing is steered or guarded without a charon",
        "the tunnel is back with fresh keys after a stop",
        "the SAs outlive a charon that is killed",
        "the tunnel is back with fresh keys after a kill",
    )
    assert missing([*GAPLESS, *wanted], names) == []
    assert lossless(names, "when charon is killed and started", THERE, BACK)
    assert lossless(names, "when orphans are deleted", THERE, BACK)


@ENGINES
def test_what_was_not_heard_is_found_out(engine, request):
    names = story("lost-netlink", engine, request)
    wanted = (
        "the daemon tells that it lost notifications",
        "the SAs that it did not hear of are carried",
        "SAs are carried before charon has named them",
        "charon's names are known again",
    )
    assert missing([*TAKEN_OVER, *wanted], names) == []
    assert lossless(names, "through what came unheard", *SECOND)
    for when in ("while the daemon hears nothing of the kernel", "while charon tells nothing"):
        assert lossless(names, when, THERE, BACK) is (engine == "vpp"), "an engine in the daemon is stopped with it"


@ENGINES
def test_the_tunnel_is_carried_after_each_reauthentication(engine, request):
    names = story("reauth", engine, request)
    ways = [f"{way} by {who}" for way in ("break before make", "make before break") for who in ("gwa", "gwb")]
    assert missing([*GAPLESS, *(f"{way}: the IKE_SA is another one" for way in ways)], names) == []
    assert all(lossless(names, f"after {way}", THERE, BACK) for way in ways)
    assert lossless(names, "make before break by gwb", BACK)


@ENGINES
def test_a_used_key_never_comes_back_to_the_engine_when_a_gateway_moves(engine, request):
    names = story("mobike", engine, request)
    moves = ("gwb goes away", "gwa goes away", "gwb goes back", "gwa goes back")
    wanted = [
        f"{move}: {what}"
        for move in moves[::2]
        for what in ("charon is asked for a rekey", "the engine has fresh keys")
    ]
    wanted.append("no number and no nonce is used twice with a key, whatever its addresses")
    assert missing([*TAKEN_OVER, *wanted], names) == []
    assert all(lossless(names, f"after {move}", THERE, BACK) for move in moves)


@ENGINES
def test_packets_bring_the_tunnel_up_again_and_again(engine, request):
    names = story("trap", engine, request)
    rounds = range(1, ROUNDS + 1)
    firsts = [BACK, THERE]
    wanted = [f"round {number}: the tunnel's first SAs are carried" for number in rounds]
    wanted += [f"round {number}: of {firsts[number % 2]} only the first packets are lost" for number in rounds]
    wanted += [f"round {number}: no packet {firsts[1 - number % 2]} is lost or doubled" for number in rounds]
    assert missing([*GAPLESS, *wanted], names) == []


@ENGINES
def test_what_belongs_to_one_tunnel_does_not_come_out_of_another(engine, request):
    names = story("selectors", engine, request)
    for name, tunnels in SETS.items():
        pairs = len(tunnels) * (len(tunnels) - 1)
        for what in ("nothing is delivered", "the SA that carried it counts it"):
            checked = [one for one in names if one.startswith(f"{name}: ") and one.endswith(f": {what}")]
            assert len(checked) == pairs
        assert f"{name}: each tunnel carries its own" in names
    assert missing(["no process is left", "no pin is left"], names) == []


@ENGINES
def test_extended_numbers_pass_32_bits(engine, request):
    names = story("esn", engine, request)
    wanted = ["the kernel's copies of the windows have passed 2^32 too"]
    wanted += ["the kernel carries the same SAs on beyond 2^32"]
    for window, *_ in WINDOWS.values():
        for when in ("before", "beyond"):
            accepted = "not accepted" if window else "accepted"
            wanted.append(f"window {window}: what was sent {when} 2^32 is {accepted} again")
    assert missing([*TAKEN_OVER, *wanted], names) == []
    ways = [THERE, BACK, *SECOND, "10.1.0.10 -> 10.12.0.10", "10.12.0.10 -> 10.1.0.10"]
    assert lossless(names, "when the peer's numbers pass 2^32", *ways)
    assert lossless(names, "when the kernel takes over beyond 2^32 and gives back", *ways[1::2])


@ENGINES
def test_all_of_it_one_after_the_other(engine, request):
    skip_unless_all(request)
    need(engine)
    names = check_names(play("charon", "--engine", engine))
    wanted = [f"{tale.name}: charon counts what the wire carried" for tale in TALES]
    assert missing([*ALWAYS, *TAKEN_OVER, *wanted], names) == []
    assert [names.count(f"IKE is up at {who}") for who in ("gwa", "gwb")] == [len(TALES) - 1] * 2, "a trap waits"
