"""What is read of VPP's API is all that is sent to it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import ipsec_gw
import vpp_conf
from ipsec_gw.errors import EnvironmentMissing
from vpp_conf.api import MODULES, definitions
from vpp_conf.locate import locate_vpp

_QUOTED = re.compile(r'"([a-z0-9_]+)"')


@pytest.fixture
def api_dir() -> Path:
    try:
        found = locate_vpp().api_dir
    except EnvironmentMissing as missing:
        pytest.skip(str(missing))
    assert found is not None
    return found


def module(file: Path) -> str:
    return file.name.partition(".")[0]


def test_each_module_is_one_of_vpps(api_dir: Path) -> None:
    assert {module(Path(file)) for file in definitions(api_dir)} == MODULES


def test_no_message_is_sent_that_is_defined_elsewhere(api_dir: Path) -> None:
    defined = {
        str(message[0]): module(file)
        for file in api_dir.rglob("*.api.json")
        for message in json.loads(file.read_text())["messages"]
    }
    packages = (Path(package.__file__).parent for package in (ipsec_gw, vpp_conf))
    words = {word for folder in packages for file in folder.rglob("*.py") for word in _QUOTED.findall(file.read_text())}
    named = {word: defined[word] for word in words if word in defined}
    assert len(named) > 60
    assert {word: where for word, where in named.items() if where not in MODULES} == {}
