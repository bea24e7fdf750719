"""The firewall's life under the daemon: with and without zones, interfaces that come and go, reload, restart, off."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing

import pytest

from ipsec_gw.observe.control import listening
from ipsec_gw.observe.sdnotify import OFF_CODE
from tests.integration.conftest import until
from tests.integration.firewall_world import (
    CLIENT,
    DMZ,
    GATEWAY,
    SERVER,
    FirewallBox,
    address,
    counted,
    exchange,
    firewall_box,
    nothing,
)
from xdp_steer.reasons import Reason

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")]

NOTHING = {"pins": "", "veth": "", "xdp": "", "qdisc": "", "rules": ""}
CAUGHT, FREE = 7001, 7000
NO_ZONES = '[gateway]\nengine = "kernel"\n'
BASE = """
[gateway]
engine = "kernel"
wan = ["wan0"]
[zones.lan]
interfaces = ["lan0"]
host_inbound = ["ping"]
[zones.wan]
interfaces = ["wan0"]
[applications.caught]
protocol = "udp"
destination_port = 7001
[[policies]]
name = "stop"
from = "lan"
to = "wan"
application = "caught"
action = "deny"
log = ["open"]
[[policies]]
name = "out"
from = "lan"
to = "wan"
action = "permit"
log = ["open", "close"]
[[nat.source]]
name = "masq"
from = "lan"
to = "wan"
translate = "interface"
"""
LIMITED = (
    BASE.replace("[zones.wan]", 'screen = "few"\n[zones.wan]')
    + """
[screens.few]
sessions_source = 1
[sessions.timeouts]
udp = 10
"""
)
WITH_DMZ = (
    BASE
    + """
[zones.dmz]
interfaces = ["dmz0"]
[[policies]]
name = "to-dmz"
from = "lan"
to = "dmz"
action = "permit"
log = ["close"]
"""
)


@pytest.fixture
def box() -> Iterator[FirewallBox]:
    with firewall_box() as made:
        yield made


def settings(box: FirewallBox) -> str:
    """What the firewall may change of the kernel's settings."""
    names = [f"net.ipv4.conf.{i}.{name}" for i in ("lan0", "wan0", "dmz0") for name in ("accept_local", "rp_filter")]
    return box.on(GATEWAY, "sysctl", *names, "net.ipv4.ip_forward")


def passes(box: FirewallBox, port: int = FREE, host: str = SERVER) -> None:
    """A datagram from the client gets there and back."""
    with closing(box.udp(host, port=port)) as server, closing(box.udp(CLIENT)) as client:
        exchange(client, (ADDRESS[host], port), server)


ADDRESS = {host: address(host, 2) for host in (SERVER, DMZ)}


def is_stopped(box: FirewallBox, rule: str = "stop", port: int = CAUGHT) -> None:
    """A datagram from the client is counted by the rule and does not get there."""
    with closing(box.udp(SERVER, port=port)) as server, closing(box.udp(CLIENT)) as client:
        counted(box, rule, lambda: client.sendto(b"x", (ADDRESS[SERVER], port)))
        assert nothing(server)


def test_without_zones_nothing_is_attached_and_the_commands_say_so(box: FirewallBox) -> None:
    box.write(NO_ZONES)
    box.run()
    assert box.traces() == NOTHING
    for words in (("show", "firewall"), ("show", "sessions")):
        done = box.gw(*words)
        assert done.returncode == 1
        assert "no firewall runs - define zones" in done.stderr
    assert (box.gw("plan").returncode, box.gw("reload").returncode) == (0, 0)
    box.write(BASE)
    for word in ("plan", "reload"):
        done = box.gw(word)
        assert done.returncode == 1
        assert "brings a firewall - restart the daemon" in done.stderr
    assert box.traces() == NOTHING
    passes(box, CAUGHT, DMZ)  # the server has no route to the client without NAT


def test_plan_reload_and_show(box: FirewallBox) -> None:
    box.write(BASE)
    child = box.run()
    passes(box)
    is_stopped(box)
    done = box.gw("plan")
    assert (done.returncode, done.stdout) == (0, "in sync\n")
    session = box.sessions(port=FREE)[0]

    box.write(BASE.replace("destination_port = 7001", "destination_port = 7002"))
    done = box.gw("plan")
    assert (done.returncode, done.stdout.splitlines()) == (2, ["policy stop: changed: services -udp/7001 +udp/7002"])
    assert box.gw("plan", "--json").returncode == 2
    is_stopped(box)  # a plan applies nothing
    done = box.gw("reload", "--json")
    assert (done.returncode, json.loads(done.stdout)["changes"]) == (
        0,
        ["policy stop: changed: services -udp/7001 +udp/7002"],
    )
    passes(box, CAUGHT)
    is_stopped(box, port=7002)
    done = box.gw("reload")
    assert (done.returncode, done.stdout) == (0, "nothing to change\n")
    assert [one["id"] for one in box.sessions(port=FREE)] == [session["id"]]

    shown = box.gw("show", "firewall")
    assert shown.returncode == 0, shown.stderr
    assert {"out", "stop", "masq"} <= set(shown.stdout.split())
    rules = {rule["name"]: rule for rule in json.loads(box.gw("show", "firewall", "--json").stdout)["rules"]}
    assert (rules["out"]["kind"], rules["masq"]["kind"]) == ("policy", "source-nat")
    assert rules["stop"]["packets"] == 3
    assert rules["masq"]["packets"] == rules["out"]["packets"] == 2

    shown = box.gw("show", "sessions")
    assert shown.returncode == 0, shown.stderr
    assert "lan > wan" in shown.stdout
    listed = json.loads(box.gw("show", "sessions", "--port", str(FREE), "--json").stdout)["sessions"]
    assert [(one["policy"], one["source"]["address"], one["natSource"]["address"]) for one in listed] == [
        ("out", "10.1.0.9", "192.0.2.1")
    ]
    assert listed[0]["forward"] == listed[0]["reverse"] == {"packets": 1, "bytes": 33}
    assert json.loads(box.gw("show", "sessions", "--prefix", "203.0.113.0/24", "--json").stdout)["sessions"] == []
    assert listed[0]["engine"] == "xdp"
    assert json.loads(box.gw("show", "sessions", "--engine", "kernel", "--json").stdout)["sessions"] == []
    assert json.loads(box.gw("show", "sessions", "--older", "3600", "--json").stdout)["sessions"] == []
    talkers = json.loads(box.gw("show", "sessions", "--port", str(FREE), "--top", "3", "--json").stdout)
    assert talkers["talkers"] == [{"address": "10.1.0.9", "sessions": 1, "packets": 2, "bytes": 66}]
    assert talkers["sessions"] == []
    refused = box.gw("show", "sessions", "--zone", "moon")
    assert refused.returncode == 1
    assert "no zone 'moon' - there are" in refused.stderr

    flows = [json.loads(line)["record"] for line in box.log(child).splitlines() if '"flow"' in line]
    opened = [(flow["event"], flow["policy"], flow["destinationPort"]) for flow in flows]
    assert ("create", "out", FREE) in opened
    assert ("deny", "stop", CAUGHT) in opened


def test_sessions_are_cleared(box: FirewallBox) -> None:
    box.write(BASE)
    child = box.run()
    passes(box)
    session = box.sessions(port=FREE)[0]
    assert box.gw("clear", "sessions").returncode == 2
    assert box.gw("clear", "sessions", "--port", "9").stdout == "0 sessions ended\n"
    assert box.gw("clear", "sessions", "--port", str(FREE)).stdout == "1 sessions ended\n"
    assert box.sessions(port=FREE) == []
    passes(box)
    assert box.sessions(port=FREE)[0]["id"] != session["id"]
    closed = [json.loads(line)["record"] for line in box.log(child).splitlines() if '"close"' in line]
    assert [(flow["reason"], flow["session"]) for flow in closed] == [("cleared", session["id"])]


def test_a_broken_configuration_is_refused_with_its_line_and_changes_nothing(box: FirewallBox) -> None:
    box.write(BASE)
    child = box.run()
    passes(box)
    session = box.sessions(port=FREE)[0]
    broken = BASE.replace('application = "caught"', 'application = "caugth"').replace('"permit"', '"deny"')
    path = box.write(broken)
    line = 1 + broken.splitlines().index('application = "caugth"')
    for words in (("reload",), ("plan",), ("reload", "--json")):
        done = box.gw(*words)
        assert done.returncode == 1
        assert f"{path}:{line}" in done.stderr
        assert "caugth" in done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
    path.write_text("[zones.lan\n")
    done = box.gw("reload")
    assert done.returncode == 1
    assert f"{path}:1" in done.stderr
    path.unlink()
    assert box.gw("reload").returncode == 1
    assert child.poll() is None
    passes(box)
    is_stopped(box)
    assert session["id"] in [one["id"] for one in box.sessions(port=FREE)]


def test_a_configuration_broken_at_the_start_attaches_nothing(box: FirewallBox) -> None:
    path = box.write(BASE.replace('to = "wan"', 'to = "wann"', 1))
    done = box.gw("run", "--vici", f"unix://{box.vici}")
    assert done.returncode == 2
    assert f"{path}:" in done.stderr
    assert box.traces() == NOTHING


def test_interfaces_that_come_and_go(box: FirewallBox) -> None:
    box.on(GATEWAY, "ip", "link", "set", "dmz0", "name", "hidden0")
    box.write(WITH_DMZ)
    child = box.run()
    assert box.ask("firewall")["missing"] == ["dmz0"]
    assert "dmz0: this interface does not exist" in box.gw("show", "firewall").stdout
    assert "interfaces of zones do not exist" in box.log(child)
    with closing(box.udp(DMZ, port=FREE)) as dmz, closing(box.udp(CLIENT)) as client:
        client.sendto(b"x", (ADDRESS[DMZ], FREE))  # no zone where it would leave: nothing gets there
        passes(box)
        assert nothing(dmz)

        box.on(GATEWAY, "ip", "link", "set", "hidden0", "name", "dmz0")
        until(lambda: box.ask("firewall")["missing"] == [], "the interface has come")
        until(lambda: "dmz0" in docked(box), "it is docked")
        exchange(client, (ADDRESS[DMZ], FREE), dmz)

    box.on(GATEWAY, "ip", "link", "del", "dmz0")
    until(lambda: box.ask("firewall")["missing"] == ["dmz0"], "the interface has gone")
    until(lambda: "dmz0" not in docked(box), "its dock has gone")
    passes(box)
    box.wire(GATEWAY, "dmz0", DMZ, "d0")
    box.addresses(GATEWAY, "dmz0", "10.2.0.1")
    box.addresses(DMZ, "d0", "10.2.0.9")
    box.route(DMZ, "default", "10.2.0.1")
    until(lambda: box.ask("firewall")["missing"] == [], "the interface is back")
    until(lambda: "dmz0" in docked(box), "it is docked again")
    passes(box, host=DMZ)
    assert child.poll() is None
    assert box.gw("off").returncode == 0
    assert box.traces() == NOTHING


def docked(box: FirewallBox) -> set[str]:
    return {dock["interface"] for dock in box.ask("status")["docks"]}


def test_off_leaves_no_trace(box: FirewallBox) -> None:
    before = settings(box)
    filters = box.sh("tc", "filter", "show", "dev", "lan0", "egress")
    box.write(WITH_DMZ)
    child = box.run()
    passes(box)
    assert settings(box) != before
    traces = box.traces()
    assert traces["pins"]
    assert traces["xdp"]
    assert traces["qdisc"]
    assert box.gw("off").returncode == 0
    assert child.wait(60) == OFF_CODE
    assert box.traces() == NOTHING
    assert settings(box) == before
    assert box.sh("tc", "filter", "show", "dev", "lan0", "egress") == filters
    passes(box, CAUGHT, DMZ)


def test_off_after_a_crash_leaves_no_trace(box: FirewallBox) -> None:
    before = settings(box)
    box.write(WITH_DMZ)
    box.stop(box.run(), signal.SIGKILL)
    assert settings(box) != before
    assert box.gw("off").returncode == 0
    assert box.traces() == NOTHING
    assert settings(box) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_restart_adopts_without_compiling(box: FirewallBox, number: int) -> None:
    before = settings(box)
    box.write(WITH_DMZ)
    first = box.run()
    assert "pipeline loaded" in box.log(first)
    with closing(box.udp(SERVER, port=FREE)) as server, closing(box.udp(CLIENT)) as client:
        exchange(client, (ADDRESS[SERVER], FREE), server)
        is_stopped(box)
        session, rules = box.sessions(port=FREE)[0], box.ask("firewall")["rules"]
        assert (box.stop(first, number) == 0) is (number == signal.SIGTERM)
        assert not listening(box.run_dir)
        exchange(client, (ADDRESS[SERVER], FREE), server)  # nobody is there, and it goes on
        with closing(box.udp(SERVER, port=CAUGHT)) as caught:
            client.sendto(b"x", (ADDRESS[SERVER], CAUGHT))
            exchange(client, (ADDRESS[SERVER], FREE), server)
            assert nothing(caught)
        second = box.run()
        assert "compiled" not in box.log(second)
        exchange(client, (ADDRESS[SERVER], FREE), server)
    kept = box.sessions(port=FREE)
    assert [one["id"] for one in kept] == [session["id"]]
    assert kept[0]["forward"]["packets"] == kept[0]["reverse"]["packets"] == 4
    expected = {rule["name"]: rule["packets"] + (rule["name"] == "stop") for rule in rules}
    assert {rule["name"]: rule["packets"] for rule in box.ask("firewall")["rules"]} == expected
    done = box.gw("plan")
    assert (done.returncode, done.stdout) == (0, "in sync\n")
    assert box.gw("off").returncode == 0
    assert box.traces() == NOTHING
    assert settings(box) == before, "the settings of before the first start"


def test_a_limit_of_sessions_outlives_a_restart_and_ends_with_the_session(box: FirewallBox) -> None:
    box.write(LIMITED.replace('screen = "few"', ""))
    first = box.run()
    with closing(box.udp(SERVER, port=FREE)) as server, closing(box.udp(CLIENT)) as client:
        exchange(client, (ADDRESS[SERVER], FREE), server)
        box.write(LIMITED)
        assert box.gw("reload").returncode == 0
        exchange(client, (ADDRESS[SERVER], FREE), server)
        is_one_too_many(box)  # the session from before the limit counts
        hits = {rule["name"]: rule["packets"] for rule in box.ask("firewall")["rules"] if rule["kind"] == "screen"}
        assert hits == {"lan sessions-source": 1}
        box.stop(first, signal.SIGKILL)
        box.run()
        exchange(client, (ADDRESS[SERVER], FREE), server)
        is_one_too_many(box)
    until(lambda: box.sessions(port=FREE) == [], "the session is over")
    until(lambda: gets_there(box), "its end has made room")  # what it counts the collector writes a moment later
    is_one_too_many(box)


def gets_there(box: FirewallBox) -> bool:
    """Whether a datagram from the client is let through."""
    with closing(box.udp(SERVER, port=FREE)) as server, closing(box.udp(CLIENT)) as client:
        server.settimeout(0.5)
        client.sendto(b"x", (ADDRESS[SERVER], FREE))
        try:
            return server.recv(1) == b"x"
        except TimeoutError:
            return False


def is_one_too_many(box: FirewallBox) -> None:
    """A datagram from the client is dropped by the limit."""
    before = box.verdict(Reason.SCREEN_SESSIONS_SOURCE)
    with closing(box.udp(SERVER, port=CAUGHT + 1)) as server, closing(box.udp(CLIENT)) as client:
        client.sendto(b"x", (ADDRESS[SERVER], CAUGHT + 1))
        until(lambda: box.verdict(Reason.SCREEN_SESSIONS_SOURCE) == before + 1, "the screen has counted")
        assert nothing(server)


def test_a_restart_with_another_configuration_ends_what_it_takes_away(box: FirewallBox) -> None:
    box.write(WITH_DMZ)
    first = box.run()
    passes(box)
    passes(box, host=DMZ)
    session = box.sessions(port=FREE, zone="wan")[0]
    box.stop(first)
    box.write(BASE)
    box.run()
    until(lambda: [one["id"] for one in box.sessions(port=FREE)] == [session["id"]], "the sessions of the zone end")
    assert docked(box) == {"lan0", "wan0", "ipsecgw-kd"}


def test_a_zone_that_is_removed_takes_its_sessions_along(box: FirewallBox) -> None:
    before = settings(box)
    box.write(WITH_DMZ)
    child = box.run()
    passes(box)
    passes(box, host=DMZ)
    kept, gone = box.sessions(zone="wan")[0], box.sessions(zone="dmz")[0]
    assert (kept["policy"], gone["policy"]) == ("out", "to-dmz")
    box.write(BASE)
    done = box.gw("reload")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["zone dmz: removed", "policy to-dmz: removed"]
    assert [one["id"] for one in box.sessions()] == [kept["id"]]
    assert docked(box) == {"lan0", "wan0", "ipsecgw-kd"}
    flows = [json.loads(line)["record"] for line in box.log(child).splitlines() if '"flow"' in line]
    closed = [flow for flow in flows if flow["event"] == "close"]
    assert [(flow["session"], flow["reason"]) for flow in closed] == [(gone["id"], "policy-removed")]
    assert (closed[0]["policy"], closed[0]["toZone"]) == ("to-dmz", "dmz"), "names, though they are gone"
    assert [line for line in settings(box).splitlines() if "dmz0" in line] == [
        line for line in before.splitlines() if "dmz0" in line
    ]


@pytest.mark.parametrize("engine", ["soft", "kernel"])
def test_without_zones_after_a_restart_the_firewall_is_off(box: FirewallBox, engine: str) -> None:
    before = settings(box)
    box.write(WITH_DMZ.replace('"kernel"', f'"{engine}"'))
    first = box.run()
    passes(box, host=DMZ)
    is_stopped(box)
    box.write('[gateway]\nwan = ["wan0"]\n' + f'engine = "{engine}"\n')
    done = box.gw("reload")
    assert done.returncode == 1
    assert "takes the firewall away - restart the daemon" in done.stderr
    is_stopped(box)
    box.stop(first)
    box.run()
    assert docked(box) & {"lan0", "dmz0"} == set()
    box.route(SERVER, "10.1.0.0/24", "192.0.2.1")
    passes(box, CAUGHT)
    passes(box, CAUGHT, DMZ)
    assert {**box.traces(), "xdp": "", "pins": "", "qdisc": "", "veth": "", "rules": ""} == NOTHING
    assert [line for line in settings(box).splitlines() if "wan0" not in line] == [
        line for line in before.splitlines() if "wan0" not in line
    ]
    assert box.gw("off").returncode == 0
    assert settings(box) == before
