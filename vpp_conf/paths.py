"""Where one VPP instance keeps its files: everything is below the gateway's runtime directory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - VPP's api-segment lives there, we only name and clean it


@dataclass(frozen=True, slots=True)
class VppPaths:
    """Files of the instance that belongs to ``run_dir``."""

    run_dir: Path

    @property
    def folder(self) -> Path:
        """The instance's own folder, mode 0700: its sockets give access to keys."""
        return self.run_dir / "vpp"

    @property
    def startup(self) -> Path:
        return self.folder / "startup.conf"

    @property
    def commands(self) -> Path:
        """CLI commands that VPP runs when it has started: startup.conf has no words for them."""
        return self.folder / "commands.vpp"

    @property
    def plan(self) -> Path:
        """What the running VPP was started with, to compare it with what came of it."""
        return self.folder / "plan.json"

    @property
    def options(self) -> Path:
        """With which options of the command line VPP was started last: see :mod:`vpp_conf.start_options`."""
        return self.folder / "options.json"

    @property
    def api_socket(self) -> Path:
        return self.folder / "api.sock"

    @property
    def stats_socket(self) -> Path:
        return self.folder / "stats.sock"

    @property
    def cli_socket(self) -> Path:
        return self.folder / "cli.sock"

    @property
    def pid_file(self) -> Path:
        """``PID START``: START is field 22 of /proc/PID/stat, so that a recycled PID is told apart."""
        return self.folder / "vpp.pid"

    @property
    def log(self) -> Path:
        return self.folder / "vpp.log"

    @property
    def old_log(self) -> Path:
        """The log of the VPP before this one."""
        return self.folder / "vpp.log.1"

    @property
    def evidence(self) -> Path:
        """What was kept of VPPs that died: see :mod:`vpp_conf.evidence`."""
        return self.folder / "evidence"

    @property
    def shown(self) -> Path:
        """What the running VPP showed of itself at the last look."""
        return self.folder / "show.txt"

    @property
    def trace(self) -> Path:
        """What it was told before that."""
        return self.folder / "api-trace.txt"

    @property
    def leaving(self) -> Path:
        """``PID START`` of a VPP that is stopped on purpose."""
        return self.folder / "leaving"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def journal(self) -> Path:
        """What the engine put into VPP and VPP cannot tell (no keys): see :mod:`vpp_conf.journal`."""
        return self.folder / "objects.jsonl"

    @property
    def segment_prefix(self) -> str:
        """Prefix of VPP's files in /dev/shm: one per run_dir, so that instances do not meet."""
        return f"ipsec-gw-{hashlib.sha256(str(self.run_dir).encode()).hexdigest()[:12]}"

    @property
    def sockets(self) -> tuple[Path, ...]:
        return (self.api_socket, self.stats_socket, self.cli_socket)

    def segments(self) -> list[Path]:
        """The instance's files in /dev/shm."""
        return sorted(SHARED_MEMORY.glob(f"{self.segment_prefix}-*"))
