"""Shows that the named layouts of docs/partitioning.md hold and send what closed formulas say (ring lower bounds: 2(n-1)/n of the bytes for an all_reduce,
(n-1)/n for a reduce_scatter and for an all_gather), and that the page's table is what moe-inspect derives.

The formulas know the model's sizes, the mesh and the stage of ZeRO only.
"""

import json
import re

import numpy as np
import pytest

from common import ROOT, ranks_of
from moira import compile_plan, inspect_plan

CONFIG = ROOT / "examples" / "olmoe-1b-7b" / "config.json"
PAGE = ROOT / "docs" / "partitioning.md"
BATCH, SEQ, F32 = 8, 1024, 4
REDUCTIONS = ("all_reduce", "reduce_scatter", "all_gather")


def recipes():
    """{name: options} of the page: `moe-opt … ` lines under a heading with the recipe's name."""
    found = {}
    for name, text in re.findall(r"^### (\S+)[^\n]*\n(.*?)(?=^##|\Z)", PAGE.read_text(), re.M | re.S):
        command = re.search(r"^    (?:build/bin/)?moe-opt (\S+) (.*?) -o ", text, re.M)
        if command:
            found[name] = command.group(2).split()
    return found


def option(options, name, default):
    return next((o.partition("=")[2] for o in options if o.startswith(f"--{name}=")), default)


def planned(options, folder):
    plan = folder / "p.moeplan"
    compile_plan(CONFIG, plan, *options)
    return next(p for p in inspect_plan(plan)["programs"] if not p["reference"])


def axis_sizes(mesh):
    sizes = {"dp": 1, "ep": 1, "tp": 1}
    sizes.update((name, int(size)) for name, size in (part.split("=") for part in mesh.split(",")))
    return sizes


def weights(tp, ep):
    """[(elements on a rank, how often ZeRO 3 gathers it, axes over which its gradient is a sum)] of the model"""
    c = json.loads(CONFIG.read_text())
    d, f, e, v = c["hidden_size"], c["intermediate_size"], c["num_experts"], c["vocab_size"]
    tokens = ("dp", "ep")
    layer = [
        *[(d * d // tp, 2, tokens)] * 4,  # q, k, v, o
        *[(d // tp, 2, tokens)] * 2,  # norms of q and k
        *[(d, 2, tokens)] * 2,
        (e * d, 2, ("dp", "ep", "tp")),  # the router: what its choices are worth is a sum over the widths of experts
        (e // ep * 2 * f // tp * d, 2, ("dp",)),
        (e // ep * f // tp * d, 2, ("dp",)),
    ]
    # The table's gradient is made without it; head and last norm come again so soon that they stay.
    return layer * c["num_hidden_layers"] + [(v * d // tp, 1, tokens), (d, 1, tokens), (v * d // tp, 1, tokens)]


def expected(mesh, stage):
    """{axes: bytes} that a rank sends for its weights and their gradients."""
    n = axis_sizes(mesh)
    found = {}
    for elements, gathers, summed in weights(n["tp"], n["ep"]):
        axes = [axis for axis in summed if n[axis] > 1]
        p = int(np.prod([n[axis] for axis in axes]))
        if p > 1:
            once = (p - 1) * elements * F32 // p
            found[",".join(axes)] = found.get(",".join(axes), 0) + once * (2 if stage < 3 else 1 + gathers)
    return found


def test_the_page_has_all_six():
    assert list(recipes()) == ["E", "E+D", "E+Z", "E+D+M", "E+D+Z", "E+Z-Offload+M"]


@pytest.mark.parametrize("name", list(recipes()))
def test_bytes_of_weights_are_the_ring_lower_bounds(name, tmp_path):
    options = recipes()[name]
    mesh, stage = option(options, "mesh", ""), int(option(options, "zero", "0"))
    assert f"--batch={BATCH}" in options and f"--seq={SEQ}" in options and ranks_of(mesh) == 8
    sent = {}
    for row in planned(options, tmp_path)["collectives"]:
        if row["kind"] in REDUCTIONS and row["axes"] != "tp":  # which sums up tokens
            sent[row["axes"]] = sent.get(row["axes"], 0) + row["payload_bytes"]
    want = expected(mesh, stage)
    # Beside them a rank sends a few numbers: losses, counts, norms, the bound.
    for axes in sent.keys() | want.keys():
        assert 0 <= sent.get(axes, 0) - want.get(axes, 0) < 8192, (axes, sent, want)


@pytest.mark.parametrize("name", list(recipes()))
def test_rows_of_experts_travel_four_times(name, tmp_path):
    """There and back, and there and back again for the gradients."""
    c = json.loads(CONFIG.read_text())
    options = recipes()[name]
    n = axis_sizes(option(options, "mesh", ""))
    program = planned(options, tmp_path)
    rows = sum(r["payload_bytes"] for r in program["collectives"] if r["kind"] == "all_to_all")
    tokens = BATCH * SEQ // n["dp"] // n["ep"]
    want = 4 * c["num_hidden_layers"] * tokens * c["num_experts_per_tok"] * c["hidden_size"] * F32 * (n["ep"] - 1) // n["ep"]
    counts = c["num_hidden_layers"] * c["num_experts"] * 4 * 4
    assert 0 <= rows - want <= counts


def gibibytes(count):
    return f"{count / 2**30:.2f}"


def table_row(name, program):
    memory = program["memory_per_rank"]
    held = {c["role"]: c["bytes"] - c["host_bytes"] for c in memory["states"]}
    sent = {}
    for row in program["collectives"]:
        sent[row["kind"]] = sent.get(row["kind"], 0) + row["payload_bytes"]
    cells = [name, gibibytes(held["weights"]), gibibytes(held["optimizer"]), gibibytes(memory["total_bytes"]), gibibytes(memory["host_bytes"])]
    moved = gibibytes(sum(program["moves"].values()))
    return "| " + " | ".join([*cells, *(gibibytes(sent.get(kind, 0)) for kind in (*REDUCTIONS, "all_to_all")), moved]) + " |"


@pytest.mark.parametrize("name", list(recipes()))
def test_the_table_is_what_plans_say(name, tmp_path):
    row = table_row(name, planned(recipes()[name], tmp_path))
    assert row in PAGE.read_text().splitlines(), row
