"""The firewall's ruleset as map rows: pure functions from values to values."""

from xdp_steer.compile.changes import Change, plan
from xdp_steer.compile.errors import CompileError
from xdp_steer.compile.ids import Ids, assign
from xdp_steer.compile.rows import PortInfo, Rows
from xdp_steer.compile.ruleset import compile_ruleset
from xdp_steer.compile.schedule import next_change

__all__ = ["Change", "CompileError", "Ids", "PortInfo", "Rows", "assign", "compile_ruleset", "next_change", "plan"]
