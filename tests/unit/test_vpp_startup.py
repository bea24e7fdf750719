"""The text of startup.conf: what is in it for a release and a machine.

Golden files hold the text for the newest release, and for the others what differs: ``UPDATE_GOLDEN=1`` writes them.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ipsec_gw.errors import EnvironmentMissing
from tests.support.machines import NAMES, probe
from vpp_conf.locate import VppInstallation
from vpp_conf.paths import VppPaths
from vpp_conf.startup.drop_in import DropIn, merge_drop_in
from vpp_conf.startup.machine import Machine
from vpp_conf.startup.plan import plan_startup
from vpp_conf.startup.probe import probe_machine
from vpp_conf.startup.render import render_commands, render_startup
from vpp_conf.startup.syntax import TESTED, complete_offer, show
from vpp_conf.startup.values import Needs

GOLDEN = Path(__file__).parent.parent / "golden" / "startup"
UPDATE = "UPDATE_GOLDEN"
PATHS = VppPaths(Path("/run/ipsec-gw"))
NEWEST = TESTED[-1]


def installation(prefix: Path) -> VppInstallation:
    """An installed VPP with two engines."""
    plugins = prefix / "lib/x/vpp_plugins"
    engines = prefix / "lib/x/vpp_crypto_engines"
    for path in (plugins / "af_xdp_plugin.so", engines / "native.so", engines / "ipsecmb.so"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return VppInstallation(prefix / "bin/vpp", "vpp v26.06", (26, 6), prefix, None, plugins, engines, None)


def packaged(release: tuple[int, int]) -> VppInstallation:
    """VPP as Debian's packages of fd.io install it."""
    plugins = Path("/usr/lib/x86_64-linux-gnu/vpp_plugins")
    return VppInstallation(
        Path("/usr/bin/vpp"), f"vpp v{show(release)}", release, Path("/usr"), None, plugins, None, None
    )


def rendered(machine: Machine, release: tuple[int, int] = NEWEST) -> str:
    """startup.conf and, behind it, the commands."""
    plan = plan_startup(replace(machine, vpp=complete_offer(release)))
    commands = render_commands(plan)
    return render_startup(plan, PATHS, packaged(release)) + (f"\n# {PATHS.commands}\n{commands}" if commands else "")


def golden_text(name: str) -> str:
    """What the golden file of a machine has to hold."""
    machine = probe(name)
    newest = rendered(machine)
    parts = [f"==== {show(NEWEST)}\n{newest}"]
    for release in TESTED[:-1]:
        text = rendered(machine, release)
        lines = difflib.unified_diff(newest.splitlines(), text.splitlines(), lineterm="", n=0)
        parts.append(f"==== {show(release)}\n" + "".join(f"{line}\n" for line in _changes(lines)))
    return "".join(parts)


def _changes(lines: Iterator[str]) -> Iterator[str]:
    return (line for line in lines if not line.startswith(("---", "+++", "@@")))


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    text = golden_text(name)
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get(UPDATE):
        golden.write_text(text)
    assert golden.read_text() == text, f"the text changed; if it is right: {UPDATE}=1"


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(NAMES)


def test_old_releases_have_their_engines_among_the_plugins() -> None:
    text = rendered(probe("vm-two-cpus"), (24, 10))
    assert "plugin crypto_native_plugin.so { enable }" in text
    assert "crypto-engines {" not in text


def test_in_between_the_engines_are_all_loaded() -> None:
    text = rendered(probe("vm-two-cpus"), (25, 2))
    assert "crypto_native_plugin.so" not in text
    assert "crypto-engines {" not in text


@pytest.mark.parametrize("release", [(25, 6), (25, 10), (26, 2), (26, 6)])
def test_new_releases_have_a_section_for_engines(release: tuple[int, int]) -> None:
    text = rendered(probe("vm-two-cpus"), release)
    assert "crypto-engines {\n  default { disable }\n  native { enable }\n" in text
    assert "crypto_native_plugin.so" not in text


def test_handlers_are_set_by_the_names_that_esp_uses() -> None:
    newest = render_commands(plan_startup(probe("laptop", (26, 6))))
    assert "set crypto handler simple aes-256-gcm-icv16-aad12 ipsecmb\n" in newest
    before = render_commands(plan_startup(probe("laptop", (26, 2))))
    assert "set crypto handler simple aes-256-gcm ipsecmb\n" in before
    assert "icv16" not in before


def test_without_commands_none_are_run() -> None:
    assert "exec" not in rendered(probe("vm-two-cpus"))
    assert f"exec {PATHS.commands}\n" in rendered(probe("laptop"))


def test_policies_have_a_section() -> None:
    machine = probe("vm-two-cpus")
    text = render_startup(plan_startup(machine, Needs(policies=3000)), PATHS, packaged(NEWEST))
    assert "ipv4-inbound-spd-fast-path on\n" in text
    assert "spd-fast-path-num-buckets 4096\n" in text
    assert "flow-cache" not in text


def test_the_text_names_the_instance_and_only_what_is_needed(tmp_path: Path) -> None:
    paths = VppPaths(tmp_path / "run")
    installed = installation(tmp_path / "prefix")
    text = render_startup(plan_startup(probe_machine(installed)), paths, installed)
    assert f"socket-name {paths.api_socket}" in text
    assert f"prefix {paths.segment_prefix}" in text
    assert "plugin default { disable }" in text
    assert "plugin af_xdp_plugin.so { enable }" in text
    assert "ipsecmb { enable }" in text
    assert "openssl" not in text
    assert "dpdk {" not in text
    assert text.count("{") == text.count("}")


def test_this_machine_gets_what_it_always_had() -> None:
    """Two CPUs without hugepages: one thread, ordinary pages, VPP's own buffer size."""
    machine = replace(probe("vm-two-cpus"), nics=())
    text = render_startup(plan_startup(machine), PATHS, packaged(NEWEST))
    assert "corelist-workers" not in "".join(line for line in text.splitlines() if not line.startswith("#"))
    assert "  page-size 4K\n" in text
    assert "  main-heap-size 512M\n  main-heap-page-size 4K\n" in text
    assert "  size 32M\n" in text
    assert "poll-sleep" not in "".join(line for line in text.splitlines() if not line.startswith("#"))


@pytest.mark.parametrize("folder", ["a b", "a#b", "a{b", "a\tb"])
def test_paths_that_vpp_cannot_read_are_refused(folder: str) -> None:
    plan = plan_startup(probe("vm-two-cpus"))
    with pytest.raises(EnvironmentMissing, match="VPP cannot read"):
        render_startup(plan, VppPaths(Path("/run") / folder), packaged(NEWEST))


def test_two_instances_share_nothing(tmp_path: Path) -> None:
    first, second = VppPaths(tmp_path / "a"), VppPaths(tmp_path / "b")
    assert first.segment_prefix != second.segment_prefix
    assert not set(first.sockets) & set(second.sockets)


@pytest.mark.parametrize("name", NAMES)
def test_the_text_is_as_the_merge_writes_it(name: str) -> None:
    """So that a drop-in changes nothing but what it names."""
    text = render_startup(plan_startup(probe(name)), PATHS, packaged(NEWEST))
    assert merge_drop_in(text, DropIn("empty", ""), NEWEST).text == text
