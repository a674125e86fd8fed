"""Shows that the plans of examples/trillions compile in seconds, and that docs/partitioning.md says what they need."""

import re
import time

import pytest

from common import ROOT
from moira import inspect_plan, run_tool

OPTIONS = ("--task=train", "--batch=512", "--seq=1024", "--mesh=ep=256,tp=2", "--zero=3", "--dtype=bf16", "--recompute=full")
OFFLOADED = ("--target=sm_90",)
SECONDS, LIMIT, GIB = 10, 40e9, 2**30
LAYERS = {"3.5t": 60, "1.4t": 24}


def rows():
    """The table of docs/partitioning.md: (model, options, numbers in GiB, fits)."""
    text = (ROOT / "docs" / "partitioning.md").read_text().split("## Trillions of weights")[1]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if re.match(r"\| \d\.\dt ", line)]
    return [(row[0], tuple(re.findall(r"--[^` ]+", row[1])), [float(cell or 0) for cell in row[2:8]], row[8]) for row in found]


def parameters_of(layers):
    """Parameters: attention with 64 query and 8 key and value heads of 128, gates, experts, norms; table and head."""
    D, F, E, V = 6144, 6144, 512, 151936
    attention = 2 * D * 64 * 128 + 2 * D * 8 * 128 + 2 * 128
    return layers * (attention + 2 * D + E * D + E * 3 * D * F) + 2 * V * D + D


@pytest.mark.parametrize("model, more, said, fits", rows(), ids=lambda value: None)
def test_needs_what_the_docs_say(model, more, said, fits, tmp_path):
    plan = tmp_path / "p.moeplan"
    start = time.monotonic()
    done = run_tool("moe-opt", ROOT / "examples" / "trillions" / model / "config.json", *OPTIONS, *(OFFLOADED if more else ()), *more, "-o", plan)
    seconds = time.monotonic() - start
    print(f"{seconds:.1f} s\n{done.err}")
    assert done.code == 0 and seconds <= SECONDS, (seconds, done)
    [program] = [p for p in inspect_plan(plan)["programs"] if not p["reference"]]
    memory = program["memory_per_rank"]
    parameters = inspect_plan(plan)["parameters"]
    assert program["ranks"] == 512 and parameters == parameters_of(LAYERS[model])
    weights, optimizer, activations, exchange, total, host = said

    def reported(name):
        found = re.search(rf"{name} ([\d.]+) (GiB|MiB)", done.err)
        return float(found[1]) / (1 if found[2] == "GiB" else 1024)

    # f32 weights, cut over all ranks; AdamW keeps two numbers for each.
    cut = 4 * parameters / 512 / GIB
    assert reported("weights") == weights == pytest.approx(cut, abs=0.06)
    assert reported("optimizer") == optimizer == pytest.approx(2 * cut, abs=0.06)
    assert reported("activations") == pytest.approx(activations, abs=0.051)
    assert reported("expert exchange") == pytest.approx(exchange, abs=0.051)
    assert memory["total_bytes"] / GIB == pytest.approx(total, abs=0.051)
    assert memory["host_bytes"] / GIB == pytest.approx(host, abs=0.051)
    assert fits == ("yes" if memory["total_bytes"] <= LIMIT else "no")


def test_a_limit_is_refused_with_the_table():
    config = ROOT / "examples" / "trillions" / "3.5t" / "config.json"
    done = run_tool("moe-opt", config, *OPTIONS, f"--memory-limit={int(LIMIT)}", "--memory-only")
    assert done.code == 3 and "optimizer 50.8 GiB" in done.err and "activations" in done.err, done
