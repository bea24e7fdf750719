"""The systemd units: their text, and whose files are written and removed.

Golden files hold the texts: ``UPDATE_GOLDEN=1`` writes them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ipsec_gw import unit_files, units
from ipsec_gw.cli import units as cli_units
from ipsec_gw.cli.main import cli
from ipsec_gw.cli.vpp import vpp
from ipsec_gw.cli.vpp_options import needs_words
from ipsec_gw.errors import EnvironmentMissing, IpsecGwError
from ipsec_gw.observe.sdnotify import OFF_CODE
from ipsec_gw.templating import template_environment
from ipsec_gw.unit_files import FOLDER, Owner
from ipsec_gw.units import DAEMON_UNIT, MARKER, UNITS, Installation, render_units
from vpp_conf import locate
from vpp_conf.lifecycle import UNIT as VPP_UNIT
from vpp_conf.locate import BINARY_VARIABLE
from vpp_conf.startup.values import Needs

GOLDEN = Path(__file__).parent.parent / "golden" / "units"
UPDATE = "UPDATE_GOLDEN"

PLAIN = Installation(("/usr/bin/ipsec-gw",))
ODD = Installation(
    program=("/opt/a b/100%/ipsec-gw", "--config", '/etc/"x"\\y;z$1.toml'),
    needs=("--sas", "20000", "--interface", "eth0"),
    drop_in=("--drop-in", "/etc/my vpp.conf"),
    vpp_binary="/opt/v p$p%/bin/vpp",
    prepare=True,
)


@pytest.fixture(autouse=True)
def version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "__version__", "1.2.3")
    monkeypatch.setenv(BINARY_VARIABLE, "/opt/vpp/bin/vpp")


def call(root: Path, command: str, *options: str, globally: tuple[str, ...] = ()) -> Result:
    return CliRunner().invoke(cli, [*globally, "units", command, "--root", str(root), *options])


def installed(root: Path) -> dict[str, str]:
    """Every file in the folder of the units."""
    return {path.name: path.read_text() for path in (root / FOLDER).iterdir()} if (root / FOLDER).is_dir() else {}


def enable(root: Path, name: str) -> None:
    wants = root / FOLDER / "multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (wants / name).symlink_to(f"/{FOLDER}/{name}")


@pytest.mark.parametrize(("name", "installation"), [("plain", PLAIN), ("odd", ODD)])
def test_the_text_of_the_units(name: str, installation: Installation) -> None:
    for unit, text in render_units(installation).items():
        golden = GOLDEN / name / unit
        if os.environ.get(UPDATE):
            golden.parent.mkdir(parents=True, exist_ok=True)
            golden.write_text(text)
        assert text == golden.read_text(), f"{golden} differs: run with {UPDATE}=1 and look at the difference"


@pytest.mark.parametrize("installation", [PLAIN, ODD], ids=["plain", "odd"])
def test_what_must_hold_of_the_units(installation: Installation) -> None:
    """Rules that a golden file which is written anew would forget."""
    texts = render_units(installation)
    assert tuple(texts) == UNITS == (VPP_UNIT, DAEMON_UNIT)
    lines = {unit: set(text.splitlines()) for unit, text in texts.items()}
    for unit in UNITS:
        assert texts[unit].startswith(MARKER)
        assert {"LimitCORE=1", "LimitMEMLOCK=infinity", "KillMode=mixed"} <= lines[unit]
        named = {line.partition("=")[0] for line in lines[unit]}
        assert not named & {"RuntimeDirectory", "PrivateNetwork", "PrivateTmp", "PrivateMounts", "MemoryMax"}
        assert not any(name.startswith(("Protect", "ReadOnly", "SystemCall", "MemoryDeny")) for name in named)
        assert not named & {"Requires", "Requisite", "BindsTo", "PartOf"}, (
            "neither ends with the other, nor with charon"
        )
    daemon, engine = lines[DAEMON_UNIT], lines[VPP_UNIT]
    assert {"Type=notify", "Restart=always", f"RestartPreventExitStatus={OFF_CODE}"} <= daemon
    assert not any("vpp.service" in line for line in daemon if not line.startswith("#"))
    assert any(line.startswith("After=") and " strongswan.service" in line for line in daemon)
    assert {"Conflicts=vpp.service", "Restart=on-failure"} <= engine


def test_the_commands_that_the_units_start_exist() -> None:
    """Words behind `vpp` in the unit are commands with these options."""
    text = render_units(PLAIN)[VPP_UNIT] + render_units(ODD)[VPP_UNIT]
    started = {line.partition(" vpp ")[2].split()[0] for line in text.splitlines() if line.startswith("Exec")}
    assert started == {"run", "wait", "down", "prepare"}
    assert started <= set(vpp.commands)
    words = needs_words(Needs(sas=9, mtu=1400, workers=0, interfaces=("a", "b"), qat=False))
    assert words == (
        "--sas",
        "9",
        "--mtu",
        "1400",
        "--workers",
        "0",
        "--interface",
        "a",
        "--interface",
        "b",
        "--no-qat",
    )
    assert needs_words(Needs()) == ()


def test_every_need_is_an_option_of_the_unit() -> None:
    """All needs differ from their defaults, and `vpp run` reads the words back as the same needs."""
    odd = Needs(1, 2, 3, ("a",), 1400, 0, 4, False, "monitor")
    default = Needs()
    assert all(getattr(odd, name) != getattr(default, name) for name in Needs.__dataclass_fields__)
    for command in ("run", "prepare"):
        context = vpp.commands[command].make_context(command, list(needs_words(odd)))
        given = {name: value for name, value in context.params.items() if name in Needs.__dataclass_fields__}
        assert Needs(**given) == odd


def test_a_path_that_systemd_cannot_read_is_refused() -> None:
    with pytest.raises(EnvironmentMissing, match=r"without \$"):
        render_units(Installation(("/opt/$x/ipsec-gw",)))
    with pytest.raises(EnvironmentMissing, match="control characters"):
        render_units(Installation(("/usr/bin/ipsec-gw", "--config", "/etc/a\nExecStart=/bin/evil")))


def test_a_template_that_is_missing_is_said() -> None:
    with pytest.raises(EnvironmentMissing, match=r"none\.j2 is missing"):
        template_environment("none.j2")


def test_systemd_has_nothing_to_say(tmp_path: Path) -> None:
    """Also where the program's path has blanks and a specifier: one that is read as another path does not exist."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "a b %n" / "ipsec-gw"
    program.parent.mkdir()
    program.symlink_to("/bin/true")
    odd = Installation((str(program), *ODD.program[1:]), ODD.needs, ODD.drop_in, ODD.vpp_binary, ODD.prepare)
    for number, installation in enumerate((Installation((sys.executable,)), odd)):
        folder = tmp_path / str(number)
        paths = unit_files.install(folder, render_units(installation))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *paths], capture_output=True, text=True, check=False, timeout=60
        )
        own = [line for line in done.stderr.splitlines() if "ipsec-gw" in line]
        assert (done.returncode, own) == (0, []), done.stderr


def test_install_writes_the_units_and_prints_the_commands(tmp_path: Path) -> None:
    globally = ("--config", "/etc/x.toml", "--run-dir", "/run/other", "--pins", "/sys/fs/bpf/other")
    done = call(tmp_path, "install", "--sas", "20000", "--drop-in", "/etc/own.conf", globally=globally)
    assert done.exit_code == 0, done.output
    texts = installed(tmp_path)
    assert set(texts) == set(UNITS)
    command = f"{sys.executable} -m ipsec_gw.cli.main {' '.join(globally)}"
    assert f"ExecStart={command} run\n" in texts[DAEMON_UNIT]
    assert f"ExecStart={command} vpp run --sas 20000 --drop-in /etc/own.conf\n" in texts[VPP_UNIT]
    assert f'Environment="{BINARY_VARIABLE}=/opt/vpp/bin/vpp"\n' in texts[VPP_UNIT]
    for unit in UNITS:
        assert f"{tmp_path / FOLDER / unit}: written\n" in done.stdout
        assert (tmp_path / FOLDER / unit).stat().st_mode & 0o777 == 0o644
    assert done.stdout.endswith(f"now: systemctl --root={tmp_path} enable {VPP_UNIT} {DAEMON_UNIT}\n")


def test_the_console_script_is_what_the_units_start_when_it_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "bin" / "ipsec-gw"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", ["bin/ipsec-gw", "units", "install"])
    monkeypatch.chdir(tmp_path)
    assert call(tmp_path, "install").exit_code == 0
    assert f"ExecStart={script} run\n" in installed(tmp_path)[DAEMON_UNIT]


def test_install_again_changes_only_what_differs(tmp_path: Path) -> None:
    call(tmp_path, "install")
    before = {unit: (tmp_path / FOLDER / unit).stat().st_ino for unit in UNITS}
    done = call(tmp_path, "install", "--sas", "9")
    assert f"{tmp_path / FOLDER / DAEMON_UNIT}: is as it should be\n" in done.stdout
    assert f"{tmp_path / FOLDER / VPP_UNIT}: written\n" in done.stdout
    after = {unit: (tmp_path / FOLDER / unit).stat().st_ino for unit in UNITS}
    assert after[DAEMON_UNIT] == before[DAEMON_UNIT]
    assert after[VPP_UNIT] != before[VPP_UNIT], "another file took its place"
    assert "vpp run --sas 9\n" in installed(tmp_path)[VPP_UNIT]


def test_the_packaged_unit_of_vpp_is_disabled_first(tmp_path: Path) -> None:
    enable(tmp_path, "vpp.service")
    enable(tmp_path, DAEMON_UNIT)
    lines = call(tmp_path, "install").stdout.splitlines()[-2:]
    systemctl = f"systemctl --root={tmp_path}"
    assert lines == [f"now: {systemctl} disable vpp.service", f"     {systemctl} enable {VPP_UNIT}"]


def test_a_vpp_that_the_daemon_starts_is_not_enabled(tmp_path: Path) -> None:
    config = tmp_path / "etc/ipsec-gw/ipsec-gw.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[gateway]\nvpp = "needed"\n')
    enable(tmp_path, VPP_UNIT)
    said = call(tmp_path, "install").stdout.splitlines()
    systemctl = f"systemctl --root={tmp_path}"
    assert [line.removeprefix("now:").strip() for line in said[2:]] == [
        f"{systemctl} disable {VPP_UNIT}",
        f"{systemctl} enable {DAEMON_UNIT}",
    ]
    config.write_text("[gateway]\n")
    said = call(tmp_path, "install").stdout.splitlines()
    assert [line.removeprefix("now:").strip() for line in said[2:]] == [f"{systemctl} enable {DAEMON_UNIT}"]


def test_on_this_machine_systemd_is_told_and_what_runs_is_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_units, "ROOT", tmp_path)

    def commands(*options: str) -> list[str]:
        return [line.removeprefix("now:").strip() for line in call(tmp_path, *options).stdout.splitlines()[2:]]

    assert commands("install") == ["systemctl daemon-reload", f"systemctl enable --now {VPP_UNIT} {DAEMON_UNIT}"]
    for unit in UNITS:
        enable(tmp_path, unit)
    assert commands("install") == [], "nothing changed"
    assert commands("install", "--sas", "9") == ["systemctl daemon-reload", f"systemctl restart {VPP_UNIT}"]
    shutil.rmtree(tmp_path / FOLDER / "multi-user.target.wants")
    assert commands("remove") == ["systemctl daemon-reload"]


def test_where_vpp_is_goes_into_the_units_only_if_they_would_not_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_units, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv(BINARY_VARIABLE)
    usual, other = tmp_path / "usual", tmp_path / "path" / "vpp"
    monkeypatch.setattr(cli_units, "USUAL_BINARIES", (usual,))
    monkeypatch.setattr(locate, "USUAL_BINARIES", (usual,))
    without = call(tmp_path, "install")
    assert "note: VPP is not installed - " in without.stderr
    assert without.stdout.endswith(f"systemctl enable --now {DAEMON_UNIT}\n"), "there is nothing to start"
    for binary in (usual, other):
        binary.parent.mkdir(exist_ok=True)
        binary.write_text("#!/bin/sh\necho vpp v26.06\n")
        binary.chmod(0o755)
        monkeypatch.setenv("PATH", str(other.parent))
        assert call(tmp_path, "install").exit_code == 0
        for text in installed(tmp_path).values():
            assert (f'Environment="{BINARY_VARIABLE}={other}"\n' in text) is (binary == other)
            assert (BINARY_VARIABLE in text) is (binary == other)


def test_a_dry_run_prints_the_units_and_writes_nothing(tmp_path: Path) -> None:
    done = call(tmp_path, "install", "--dry-run")
    assert done.exit_code == 0
    assert not (tmp_path / "etc").exists()
    call(tmp_path, "install")
    for unit, text in installed(tmp_path).items():
        assert f"# {tmp_path / FOLDER / unit}\n{text}" in done.stdout


@pytest.mark.parametrize("kind", ["file", "empty", "link", "folder"])
@pytest.mark.parametrize("unit", UNITS)
def test_what_others_wrote_is_never_replaced_nor_removed(kind: str, unit: str, tmp_path: Path) -> None:
    theirs = tmp_path / FOLDER / unit
    theirs.parent.mkdir(parents=True)
    match kind:
        case "file":
            theirs.write_text(f"# mine\n{MARKER}\n")
        case "empty":
            theirs.touch()
        case "link":
            theirs.symlink_to("/dev/null")  # a masked unit
        case _:
            theirs.mkdir()
    for options in ((), ("--dry-run",)):
        refused = call(tmp_path, "install", *options)
        assert isinstance(refused.exception, IpsecGwError)
        assert f"not written by ipsec-gw: {theirs}" in str(refused.exception)
        assert [path.name for path in theirs.parent.iterdir()] == [unit], "the other one neither"
    (ours,) = set(UNITS) - {unit}
    unit_files.install(theirs.parent, {ours: render_units(PLAIN)[ours]})
    removed = call(tmp_path, "remove")
    assert removed.exit_code == 0
    assert f"{theirs}: not written by ipsec-gw, left as it is\n" in removed.stdout
    assert [path.name for path in theirs.parent.iterdir()] == [unit]


@pytest.mark.parametrize("step", ["_write", "replace"])
def test_a_failure_leaves_nothing_half_written(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(tmp_path, "install")
    before = installed(tmp_path)
    write = unit_files._write

    def full(path: Path, text: str) -> None:
        write(path, text[:100] if DAEMON_UNIT in path.name else text)
        if DAEMON_UNIT in path.name:
            raise OSError(28, "No space left on device")

    def refused(self: Path, target: Path) -> Path:
        raise OSError(5, "Input/output error")

    if step == "_write":
        monkeypatch.setattr(unit_files, "_write", full)
    else:
        monkeypatch.setattr(Path, "replace", refused)
    done = call(tmp_path, "install", "--sas", "9", globally=("--run-dir", "/run/other"))
    assert isinstance(done.exception, EnvironmentMissing), done.output
    assert installed(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "etc").touch()
    done = call(tmp_path, "install")
    assert isinstance(done.exception, EnvironmentMissing)
    assert f"{tmp_path}/etc" in str(done.exception)


def test_remove_takes_only_what_is_ours_and_not_enabled(tmp_path: Path) -> None:
    call(tmp_path, "install")
    other = tmp_path / FOLDER / "other.service"
    other.write_text("x")
    enable(tmp_path, DAEMON_UNIT)
    for options in ((), ("--dry-run",)):
        refused = call(tmp_path, "remove", *options)
        assert isinstance(refused.exception, IpsecGwError)
        assert f"`systemctl disable --now {DAEMON_UNIT}`" in str(refused.exception)
    shutil.rmtree(tmp_path / FOLDER / "multi-user.target.wants")
    assert "would be removed" in call(tmp_path, "remove", "--dry-run").stdout
    assert set(installed(tmp_path)) == {*UNITS, other.name}
    assert call(tmp_path, "remove").exit_code == 0
    assert set(installed(tmp_path)) == {other.name}
    again = call(tmp_path, "remove")
    assert again.exit_code == 0
    assert again.stdout.count("not installed, left as it is") == 2


def test_show_tells_whose_the_units_are(tmp_path: Path) -> None:
    assert call(tmp_path, "show").stdout.count(Owner.NOBODY.value) == 2
    call(tmp_path, "install")
    enable(tmp_path, DAEMON_UNIT)
    lines = call(tmp_path, "show").stdout.splitlines()
    assert lines == [
        f"{tmp_path / FOLDER / VPP_UNIT}: installed by ipsec-gw, not enabled",
        f"{tmp_path / FOLDER / DAEMON_UNIT}: installed by ipsec-gw, enabled",
    ]
    (tmp_path / FOLDER / VPP_UNIT).write_text("x")
    assert '"owner": "foreign"' in call(tmp_path, "show", "--json").stdout
