"""Adds the count of redrawn random cases, and their seed, to pytest's summary."""

import os


def pytest_terminal_summary(terminalreporter):
    counts = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == "redraws"
    ]
    if counts:
        seed = os.environ.get("MOIRA_SEED", "default")
        terminalreporter.write_line(f"random meshes: {len(counts)} cases, seed {seed}, {sum(counts)} redrawn for unclear routing")
