"""Log lines for machines: one JSON object each, with the traceback of an exception in a field of its own."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import structlog
from ipsec_gw.cli.main import configure_logging
configure_logging(False)
log = structlog.get_logger()
def breaks():
    raise ValueError("the very\\nreason")
try:
    breaks()
except ValueError:
    log.exception("a question could not be answered", question="status")
log.info("on it goes")
"""


def test_a_traceback_is_a_field_of_its_line() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == ""
    failed, after = map(json.loads, done.stderr.splitlines())
    assert (failed["event"], failed["question"], failed["level"]) == (
        "a question could not be answered",
        "status",
        "error",
    )
    assert failed["exception"].startswith("Traceback (most recent call last):\n")
    assert "in breaks\n" in failed["exception"]
    assert failed["exception"].endswith("ValueError: the very\nreason")
    assert "exc_info" not in failed
    assert (after["event"], "exception" in after) == ("on it goes", False)
