"""Telling what happens while it happens: to a terminal, to a log, or (out of the VM) to another process."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TextIO

from ipsec_gw.lab.report import Check


@dataclass(frozen=True, slots=True)
class StepStarted:
    """A step began."""

    name: str


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step ended. ``error`` is empty if it ended well."""

    name: str
    seconds: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """A measurement without a verdict, or a message from the guest's console."""

    text: str


Event = StepStarted | StepDone | Note | Check


class Listener(Protocol):
    """Whoever is told."""

    def tell(self, event: Event) -> None:
        """Take note of an event."""


class Plain:
    """One line for each event; for logs and pipes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def tell(self, event: Event) -> None:
        """Write the event as a line."""
        line = describe(event)
        if line:
            self._stream.write(line + "\n")
            self._stream.flush()


def describe(event: Event) -> str:
    """An event in words; the start of a step says nothing on its own."""
    match event:
        case StepStarted():
            return ""
        case StepDone(name, seconds, error):
            return f"{'FAILED' if error else 'done':>6}  {name} ({seconds:.1f} s)" + (f": {error}" if error else "")
        case Note(text):
            return f"{'':>6}  {text}"
        case Check(name, ok, expected, measured):
            return f"{'ok' if ok else 'FAILED':>6}  {name}: {measured}" + ("" if ok else f" (expected {expected})")


MARK = "@lab "
"""Starts a line that carries an event; anything else on the guest's console is for people."""


BOOTED = MARK + "booted"
"""The guest's first line: its job starts."""


class Lines:
    """Events as lines that :func:`parse` understands: how the guest talks to its host."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def tell(self, event: Event) -> None:
        """Write the event."""
        fields = {name: getattr(event, name) for name in type(event).__slots__}
        self._stream.write(MARK + json.dumps([type(event).__name__, fields]) + "\n")
        self._stream.flush()


_KINDS: dict[str, type[StepStarted | StepDone | Note | Check]] = {
    kind.__name__: kind for kind in (StepStarted, StepDone, Note, Check)
}


def parse(line: str) -> Event:
    """The event of a line, or a Note of whatever else it says."""
    if line.startswith(MARK):
        try:
            kind, fields = json.loads(line.removeprefix(MARK))
            return _KINDS[kind](**fields)
        except (ValueError, KeyError, TypeError):
            return Note(line)
    return Note(line)


class Terminal:
    """Rich progress: a spinner for the step under way, a line for whatever is settled."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - the guest must not pay for this import

        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status("starting")

    def __enter__(self) -> Terminal:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def tell(self, event: Event) -> None:
        """Show the event."""
        from rich.text import Text  # noqa: PLC0415

        if isinstance(event, StepStarted):
            self._status.update(Text(event.name))
            return
        bad = (isinstance(event, StepDone) and event.error) or (isinstance(event, Check) and not event.ok)
        style = "bold red" if bad else "green" if isinstance(event, Check) else "dim"
        self._console.print(Text(describe(event), style))


@contextmanager
def listener() -> Iterator[Listener]:
    """Rich on a terminal, plain lines elsewhere."""
    if sys.stderr.isatty():
        with Terminal() as terminal:
            yield terminal
    else:
        yield Plain()


@contextmanager
def step(to: Listener, name: str) -> Iterator[None]:
    """Tell that ``name`` is under way, and how it ended."""
    to.tell(StepStarted(name))
    started = time.monotonic()
    try:
        yield
    except BaseException as error:
        text = str(error) or type(error).__name__
        to.tell(StepDone(name, time.monotonic() - started, text))
        raise
    to.tell(StepDone(name, time.monotonic() - started))
