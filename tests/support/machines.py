"""Machines as text files: what of ``/proc`` and ``/sys`` a probe reads, unpacked below a folder.

One entry a line, ``#`` starts a comment:

    PATH = CONTENT          a file with one line
    PATH <<                 a file with the lines that follow, until a line with a single full stop
    PATH -> TARGET          a symbolic link
    PATH/                   a folder

``{0-3}`` in a line stands for as many entries; all such ranges of a line run together, a range that is shorter starts
again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from vpp_conf.startup.files import Files
from vpp_conf.startup.machine import Machine
from vpp_conf.startup.probe import read_machine
from vpp_conf.startup.syntax import TESTED, complete_offer

FOLDER = Path(__file__).parent.parent / "machines"
RANGE = re.compile(r"\{(\d+)-(\d+)\}")
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.txt")))


def unpack_machine(name: str, root: Path) -> Path:
    """Make the tree of a machine below a folder, which is returned."""
    lines = iter((FOLDER / f"{name}.txt").read_text().splitlines())
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        if line.endswith(" <<"):
            _write(root / line.removesuffix(" <<"), "\n".join(iter(lambda: next(lines), ".")) + "\n")
            continue
        for entry in _expand(line):
            _make(root, entry)
    return root


def probe(name: str, release: tuple[int, int] = TESTED[-1]) -> Machine:
    """A machine as the probe sees it, with all of a VPP of this release."""
    return replace(_probed(name), vpp=complete_offer(release))


@cache
def _probed(name: str) -> Machine:
    with TemporaryDirectory() as folder:
        return read_machine(Files(unpack_machine(name, Path(folder))), complete_offer(TESTED[-1]))


def _expand(line: str) -> Iterator[str]:
    ranges = [range(int(first), int(last) + 1) for first, last in RANGE.findall(line)]
    for step in range(max((len(one) for one in ranges), default=1)):
        numbers = iter([one[step % len(one)] for one in ranges])
        yield RANGE.sub(lambda _, numbers=numbers: str(next(numbers)), line)  # type: ignore[misc]


def _make(root: Path, entry: str) -> None:
    path, is_link, target = entry.partition(" -> ")
    if is_link:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)
        return
    path, is_file, content = entry.partition(" =")
    if is_file:
        _write(root / path, f"{content.strip()}\n")
    elif entry.endswith("/"):
        (root / entry).mkdir(parents=True, exist_ok=True)
    else:
        raise ValueError(f"not an entry of a machine: {entry!r}")


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
