"""An operator's own settings for startup.conf."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ipsec_gw.cli.main import cli
from ipsec_gw.errors import ConfigError
from tests.support.machines import unpack_machine
from vpp_conf.startup.conf_tree import Entry, parse_conf, write_conf
from vpp_conf.startup.drop_in import DropIn, Merged, merge_drop_in, read_drop_in

BASE = """# written by ipsec-gw

unix {
  nodaemon
  log /run/vpp.log
}

buffers {
  buffers-per-numa 8192
  default data-size 2048
}

plugins {
  plugin default { disable }
  plugin af_xdp_plugin.so { enable }
}
"""


def merge(text: str, release: tuple[int, int] = (26, 6), base: str = BASE) -> Merged:
    return merge_drop_in(base, DropIn("vpp.conf", text), release)


def settings(text: str, section: str) -> list[str]:
    """The settings of a section, as they stand in the text."""
    (found,) = [entry for entry in parse_conf(text) if entry.name == section]
    return [line.strip() for line in write_conf((found,)).splitlines()[1:-1]]


def test_a_setting_that_is_new_is_added_with_its_origin() -> None:
    merged = merge("logging {\n  default-log-level debug\n}\nbuffers { page-size 4K }\n")
    assert merged.findings == ()
    assert "logging {\n  default-log-level debug  # vpp.conf:2\n}\n" in merged.text
    assert settings(merged.text, "buffers") == ["buffers-per-numa 8192", "default data-size 2048", "page-size 4K"]
    assert merged.text.startswith("# written by ipsec-gw\n")


def test_a_setting_that_was_planned_is_replaced_and_named() -> None:
    merged = merge("buffers {\n\n  buffers-per-numa 65536 # more\n}")
    assert settings(merged.text, "buffers") == ["buffers-per-numa 65536", "default data-size 2048"]
    (conflict,) = merged.findings
    assert conflict.text == "buffers buffers-per-numa is 65536 by vpp.conf:3 instead of 8192 as planned"
    assert conflict.way_out
    assert merged.theirs == {"buffers buffers-per-numa"}


def test_the_same_value_is_no_conflict() -> None:
    assert merge("buffers { default data-size 2048 }").findings == ()


def test_names_of_two_words_are_told_apart() -> None:
    merged = merge("buffers { default data-size 3840 }")
    assert settings(merged.text, "buffers") == ["buffers-per-numa 8192", "default data-size 3840"]
    assert "buffers default data-size is 3840" in merged.findings[0].text


def test_two_lines_of_the_operators_that_disagree_are_named() -> None:
    merged = merge("logging { size 1 }\nlogging { size 2 }\n")
    assert settings(merged.text, "logging") == ["size 2"]
    assert merged.findings[0].text == "logging size is 2 by vpp.conf:2 instead of 1 of vpp.conf:1"


def test_devices_and_plugins_add_up() -> None:
    devices = "dpdk {\n dev 0000:01:00.0\n dev 0000:01:00.1 { num-rx-queues 2 }\n}\n"
    merged = merge(devices + "plugins {\n plugin x.so { enable }\n plugin dpdk_plugin.so { enable }\n}")
    assert settings(merged.text, "dpdk") == ["dev 0000:01:00.0", "dev 0000:01:00.1 { num-rx-queues 2 }"]
    assert settings(merged.text, "plugins")[-2:] == ["plugin x.so { enable }", "plugin dpdk_plugin.so { enable }"]
    assert merged.findings == ()


def test_dpdk_without_devices_must_not_look_for_nics() -> None:
    enable = "plugins { plugin dpdk_plugin.so { enable } }\n"
    assert settings(merge(enable).text, "dpdk") == ["no-pci"]
    assert settings(merge(enable + "dpdk { uio-driver vfio-pci }").text, "dpdk") == ["uio-driver vfio-pci", "no-pci"]
    assert settings(merge(enable + "dpdk { dev default { num-rx-queues 2 } }").text, "dpdk")[-1] == "no-pci"
    assert settings(merge(enable + "dpdk { dev 0000:01:00.0 }").text, "dpdk") == ["dev 0000:01:00.0"]
    assert "dpdk {" not in merge("plugins { plugin dpdk_plugin.so { disable } }").text


def test_what_the_gateway_owns_is_refused_all_at_once() -> None:
    text = "unix {\n  log /x\n  interactive\n}\nplugins { plugin af_xdp_plugin.so { disable } }\n"
    with pytest.raises(ConfigError) as refused:
        merge(text)
    lines = str(refused.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["vpp.conf:2", "vpp.conf:3", "vpp.conf:5"]
    assert all("belongs to ipsec-gw" in line for line in lines)


@pytest.mark.parametrize(
    ("section", "release", "fits"),
    [
        ("crypto-engines", (24, 10), False),
        ("crypto-engines", (25, 6), True),
        ("tap", (25, 10), True),
        ("tap", (26, 2), False),
        ("ikev2", (26, 6), False),
        ("ikev2", (26, 2), False),
        ("logging", (24, 10), True),
    ],
)
def test_sections_that_a_release_does_not_have_are_refused(section: str, release: tuple[int, int], fits: bool) -> None:
    text = f"{section} {{ x y }}\n"
    if fits:
        assert f"{section} {{" in merge(text, release).text
        return
    with pytest.raises(ConfigError, match=rf"^vpp.conf:1: .*section {section}.* - "):
        merge(text, release)


def test_sections_of_plugins_need_their_plugin() -> None:
    section = "linux-cp { lcp-sync }\n"
    with pytest.raises(ConfigError, match=r"^vpp.conf:1: .*add: plugins { plugin linux_cp_plugin.so { enable } }"):
        merge(section)
    enable = "plugins { plugin linux_cp_plugin.so { enable } }\n"
    assert settings(merge(section + enable).text, "linux-cp") == ["lcp-sync"]
    with pytest.raises(ConfigError, match="needs its plugin"):
        merge(enable + section + "plugins { plugin linux_cp_plugin.so { disable } }\n")


def test_a_name_that_is_none_is_refused_unless_a_foreign_plugin_may_have_it() -> None:
    with pytest.raises(ConfigError, match=r"^vpp.conf:2: VPP has no section bufers"):
        merge("\nbufers { x }\n")
    assert "bufers {" in merge("bufers { x }\nplugins { plugin our_own_plugin.so { enable } }\n").text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unix {\n  a\n", "vpp.conf:1: unix { is never closed"),
        ("unix { a }\n}\n", "vpp.conf:2: a } without its {"),
        ("\n{ a }\n", "vpp.conf:2: a { without a name"),
        ("unix { a }\nheapsize 1G\n", "vpp.conf:2: heapsize 1G is in no section"),
        ("unix {\n a b#c\n}\n", "vpp.conf:2: VPP may take the # in b#c"),
        ("a {" * 20, "vpp.conf:1: more than 8 braces"),
    ],
)
def test_a_file_that_is_no_startup_conf_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        merge(text)
    assert str(refused.value).startswith(message)
    assert " - " in str(refused.value)


def test_an_empty_file_changes_nothing() -> None:
    assert parse_conf(merge("# nothing yet\n").text) == parse_conf(BASE)


def test_braces_may_stand_on_lines_of_their_own() -> None:
    (entry,) = parse_conf("dpdk\n{\n  dev a\n  {\n    x 1\n  }\n}\n")
    assert entry == Entry(("dpdk",), (Entry(("dev", "a"), (Entry(("x", "1")),)),))


def test_the_default_file_need_not_be_there_but_a_named_one_has_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = tmp_path / "vpp.conf"
    monkeypatch.setattr("vpp_conf.startup.drop_in.DEFAULT_DROP_IN", default)
    assert read_drop_in(None) is None
    default.write_text("unix { }\n")
    assert read_drop_in(None) == DropIn(str(default), "unix { }\n")
    with pytest.raises(ConfigError, match="nowhere"):
        read_drop_in(tmp_path / "nowhere")
    default.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"vpp\.conf cannot be read"):
        read_drop_in(None)


def test_the_plan_names_conflicts_and_shows_the_text(tmp_path: Path) -> None:
    root = unpack_machine("vm-two-cpus", tmp_path / "root")
    own = tmp_path / "own.conf"
    own.write_text("statseg {\n  size 64M\n}\n")
    options = ["vpp", "plan", "--root", str(root), "--release", "26.06", "--drop-in", str(own)]
    shown = CliRunner().invoke(cli, options)
    assert shown.exit_code == 0
    assert f"statseg size is 64M by {own}:2 instead of 32M as planned" in shown.stdout
    text = CliRunner().invoke(cli, [*options, "--text"]).stdout
    assert f"  size 64M  # {own}:2\n" in text
    assert "  size 32M" not in text
