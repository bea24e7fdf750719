"""Reports and progress: what is told to people, to machines, and out of the virtual machine."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.progress import Lines, Note, Plain, StepDone, StepStarted, parse, step
from ipsec_gw.lab.report import Check, Report, Versions, from_json, merged, summary, table, to_json

GOOD = Check("IKE is up", True, "IKE_SA", "IKE_SA established")
BAD = Check("no pin is left", False, "none", "/sys/fs/bpf/igw-1/[dock]")


def report(*checks):
    versions = Versions("6.1", "5.9.8", None, "3.11.2", "0.1.0")
    return Report("site-to-site", "vm", "soft", versions, checks, ("a note",), 12.5)


def test_a_report_without_checks_is_a_failure():
    assert not report().ok
    assert summary(()) == "no check ran"


def test_one_bad_check_fails_the_report():
    assert report(GOOD).ok
    assert not report(GOOD, BAD).ok
    assert summary((GOOD, BAD)) == "1 of 2 checks held; failed: no pin is left"


def test_what_one_part_has_checked_again_and_again_is_told_each_time():
    assert merged([report(GOOD, GOOD, BAD)]) == report(GOOD, GOOD, BAD)
    both = merged([report(GOOD, GOOD), report(BAD, replace(GOOD, ok=False, measured="none"))])
    assert both.checks == (replace(GOOD, ok=False, measured="IKE_SA established, none"), BAD)


def test_json_round_trip():
    made = report(GOOD, BAD)
    assert from_json(to_json(made)) == made


def test_json_has_what_scripts_need():
    data = json.loads(to_json(report(GOOD)))
    assert data["ok"] is True
    assert (data["scenario"], data["environment"], data["engine"]) == ("site-to-site", "vm", "soft")
    assert set(data["versions"]) == {"kernel", "strongswan", "vpp", "python", "ipsec_gw"}
    assert data["versions"]["vpp"] is None
    assert data["checks"] == [{"name": "IKE is up", "ok": True, "expected": "IKE_SA", "measured": "IKE_SA established"}]


def test_the_table_shows_brackets_as_they_are():
    console = Console(file=io.StringIO(), width=200)
    console.print(table(report(GOOD, BAD)))
    text = console.file.getvalue()
    assert "/sys/fs/bpf/igw-1/[dock]" in text
    assert "FAILED" in text
    assert "VPP none" in text


@pytest.mark.parametrize("event", [StepStarted("x"), StepDone("x", 1.5, "bad"), Note("[n]"), GOOD, BAD])
def test_events_cross_a_pipe(event):
    stream = io.StringIO()
    Lines(stream).tell(event)
    (line,) = stream.getvalue().splitlines()
    assert parse(line) == event


@pytest.mark.parametrize(
    "line", ["Traceback (most recent call last):", "@lab nonsense", '@lab ["Note", {"no": 1}]', '@lab ["X", {}]']
)
def test_whatever_else_the_guest_says_is_kept(line):
    assert parse(line) == Note(line)


def test_plain_lines():
    stream = io.StringIO()
    told = Plain(stream)
    for event in (StepStarted("build"), StepDone("build", 0.31), GOOD, BAD):
        told.tell(event)
    assert stream.getvalue().splitlines() == [
        "  done  build (0.3 s)",
        "    ok  IKE is up: IKE_SA established",
        "FAILED  no pin is left: /sys/fs/bpf/igw-1/[dock] (expected none)",
    ]


class Recorder:
    def __init__(self):
        self.events = []

    def tell(self, event):
        self.events.append(event)


def test_a_failing_step_tells_why_and_fails():
    told = Recorder()
    with pytest.raises(IpsecGwError), step(told, "start charon"):
        raise IpsecGwError("charon ended with 1")
    assert told.events[0] == StepStarted("start charon")
    assert told.events[1].error == "charon ended with 1"
