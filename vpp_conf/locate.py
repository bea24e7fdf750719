"""Find the VPP that is installed on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ipsec_gw.errors import EnvironmentMissing

BINARY_VARIABLE = "IPSEC_GW_VPP"
"""Environment variable that names the vpp binary, before PATH and the usual prefixes are looked at."""

USUAL_BINARIES = (Path("/usr/bin/vpp"), Path("/opt/vpp/bin/vpp"))
WAY_OUT = "install the official fd.io packages (vpp, vpp-plugin-core) or set IPSEC_GW_VPP to the vpp binary"
VERSION = re.compile(r"v?(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class VppInstallation:
    """An installed VPP. Folders that the installation does not have are None.

    ``release`` is (year, month) of the version, (0, 0) if it cannot be read from ``version``.
    """

    binary: Path
    version: str
    release: tuple[int, int]
    prefix: Path
    api_dir: Path | None
    plugin_dir: Path | None
    crypto_engine_dir: Path | None
    vppctl: Path | None

    @property
    def short_version(self) -> str:
        """``vpp v26.06-release``: without who built it, and when."""
        return self.version.partition(" built by ")[0]

    def plugins(self) -> frozenset[str]:
        """File names of the installed plugins."""
        return _shared_objects(self.plugin_dir)

    def crypto_engines(self) -> frozenset[str]:
        """Names of the installed crypto engines: ``native``, ``ipsecmb``, ``openssl``.

        Releases before 25.x keep them among the plugins (``crypto_native_plugin.so``), later ones in a folder
        of their own.
        """
        own = {name.removeprefix("crypto_").removesuffix(".so") for name in _shared_objects(self.crypto_engine_dir)}
        old = {
            name.removeprefix("crypto_").removesuffix("_plugin.so")
            for name in self.plugins()
            if name.startswith("crypto_") and name != "crypto_sw_scheduler_plugin.so"
        }
        return frozenset(name.removesuffix("_plugin").removesuffix("_crypto_engine") for name in own | old)


def locate_vpp() -> VppInstallation:
    """The installed VPP. Raises EnvironmentMissing, with the way out, when there is none or it does not run."""
    binary = _find_binary().resolve()
    version = _ask_version(binary)
    found = VERSION.search(version)
    prefix = binary.parent.parent
    return VppInstallation(
        binary=binary,
        version=version,
        release=(int(found[1]), int(found[2])) if found else (0, 0),
        prefix=prefix,
        api_dir=_first_folder(prefix, ("share/vpp/api",)),
        plugin_dir=_first_folder(prefix, ("lib/*/vpp_plugins", "lib/vpp_plugins", "lib64/vpp_plugins")),
        crypto_engine_dir=_first_folder(
            prefix, ("lib/*/vpp_crypto_engines", "lib/vpp_crypto_engines", "lib64/vpp_crypto_engines")
        ),
        vppctl=_first_file(binary.parent / "vppctl"),
    )


def _find_binary() -> Path:
    named: str | None = os.environ.get(BINARY_VARIABLE)
    if named:
        if not os.access(named, os.X_OK):
            raise EnvironmentMissing(f"{BINARY_VARIABLE}={named} is not an executable - correct or unset it")
        return Path(named)
    on_path = shutil.which("vpp")
    candidates = ([Path(on_path)] if on_path else []) + list(USUAL_BINARIES)
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            return candidate
    raise EnvironmentMissing(f"VPP is not installed - {WAY_OUT}")


def _ask_version(binary: Path) -> str:
    try:
        answer = subprocess.run([str(binary), "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentMissing(f"{binary} does not run ({error}) - {WAY_OUT}") from error
    lines = (answer.stdout + answer.stderr).strip().splitlines()
    if answer.returncode or not lines:
        reason = lines[-1] if lines else f"exit code {answer.returncode}"
        raise EnvironmentMissing(f"{binary} does not run ({reason}) - {WAY_OUT}")
    return lines[0].strip()


def _first_folder(prefix: Path, patterns: tuple[str, ...]) -> Path | None:
    for pattern in patterns:
        for path in sorted(prefix.glob(pattern)):
            if path.is_dir():
                return path
    return None


def _first_file(path: Path) -> Path | None:
    return path if path.exists() else None


def _shared_objects(folder: Path | None) -> frozenset[str]:
    return frozenset(path.name for path in folder.glob("*.so")) if folder else frozenset()
