"""The VPP of a runtime directory as a daemon starts and stops it. Blocking; call it from a thread where a loop runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ipsec_gw.errors import EngineError, EngineUnavailable
from vpp_conf import lifecycle
from vpp_conf.paths import VppPaths
from vpp_conf.process import recorded, service_of
from vpp_conf.start_options import remembered, start

SYSTEMCTL_SECONDS = 180.0
"""Above the unit's own limits for start and stop."""

USER_MANAGER = "user@"
"""systemd's service that logins are in: a process there was started by hand."""


class VppService:
    """A VPP has to outlive the daemon. A service's processes end with the service, so a daemon that is one has systemd
    start VPP's own unit; one that was started by hand starts VPP itself, with the options of its last start.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def running(self) -> bool:
        """Whether a VPP lives that was started for this runtime directory, and has its API socket already."""
        paths = VppPaths(self._run_dir.resolve())
        return paths.api_socket.exists() and recorded(paths.pid_file) is not None

    def start(self) -> None:
        """Start VPP and wait until it answers; a running one is left as it is.

        Raises what :func:`vpp_conf.lifecycle.up` does, and EngineUnavailable with systemd's words.
        """
        service = service_of(os.getpid())
        if service is None or service.startswith(USER_MANAGER):
            start(self._run_dir, remembered(self._run_dir))
            return
        _systemctl("start")

    def stop(self) -> None:
        """Stop VPP. Raises EngineError if it does not end."""
        process = recorded(VppPaths(self._run_dir.resolve()).pid_file)
        if process is not None and service_of(process.pid) == lifecycle.UNIT:
            _systemctl("stop")
        lifecycle.down(self._run_dir)


def _systemctl(verb: str) -> None:
    command = ["systemctl", verb, lifecycle.UNIT]
    way_out = f"install it with `ipsec-gw units install`, and see `systemctl status {lifecycle.UNIT}`"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SYSTEMCTL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"`{' '.join(command)}` did not end well ({error}) - {way_out}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        reason = said[0] if said else f"exit code {done.returncode}"
        raise EngineUnavailable(f"systemd did not {verb} {lifecycle.UNIT} ({reason}) - {way_out}")
