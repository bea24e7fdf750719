"""Write startup.conf from a plan."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ipsec_gw.errors import EnvironmentMissing
from vpp_conf.locate import VppInstallation
from vpp_conf.paths import VppPaths
from vpp_conf.startup.plan import StartupPlan

TEMPLATE = "startup.conf.j2"


def render_startup(plan: StartupPlan, paths: VppPaths, installation: VppInstallation) -> str:
    """The text of startup.conf. Raises EnvironmentMissing if the template is not installed."""
    environment = Environment(
        loader=FileSystemLoader(_template_folder()),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - this is no markup
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).render(plan=plan, paths=paths, installation=installation)


def _template_folder() -> Path:
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "templates", package.parent / "templates"):
        if (folder / TEMPLATE).is_file():
            return folder
    raise EnvironmentMissing(f"the template {TEMPLATE} is missing - the installation of ipsec-gw is incomplete")
