"""What another XDP firewall got wrong, part by part, with the tests that it does not happen here, or why it cannot.

P: found and fixed there, N: found by reading. Tests are named by file (below ``tests``) and function; those that were
written for an entry begin with its number.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ENTRIES = (*(f"P{n}" for n in range(1, 24)), *(f"N{n}" for n in range(1, 16)))
NUMBERED = re.compile(r"test_([pn]\d+)_")

FIREWALL = "bpf/test_firewall_regressions.py"
NAT64 = "bpf/test_firewall_nat64.py"
DOCKS = "bpf/test_xdp_gateway.py"
LAYOUT = "unit/test_xdp_layout.py"
PORTS = "unit/test_ports.py"


@dataclass(frozen=True, slots=True)
class Part:
    """One defect of an entry: the tests in one file, or the reason why there is nothing to test."""

    entry: str
    what: str
    file: str = ""
    tests: tuple[str, ...] = ()
    reason: str = ""


def shown(entry: str, what: str, file: str, *tests: str) -> Part:
    return Part(entry, what, file, tests)


def impossible(entry: str, what: str, reason: str) -> Part:
    return Part(entry, what, reason=reason)


PARTS = (
    shown(
        "P1",
        "translation breaks checksums that are left to hardware, redirecting leaves them unfinished",
        FIREWALL,
        "test_p1_partial_checksum_survives_translation_and_is_never_redirected",
        "test_p1_a_port_that_can_be_redirected_to_may_still_be_fed_by_hardware",
    ),
    shown(
        "P1",
        "native XDP as a fact of all interfaces",
        PORTS,
        "test_p1_generic_xdp_of_one_interface_is_no_fact_of_another",
    ),
    shown("P2", "NAT64 makes whole checksums of partial ones", NAT64, "test_p2_partial_checksums_stay_partial"),
    shown("P2", "NAT64 sums 128 bytes of an echo", NAT64, "test_p2_an_echo_is_summed_to_its_end"),
    shown("P3", "what misses a stage gets past the firewall", FIREWALL, "test_p3_a_missing_stage_drops"),
    shown(
        "P3",
        "the kernel empties program arrays when the daemon goes",
        DOCKS,
        "test_opening_again_adopts_without_gap_and_without_compiling",
    ),
    shown(
        "P4",
        "a RST is believed whatever its sequence number",
        FIREWALL,
        "test_p4_a_forged_rst_ends_no_session_whichever_way_it_is_found",
    ),
    shown("P5", "packets keep closed sessions", FIREWALL, "test_p5_packets_do_not_keep_a_closed_session_alive"),
    shown(
        "P6",
        "without a neighbour packets leave by the kernel untranslated or unjudged",
        FIREWALL,
        "test_p6_a_packet_without_neighbour_is_judged_and_translated",
    ),
    shown(
        "P6",
        "nobody asks for the neighbour",
        "integration/test_firewall_traffic.py",
        "test_permit_without_nat",
        "test_source_nat",
    ),
    shown(
        "P7",
        "TTL after translation, or of translated flows alone",
        FIREWALL,
        "test_p7_ttl_is_looked_at_before_translation",
    ),
    shown(
        "P8",
        "NAT to the address of another interface or a pool",
        FIREWALL,
        "test_p8_interface_nat_uses_the_vlan_that_the_packet_leaves_by",
    ),
    shown(
        "P9",
        "unknown services of the gateway, echo replies, NDP and broadcasts",
        FIREWALL,
        "test_p9_unknown_services_of_this_machine_are_denied",
        "test_p9_neighbour_discovery_needs_no_service",
        "test_p9_broadcasts_are_not_routed",
    ),
    shown(
        "P10",
        "replies are not translated back, sessions are keyed by what a packet became",
        FIREWALL,
        "test_p10_replies_are_translated_back_when_only_one_side_was",
    ),
    shown(
        "P11",
        "a reload or restart gives other numbers",
        FIREWALL,
        "test_p11_sessions_and_numbers_outlive_a_changed_ruleset",
        "test_p11_numbers_do_not_depend_on_the_order",
    ),
    shown(
        "P11",
        "rules are emptied and filled again, programs hold before they are full",
        "bpf/test_firewall_apply.py",
        "test_an_apply_fills_the_other_bank_and_switches",
        "test_a_failure_at_any_step_leaves_the_old_bank_or_the_new_one",
    ),
    shown(
        "P11",
        "traffic stops meanwhile",
        "integration/test_firewall_hitless.py",
        "test_reloads_lose_nothing",
        "test_kills_and_restarts_lose_nothing",
    ),
    shown("P12", "byte order", FIREWALL, "test_p12_byte_order_of_ports_and_addresses"),
    shown("P12", "padding of structures differs", LAYOUT, "test_a_structure_that_differs_is_refused"),
    shown(
        "P13",
        "answers lose their tag, tag 0 is a VLAN, TC looks into the wrong zone",
        FIREWALL,
        "test_p13_answers_keep_their_tag",
        "test_p13_a_priority_tag_is_no_vlan",
        "test_p13_the_zone_on_egress_is_that_of_the_tag",
    ),
    shown(
        "P13",
        "TC does not see a tag that is beside the packet: the kernel's own VLANs",
        "integration/test_firewall_traffic.py",
        "test_a_vlan_is_a_zone",
    ),
    shown(
        "P14",
        "screens take fragments for bad segments, miss scans, and never strike",
        FIREWALL,
        "test_p14_fragments_without_flags_are_no_bad_segments",
        "test_p14_fragments_without_flags_hit_no_screen_for_flags",
        "test_p14_no_flag_is_seen_in_an_established_session",
        "test_p14_a_syn_in_fragments_is_dropped",
        "test_p14_a_ping_of_death_is_more_than_16_bits_hold",
        "test_p14_a_sweep_with_acks_alone_is_one",
    ),
    shown(
        "P14",
        "who acknowledges a cookie is believed with all its network",
        "bpf/test_syn_cookies.py",
        "test_who_acknowledges_a_cookie_is_believed",
        "test_a_cookie_is_good_for_its_connection_alone",
    ),
    shown(
        "P15",
        "CPUs give the same port twice",
        FIREWALL,
        "test_p15_no_two_flows_get_the_same_translated_tuple",
    ),
    shown("P15", "DNS replies pass by policies", FIREWALL, "test_p15_what_looks_like_a_dns_reply_needs_a_session"),
    shown(
        "P16",
        "TC lets out what XDP has not seen, or asks metadata of XDP that is gone by then",
        FIREWALL,
        "test_p16_no_protocol_is_forwarded_without_xdp_having_seen_it",
    ),
    shown("P17", "SYN-ACKs are not clamped", FIREWALL, "test_p17_the_syn_ack_is_clamped_too"),
    shown(
        "P17",
        "options at the end of a header are not clamped",
        "bpf/test_firewall_tcp.py",
        "test_the_mss_is_lowered_in_both_directions",
        "test_what_is_no_option_list_is_left_alone",
    ),
    shown(
        "P17",
        "packets without Ethernet header, known as such",
        PORTS,
        "test_p17_an_interface_without_ethernet_is_known_as_one",
    ),
    shown(
        "P17",
        "packets without Ethernet header, in and out",
        "integration/test_firewall_routed.py",
        "test_a_flow_comes_in_and_its_answers_go_out",
        "test_a_flow_goes_out",
    ),
    shown(
        "P17",
        "translated packets are refused as the gateway's own (accept_local)",
        "integration/test_firewall_traffic.py",
        "test_hairpin",
        "test_source_nat",
    ),
    shown("P18", "tables end before the number of an interface", FIREWALL, "test_p18_interface_numbers_may_be_high"),
    impossible(
        "P18", "DEVMAP_HASH breaks mlx5", "packets are redirected by interface number, without any map of devices"
    ),
    shown(
        "P18",
        "one interface without native XDP has all of them generic, links keep a mode that is not theirs",
        DOCKS,
        "test_p18_an_interface_without_native_xdp_leaves_the_others_native",
    ),
    shown(
        "P18",
        "redirected to an interface that cannot send",
        PORTS,
        "test_p18_packets_are_redirected_only_to_drivers_that_send_them",
    ),
    impossible(
        "P18",
        "a PF does not see the traffic of its VFs",
        "VFs are interfaces of their own; TC drops what is forwarded without XDP (P16)",
    ),
    shown("P19", "XDP on a VLAN's own interface breaks NDP", PORTS, "test_p19_a_vlan_comes_in_by_the_interface_below"),
    shown("P19", "a tail call always fails silently", DOCKS, "test_dock_and_pipeline_programs_share_an_array"),
    shown(
        "P20",
        "programs that the verifier gives up on",
        FIREWALL,
        "test_p20_no_program_is_near_what_the_verifier_looks_at",
    ),
    shown(
        "P20",
        "programs that it refuses are not told",
        DOCKS,
        "test_a_program_that_the_kernel_refuses_is_named_with_what_the_verifier_says",
    ),
    impossible(
        "P21", "dead IPv6 code slows down IPv4", "not a matter of right or wrong: bench.pipeline has cases of both"
    ),
    shown("P21", "programs that print", LAYOUT, "test_p21_no_program_prints"),
    shown(
        "P22",
        "without room in a socket packets leak to the kernel, which answers them",
        "bpf/test_xdp_xsk.py",
        "test_p22_what_finds_no_room_never_reaches_the_kernel",
    ),
    shown("P22", "a UMEM of any size", "bpf/test_xdp_xsk.py", "test_refusals_name_what_is_wrong"),
    impossible(
        "P22",
        "sockets bind in another mode than XDP has",
        "no mode is asked for: the kernel and VPP choose it when they bind",
    ),
    impossible(
        "P22",
        "zero-copy is dead after the link was down",
        "a driver's matter that no test here can show: a veth has no zero-copy",
    ),
    shown(
        "P23",
        "fast paths that differ from the slow one",
        "differential/test_differential.py",
        "test_datapath_does_what_the_reference_does",
    ),
    shown("N1", "prefixes are stored byte-swapped", FIREWALL, "test_n1_prefixes_that_are_no_palindromes_match"),
    shown("N2", "the second packet of a NAT64 flow is dropped", NAT64, "test_n2_every_packet_of_a_flow_passes"),
    shown("N2", "state of NAT64 is never collected", NAT64, "test_n2_nothing_stays_of_a_session_that_has_ended"),
    shown("N3", "rules share counters", FIREWALL, "test_n3_every_rule_of_every_zone_pair_counts_for_itself"),
    shown(
        "N4",
        "IPv6 sources are mixed up, limits never end",
        FIREWALL,
        "test_n4_sources_of_ipv6_are_told_apart_by_all_of_their_address",
        "test_n4_a_limited_source_is_let_in_again",
    ),
    shown("N5", "NAT writes into the payload of fragments", FIREWALL, "test_n5_later_fragments_keep_their_payload"),
    shown(
        "N6",
        "Packet Too Big is neither made nor translated",
        FIREWALL,
        "test_n6_packet_too_big_comes_through_and_is_made",
    ),
    shown(
        "N7",
        "the excess bucket never fills",
        "bpf/test_policers.py",
        "test_the_excess_bucket_gets_only_what_the_other_has_no_room_for",
    ),
    shown(
        "N8",
        "thresholds are each CPU's own, and egress ends their windows",
        FIREWALL,
        "test_n8_a_threshold_is_one_for_all_cpus",
        "test_n8_what_leaves_is_not_counted_with_what_comes_in",
    ),
    impossible(
        "N9", "GRE is added to a zone's services", "there are no GRE tunnels, and nothing is added to a zone's services"
    ),
    shown(
        "N9",
        "what is added takes away the zone, its screens or its other services",
        FIREWALL,
        "test_n9_what_is_always_let_in_leaves_its_zone_as_it_is",
    ),
    shown(
        "N10", "copies are made of changed packets", "bpf/test_filters.py", "test_a_copy_is_the_packet_as_it_arrived"
    ),
    shown(
        "N11",
        "SYNs meet sessions that have ended, expired ones match",
        FIREWALL,
        "test_n11_a_syn_starts_anew_where_a_session_ended",
        "test_n11_an_expired_entry_matches_nothing",
    ),
    shown("N12", "ICMP errors of no session pass", FIREWALL, "test_n12_icmp_errors_without_a_session_go_nowhere"),
    shown("N13", "a session forgets NPTv6", "bpf/test_firewall_nptv6.py", "test_out_and_back"),
    shown(
        "N14",
        "rules of source NAT spill into other zones",
        FIREWALL,
        "test_n14_many_source_nat_rules_of_a_zone_pair_stay_in_it",
    ),
    shown("N15", "VRRP cannot be allowed", FIREWALL, "test_n15_vrrp_is_a_service_like_others"),
)


@cache
def functions(path: Path) -> frozenset[str]:
    """The functions of a file of tests."""
    tree = ast.parse(path.read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_has_tests_or_a_reason(entry: str) -> None:
    parts = [part for part in PARTS if part.entry == entry]
    assert parts, f"{entry} is forgotten"
    for part in parts:
        assert bool(part.tests) != bool(part.reason), f"{entry}, {part.what}: a test or a reason"
        missing = set(part.tests) - functions(TESTS / part.file) if part.tests else set()
        assert not missing, f"{part.file} has no {', '.join(sorted(missing))}"


def test_there_are_no_other_entries() -> None:
    assert {part.entry for part in PARTS} == set(ENTRIES)


def test_tests_with_a_number_are_in_the_list() -> None:
    """And at their own entry."""
    listed = {(part.file, test) for part in PARTS for test in part.tests}
    numbered = {
        (str(path.relative_to(TESTS)), name)
        for path in TESTS.rglob("test_*.py")
        for name in functions(path)
        if NUMBERED.match(name)
    }
    assert numbered - listed == set()
    for part in PARTS:
        for name in part.tests:
            number = NUMBERED.match(name)
            assert number is None or number[1].upper() == part.entry, f"{name} is not of {part.entry}"
