"""Read the configuration file. Every error names the file and the line, and all of them are told at once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from ipsec_gw.config.context import tables
from ipsec_gw.config.model import Config, ConnectionConfig, EngineChoice, GatewayConfig
from ipsec_gw.config.positions import Path, lines_of
from ipsec_gw.config.problems import InvalidConfig, Problem, Report
from ipsec_gw.config.resolve import TABLES, resolve_firewall
from ipsec_gw.config.section import read, unknown
from ipsec_gw.config.vpp_pools import check_engine

DEFAULT_PATH = FilePath("/etc/ipsec-gw/ipsec-gw.toml")
_TOP_LEVEL = ["gateway", "connections", *TABLES]
_INT64 = range(-(1 << 63), 1 << 63)


def load(path: FilePath | None) -> Config:
    """The configuration of ``path``, or of the default path if that exists, or the defaults.

    Raises InvalidConfig, a ConfigError, with one line ``file:line: option: what - way out`` for each error.
    """
    if path is None:
        if not DEFAULT_PATH.exists():
            return Config()
        path = DEFAULT_PATH
    raw, report = _parse(path)
    for name in raw:
        if name not in _TOP_LEVEL:
            report.refuse((name,), unknown(name, _TOP_LEVEL, "table"))
    gateway = read(GatewayConfig, raw.get("gateway", {}), ("gateway",), report) or GatewayConfig()
    connections = _connections(raw.get("connections", {}), report)
    firewall = resolve_firewall(raw, gateway.wan, report)
    if firewall is not None and gateway.engine in (EngineChoice.KERNEL, EngineChoice.SOFT):
        check_engine(firewall.pools, gateway.engine, report)
    report.give()
    return Config(gateway=gateway, connections=connections, firewall=firewall)


def _connections(raw: object, report: Report) -> dict[str, ConnectionConfig]:
    found = {}
    for name, value in tables(raw, ("connections",), report).items():
        connection = read(ConnectionConfig, value, ("connections", name), report)
        if connection is not None:
            found[name] = connection
    return found


def _parse(path: FilePath) -> tuple[Mapping[str, Any], Report]:
    """The tables of a file and an empty report on it. Raises InvalidConfig."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise _unusable(path, 1, f"cannot be read: {reason}", "check the path and its permissions") from None
    try:
        raw = tomllib.loads(text)
        report = Report(str(path), lines_of(text))
    except RecursionError:
        raise _unusable(path, 1, "not valid TOML: nested too deep", "take some brackets out") from None
    except ValueError as error:
        found = re.search(r"\(at line (\d+)", str(error))
        line = int(found[1]) if found else text.count("\n", 0, len(text.rstrip())) + 1
        raise _unusable(path, line, f"not valid TOML: {error}", "correct it there or on the line before") from None
    for place in _beyond_64_bits(raw):
        report.add(place, "the number does not fit into 64 bits", "write a smaller one")
    report.give()
    return raw, report


def _beyond_64_bits(value: object, place: Path = ()) -> list[Path]:
    """Integers that TOML does not have and Python does."""
    if isinstance(value, dict):
        return [path for key, inner in value.items() for path in _beyond_64_bits(inner, (*place, key))]
    if isinstance(value, list):
        return [path for index, inner in enumerate(value) for path in _beyond_64_bits(inner, (*place, index))]
    return [place] if isinstance(value, int) and value not in _INT64 else []


def _unusable(path: FilePath, line: int, message: str, way_out: str) -> InvalidConfig:
    return InvalidConfig([Problem(str(path), line, "", message, way_out)])
