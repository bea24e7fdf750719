"""What the commands tell of a running firewall: errors of the compiler, verdicts by names, events that were lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.integration.conftest import until
from tests.integration.firewall_world import CLIENT, SERVER, FirewallBox, address, exchange, firewall_box
from xdp_steer.flow_layout import EVENT_RING_BYTES, MAX_ROWS
from xdp_steer.reasons import Reason

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")]

PORT, STOPPED = 7000, 7001
CONFIGURATION = """
[gateway]
engine = "kernel"
wan = ["wan0"]
[zones.lan]
interfaces = ["lan0"]
[zones.wan]
interfaces = ["wan0"]
[applications.stopped]
protocol = "udp"
destination_port = 7001
[[policies]]
name = "stop"
from = "lan"
to = "wan"
application = "stopped"
action = "deny"
log = ["open"]
[[policies]]
name = "out"
from = "lan"
to = "wan"
action = "permit"
[[nat.source]]
name = "masq"
from = "lan"
to = "wan"
translate = "interface"
"""


@pytest.fixture(scope="module")
def box() -> Iterator[FirewallBox]:
    with firewall_box() as made:
        made.write(CONFIGURATION)
        yield made


@pytest.fixture(scope="module", autouse=True)
def daemon(box: FirewallBox) -> subprocess.Popen[str]:
    return box.run()


def passes(box: FirewallBox) -> None:
    """A datagram from the client gets there and back."""
    with closing(box.udp(SERVER, port=PORT)) as server, closing(box.udp(CLIENT)) as client:
        exchange(client, (address(SERVER, 2), PORT), server)


def test_plan_and_reload_tell_what_the_compiler_refuses(box: FirewallBox) -> None:
    rule = '[[policies]]\nname = "p{0}"\nfrom = "lan"\nto = "wan"\nsource = "10.9.{1}.{2}"\naction = "permit"\n'
    rules = "".join(rule.format(number, number >> 8, number & 255) for number in range(MAX_ROWS - 1))
    path = box.write(rules + CONFIGURATION)  # tables may be in any order
    text = path.read_text()
    line = 1 + text[: text.index('"out"')].count("\n") - 1
    for words in (("plan",), ("plan", "--json"), ("reload",), ("reload", "--json")):
        done = box.gw(*words)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"ipsec-gw: {path}:{line}: policies.{MAX_ROWS + 1}: policy out: the policy table")
        assert done.stderr.endswith(" - merge or remove rules\n")
    done = box.gw("run", "--vici", f"unix://{box.vici}")
    assert done.returncode == 2
    assert f"{path}:{line}: " in done.stderr
    passes(box)
    box.write(CONFIGURATION)
    assert box.gw("plan").returncode == 0


def test_verdicts_have_names(box: FirewallBox) -> None:
    passes(box)
    verdicts = json.loads(box.gw("show", "status", "--json").stdout)["verdicts"]
    assert verdicts.keys() == {reason.label for reason in Reason}
    assert verdicts[Reason.TO_KERNEL.label] >= 2  # a veth takes no redirected frames
    shown = box.gw("show", "status").stdout
    assert Reason.TO_KERNEL.label in shown
    assert Reason.NO_STAGE.label not in shown


def test_events_that_a_busy_daemon_does_not_read_are_told(box: FirewallBox, daemon: subprocess.Popen[str]) -> None:
    assert json.loads(box.gw("show", "firewall", "--json").stdout)["lostEvents"] == 0
    sent = EVENT_RING_BYTES // 128  # more than there is room for
    daemon.send_signal(signal.SIGSTOP)
    try:
        with closing(box.udp(CLIENT)) as client:
            for _ in range(sent):
                client.sendto(b"x", (address(SERVER, 2), STOPPED))
    finally:
        daemon.send_signal(signal.SIGCONT)
    until(lambda: '"flow records are missing"' in box.log(daemon), "the log tells of it")
    until(lambda: box.rule("stop") == sent, "all are counted")
    lost = json.loads(box.gw("show", "firewall", "--json").stdout)["lostEvents"]
    assert 0 < lost < sent
    assert f"{lost:,} events lost" in box.gw("show", "firewall").stdout
    until(lambda: box.log(daemon).count('"flow"') == sent - lost, "the flow log has all the others")
