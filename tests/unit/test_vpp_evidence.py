"""What is kept of a VPP that died: bounded, without keys, and nothing of one that was stopped."""

from __future__ import annotations

from datetime import datetime, tzinfo
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Self

import pytest

from ipsec_gw.errors import ConfigError
from vpp_conf import evidence
from vpp_conf.api_trace import MOST_ROWS, ApiTrace
from vpp_conf.evidence import MOST_BYTES, MOST_KEPT, SHOWS, Evidence
from vpp_conf.paths import VppPaths
from vpp_conf.process import ProcessId
from vpp_conf.startup.drop_in import DropIn, merge_drop_in

KEY = bytes(range(0xA0, 0xB4))


@pytest.fixture
def paths(tmp_path: Path) -> VppPaths:
    found = VppPaths(tmp_path)
    found.folder.mkdir()
    return found


def test_it_is_kept_once_with_what_is_there(paths: VppPaths) -> None:
    paths.log.write_text("received signal SIGSEGV\n")
    paths.shown.write_text("==== show threads\n")
    kept = evidence.keep(paths, ProcessId(7, 99), "its process has ended", {"api-trace.txt": "told"})
    assert kept is not None
    assert {path.name: path.read_text() for path in kept.path.iterdir() if path.name != "why.json"} == {
        "vpp.log": "received signal SIGSEGV\n",
        "show.txt": "==== show threads\n",
        "api-trace.txt": "told",
    }
    assert {path.stat().st_mode & 0o777 for path in kept.path.iterdir()} == {0o600}
    assert paths.evidence.stat().st_mode & 0o777 == 0o700
    assert evidence.last(paths) == Evidence(kept.path, kept.at, "its process has ended")
    assert evidence.keep(paths, ProcessId(7, 99), "it was found dead", {}) is None
    assert evidence.keep(paths, ProcessId(7, 100), "another one", {}) is not None


def test_of_one_that_was_stopped_nothing_is_kept(paths: VppPaths) -> None:
    evidence.leave(paths, ProcessId(7, 99))
    assert evidence.keep(paths, ProcessId(7, 99), "its process has ended", {}) is None
    assert evidence.last(paths) is None
    assert evidence.keep(paths, ProcessId(8, 99), "another one", {}) is not None


def test_number_and_size_are_bounded(paths: VppPaths) -> None:
    paths.log.write_bytes(b"first words" + bytes(2 * MOST_BYTES) + b"last words")
    for number in range(MOST_KEPT + 3):
        kept = evidence.keep(paths, ProcessId(100 + number, 1), str(number), {"show.txt": "x" * (MOST_BYTES + 1)})
        assert kept is not None
    assert len(list(paths.evidence.iterdir())) == MOST_KEPT
    newest = evidence.last(paths)
    assert newest is not None
    assert newest.why == str(MOST_KEPT + 2)
    log = (newest.path / "vpp.log").read_bytes()
    assert (len(log), log.endswith(b"last words")) == (MOST_BYTES, True)
    assert (newest.path / "show.txt").stat().st_size == MOST_BYTES


def test_what_cannot_be_read_is_passed_over(paths: VppPaths) -> None:
    kept = evidence.keep(paths, ProcessId(7, 99), "well", {})
    (paths.evidence / "99991231T235959Z-1-1").mkdir()
    (paths.evidence / "99991231T235959Z-1-2").write_text("no folder")
    assert evidence.last(paths) == kept


def test_no_command_that_is_asked_shows_an_sa() -> None:
    assert not [command for command in SHOWS if "ipsec" in command or "ikev2" in command or "api trace" in command]


def test_the_trace_tells_what_was_said_and_no_key() -> None:
    trace = ApiTrace()
    entry = {"sad_id": 7, "spi": 0x1234, "salt": 0xDEADBEEF, "crypto_key": {"length": 20, "data": KEY}}
    trace.add("ipsec_sad_entry_add_v2", {"entry": entry}, "0")
    trace.add("ipsec_tunnel_protect_update", {"tunnel": {"sw_if_index": 3, "sa_out": 7, "sa_in": [8, 9]}}, "0")
    trace.add("ip_route_add_del", {"route": {"prefix": ip_network("10.0.0.0/8"), "via": ip_address("fd00::1")}}, "-6")
    trace.add("odd", {"data": KEY, "hidden": [KEY, bytearray(KEY)], "key": KEY.hex() * 9, "object": object()}, "0")
    text = trace.text()
    assert "ipsec_sad_entry_add_v2 sad_id=7 spi=4660 0\n" in text
    assert "ipsec_tunnel_protect_update tunnel={sw_if_index=3 sa_out=7 sa_in=[8 9]} 0\n" in text
    assert "ip_route_add_del route={prefix=10.0.0.0/8 via=fd00::1} -6\n" in text
    assert "odd data=<bytes> hidden=[<bytes> <bytearray>] " in text
    assert KEY.hex() * 2 not in text
    assert str(0xDEADBEEF) not in text
    assert repr(KEY) not in text


def test_the_trace_is_a_ring_in_which_the_same_is_one_line() -> None:
    trace = ApiTrace()
    for _ in range(1000):
        trace.add("control_ping", {}, "0")
    assert trace.text().count("\n") == 1
    assert trace.text().endswith("control_ping 0 (1000 times)\n")
    for number in range(MOST_ROWS + 5):
        trace.add("show_threads", {"number": number}, "0")
    assert trace.text().count("\n") == MOST_ROWS
    assert "number=4 " not in trace.text()
    assert "number=5 " in trace.text()


@pytest.mark.parametrize("word", ["on", "enable"])
def test_vpps_own_trace_cannot_be_turned_on(word: str) -> None:
    with pytest.raises(ConfigError, match=rf"own\.conf:1: api-trace {word}: VPP would write the keys of all SAs"):
        merge_drop_in("unix { nodaemon }\n", DropIn("own.conf", f"api-trace {{ {word} }}\n"), (26, 6))


def test_the_trace_is_read_while_messages_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = ApiTrace()
    for number in range(3):
        trace.add("control_ping", {"number": number}, "done")

    class Interrupted(datetime):
        """Whoever formats a time is overtaken by another message."""

        @classmethod
        def fromtimestamp(cls, timestamp: float, tz: tzinfo | None = None) -> Self:
            trace.add("show_version", {"when": len(trace._rows)}, "done")
            return super().fromtimestamp(timestamp, tz)

    monkeypatch.setattr("vpp_conf.api_trace.datetime", Interrupted)
    assert [line.split()[1] for line in trace.text().splitlines()] == ["control_ping"] * 3
    assert trace.text().count("show_version") == 3
