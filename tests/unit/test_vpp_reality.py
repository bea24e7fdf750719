"""A running VPP beside the plan that it was started with. The texts are those of VPP 26.06."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.machines import probe
from vpp_conf.reality import parse_buffers, parse_engines, parse_plugins
from vpp_conf.startup.expectation import (
    Expectation,
    Observation,
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
    )
    assert differing(planned, actual) == {
        "cpu main-core": "0",
        "cpu corelist-workers": "3-9",
        "plugins": "without dpdk_plugin.so",
        "crypto-engines ipsecmb": "missing",
        "crypto-engines dpdk_cryptodev": "missing",
        "crypto handler aes-128-gcm": "native",
        "buffers": str(planned.buffers - 1),
        "buffers default data-size": "1024",
    }


def test_what_cannot_be_read_is_not_compared(planned: Expectation) -> None:
    actual = replace(as_planned(planned), buffers=None, data_bytes=None, handlers={})
    names = {check.name for check in compare(planned, actual)}
    assert not [name for name in names if name.startswith(("buffers", "crypto handler"))]


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
