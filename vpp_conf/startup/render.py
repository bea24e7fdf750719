"""Write startup.conf, and the commands that VPP runs after its start, from a plan."""

from __future__ import annotations

import re

from ipsec_gw.errors import EnvironmentMissing
from ipsec_gw.templating import template_environment
from vpp_conf.locate import VppInstallation
from vpp_conf.paths import VppPaths
from vpp_conf.startup.cpu_lists import show_cpus
from vpp_conf.startup.drop_in import DropIn, Merged, merge_drop_in
from vpp_conf.startup.syntax import handler_names
from vpp_conf.startup.values import StartupPlan, size

TEMPLATE = "startup.conf.j2"
NOT_A_WORD = re.compile(r"[\s#{}]")
"""VPP splits its file at these; there is no way to quote them."""


def render_startup(plan: StartupPlan, paths: VppPaths, installation: VppInstallation) -> str:
    """The text of startup.conf.

    Raises EnvironmentMissing if the template is not installed, or a path has characters that VPP cannot read.
    """
    for path in (paths.run_dir, installation.plugin_dir, plan.stats_group):
        if path is not None and NOT_A_WORD.search(str(path)):
            raise EnvironmentMissing(
                f"VPP cannot read {str(path)!r} in its startup.conf - use one without blanks, #, {{ and }}"
            )
    environment = template_environment(TEMPLATE)
    environment.filters |= {"size": size, "cpus": show_cpus}
    template = environment.get_template(TEMPLATE)
    return template.render(plan=plan, paths=paths, installation=installation, commands=render_commands(plan))


def merged_startup(plan: StartupPlan, paths: VppPaths, installation: VppInstallation, drop_in: DropIn | None) -> Merged:
    """The text of startup.conf with the operator's settings. Raises ConfigError if these do not hold."""
    text = render_startup(plan, paths, installation)
    return Merged(text, (), frozenset()) if drop_in is None else merge_drop_in(text, drop_in, plan.release)


def render_commands(plan: StartupPlan) -> str:
    """CLI commands, one a line: startup.conf cannot choose crypto handlers. Empty if there is nothing to choose.

    Without a word for the kind of operation VPP 26.06 changes nothing and says nothing, and ``both`` fails where an
    engine lacks one kind.
    """
    lines = [
        f"set crypto handler simple {name} {handler.engine}\n"
        for handler in plan.handlers
        for name in handler_names(plan.release, handler.algorithms)
    ]
    return "".join(lines)
