"""Kernel headers for BCC where the running kernel has none installed.

The programs use stable packet headers only, so those of any distribution kernel do. Debian splits them: the
``-amd64`` tree has the generated half and its Makefile names the ``-common`` tree with the rest; BCC accepts only the
latter as BCC_KERNEL_SOURCE and is told about the former by flags.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ipsec_gw.errors import EnvironmentMissing

_MODULES = Path("/lib/modules")
_SOURCES = Path("/usr/src")
_COMMON = re.compile(r"^include (?P<tree>\S+)/Makefile$", re.MULTILINE)
_RELEASE = re.compile(r'^#define UTS_RELEASE "(?P<release>[^"]*)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Headers:
    """``source`` is for BCC_KERNEL_SOURCE, None when BCC finds its way alone; ``cflags`` go with it. ``release`` is the
    kernel's that they belong to, empty if they do not tell.
    """

    source: Path | None
    cflags: tuple[str, ...]
    release: str = ""


def find_headers(given: str | None = None, modules: Path = _MODULES, sources: Path = _SOURCES) -> Headers:
    """The headers to compile with: ``given`` (BCC_KERNEL_SOURCE), the running kernel's, or the newest there are.

    Raises EnvironmentMissing when no tree is complete.
    """
    if not given and (modules / os.uname().release / "build").exists():
        return Headers(None, (), os.uname().release)
    builds = [Path(given)] if given else [*sources.glob("linux-headers-*"), *modules.glob("*/build")]
    for build in sorted(builds, key=_version, reverse=True):
        headers = _complete(build)
        if headers is not None:
            return headers
    where = given or f"{sources} and {modules}"
    raise EnvironmentMissing(f"no kernel headers for BCC in {where} - install linux-headers-amd64")


def _complete(build: Path) -> Headers | None:
    if not (build / "include/generated/autoconf.h").exists():
        return None
    if (build / "include/linux/kconfig.h").exists():
        return Headers(build, (), _release(build))
    match = _COMMON.search((build / "Makefile").read_text()) if (build / "Makefile").exists() else None
    if match is None or not (Path(match["tree"]) / "include/linux/kconfig.h").exists():
        return None
    generated = [build / "include", build / "include/generated/uapi"]
    for arch in sorted(build.glob("arch/*/include/generated")):
        generated += [arch, arch / "uapi"]
    return Headers(Path(match["tree"]), tuple(f"-I{path}" for path in generated), _release(build))


def _release(build: Path) -> str:
    told = build / "include/generated/utsrelease.h"
    match = _RELEASE.search(told.read_text()) if told.exists() else None
    return match["release"] if match else ""


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", str(path)))
