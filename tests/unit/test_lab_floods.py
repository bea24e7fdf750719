"""Floods of the screens' scenario as scapy reads them, what nmap says, and the screens' configurations."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import raw

from ipsec_gw.config.load import load
from ipsec_gw.lab.floods import datagrams, echoes, from_nobody, syns
from ipsec_gw.lab.junk import Link
from ipsec_gw.lab.nmap import port_states
from ipsec_gw.lab.packets import intact, ip_packet, is_syn
from ipsec_gw.lab.scenarios.edge_rules import screens_rules
from ipsec_gw.lab.scenarios.scans import NOTHING, SCANS
from ipsec_gw.lab.scenarios.screens import BARE, FLOODS

LINK = Link(b"\2\0\0\0\0\1", b"\2\0\0\0\0\2")
VICTIM, VICTIM6 = IPv4Address("10.1.0.10"), IPv6Address("2001:db8:1::10")
COUNT = 64


def test_syns_are_of_both_families_and_from_nobody():
    frames = syns(LINK, [VICTIM, VICTIM6], 7400, COUNT, 1)
    assert [Ether(frame).type for frame in frames] == [0x0800, 0x86DD] * (COUNT // 2)
    for frame in frames:
        seen, packet = Ether(frame), ip_packet(frame[14:])
        assert (seen.src, seen.dst) == ("02:00:00:00:00:01", "02:00:00:00:00:02")
        assert (seen[TCP].dport, str(seen[TCP].flags)) == (7400, "S")
        assert (packet.destination, from_nobody(packet.source)) == ((VICTIM, VICTIM6)[packet.source.version == 6], True)
        assert is_syn(packet, 7400)
        assert intact(packet)
    assert len({ip_packet(frame[14:]).source for frame in frames}) == COUNT


@pytest.mark.parametrize(
    ("frames", "layer"),
    [(datagrams(LINK, VICTIM, 7900, COUNT, 2), UDP), (echoes(LINK, VICTIM, COUNT, 2), ICMP)],
    ids=["UDP", "ICMP"],
)
def test_other_floods_are_of_one_kind(frames, layer):
    for frame in frames:
        seen = Ether(frame)
        assert seen[IP].dst == str(VICTIM)
        assert from_nobody(IPv4Address(seen[IP].src))
        assert raw(seen) == frame
        rebuilt = seen.copy()
        del rebuilt[layer].chksum
        assert raw(rebuilt) == frame  # the checksum that scapy reckons
        assert (seen[layer].dport == 7900) if layer is UDP else (seen[layer].type == 8)


def test_the_same_seed_makes_the_same_flood():
    assert syns(LINK, [VICTIM], 1, COUNT, 3) == syns(LINK, [VICTIM], 1, COUNT, 3)
    assert syns(LINK, [VICTIM], 1, COUNT, 3) != syns(LINK, [VICTIM], 1, COUNT, 4)


@pytest.mark.parametrize("address", ["198.51.100.10", "198.20.0.1", "2001:db8:4::10", "2001:3::1"])
def test_others_are_somebody(address):
    made = IPv6Address(address) if ":" in address else IPv4Address(address)
    assert not from_nobody(made)


@pytest.mark.parametrize(
    ("flags", "port", "wanted"), [("S", 80, True), ("SA", 80, False), ("S", 81, False), ("A", 80, False)]
)
def test_only_a_syn_to_that_port_is_one(flags, port, wanted):
    packet = ip_packet(raw(IPv6(src="2001:2::1", dst="2001:db8:1::10") / TCP(dport=80, flags=flags)))
    assert is_syn(packet, port) is wanted
    assert not is_syn(ip_packet(raw(IP() / UDP(dport=80) / bytes(20))), 80)


SAID = """\
# Nmap 7.93 scan initiated as: nmap -sS -p 1-40
Host: 10.1.0.10 ()\tStatus: Up
Host: 10.1.0.10 ()\tPorts: 3/closed/tcp//compressnet///, 7/open|filtered/tcp//echo///\tIgnored State: filtered (38)
# Nmap done
"""


def test_ports_are_counted_by_state():
    assert port_states(SAID) == {"closed": 1, "open|filtered": 1, "filtered": 38}
    assert port_states("") == {}


@pytest.mark.parametrize("screens", [NOTHING, SCANS, FLOODS, BARE], ids=["nothing", "scans", "floods", "bare"])
@pytest.mark.parametrize("syn_check", [True, False])
def test_every_configuration_is_valid(tmp_path, screens, syn_check):
    file = tmp_path / "ipsec-gw.toml"
    file.write_text(screens_rules(screens, syn_check=syn_check))
    zones = {zone.name: zone for zone in load(file).firewall.zones}
    assert zones["untrust"].screen is not None
    assert zones["trust"].screen is None
    assert zones["untrust"].syn_check is syn_check
