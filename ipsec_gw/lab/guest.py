"""The lab's half inside the virtual machine: runs a scenario natively there and talks in lines.

Not for people. No click and no rich here: importing them costs seconds under emulation.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.context import Options
from ipsec_gw.lab.progress import Lines, Note
from ipsec_gw.lab.report import to_json
from ipsec_gw.lab.runner import FAILED, run_native
from ipsec_gw.lab.scenarios import find

HUGEPAGES = 256
"""Of 2 MiB: what VPP takes with one worker, and some to spare."""


def _reserve_hugepages() -> None:
    Path("/proc/sys/vm/nr_hugepages").write_text(str(HUGEPAGES))


def main(arguments: list[str]) -> int:
    """Scenario, part, report file, engine, proposal, artifacts directory or "", seed, minutes, cases, rounds, and
    perhaps "baseline". Returns the exit code.
    """
    name, which, report, engine, proposal, artifacts, seed, minutes, cases, rounds, *baseline = arguments
    told = Lines(sys.stdout)
    kept = Path(artifacts) if artifacts else None
    options = Options(engine, proposal, kept, bool(baseline), int(seed), float(minutes), cases, int(rounds))
    try:
        if engine == "vpp":
            _reserve_hugepages()
        part = next(part for part in find(name).parts if part.name == which)
        found = asyncio.run(run_native(name, part, options, told))
    except IpsecGwError as error:
        told.tell(Note(f"error: {error}"))
        return error.exit_code
    Path(report).write_text(to_json(found))
    return 0 if found.ok else FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
