"""The choice among crypto engines, its file, and how VPP is asked; without a VPP."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner
from rich.console import Console

from ipsec_gw.cli.main import cli
from ipsec_gw.cli.vpp_tune import print_tuning
from ipsec_gw.errors import ConfigError, EngineError, EnvironmentMissing
from tests.support.machines import probe, unpack_machine
from vpp_conf.api import VppApi
from vpp_conf.crypto import SimpleHandler, parse_simple_handlers
from vpp_conf.startup.plan import plan_startup
from vpp_conf.startup.render import render_commands
from vpp_conf.startup.syntax import handler_names
from vpp_conf.startup.values import Handler, Severity
from vpp_conf.tuning import file as tuning_file
from vpp_conf.tuning import measure as measure_module
from vpp_conf.tuning.choice import async_ratio, choose, ratio, reason
from vpp_conf.tuning.ciphers import CIPHERS
from vpp_conf.tuning.file import check_writable, describe_tuning, parse_tuning, read_tuning, write_tuning
from vpp_conf.tuning.measure import DEQUEUE, DETOUR, PATHS, VISITS, Bench, Effort, measure
from vpp_conf.tuning.runtime import parse_clock, parse_runtime, streams_running
from vpp_conf.tuning.values import Choice, Measurement, Subject, Tuning, Work, subject_of

RELEASE = (26, 6)
AES, CHACHA20, CBC = (
    next(one for one in CIPHERS if one.name == name)
    for name in ("aes-128-gcm", "chacha20-poly1305", "aes-256-cbc-sha2-256")
)
MACHINE = probe("xeon-one-socket-qat")
WHEN = datetime(2026, 11, 28, 12, 30, tzinfo=UTC)


def grid(algorithm: str = "aes-128-gcm", **clocks: dict[int, float]) -> tuple[Measurement, ...]:
    """Engines with their clocks by size, in two rounds."""
    return tuple(
        Measurement(algorithm, engine, size, (value, value * 1.01))
        for engine, by_size in clocks.items()
        for size, value in by_size.items()
    )


def tuning(*measurements: Measurement) -> Tuning:
    return Tuning(subject_of(MACHINE), WHEN, 2.5e9, 1000, measurements, choose(measurements))


FASTER = grid(native={64: 200, 1400: 900}, ipsecmb={64: 220, 1400: 450}, openssl={64: 1400, 1400: 2100})
CHACHA = grid("chacha20-poly1305", ipsecmb={64: 480, 1400: 1500}, openssl={64: 2500, 1400: 3900})


@pytest.mark.parametrize(
    ("ipsecmb", "chosen"),
    [
        ({64: 220, 1400: 450}, "ipsecmb"),  # the large ones win more than the small ones lose
        ({64: 500, 1400: 450}, "native"),  # the small ones lose more
        ({64: 100, 1400: 1000}, "ipsecmb"),  # the small ones win more
        ({64: 340, 1400: 360}, "ipsecmb"),  # less than half of the clocks is more than not quite twice as many
        ({64: 198, 1400: 891}, "native"),  # better by a hundredth: noise
        ({64: 186, 1400: 837}, "ipsecmb"),  # better by seven hundredths
        ({64: 200, 1400: 900}, "native"),  # the same
    ],
)
def test_all_sizes_weigh_as_factors(ipsecmb: dict[int, float], chosen: str) -> None:
    assert choose(grid(native={64: 200, 1400: 900}, ipsecmb=ipsecmb)) == (Choice("aes-128-gcm", chosen),)


def test_both_directions_weigh_the_same() -> None:
    """Twice as fast to encrypt is not worth four times as slow to decrypt."""
    native = tuple(Measurement("aes-128-gcm", "native", 64, (400.0,), work) for work in (Work.ENCRYPT, Work.DECRYPT))
    rival = [Measurement("aes-128-gcm", "ipsecmb", 64, (200.0,))]
    assert choose((native[0], *rival)) == (Choice("aes-128-gcm", "ipsecmb"),)
    rival.append(Measurement("aes-128-gcm", "ipsecmb", 64, (1600.0,), Work.DECRYPT))
    assert choose((*native, *rival)) == (Choice("aes-128-gcm", "native"),)
    figures = tuning(*native, *rival)
    assert reason(figures, figures.choices[0]).endswith("takes 0.50 of its clocks at 64 bytes, 4.00 to decrypt 64")


def test_the_asynchronous_way_is_told_and_chooses_nothing() -> None:
    works = zip(Work, (300.0, 100.0, 600.0), strict=True)
    found = tuple(Measurement("aes-128-gcm", "native", 64, (clocks,), work) for work, clocks in works)
    assert async_ratio(found, "aes-128-gcm", "native") == 1.5
    assert async_ratio(found[:2], "aes-128-gcm", "native") is None
    plan = plan_startup(MACHINE, tuning=tuning(*found))
    (number,) = [one for one in plan.numbers if one.name == "ipsec async mode"]
    assert (number.value, "measured: async takes 1.50 of the clocks for aes-128-gcm" in number.reason) == ("off", True)
    with pytest.raises(ValueError, match="nothing but async"):
        choose(found[2:])


def test_cbc_has_one_handler_and_its_choice_goes_to_vpp() -> None:
    assert handler_names(RELEASE, (CBC.name,)) == ("aes-256-cbc-sha2-256-icv16",)
    found = grid(CBC.name, ipsecmb={64: 2000}, openssl={64: 1000})
    commands = render_commands(plan_startup(MACHINE, tuning=tuning(*found)))
    assert "set crypto handler simple aes-256-cbc-sha2-256-icv16 openssl\n" in commands


def test_rounds_are_compared_with_themselves() -> None:
    """The machine was slow in the second round for both: medians of either alone would say something else."""
    native = Measurement("aes-128-gcm", "native", 1400, (100, 1000, 110))
    ipsecmb = Measurement("aes-128-gcm", "ipsecmb", 1400, (50, 500, 500))
    assert ratio((native, ipsecmb), "aes-128-gcm", "ipsecmb", 1400) == 0.5


def test_the_reason_has_the_figures() -> None:
    run = tuning(*FASTER, *CHACHA)
    assert [reason(run, one) for one in run.choices] == [
        "aes-128-gcm by ipsecmb: 0.50 of native's clocks at 1400 bytes, 1.10 at 64",
        "chacha20-poly1305 by ipsecmb: openssl takes 2.60 of its clocks at 1400 bytes, 5.21 at 64",
    ]
    alone = tuning(*grid(native={64: 200}))
    assert reason(alone, alone.choices[0]) == "aes-128-gcm by native: no other engine has it"


@pytest.mark.parametrize(
    "measurements",
    [
        (),
        grid(native={64: 1}) + grid(ipsecmb={1400: 1}),
        grid(native={64: 1}) * 2,
        (Measurement("aes-128-gcm", "native", 64, (1,)), Measurement("aes-128-gcm", "ipsecmb", 64, (1, 2))),
    ],
)
def test_no_choice_from_half_of_the_figures(measurements: tuple[Measurement, ...]) -> None:
    with pytest.raises(ValueError, match="measure"):
        choose(measurements)


def test_the_plan_uses_what_was_measured() -> None:
    own = grid("aes-256-gcm", native={64: 200, 1400: 900}, ipsecmb={64: 220, 1400: 1450})
    plan = plan_startup(MACHINE, tuning=tuning(*FASTER, *own, *CHACHA))
    assert plan.handlers == (
        Handler("ipsecmb", ("aes-128-gcm", "chacha20-poly1305")),
        Handler("native", ("aes-256-gcm",)),
        Handler("ipsecmb", ("aes-192-gcm",)),  # was not measured: the rule
    )
    (number,) = [one for one in plan.numbers if one.name == "crypto handlers"]
    assert "measured on this machine on 2026-11-28: aes-128-gcm by ipsecmb: 0.50 of native's" in number.reason
    assert "the others: with AVX-512 and VAES" in number.reason
    assert "set crypto handler simple aes-256-gcm-icv16-aad12 native\n" in render_commands(plan)
    assert not [one for one in plan.findings if one.subject == "crypto handlers"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "Another CPU"}, "the CPU is Another CPU, was Intel"),
        ({"vpp": replace(MACHINE.vpp, version="vpp v26.10")}, "VPP is vpp v26.10, was vpp v26.06"),
        (
            {"vpp": replace(MACHINE.vpp, engines=frozenset({"native", "openssl"}))},
            "the crypto engines are native openssl, was native ipsecmb openssl",
        ),
    ],
)
def test_the_plan_leaves_out_what_was_measured_on_something_else(change: dict[str, Any], text: str) -> None:
    machine = replace(MACHINE, **change)
    measured = tuning(*grid(native={64: 900}, openssl={64: 100}))
    assert plan_startup(MACHINE, tuning=measured).handlers[0].engine == "openssl"
    plan = plan_startup(machine, tuning=measured)
    (finding,) = [one for one in plan.findings if one.subject == "crypto handlers"]
    assert finding.severity is Severity.WARNING
    assert text in finding.text
    assert "ipsec-gw vpp tune" in finding.way_out
    without = plan_startup(machine)
    assert (plan.handlers, plan.numbers) == (without.handlers, without.numbers)


def test_the_file_is_the_inverse_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "choice.json"
    run = tuning(*FASTER, *CHACHA)
    write_tuning(run, path)
    assert read_tuning(path) == run
    assert [one.name for one in tmp_path.iterdir()] == ["choice.json"]
    first = json.loads(path.read_text())["measurements"][1]
    assert first["gigabits"] == pytest.approx(1400 * 8 * 2.5 / (900 * 1.005))


GOOD = describe_tuning(tuning(*FASTER))


def broken(**fields: Any) -> str:
    return json.dumps(GOOD | fields)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ":1: this is no JSON"),
        ('{\n "format": 2,\n', ":3: this is no JSON"),
        ("[]", "not what a run of tune writes"),
        ("[" * 100_000, "not what a run of tune writes"),
        ("null", "not what a run of tune writes"),
        (json.dumps({name: value for name, value in GOOD.items() if name != "cpu"}), "'cpu' is missing"),
        (broken(format=1), "its format is 1, not 2"),
        (broken(measurements=[GOOD["measurements"][0] | {"work": "rest"}]), "'rest' is not a valid Work"),
        (broken(measuredAt="yesterday"), "yesterday"),
        (broken(clockHz=0), "positive"),
        (broken(clockHz=float("nan")), "positive"),
        (broken(measurements=[]), "nothing was measured"),
        (broken(measurements=GOOD["measurements"][1:]), "one measurement for each size"),
        (broken(choices=[]), "needs one choice"),
        (broken(choices=GOOD["choices"] * 2), "needs one choice"),
        (broken(choices=[{"algorithm": "aes-128-gcm", "engine": "qat"}]), "qat is chosen"),
        (broken(engines=["native"]), "not among the engines"),
        (broken(measurements=[GOOD["measurements"][0] | {"engine": "x\nset"}]), "no crypto engine is named"),
        (broken(measurements=[GOOD["measurements"][0] | {"algorithm": "des"}]), "no algorithm is named"),
        (broken(measurements=[GOOD["measurements"][0] | {"clocks": [-1]}]), "positive"),
        (broken(measurements=[GOOD["measurements"][0] | {"clocks": []}]), "positive"),
        (broken(measurements=[GOOD["measurements"][0] | {"clocks": [1e-300]}]), "clocks are from 1"),
        (broken(measurements=[GOOD["measurements"][0] | {"clocks": [1e300]}]), "clocks are from 1"),
        (broken(measurements=[GOOD["measurements"][0] | {"bytes": 0}]), "positive"),
    ],
)
def test_a_broken_file_is_an_error_with_its_name_and_the_way_out(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "choice.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"choice\.json.*run `ipsec-gw vpp tune` again") as refused:
        read_tuning(path)
    assert says in str(refused.value)


def test_a_file_that_cannot_be_read_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"nowhere cannot be read.*vpp tune"):
        read_tuning(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary cannot be read.*vpp tune"):
        read_tuning(tmp_path / "binary")
    monkeypatch.setattr(tuning_file, "DEFAULT_TUNING", tmp_path / "default")
    assert read_tuning(None) is None
    (tmp_path / "default").write_text("{")
    with pytest.raises(ConfigError, match="default:1"):
        read_tuning(None)
    for path in (tmp_path, tmp_path / "default" / "below"):
        with pytest.raises(EnvironmentMissing, match=r"cannot be written.*--output"):
            check_writable(path)
        with pytest.raises(EnvironmentMissing, match=r"cannot be written.*--output"):
            write_tuning(tuning(*FASTER), path)
    check_writable(tmp_path / "new" / "choice.json")
    assert sorted(one.name for one in tmp_path.rglob("*")) == ["binary", "default", "new"]


def test_the_command_line_reads_the_file_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = unpack_machine("xeon-one-socket-qat", tmp_path / "root")
    path = tmp_path / "choice.json"
    write_tuning(tuning(*grid(native={64: 900}, openssl={64: 100})), path)

    def handlers(*options: str) -> str:
        words = ["vpp", "plan", "--root", str(root), "--release", "26.06", "--json", *options]
        result = CliRunner().invoke(cli, words, catch_exceptions=False)
        values = {one["name"]: one["value"] for one in json.loads(result.stdout)["values"]}
        return str(values["crypto handlers"])

    assert handlers("--tuning", str(path)).startswith("openssl: aes-128-gcm;")
    # The default file is of this machine, not of the one below the root.
    monkeypatch.setattr(tuning_file, "DEFAULT_TUNING", path)
    assert "openssl" not in handlers()


HANDLERS = """\
\x1b[33mAlgorithm \x1b[0m \x1b[33mOp  \x1b[0m \x1b[33mSimple \x1b[0m
\x1b[1;32maes-128-gcm                  \x1b[0m enc \x1b[0m openssl ipsecmb \x1b[36mnative*\x1b[0m  \x1b[0m openssl \x1b[36mipsecmb*\x1b[0m  \x1b[0m -    \x1b[0m
\x1b[1;32m                             \x1b[0m dec \x1b[0m openssl \x1b[36mipsecmb*\x1b[0m native  \x1b[0m openssl \x1b[36mipsecmb*\x1b[0m  \x1b[0m -    \x1b[0m
\x1b[1;32msha2-256-icv16               \x1b[0m hmac\x1b[0m openssl \x1b[36mipsecmb*\x1b[0m         \x1b[0m \x1b[36mopenssl*\x1b[0m          \x1b[0m -    \x1b[0m
\x1b[1;32maes-192-gcm-icv16-aad20      \x1b[0m enc \x1b[0m openssl \x1b[36mnative*\x1b[0m          \x1b[0m -                 \x1b[0m -    \x1b[0m
\x1b[1;32m                             \x1b[0m dec \x1b[0m \x1b[36mnative*\x1b[0m                  \x1b[0m -                 \x1b[0m -    \x1b[0m
\x1b[1;32mchacha20-poly1305-icv16-aad12\x1b[0m enc \x1b[0m openssl \x1b[36mipsecmb*\x1b[0m         \x1b[0m openssl \x1b[36mipsecmb*\x1b[0m  \x1b[0m -    \x1b[0m
\x1b[1;32m                             \x1b[0m dec \x1b[0m openssl \x1b[36mipsecmb*\x1b[0m         \x1b[0m openssl \x1b[36mipsecmb*\x1b[0m  \x1b[0m -    \x1b[0m
\x1b[1;32m3des-cbc-md5-icv12           \x1b[0m enc \x1b[0m -                        \x1b[0m -                 \x1b[0m -    \x1b[0m
\x1b[1;32m                             \x1b[0m dec \x1b[0m -                        \x1b[0m -                 \x1b[0m -    \x1b[0m
"""  # noqa: E501 - as VPP 26.06 prints it


def test_handlers_are_read_for_both_directions() -> None:
    assert parse_simple_handlers(HANDLERS) == {
        "aes-128-gcm": SimpleHandler(frozenset({"openssl", "ipsecmb", "native"}), "native", "ipsecmb"),
        "aes-192-gcm-icv16-aad20": SimpleHandler(frozenset({"native"}), "native", "native"),
        "chacha20-poly1305-icv16-aad12": SimpleHandler(frozenset({"openssl", "ipsecmb"}), "ipsecmb", "ipsecmb"),
        "3des-cbc-md5-icv12": SimpleHandler(frozenset(), None, None),
    }


RUNTIME = """\
Time 1.0, 10.000000 sec internal node vector rate 255.75 loops/sec 1434410.48
  vector rates in 9.9448e4, out 0.0000e0, drop 9.9448e4, punt 0.0000e0
             Name                 State         Calls          Vectors        Suspends      Packet-Clocks   Vectors/Call
api-rx-from-ring                "running"                0               0               4          1.24e5            0.00
esp4-encrypt-tun                 active                391          100000               0          6.35e2          255.75
fib-walk                       "any wait"                0               0               1          1.28e4            0.00
pg-input                        disabled               393          100000               0          6.31e1          254.45
"""  # noqa: E501 - as VPP 26.06 prints it
STREAMS = """\
Name               Enabled        Count     Parameters
s0-64                No          100000     limit 100000, rate 1.00e9 pps, size 64-64, buffer-size 2048, worker 0, 
s0-1400             Yes            1000     limit 100000, rate 1.00e9 pps, size 1400-1400, buffer-size 2048, worker 0, 
"""  # noqa: W291 - as VPP 26.06 prints it


def test_nodes_streams_and_clock_are_read() -> None:
    nodes = parse_runtime(RUNTIME)
    assert set(nodes) == {"esp4-encrypt-tun", "pg-input"}
    assert (nodes["esp4-encrypt-tun"].packets, nodes["esp4-encrypt-tun"].clocks) == (100_000, 635.0)
    assert streams_running(STREAMS) == {"s0-64": False, "s0-1400": True}
    assert parse_clock("error .000156, clocks/sec 2499913440.585981\n") == 2499913440.585981
    assert parse_clock("Time now 3.1") is None


NODE_CLOCKS = {"native": 20.0, "ipsecmb": 30.0, "openssl": 40.0}


class Switches:
    """As much of a VPP as switching takes. ``deaf`` are engines that it does not switch to, without a word.

    ``decrypts`` names who decrypts instead of who encrypts, ``astray`` how many packets other nodes than usual had.
    """

    def __init__(self, **engines: str) -> None:
        self.engines = {name.replace("_", "-"): value.split() for name, value in engines.items()}
        self.deaf: set[str] = set()
        self.decrypts: str | None = None
        self.astray: dict[str, int] = {}
        self.packets = Effort().packets
        self.asynchronous = False

    async def cli(self, command: str) -> str:
        words = command.split()
        if words[:4] == ["set", "crypto", "handler", "simple"]:
            return self._switch(words[4], words[5])
        if words[:4] == ["set", "ipsec", "async", "mode"]:
            self.asynchronous = words[4] == "on"
            return ""
        answers = {
            "show crypto handlers": self._handlers,
            "show packet-generator": lambda: STREAMS,
            "show runtime": self._runtime,
            "show clock verbose": lambda: "clocks/sec 2500000000.0",
        }
        return answers.get(command, str)()

    def _handlers(self) -> str:
        return "".join(
            f"{name:<30} enc {_row(engines, engines[0])}  openssl*  -\n"
            f"{'':<30} dec {_row(engines, self.decrypts or engines[0])}  openssl*  -\n"
            for name, engines in self.engines.items()
        )

    def _runtime(self) -> str:
        """Every node costs the same; the scheduler's looks at each operation twice."""
        clocks = NODE_CLOCKS[self.engines["aes-128-gcm-icv16-aad8"][0]]
        times = {name: VISITS.get(name, 1) for path in PATHS.values() for name in path}
        if self.asynchronous:
            times |= {name: DETOUR.count(name) for name in DETOUR} | {DEQUEUE: 4}
        return "".join(
            f"{name}  active  391  {self.astray.get(name, visits * self.packets)}  0  {clocks:.2e}  255.75\n"
            for name, visits in times.items()
        )

    def _switch(self, name: str, engine: str) -> str:
        engines = self.engines[name]
        if engine not in engines:
            return f"failed to set engine {engine} for {name}!\n"
        if engine not in self.deaf:
            engines.remove(engine)
            engines.insert(0, engine)
        return ""

    def bench(self, *algorithms: Any) -> Bench:
        return Bench(cast(VppApi, self), RELEASE, Effort(algorithms or (AES,)))


def _row(engines: list[str], active: str) -> str:
    return " ".join(f"{engine}*" if engine == active else engine for engine in sorted(engines))


@pytest.fixture
def vpp() -> Switches:
    return Switches(aes_128_gcm_icv16_aad8="native ipsecmb openssl", aes_128_gcm_icv16_aad12="native openssl")


async def test_a_switch_switches_all_handlers(vpp: Switches) -> None:
    await vpp.bench().switch(AES, "openssl")
    assert {engines[0] for engines in vpp.engines.values()} == {"openssl"}


async def test_a_switch_that_does_nothing_is_an_error(vpp: Switches) -> None:
    vpp.deaf = {"openssl"}
    with pytest.raises(EngineError, match="told that openssl does aes-128-gcm-icv16-aad8, and native and native do"):
        await vpp.bench().switch(AES, "openssl")


async def test_a_switch_of_one_direction_is_an_error(vpp: Switches) -> None:
    vpp.decrypts = "native"
    with pytest.raises(EngineError, match="told that openssl does aes-128-gcm-icv16-aad8, and openssl and native do"):
        await vpp.bench().switch(AES, "openssl")


async def test_a_switch_that_vpp_refuses_is_an_error(vpp: Switches) -> None:
    with pytest.raises(EngineError, match="failed to set engine ipsecmb for aes-128-gcm-icv16-aad12"):
        await vpp.bench().switch(AES, "ipsecmb")


async def test_only_engines_with_all_handlers_take_part(vpp: Switches) -> None:
    assert await vpp.bench().offers() == {AES: {"native", "openssl"}}
    with pytest.raises(EngineError, match=r"chacha20-poly1305-icv16-aad8 and .*--algorithm"):
        await vpp.bench(CHACHA20).offers()
    vpp.engines["aes-128-gcm-icv16-aad12"] = ["ipsecmb"]
    vpp.engines["aes-128-gcm-icv16-aad8"] = ["native"]
    with pytest.raises(EngineError, match="no crypto engine"):
        await vpp.bench().offers()


async def test_packets_on_another_path_are_no_figure(vpp: Switches) -> None:
    assert await vpp.bench().run(AES, 64) == {Work.ENCRYPT: 20 * 5, Work.DECRYPT: 20 * 5}
    vpp.astray = {"adj-midchain-tx": 5}
    with pytest.raises(EngineError, match=r"aes-128-gcm: 5 of 200000 packets came to VPP's node adj-midchain-tx"):
        await vpp.bench().run(AES, 64)
    vpp.astray = {"ip4-lookup": 400_000}
    with pytest.raises(EngineError, match=r"400000 of 600000 packets came to VPP's node ip4-lookup"):
        await vpp.bench().run(AES, 64)


async def test_the_asynchronous_way_is_measured_where_it_is_installed(
    vpp: Switches, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = vpp.bench()
    assert set(await bench.run_all(AES, 64)) == {Work.ENCRYPT, Work.DECRYPT}
    bench._scheduled = True
    both = await bench.run_all(AES, 64)
    assert both[Work.ASYNC] == 20 * (5 + 5 + len(DETOUR) + 4)
    assert not vpp.asynchronous, "it is switched back"
    vpp.astray = {"esp4-decrypt-tun-post": 7}
    monkeypatch.setattr(measure_module, "ASYNC_SECONDS", 0.0)
    with pytest.raises(EngineError, match="7 of 200000 packets came to VPP's node esp4-decrypt-tun-post"):
        await bench.run_all(AES, 64)
    assert not vpp.asynchronous


async def test_a_stream_that_does_not_end_is_an_error(vpp: Switches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "RUN_SECONDS", 0.0)
    with pytest.raises(EngineError, match="more than 0 s - use fewer by --packets"):
        await vpp.bench().run(AES, 1400)


async def test_a_vpp_without_a_clock_is_an_error(vpp: Switches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "parse_clock", lambda _: None)
    with pytest.raises(EngineError, match="clock"):
        await measure(cast(VppApi, vpp), RELEASE, ("native",), Effort((AES,)), lambda *_: None)


async def test_each_figure_is_of_its_engine_in_every_round(vpp: Switches, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of engines changes from round to round."""

    async def nothing(_: Bench) -> None:
        return

    monkeypatch.setattr(Bench, "build", nothing)
    seen: list[tuple[int, int, str]] = []
    effort = Effort((AES,), sizes=(64,), rounds=3)
    found = await measure(
        cast(VppApi, vpp), RELEASE, ("native", "ipsecmb", "openssl"), effort, lambda *one: seen.append(one)
    )
    assert found.measurements == tuple(
        Measurement("aes-128-gcm", engine, 64, (NODE_CLOCKS[engine] * 5,) * 3, work)
        for engine in ("native", "openssl")
        for work in (Work.ENCRYPT, Work.DECRYPT)
    )
    assert found.absent == (("aes-128-gcm", "ipsecmb"),)
    assert found.clock_hz == 2.5e9
    texts = ["native", "openssl", "openssl", "native", "native", "openssl"]
    assert seen == [*((n, 6, f"aes-128-gcm {engine} 64") for n, engine in enumerate(texts)), (6, 6, "")]


def test_the_table_has_every_figure_and_the_choice() -> None:
    answer = describe_tuning(tuning(*FASTER, *CHACHA)) | {
        "absent": [{"algorithm": "chacha20-poly1305", "engine": "native"}],
        "file": "/some/file",
    }
    out = StringIO()
    print_tuning(Console(file=out, width=150), answer)
    lines = [line.split() for line in out.getvalue().splitlines()]
    for one in answer["measurements"]:
        wanted = [one["algorithm"], one["engine"], one["work"], str(one["bytes"])]
        row = next(line for line in lines if line[:4] == wanted)
        assert row[4:5] + row[6:8] == [f"{one['median']:.0f}", f"{one['ratio']:.2f}", f"{one['gigabits']:.1f}"]
        assert (row[-1] == "chosen") == (one["engine"] == "ipsecmb")
    bars = {(line[0], line[1]): len(line[2]) for line in lines if len(line) == 4 and line[2][0] == "█"}
    assert len(bars) == 5
    assert bars["aes-128-gcm", "ipsecmb"] == 40
    assert bars["aes-128-gcm", "native"] == 20
    for one in answer["choices"]:
        assert one["reason"] in out.getvalue()
    assert "chacha20-poly1305: not with native" in out.getvalue()
    assert "vpp up --tuning /some/file" in out.getvalue()


def test_the_subject_knows_who_built_nothing() -> None:
    assert subject_of(MACHINE) == Subject(MACHINE.model, "vpp v26.06", ("native", "ipsecmb", "openssl"))


def test_parse_names_its_source() -> None:
    with pytest.raises(ConfigError, match=r"^some/where:1:"):
        parse_tuning("{", "some/where")
