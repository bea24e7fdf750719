"""A running VPP beside the plan that it was started with. The texts are those of VPP 26.06."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.machines import probe
from vpp_conf.reality import parse_buffers, parse_engines, parse_plugins
from vpp_conf.show_text import parse_assigned, parse_buffer_page, parse_heap_page, parse_zero_copy
from vpp_conf.startup.expectation import (
    Expectation,
    Observation,
    Sockets,
    compare,
    expect,
    expectation_from_json,
    expectation_to_json,
)
from vpp_conf.startup.plan import plan_startup

PLUGINS = """ Plugin path is: /usr/lib/x86_64-linux-gnu/vpp_plugins, plugins shown in load order

     Plugin                                   Version                          Description
  1. af_xdp_plugin.so                         26.06-release                    AF_XDP Device Plugin
  2. dpdk_plugin.so                           26.06-release                    Data Plane Development Kit (DPDK)
"""

ENGINES = """Name                Prio    Description
native              100     Native ISA Optimized Crypto
ipsecmb             80      Intel(R) Multi-Buffer Crypto for IPsec Library 2.0
openssl             50      OpenSSL
"""

BUFFERS = """Pool Name            Index NUMA  Size  Data Size  Total  Avail  Cached   Used
default-numa-0         0     0   2304     2048    8244    7700     64      480
default-numa-1         1     1   2304     2048    8000    8000      0       0
"""


MEMORY = """
StartAddr          size   FD PageSz  Pages Numa0 NotPop Name
00007f9f229ee000   512m          2M 131072 44416  86656 main heap
00007f9f207ea000    32m    5     4K   8192   157   8035 stat segment
"""

PHYSMEM = """ used-pages 23 reserved-pages 8192 default-page-size 2M lookup-page-size 4K
   arena 'buffers-numa-0' pages 23 subpage-size 2M numa-node 0 shared fd 6
   arena 'buffers-numa-1' pages 23 subpage-size 4K numa-node 1 shared fd 7
"""

HARDWARE = """              Name                Idx   Link  Hardware
local0                             0    down  local0
  Link speed: unknown
  local
xdp-eno1                           1     up   xdp-eno1
  Link speed: unknown
  RX Queues:
    queue thread         mode
    0     vpp_wk_0 (1)   polling
  Ethernet address 3c:fd:fe:a0:00:01
  netdev eno1
    flags: initialized admin-up link-up zero-copy
xdp-ipsecgw-vp                     2     up   xdp-ipsecgw-vp
  Link speed: unknown
  netdev ipsecgw-vp
    flags: initialized admin-up link-up
"""

ASSIGNMENT = """No.  Name                     Queue-id  Assigned-to
0    0000:6b:00.1_qat_sym     0         1 (vpp_wk_0)
1    0000:6b:00.1_qat_sym     1         2 (vpp_wk_1)
2    0000:6b:00.2_qat_sym     0         free
Cryptodev Data Path API used: RAW Data Path API
"""
"""As ``plugins/dpdk/cryptodev/cli.c`` prints it: no QAT was at hand."""


@pytest.fixture
def planned() -> Expectation:
    return expect(plan_startup(probe("xeon-one-socket-qat")), frozenset())


def as_planned(planned: Expectation) -> Observation:
    return Observation(
        main_core=planned.main_core,
        workers=planned.workers,
        engines=frozenset(planned.engines),
        handlers=dict(planned.handlers),
        plugins=frozenset(planned.plugins) | {"other_plugin.so"},
        buffers=planned.buffers + 17,
        data_bytes=planned.data_bytes,
        buffer_page=planned.buffer_page,
        heap_page=planned.heap_page,
        queue_pairs=planned.queue_pairs,
        online=frozenset(range(64)),
        interfaces={
            name: Sockets(one.queues, frozenset({"polling"}), one.zero_copy, one.placement)
            for name, one in planned.interfaces.items()
        },
        sockets={one.name: one.permissions for one in planned.sockets},
        dumps=False,
    )


def differing(planned: Expectation, actual: Observation) -> dict[str, str]:
    return {check.name: check.actual for check in compare(planned, actual) if not check.holds}


def test_the_file_beside_vpp_keeps_everything(planned: Expectation) -> None:
    assert planned.handlers
    assert expectation_from_json(expectation_to_json(planned)) == planned


@pytest.mark.parametrize("text", ["", "{}", "[]", '"x"', '{"workers": 3}', '{"main_core": 1}'])
def test_a_file_that_is_something_else_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"not what|Expecting"):
        expectation_from_json(text)


def test_a_vpp_that_is_as_planned(planned: Expectation) -> None:
    checks = compare(planned, as_planned(planned))
    assert differing(planned, as_planned(planned)) == {}
    assert {"cpu main-core", "cpu corelist-workers", "plugins", "buffers", "crypto-engines dpdk_cryptodev"} <= {
        check.name for check in checks
    }
    assert all(check.way_out for check in checks)


def test_everything_that_differs_is_found(planned: Expectation) -> None:
    actual = replace(
        as_planned(planned),
        main_core=0,
        workers=planned.workers[1:],
        engines=frozenset({"native", "openssl"}),
        handlers={"aes-128-gcm": "native", "aes-256-gcm": "ipsecmb"},
        plugins=frozenset({"af_xdp_plugin.so"}),
        buffers=planned.buffers - 1,
        data_bytes=1024,
        buffer_page="4K",
        heap_page="4K",
        queue_pairs=planned.queue_pairs - 1,
        interfaces={
            "eno1": Sockets(8, frozenset({"interrupt"}), zero_copy=False, placement=(0, 0, 1, 1, 2, 2, 3, 3)),
            "ipsecgw-vp": Sockets(3, frozenset({"polling"}), zero_copy=False),
            "wan9": Sockets(1, frozenset({"polling", "interrupt"}), zero_copy=True),
        },
        sockets={"api.sock": "0775 root", "stats.sock": "0600 root"},
        dumps=True,
    )
    assert differing(planned, actual) == {
        "buffers page-size": "4K",
        "memory main-heap-page-size": "4K",
        "dpdk queue pairs": "7 in use",
        "af_xdp eno1": "8 queues, interrupt, copies, by workers 0 0 1 1 2 2 3 3",
        "af_xdp wan9": "1 queue, interrupt and polling, zero-copy",
        "socket api.sock": "0775 root",
        "socket cli.sock": "missing",
        "core dumps": "on",
        "cpu main-core": "0",
        "cpu corelist-workers": "3-9",
        "plugins": "without nat_plugin.so gre_plugin.so vxlan_plugin.so dpdk_plugin.so",
        "crypto-engines ipsecmb": "missing",
        "crypto-engines dpdk_cryptodev": "missing",
        "crypto handler aes-128-gcm": "native",
        "buffers": str(planned.buffers - 1),
        "buffers default data-size": "1024",
    }


def test_a_core_that_went_offline_is_named(planned: Expectation) -> None:
    gone = planned.workers[1]
    actual = replace(as_planned(planned), workers=planned.workers[:1], online=frozenset(range(64)) - {gone})
    check = next(one for one in compare(planned, actual) if one.name == "cpu corelist-workers")
    assert not check.holds
    assert f"echo 1 > /sys/devices/system/cpu/cpu{gone}/online" in check.way_out
    unknown = replace(actual, online=frozenset())
    assert "taskset" in next(one for one in compare(planned, unknown) if one.name == check.name).way_out


def test_without_qat_its_queue_pairs_are_not_asked_for(planned: Expectation) -> None:
    without = replace(planned, queue_pairs=0)
    assert "dpdk queue pairs" not in {one.name for one in compare(without, as_planned(planned))}


def test_what_cannot_be_read_is_not_compared(planned: Expectation) -> None:
    actual = replace(as_planned(planned), buffers=None, data_bytes=None, handlers={}, heap_page=None)
    actual = replace(actual, buffer_page=None, queue_pairs=None)
    names = {check.name for check in compare(planned, actual)}
    assert not [name for name in names if name.startswith(("buffers", "crypto handler", "memory", "dpdk"))]


@pytest.mark.parametrize(
    ("setting", "check"),
    [
        ("cpu main-core", "cpu main-core"),
        ("buffers buffers-per-numa", "buffers"),
        ("buffers default data-size", "buffers default data-size"),
        ("plugins plugin dpdk_plugin.so", "plugins"),
        ("crypto-engines ipsecmb", "crypto-engines ipsecmb"),
        ("crypto-engines default", "crypto-engines native"),
    ],
)
def test_what_the_operator_decided_is_not_compared(planned: Expectation, setting: str, check: str) -> None:
    assert check in {one.name for one in compare(planned, as_planned(planned))}
    theirs = replace(planned, theirs=(setting,))
    assert check not in {one.name for one in compare(theirs, as_planned(planned))}


def test_the_texts_of_vpp() -> None:
    assert parse_plugins(PLUGINS) == {"af_xdp_plugin.so", "dpdk_plugin.so"}
    assert parse_engines(ENGINES) == {"native", "ipsecmb", "openssl"}
    assert parse_engines("No crypto engines registered\n") == frozenset()
    assert parse_buffers(BUFFERS) == (16244, 2048)
    assert parse_buffers("") == (None, None)
    assert (parse_heap_page(MEMORY), parse_heap_page("")) == ("2M", None)
    assert (parse_buffer_page(PHYSMEM), parse_buffer_page("")) == ("4K", None)
    assert parse_zero_copy(HARDWARE) == {"eno1": True, "ipsecgw-vp": False}
    assert (parse_assigned(ASSIGNMENT), parse_assigned("No.  Name\n(nil)\n")) == (2, 0)
