"""Shows what a run tells of its time: a trace with a track for the steps and for each queue of every rank, in which instructions lie inside their steps, and a
summary of a training run whose shares are those of the trace."""

import json
import re

import numpy as np
import pytest

from common import GOLDEN
from moira import checkpoint, compile_plan, run_tool

OLMOE = GOLDEN / "olmoe"


def compiled(path, *options):
    compile_plan(OLMOE, path, "--batch=2", "--mesh=dp=2,ep=2", *options)
    return path


def run(plan, *options, inputs=OLMOE / "io.safetensors"):
    done = run_tool("moe-run", plan, f"--weights={OLMOE}", f"--inputs={inputs}", *options)
    assert done.code == 0, done
    return done.err


def tracks(file):
    """{(rank, track): events in order}"""
    events = json.loads(file.read_text())["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert processes == {rank: f"rank {rank}" for rank in range(4)}
    out = {(rank, name): [] for (rank, _), name in names.items()}
    for event in events:
        if event["ph"] == "X":
            out[event["pid"], names[event["pid"], event["tid"]]].append(event)
    for event in out.values():
        event.sort(key=lambda e: e["ts"])
    return out


def check(file):
    """Every rank has the three tracks, and every instruction lies in a step; -> the names on the track of steps, of rank 0."""
    all_tracks = tracks(file)
    assert set(all_tracks) == {(rank, name) for rank in range(4) for name in ("steps", "compute", "comm")}
    names = [[e["name"] for e in all_tracks[rank, "steps"]] for rank in range(4)]
    assert names[1:] == names[:1] * 3
    for rank in range(4):
        # What contains instructions: steps of training, or runs of a program; their ends are taken a moment later.
        spans = [(e["ts"], e["ts"] + e["dur"]) for e in all_tracks[rank, "steps"] if re.fullmatch(r"\w+ \d+", e["name"])]
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:]))
        for queue in ("compute", "comm"):
            assert all_tracks[rank, queue]
            for event in all_tracks[rank, queue]:
                assert any(begin <= event["ts"] and event["ts"] + event["dur"] <= end for begin, end in spans), event
        kinds = {e["name"] for e in all_tracks[rank, "comm"]}
        assert "all_to_all" in kinds
    return names[0]


def test_forward(tmp_path):
    plan = compiled(tmp_path / "p.moeplan", "--seq=24")
    run(plan, f"--outputs={tmp_path}/o.safetensors", f"--profile={tmp_path}/trace.json", "--repeat=2")
    assert check(tmp_path / "trace.json") == [f"forward {n}" for n in range(1, 5)]  # the first, one that is not timed, two more


def test_generate(tmp_path):
    plan = compiled(tmp_path / "p.moeplan", "--task=generate", "--seq=8", "--max-seq=16")
    checkpoint.write(tmp_path / "prompts.safetensors", {"input_ids": checkpoint.read(OLMOE / "io.safetensors")["input_ids"][:, :8].astype(np.int32)})
    run(plan, f"--outputs={tmp_path}/o.safetensors", f"--profile={tmp_path}/trace.json", "--max-new-tokens=4", "--ignore-eos", inputs=tmp_path / "prompts.safetensors")
    assert check(tmp_path / "trace.json") == ["prefill 0", "decode 1", "decode 2", "decode 3"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("plan") / "p.moeplan", "--task=train", "--seq=24")


def test_train(plan, tmp_path):
    trace = f"--profile={tmp_path}/trace.json"
    run(plan, "--steps=30", f"--checkpoint={tmp_path}/run", "--save-every=10", trace)
    steps = check(tmp_path / "trace.json")
    assert [name for name in steps if name != "saving"] == [f"step {n}" for n in range(1, 21)] and "saving" in steps
    run(plan, "--steps=34", f"--checkpoint={tmp_path}/run", "--resume", trace, "--profile-steps=32-33")
    assert [name for name in check(tmp_path / "trace.json") if name != "saving"] == ["step 32", "step 33"]
    for wrong in ("5", "7-3", "a-b", "1-2x"):
        assert run_tool("moe-run", plan, "--init=1", "--inputs=x", "--steps=1", trace, f"--profile-steps={wrong}").error_ids == ["MOE-0101"]
    assert run_tool("moe-run", plan, "--init=1", "--inputs=x", "--steps=1", "--profile-steps=1-2").error_ids == ["MOE-0102"]


def test_summary_of_training_explains_its_numbers(plan, tmp_path):
    said = run(plan, "--steps=20", f"--checkpoint={tmp_path}/run", "--save-every=5", f"--profile={tmp_path}/trace.json", f"--metrics={tmp_path}/m.jsonl")
    shares = [float(x) for x in re.search(
        r"([\d.]+) % of the time computing, ([\d.]+) % exchanging, ([\d.]+) % waiting for slower ranks, ([\d.]+) % saving, ([\d.]+) % reading batches, ([\d.]+) % besides",
        said).groups()]  # fmt: skip
    assert abs(sum(shares) - 100) <= 0.5 and all(share >= 0 for share in shares) and shares[0] > 0 and shares[3] > 0 and shares[4] == 0
    whole = float(re.search(r"besides; of ([\d.]+) s", said)[1])
    all_tracks = tracks(tmp_path / "trace.json")
    for queue, share in (("compute", shares[0]), ("comm", shares[1] + shares[2])):
        mean = np.mean([sum(e["dur"] for e in all_tracks[rank, queue]) * 1e-6 for rank in range(4)])
        assert abs(mean / whole * 100 - share) <= 1, (queue, mean, whole, share)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert f"loss {losses[0]:.5f} to {losses[-1]:.5f}" in said and "; as planned" in said
    assert re.search(r"step 20/20  loss [\d.]+  grad norm \S+  lr 0.001  \d+ tokens/s  \d+ ms \(compute \d+, exchange \d+\)  load [\d.]+  dropped 0.0 %", said), said
