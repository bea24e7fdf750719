"""With which options the VPP of a runtime directory is started, and those of its last start."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ipsec_gw.errors import EngineError
from vpp_conf import lifecycle
from vpp_conf.lifecycle import VppStatus
from vpp_conf.paths import VppPaths
from vpp_conf.startup.drop_in import read_drop_in
from vpp_conf.startup.values import Needs
from vpp_conf.tuning.file import read_tuning


@dataclass(frozen=True, slots=True)
class StartOptions:
    """What an operator can say about a start. Without a path the default file is taken, if it is there."""

    needs: Needs = field(default_factory=Needs)
    drop_in: Path | None = None
    tuning: Path | None = None


def start(run_dir: Path, options: StartOptions) -> VppStatus:
    """:func:`vpp_conf.lifecycle.up`, and remember the options if that started a VPP."""
    state = lifecycle.up(
        run_dir, needs=options.needs, drop_in=read_drop_in(options.drop_in), tuning=read_tuning(options.tuning)
    )
    if state.seconds:
        remember(run_dir, options)
    return state


def start_again(run_dir: Path, options: StartOptions) -> VppStatus:
    """:func:`vpp_conf.lifecycle.restart`, and remember the options."""
    state = lifecycle.restart(
        run_dir, needs=options.needs, drop_in=read_drop_in(options.drop_in), tuning=read_tuning(options.tuning)
    )
    remember(run_dir, options)
    return state


def remember(run_dir: Path, options: StartOptions) -> None:
    """Keep them beside VPP's other files, until the next boot."""
    path = VppPaths(run_dir.resolve()).options
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths = {"drop_in": options.drop_in, "tuning": options.tuning}
    values = asdict(options.needs) | {name: str(path.absolute()) for name, path in paths.items() if path is not None}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(values, indent=2) + "\n")
    partial.replace(path)


def remembered(run_dir: Path) -> StartOptions:
    """Those of the last start here; the defaults where nothing was started yet.

    Raises EngineError if the file is there and cannot be read.
    """
    path = VppPaths(run_dir.resolve()).options
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        drop_in, tuning = (Path(name) if (name := values.pop(key, None)) else None for key in ("drop_in", "tuning"))
        values["interfaces"] = tuple(values["interfaces"])
        return StartOptions(Needs(**values), drop_in, tuning)
    except FileNotFoundError:
        return StartOptions()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise EngineError(
            f"{path} does not tell the options of the last start ({error}) - remove it, or use `ipsec-gw vpp down` and "
            "`up` with the options that are wanted"
        ) from None
