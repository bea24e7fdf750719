"""The engine and the daemon die or hang under the traffic of real strongSwans: nobody notices."""

import pytest

from ipsec_gw.errors import EnvironmentMissing
from ipsec_gw.lab.scenarios.daemon_kill import KILLS as DAEMON_KILLS
from ipsec_gw.lab.scenarios.failover import KILLS
from ipsec_gw.lab.scenarios.hang import STOPS
from ipsec_gw.lab.scenarios.spd import DAEMON_KILLS as DAEMON_KILLS_OF_SPD
from tests.scenarios.lab_command import check_names, kept, need, often, play, skip_slow_machine, skip_unless_all
from vpp_conf.locate import locate_vpp

pytestmark = [pytest.mark.scenario, pytest.mark.root, pytest.mark.timeout(8 * 3600)]

ALWAYS = (
    "charon counts what the wire carried",
    "the oracle opens every ESP packet of both directions",
    "A uses no sequence number and no nonce twice",
    "B uses no sequence number and no nonce twice",
    "no number of A goes back beyond the reordering of one ring, whoever sends",
    "nothing of the protected networks crosses the WAN in clear while the tunnel is up",
    "the captures are complete",
    "no pin is left",
)
EACH_DEATH = (
    "no packet is lost once the sockets are empty",
    "no more is lost than was in the rings",
    "nothing older than the last look is accepted again",
    "no packet is lost on the way back",
)


def of_deaths(names, engine):
    return [f"{name}: {what}" for name in names for what in (*EACH_DEATH, f"back in {engine} with new keys")]


def missing(wanted, report):
    return [name for name in wanted if name not in check_names(report)]


def engine_here():
    try:
        locate_vpp()
    except EnvironmentMissing:
        return "soft"
    return "vpp"


@pytest.mark.vpp
def test_vpp_is_killed(request):
    skip_slow_machine(request)
    need("vpp")
    rounds = often(request, KILLS, 50)
    report = play("failover", "--engine", "vpp", *rounds, *kept(request, "failover"))
    deaths = [*(f"kill {number}" for number in range(1, int(rounds[1]) + 1)), "kill of VPP without a daemon"]
    wanted = [*ALWAYS, *of_deaths(deaths, "vpp"), "the TCP stream survives everything"]
    assert missing([*wanted, "the IKE_SA is the first one still"], report) == []


def test_an_engine_dies_with_its_daemon(request):
    skip_slow_machine(request)
    report = play("failover", "--engine", "soft")
    deaths = [f"kill {number} of daemon and engine" for number in (1, 2)]
    wanted = [*ALWAYS, *of_deaths(deaths, "soft"), "the TCP stream survives everything"]
    assert missing([*wanted, "the IKE_SA is the first one still"], report) == []


@pytest.mark.vpp
def test_vpp_hangs(request):
    skip_slow_machine(request)
    need("vpp")
    rounds = often(request, STOPS, 50)
    report = play("hang", "--engine", "vpp", *rounds, *kept(request, "hang"))
    stops = [f"stop {number}" for number in range(1, int(rounds[1]) + 1)]
    wanted = [
        *ALWAYS,
        *of_deaths(stops, "vpp"),
        *(f"{stop}: the kernel carries on within the configured bound" for stop in stops),
    ]
    assert missing(wanted, report) == []


@pytest.mark.vpp
def test_vpp_runs_only_while_it_is_needed(request):
    skip_unless_all(request)
    need("vpp")
    report = play("idle", "--engine", "vpp")
    names = check_names(report)
    wanted = [name for name in ALWAYS if name != "charon counts what the wire carried"]
    wanted += ["no VPP runs before the first SA", "no packet in clear is lost when VPP comes and goes"]
    assert missing(wanted, report) == []
    for name in (
        "VPP runs while the tunnel is up",
        "VPP runs on when the last SA has gone",
        "VPP is stopped an idle time after the last SA",
        "a stop is no loss",
    ):
        assert names.count(name) == 2
    for when in ("when VPP comes", "when VPP comes again"):
        assert len([name for name in names if name.startswith("no packet 10.") and name.endswith(when)]) == 2


@pytest.mark.vpp
def test_the_daemon_is_killed(request):
    skip_slow_machine(request)
    need("vpp")
    rounds = often(request, DAEMON_KILLS, 100)
    report = play("daemon-kill", "--engine", "vpp", *rounds, *kept(request, "daemon-kill"))
    assert missing([*ALWAYS, "a restart compiles nothing", "charon sees that the tunnel is in use"], report) == []
    assert check_names(report).count("an unchanged tunnel is adopted as it is") == int(rounds[1])


@pytest.mark.vpp
def test_the_daemon_is_away_for_too_long(request):
    skip_slow_machine(request)
    need("vpp")
    names = check_names(play("daemon-away", "--engine", "vpp"))
    assert [name for name in (*ALWAYS, "VPP has lived all the time") if name not in names] == []
    for daemon in ("a dead daemon", "a stopped daemon"):
        assert f"{daemon}: no more is lost than was in a ring" in names
        for when in (f"by a rekey with {daemon}", f"on the way back from {daemon}"):
            assert len([name for name in names if name.startswith("no packet 10.") and name.endswith(when)]) == 2


@pytest.mark.vpp
def test_a_tunnel_of_policies(request):
    skip_slow_machine(request)
    need("vpp")
    report = play("spd", "--engine", "vpp", *kept(request, "spd"))
    wanted = [*ALWAYS, *of_deaths(["kill 1", "kill of VPP without a daemon"], "vpp")]
    wanted += ["the status says what policies cannot tell apart", "the TCP stream survives everything"]
    assert missing(wanted, report) == []
    names = check_names(report)
    assert names.count("an unchanged tunnel is adopted as it is") == DAEMON_KILLS_OF_SPD
    for when in ("by two rekeys", f"by {DAEMON_KILLS_OF_SPD} deaths of the daemon"):
        assert [name for name in names if name.startswith("no packet") and name.endswith(when)]


@pytest.mark.vpp
def test_all_of_it_one_after_the_other(request):
    skip_unless_all(request)
    need("vpp")
    report = play("hitless", "--engine", "vpp", "--minutes", "1", *kept(request, "hitless"))
    wanted = [*ALWAYS, *of_deaths(["kill 1", "kill of VPP without a daemon", "stop 1"], "vpp")]
    wanted += ["a restart compiles nothing", "everything is back in the engine", "the TCP stream survives everything"]
    assert missing(wanted, report) == []


def test_a_little_chaos_converges(request):
    skip_slow_machine(request)
    report = play("chaos", "--engine", engine_here(), "--seed", "1", "--minutes", "0.5")
    assert missing([*ALWAYS, "everything is back in the engine"], report) == []


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_chaos_converges(seed, request):
    skip_unless_all(request)
    arguments = ("--seed", str(seed), "--minutes", "10", *kept(request, f"chaos-seed-{seed}"))
    report = play("chaos", "--engine", engine_here(), *arguments)
    assert missing([*ALWAYS, "everything is back in the engine"], report) == []
