"""Shows that the bytes moe-inspect reports are those of the closed formulas (docs/inspecting.md), for every class on every mesh, with the token split
of docs/architecture.md, section 2. The formulas know the model's sizes and the mesh only; nothing is read from the plan but its bound."""

import json
from collections import Counter

import pytest

from common import CLASSES, GOLDEN, MESHES
from moira import compile_plan, inspect_plan

BATCH, SEQ, ELEMENT = 2, 24, 4


def axis_sizes(mesh):
    sizes = {"dp": 1, "ep": 1, "tp": 1}
    sizes.update((name, int(size)) for name, size in (part.split("=") for part in mesh.split(",") if part))
    return sizes


def model_sizes(kind):
    config = json.loads((GOLDEN / kind / "config.json").read_text())
    heads = config["num_attention_heads"]
    return {"layers": config["num_hidden_layers"], "hidden": config["hidden_size"], "k": config["num_experts_per_tok"],
            "kv_heads": config["num_key_value_heads"], "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
            "experts": config.get("num_local_experts") or config["num_experts"], "full_qk_norm": kind == "olmoe"}


def expected(kind, mesh, bound):
    """{(axes, kind, layer): (count, payload, padding)} of one rank and one step."""
    m, n = model_sizes(kind), axis_sizes(mesh)
    dp, ep, tp = n["dp"], n["ep"], n["tp"]
    batch, seq = BATCH // dp, SEQ
    sequence_split = ep > 1 and batch % ep != 0
    if sequence_split:
        seq //= ep
    else:
        batch //= ep
    tokens = batch * seq
    row = m["hidden"] * ELEMENT
    table = {}

    def add(axes, collective, layer, messages, padding=0):
        table[axes, collective, layer] = (len(messages), sum(messages), padding)

    def all_reduce(p, size):
        return 2 * (p - 1) * size // p

    if tp > 1:
        add("tp", "all_reduce", -1, [all_reduce(tp, tokens * row)])  # rows of the cut embedding
    for layer in range(m["layers"]):
        if tp > 1:
            sums = [all_reduce(tp, tokens * row)] * 2  # after attention, after the experts
            if m["full_qk_norm"]:
                sums += [all_reduce(tp, tokens * ELEMENT)] * 2  # sums of squares of queries and keys
            add("tp", "all_reduce", layer, sums)
        if ep > 1:
            segments = batch if sequence_split else 1
            counts = (ep - 1) * m["experts"] * segments * 4 // ep
            rows = tokens * m["k"] * row * (ep - 1) // ep
            slots = (ep - 1) * bound * row
            add("ep", "all_to_all", layer, [counts, rows, rows], padding=2 * (slots - rows))
        if sequence_split:
            kv_heads = m["kv_heads"] // tp if m["kv_heads"] % tp == 0 else m["kv_heads"]
            add("ep", "all_gather", layer, [(ep - 1) * tokens * kv_heads * m["head_dim"] * ELEMENT] * 2)  # keys, values
    if ep > 1:  # the bound that was needed, one i32
        split = [axis for axis in ("dp", "ep") if n[axis] > 1]
        add(",".join(split), "all_reduce", -1, [all_reduce(dp * ep, 4)])
    return table


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("mesh", MESHES, ids=lambda m: m or "one")
def test_bytes_equal_the_closed_formulas(kind, mesh, tmp_path):
    plan = tmp_path / "p.moeplan"
    compile_plan(GOLDEN / kind, plan, f"--batch={BATCH}", f"--seq={SEQ}", *([f"--mesh={mesh}"] if mesh else []))
    program = next(p for p in inspect_plan(plan)["programs"] if not p["reference"])
    reported = {(c["axes"], c["kind"], c["layer"]): (c["count"], c["payload_bytes"], c["padding_bytes"]) for c in program["collectives"]}
    assert Counter(reported) == Counter(expected(kind, mesh, program["bound_initial"]))
