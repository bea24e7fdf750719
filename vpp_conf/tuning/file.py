"""The file that a run is kept in, from which the plan of VPP's start takes its crypto handlers. JSON.

``median``, ``ratio`` and ``gigabits`` are for readers; ``choices`` is what holds.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ipsec_gw.errors import ConfigError, EnvironmentMissing
from vpp_conf.tuning.choice import async_ratio, ratio, reason
from vpp_conf.tuning.values import Choice, Measurement, Subject, Tuning, Work

DEFAULT_TUNING = Path("/var/lib/ipsec-gw/crypto-engines.json")
"""It outlives the boot, other than the runtime directory."""

FORMAT = 2
WAY_OUT = "run `ipsec-gw vpp tune` again, or remove the file"


def describe_tuning(tuning: Tuning) -> dict[str, Any]:
    """All of a run as plain values."""
    return {
        "format": FORMAT,
        "cpu": tuning.subject.cpu,
        "vpp": tuning.subject.vpp,
        "engines": list(tuning.subject.engines),
        "measuredAt": tuning.measured_at.isoformat(),
        "clockHz": tuning.clock_hz,
        "packets": tuning.packets,
        "measurements": [
            {
                "algorithm": one.algorithm,
                "engine": one.engine,
                "bytes": one.size,
                "work": one.work.value,
                "clocks": list(one.clocks),
                "median": one.median,
                "ratio": ratio(tuning.measurements, one.algorithm, one.engine, one.size, one.work),
                "gigabits": tuning.gigabits(one),
            }
            for one in tuning.measurements
        ],
        "choices": [
            {
                "algorithm": one.algorithm,
                "engine": one.engine,
                "reason": reason(tuning, one),
                "asyncRatio": async_ratio(tuning.measurements, one.algorithm, one.engine),
            }
            for one in tuning.choices
        ],
    }


def parse_tuning(text: str, source: str) -> Tuning:
    """The inverse. Raises ConfigError naming the source, and the line where JSON itself is broken."""
    try:
        fields: dict[str, Any] = json.loads(text)
        if fields["format"] != FORMAT:
            raise ValueError(f"its format is {fields['format']!r}, not {FORMAT}")
        return Tuning(
            subject=Subject(str(fields["cpu"]), str(fields["vpp"]), tuple(str(engine) for engine in fields["engines"])),
            measured_at=datetime.fromisoformat(fields["measuredAt"]),
            clock_hz=float(fields["clockHz"]),
            packets=int(fields["packets"]),
            measurements=tuple(
                Measurement(
                    str(one["algorithm"]),
                    str(one["engine"]),
                    int(one["bytes"]),
                    tuple(float(clocks) for clocks in one["clocks"]),
                    Work(one["work"]),
                )
                for one in fields["measurements"]
            ),
            choices=tuple(Choice(str(one["algorithm"]), str(one["engine"])) for one in fields["choices"]),
        )
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source}:{error.lineno}: this is no JSON ({error.msg}) - {WAY_OUT}") from None
    except KeyError as error:
        raise ConfigError(f"{source}: {error.args[0]!r} is missing - {WAY_OUT}") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{source}: not what a run of tune writes ({error}) - {WAY_OUT}") from None


def read_tuning(path: Path | None) -> Tuning | None:
    """The file that is named; without a name the default one, if it is there. Raises ConfigError naming the file."""
    if path is None and not DEFAULT_TUNING.exists():
        return None
    file = path or DEFAULT_TUNING
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}) - {WAY_OUT}") from None
    return parse_tuning(text, str(file))


def check_writable(path: Path) -> None:
    """Make the folder and try it, before minutes are spent. Raises EnvironmentMissing naming the file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise EnvironmentMissing(f"{path} cannot be written ({error}) - name another file by --output") from None


def write_tuning(tuning: Tuning, path: Path) -> None:
    """All of the file or nothing. Raises EnvironmentMissing naming the file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(describe_tuning(tuning), indent=2) + "\n")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise EnvironmentMissing(f"{path} cannot be written ({error}) - name another file by --output") from None
