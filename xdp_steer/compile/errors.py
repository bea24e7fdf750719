"""What the compiler raises."""

from __future__ import annotations

from ipsec_gw.errors import IpsecGwError


class CompileError(IpsecGwError):
    """A ruleset cannot become map rows; the text names the rule and the way out. The command line exits with 2."""

    exit_code = 2
