"""Adds to pytest's summary what random cases have counted: redraws, their seed, and how close training on meshes came to one rank."""

import os


def recorded(reporter, name):
    return [
        value
        for reports in reporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for key, value in report.user_properties
        if key == name
    ]


def pytest_terminal_summary(terminalreporter):
    seed = os.environ.get("MOIRA_SEED", "default")
    if counts := recorded(terminalreporter, "redraws"):
        terminalreporter.write_line(f"random meshes: {len(counts)} cases, seed {seed}, {sum(counts)} redrawn for unclear routing")
    if counts := recorded(terminalreporter, "training_redraws"):
        routing, ill = (sum(column) for column in zip(*counts))
        terminalreporter.write_line(f"random training: {len(counts)} cases, seed {seed}, redrawn {routing} for unclear routing, {ill} as ill-conditioned")
    if stages := recorded(terminalreporter, "training_stage"):
        terminalreporter.write_line("random training, cases of ZeRO stages 0 to 3: " + " ".join(str(stages.count(n)) for n in range(4)))
    if apart := recorded(terminalreporter, "training_apart"):
        worst = [max(column) for column in zip(*apart)]
        terminalreporter.write_line("random training, worst: losses {:.1e} from the oracle, {:.1e} from one rank; elements {:.1e}, relative L2 {:.1e}".format(*worst))
