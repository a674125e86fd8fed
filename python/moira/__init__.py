"""Moira from Python: describe models, compile plans, run and inspect them, continue text, all by the command-line programs.

moira.models, moira.layers and moira.recipes describe models of one's own, moira.weights gives them numbers, moira.program is the dialect
underneath. moira.checkpoint reads and writes model directories.
"""

from moira.text import Unusable, generate, stream
from moira.tools import Failed, Finished, compile_plan, inspect_plan, run_plan, run_tool

__all__ = ["Failed", "Finished", "Unusable", "compile_plan", "generate", "inspect_plan", "run_plan", "run_tool", "stream"]
