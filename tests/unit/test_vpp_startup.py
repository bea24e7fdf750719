"""startup.conf: the plan's numbers, their reasons, and the text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ipsec_gw.errors import EnvironmentMissing
from vpp_conf.locate import VppInstallation
from vpp_conf.paths import VppPaths
from vpp_conf.startup.plan import Probe, plan_startup
from vpp_conf.startup.probe import probe_machine
from vpp_conf.startup.render import render_startup

PROBE = Probe(
    cpus=2,
    hugepage_bytes=2 << 20,
    hugepages_total=0,
    hugepages_free=0,
    release=(26, 6),
    plugins=frozenset({"af_xdp_plugin.so", "acl_plugin.so"}),
    crypto_engines=frozenset({"native", "openssl"}),
)


def installation(prefix: Path) -> VppInstallation:
    plugins = prefix / "lib/x/vpp_plugins"
    engines = prefix / "lib/x/vpp_crypto_engines"
    for path in (plugins / "af_xdp_plugin.so", engines / "native.so", engines / "ipsecmb.so"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return VppInstallation(prefix / "bin/vpp", "vpp v26.06", (26, 6), prefix, None, plugins, engines, None)


def test_without_hugepages_ordinary_pages_are_used_and_the_way_out_is_named() -> None:
    plan = plan_startup(PROBE)
    assert plan.buffer_page == "4K"
    assert "sysctl vm.nr_hugepages=" in dict(plan.reasons)["buffers"]


def test_enough_free_hugepages_are_used() -> None:
    assert plan_startup(replace(PROBE, hugepages_total=64, hugepages_free=64)).buffer_page == "2M"


def test_hugepages_that_others_hold_do_not_count() -> None:
    plan = plan_startup(replace(PROBE, hugepages_total=64, hugepages_free=3))
    assert plan.buffer_page == "4K"


def test_the_hugepages_asked_for_are_enough() -> None:
    """Following the advice once must lead to hugepages."""
    advice = dict(plan_startup(PROBE).reasons)["buffers"].rpartition("=")[2]
    assert plan_startup(replace(PROBE, hugepages_total=int(advice), hugepages_free=int(advice))).buffer_page == "2M"


def test_a_missing_af_xdp_plugin_is_said() -> None:
    with pytest.raises(EnvironmentMissing, match="af_xdp"):
        plan_startup(replace(PROBE, plugins=frozenset()))


def test_a_vpp_without_crypto_engines_is_refused() -> None:
    with pytest.raises(EnvironmentMissing, match="crypto"):
        plan_startup(replace(PROBE, crypto_engines=frozenset()))


def test_old_releases_have_their_engines_among_the_plugins() -> None:
    plan = plan_startup(replace(PROBE, release=(24, 6)))
    assert not plan.crypto_section
    assert "crypto_native_plugin.so" in plan.plugins


def test_every_number_has_a_reason() -> None:
    assert all(reason for _, reason in plan_startup(PROBE).reasons)


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
    assert "dpdk" not in text
    assert text.count("{") == text.count("}")


def test_two_instances_share_nothing(tmp_path: Path) -> None:
    first, second = VppPaths(tmp_path / "a"), VppPaths(tmp_path / "b")
    assert first.segment_prefix != second.segment_prefix
    assert not set(first.sockets) & set(second.sockets)


def test_the_probe_reads_this_machine(tmp_path: Path) -> None:
    probe = probe_machine(installation(tmp_path))
    assert probe.cpus >= 1
    assert probe.crypto_engines == {"native", "ipsecmb"}
    assert probe.hugepages_free <= probe.hugepages_total
