"""Each file of tests/config/bad is refused with exactly the errors beside it: all of them, with their lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ipsec_gw.config.load import load
from ipsec_gw.config.problems import InvalidConfig

BAD = Path(__file__).parent.parent / "config" / "bad"
NAMES = sorted({path.stem for path in BAD.iterdir()})
FORM = re.compile(r"[\w-]+\.toml:\d+: .+ - .+")


def errors_of(name: str, monkeypatch: pytest.MonkeyPatch) -> InvalidConfig:
    monkeypatch.chdir(BAD)
    with pytest.raises(InvalidConfig) as caught:
        load(Path(f"{name}.toml"))
    return caught.value


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_file_is_refused_with_exactly_its_errors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = BAD / f"{name}.expected"
    assert expected.exists(), f"{name}.toml has no {expected.name}: write the errors that it must give"
    assert (BAD / f"{name}.toml").exists(), f"{expected.name} has no file that it belongs to"
    error = errors_of(name, monkeypatch)
    assert str(error).splitlines() == expected.read_text().splitlines()
    assert error.exit_code == 2


@pytest.mark.parametrize("name", NAMES)
def test_every_error_is_a_line_with_its_place_and_a_way_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error = errors_of(name, monkeypatch)
    lines = str(error).splitlines()
    assert len(lines) == len(error.problems)
    assert all(FORM.fullmatch(line) for line in lines)
    length = len((BAD / f"{name}.toml").read_text().splitlines())
    assert all(1 <= problem.line <= length for problem in error.problems)
    assert lines == [str(problem) for problem in sorted(error.problems, key=lambda problem: problem.line)]


def test_there_are_enough_bad_files() -> None:
    assert len(NAMES) >= 60
