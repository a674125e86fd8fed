"""Moira from Python: runs moe-opt, moe-run and moe-inspect as processes; moira.checkpoint reads and writes model directories."""

from moira.tools import Failed, Finished, compile_plan, inspect_plan, run_plan, run_tool

__all__ = ["Failed", "Finished", "compile_plan", "inspect_plan", "run_plan", "run_tool"]
