"""The templates of this installation. A name that a template uses and nobody gives is an error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ipsec_gw.errors import EnvironmentMissing

if TYPE_CHECKING:
    from jinja2 import Environment


def template_environment(name: str) -> Environment:
    """An environment that loads the template ``name`` and its neighbours: in a checkout, or where a wheel puts them.

    Raises EnvironmentMissing if it is not installed.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415 - a daemon rarely needs it

    root = Path(__file__).resolve().parent.parent
    for folder in (root / "vpp_conf" / "templates", root / "templates"):
        if (folder / name).is_file():
            return Environment(
                loader=FileSystemLoader(folder),
                undefined=StrictUndefined,
                autoescape=False,  # noqa: S701 - none of them is markup
                trim_blocks=True,
                lstrip_blocks=True,
                keep_trailing_newline=True,
            )
    raise EnvironmentMissing(f"the template {name} is missing - the installation of ipsec-gw is incomplete")
