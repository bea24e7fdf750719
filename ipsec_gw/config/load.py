"""Read the configuration file. Every error names the file and the line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from ipsec_gw.config.model import Config
from ipsec_gw.errors import ConfigError

DEFAULT_PATH = Path("/etc/ipsec-gw/ipsec-gw.toml")


def load(path: Path | None) -> Config:
    """The configuration of ``path``, or of the default path if that exists, or the defaults.

    Raises ConfigError with ``file:line: what - way out``.
    """
    if path is None:
        if not DEFAULT_PATH.exists():
            return Config()
        path = DEFAULT_PATH
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}:1: cannot be read: {reason} - check the path and its permissions") from None
    try:
        return Config.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        raise ConfigError(f"{path}:{found[1] if found else 1}: not valid TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"]]
        line = _line_of(text, where)
        raise ConfigError(f"{path}:{line}: {'.'.join(where)}: {first['msg']}") from None


def _line_of(text: str, where: Sequence[str]) -> int:
    """The line that sets the option at this place: the deepest table header or key that matches, else line 1."""
    best, section = 1, ""
    depth = 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if header := re.fullmatch(r"\[+\s*([^\]]+?)\s*\]+\s*(#.*)?", line):
            section = header[1].replace('"', "").replace("'", "")
            path = section.split(".")
        elif key := re.match(r"([\w\-.\"']+)\s*=", line):
            path = [*([*section.split(".")] if section else []), *key[1].replace('"', "").replace("'", "").split(".")]
        else:
            continue
        if path == list(where[: len(path)]) and len(path) > depth:
            best, depth = number, len(path)
    return best
