"""The parts of the VPP engine that need no VPP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec_gw.errors import EngineError, EngineUnavailable, UsedKeyError
from ipsec_gw.model.algorithms import AES_GCM_128, AES_GCM_256, ALGORITHMS, CHACHA20_POLY1305
from ipsec_gw.model.ids import Direction, SaKey, TunnelId
from ipsec_gw.model.objects import EngineSa, NextHop, Selector, Tunnel
from ipsec_gw.model.secret import Secret
from vpp_conf.crypto import parse_handlers
from vpp_conf.descriptors.protect import Protect, ProtectDescriptor
from vpp_conf.descriptors.sa import check_lengths, real_window
from vpp_conf.inventory import engine_sa, sad_entry
from vpp_conf.journal import Journal
from vpp_conf.process import ProcessId, identify
from vpp_conf.records import SaRecord, TunnelRecord, hop_row, read_hop, read_sa, read_tunnel, sa_row, tunnel_row
from vpp_conf.stats import Combined, StatsSegment
from vpp_conf.traffic import inner_traffic
from vpp_conf.used_keys import UsedKeys

LOCAL, PEER = ip_address("192.0.2.1"), ip_address("198.51.100.7")
SA = EngineSa(
    key=SaKey(PEER, 0xC0FFEE),
    direction=Direction.OUT,
    source=LOCAL,
    algorithm=AES_GCM_128,
    secret=Secret(bytes(range(16))),
    salt=Secret(b"\1\2\3\4"),
    esn=False,
    replay_window=32,
)

HANDLERS = """\
\x1b[33mAlgorithm                    \x1b[0m \x1b[33mOp  \x1b[0m \x1b[33mSimple                   \x1b[0m
\x1b[1;32maes-128-gcm-icv16-aad8       \x1b[0m enc \x1b[0m openssl ipsecmb \x1b[36mnative*\x1b[0m  \x1b[0m openssl
\x1b[1;32m                             \x1b[0m dec \x1b[0m openssl ipsecmb \x1b[36mnative*\x1b[0m  \x1b[0m openssl
\x1b[1;32maes-128-gcm-icv16-aad12      \x1b[0m enc \x1b[0m openssl \x1b[36mipsecmb*\x1b[0m native  \x1b[0m openssl
\x1b[1;32maes-256-gcm-icv16-aad8       \x1b[0m enc \x1b[0m openssl \x1b[36mipsecmb*\x1b[0m         \x1b[0m -
\x1b[1;32mchacha20-poly1305-icv16-aad8 \x1b[0m enc \x1b[0m -                       \x1b[0m -
\x1b[1;32mchacha20-poly1305-icv16-aad12\x1b[0m enc \x1b[0m -                       \x1b[0m -
"""


def test_an_algorithm_needs_handlers_with_and_without_esn() -> None:
    handlers = parse_handlers(HANDLERS)
    assert handlers == {AES_GCM_128: "native"}
    assert AES_GCM_256 not in handlers
    assert CHACHA20_POLY1305 not in handlers


@given(st.integers(min_value=1, max_value=4096))
def test_the_window_is_the_next_power_of_two_from_64(asked: int) -> None:
    real = real_window(asked)
    assert real >= max(asked, 64)
    assert real & (real - 1) == 0
    assert real == 64 or real < 2 * asked


def test_no_window_stays_none() -> None:
    assert real_window(0) == 0


def test_an_sa_comes_back_from_its_entry() -> None:
    assert engine_sa(sad_entry(SA, 5), SaRecord(SA.key, 5, SA.replay_window)) == SA


def test_a_transport_sa_is_recorded_with_the_source_that_vpp_does_not_know() -> None:
    sa = replace(SA, transport=True)
    record = SaRecord.of(sa, 5)
    assert (record.source, SaRecord.of(SA, 5).source) == (LOCAL, None)
    assert read_sa(json.loads(json.dumps(sa_row(record)))) == record
    assert engine_sa(sad_entry(sa, 5), record) == sa


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)
def test_lengths_are_checked_before_vpp_sees_them(algorithm: object) -> None:
    right = replace(SA, algorithm=algorithm, secret=Secret(bytes(algorithm.key_bytes)))  # type: ignore[attr-defined]
    check_lengths(sad_entry(right, 1))
    with pytest.raises(EngineError, match="key has"):
        check_lengths(sad_entry(replace(right, secret=Secret(bytes(algorithm.key_bytes - 1))), 1))  # type: ignore[attr-defined]


def test_a_protection_depends_on_its_interface_and_sas() -> None:
    kinds = [
        (reference.kind, reference.identity)
        for reference in ProtectDescriptor(None).depends_on(Protect(3, 1, frozenset({2})))  # type: ignore[arg-type]
    ]
    assert kinds == [("ipsec-interface", 3), ("sa", 1), ("sa", 2)]


def test_records_survive_json() -> None:
    hop = NextHop(PEER, LOCAL, "wan0", ip_address("192.0.2.254"), "02:00:00:00:00:01")
    tunnel = Tunnel(
        TunnelId(3, PEER),
        LOCAL,
        PEER,
        (SaKey(LOCAL, 1), SaKey(LOCAL, 2)),
        SA.key,
        (Selector(ip_network("10.0.0.0/8"), ip_network("0.0.0.0/0")),),
    )
    assert read_hop(json.loads(json.dumps(hop_row(hop)))) == hop
    assert read_tunnel(json.loads(json.dumps(tunnel_row(TunnelRecord(tunnel, 9))))) == TunnelRecord(tunnel, 9)
    assert read_sa(json.loads(json.dumps(sa_row(SaRecord(SA.key, 4, 32))))) == SaRecord(SA.key, 4, 32)


class TestJournal:
    def test_it_remembers_within_an_epoch(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path / "journal")
        journal.load(7)
        journal.put("sa", "a", {"n": 1})
        journal.put("sa", "b", {"n": 2})
        journal.remove("sa", "a")
        again = Journal(tmp_path / "journal")
        again.load(7)
        assert again.rows("sa") == [{"n": 2}]
        assert again.rows("tunnel") == []

    def test_another_vpp_starts_empty(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path / "journal")
        journal.load(7)
        journal.put("sa", "a", {"n": 1})
        again = Journal(tmp_path / "journal")
        again.load(8)
        assert again.rows("sa") == []

    def test_a_line_that_was_cut_off_is_left_out(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path / "journal")
        journal.load(7)
        journal.put("sa", "a", {"n": 1})
        with (tmp_path / "journal").open("a") as file:
            file.write('{"kind": "sa", "id": "b", "ro')
        again = Journal(tmp_path / "journal")
        again.load(7)
        assert again.rows("sa") == [{"n": 1}]

    def test_it_does_not_grow_for_ever(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path / "journal")
        journal.load(7)
        for number in range(5000):
            journal.put("sa", "a", {"n": number})
        assert len((tmp_path / "journal").read_text().splitlines()) < 1000
        again = Journal(tmp_path / "journal")
        again.load(7)
        assert again.rows("sa") == [{"n": 4999}]

    def test_only_root_reads_it(self, tmp_path: Path) -> None:
        Journal(tmp_path / "journal").load(1)
        assert (tmp_path / "journal").stat().st_mode & 0o077 == 0

    def test_a_full_disk_costs_the_next_daemon_its_memory_and_this_one_nothing(self, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        journal = Journal(folder / "journal")  # the folder is not there: nothing can be written
        journal.load(7)
        journal.put("sa", "1", {"id": 1})
        journal.put("sa", "2", {"id": 2})
        journal.remove("sa", "1")
        assert journal.rows("sa") == [{"id": 2}]
        folder.mkdir()
        journal.put("sa", "3", {"id": 3})
        again = Journal(folder / "journal")
        again.load(7)
        assert again.rows("sa") == [{"id": 2}, {"id": 3}]


def test_a_key_sends_once() -> None:
    used = UsedKeys()
    used.refuse(SA)
    used.remember(SA)
    with pytest.raises(UsedKeyError):
        used.refuse(replace(SA, key=SaKey(PEER, 1)))
    used.refuse(replace(SA, secret=Secret(bytes(16))))
    used.forget(SA)
    used.refuse(SA)


def test_traffic_is_that_of_the_inner_packets() -> None:
    # 60 bytes inside: 64 with trailer and padding; inbound 16 + 64 + 16, outbound 64 + 16 (VPP's own figures).
    assert inner_traffic(False, Combined(10, 800), 0) == (10, 620)
    assert inner_traffic(True, Combined(10, 960), 0) == (10, 620)


def test_forged_packets_do_not_count() -> None:
    assert inner_traffic(True, Combined(12, 960 * 12 // 10), 2) == (10, 620)
    assert inner_traffic(True, Combined(3, 288), 3) == (0, 0)
    assert inner_traffic(True, Combined(0, 0), 0) == (0, 0)


def test_no_stats_socket_is_an_unavailable_engine(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable):
        StatsSegment(tmp_path / "stats.sock")


class TestProcess:
    def test_this_one_lives(self) -> None:
        me = identify(os.getpid())
        assert me is not None
        assert me.is_alive()

    def test_a_recycled_pid_is_another_process_and_is_left_alone(self) -> None:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            present = identify(child.pid)
            assert present is not None
            earlier = ProcessId(child.pid, present.start - 1)
            assert not earlier.is_alive()
            assert earlier.stop(0.1, 0.1)
            assert present.is_alive()
            child.communicate(b"\n")

    def test_one_that_ignores_term_is_killed(self) -> None:
        script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); input()"
        with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            present = identify(child.pid)
            assert present is not None
            assert present.stop(0.2, 5.0)
            assert child.wait() == -9

    def test_a_process_that_is_gone_is_stopped_already(self) -> None:
        assert ProcessId(2**22 - 1, 1).stop(0.1, 0.1)
