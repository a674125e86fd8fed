"""Moira from Python: describe models, compile plans, run and inspect them, all by the command-line programs.

moira.models, moira.layers and moira.recipes describe models of one's own, moira.weights gives them numbers, moira.program is the dialect
underneath. moira.checkpoint reads and writes model directories.
"""

from moira.tools import Failed, Finished, compile_plan, inspect_plan, run_plan, run_tool

__all__ = ["Failed", "Finished", "compile_plan", "inspect_plan", "run_plan", "run_tool"]
