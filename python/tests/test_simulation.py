"""Shows that `moe-run PLAN --device=sim` says what its formulas (docs/simulation.md) give: operations and bytes by hand from a model's sizes, exchanges by the
ring and tree model, queues and events as streams keep them."""

import json
import math

import pytest

from common import GOLDEN, ROOT
from moira import compile_plan, inspect_plan, run_tool

OLMOE = ROOT / "examples" / "olmoe-1b-7b" / "config.json"
MICRO = 1e-6


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """make(model, options…) compiles a plan, each once."""
    folder, made = tmp_path_factory.mktemp("plans"), {}

    def compiled(model, *options):
        if (model, options) not in made:
            made[model, options] = folder / f"{len(made)}.moeplan"
            compile_plan(model, made[model, options], *options)
        return made[model, options]

    return compiled


@pytest.fixture
def simulate(tmp_path):
    """simulate(plan, options…, field=value…) with fields of a cluster; the report as a dict."""

    def run(plan, *options, **fields):
        if fields:
            (tmp_path / "cluster.json").write_text(json.dumps(fields))
            options = (*options, f"--cluster={tmp_path / 'cluster.json'}")
        done = run_tool("moe-run", plan, "--device=sim", "--report=json", *options)
        assert done.code == 0, done
        return json.loads(done.out)

    return run


def share(report, what, program=0):
    return next(s for s in report["programs"][program]["shares"] if s["what"] == what)


def test_operations_are_those_of_the_model(make, simulate):
    config = json.loads(OLMOE.read_text())
    batch, seq = 4, 1024
    report = simulate(make(OLMOE, f"--batch={batch}", f"--seq={seq}", "--dtype=bf16"))
    hidden, width, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    experts, k, vocabulary = config["num_experts"], config["num_experts_per_tok"], config["vocab_size"]
    tokens = batch * seq
    products = 2 * tokens * (layers * (4 * hidden * hidden + hidden * experts + k * 3 * hidden * width) + hidden * vocabulary)
    attention = layers * 2 * tokens * (seq / 2) * 2 * hidden  # q·k and p·v, half of the pairs seen; as many key/value heads as query heads
    assert report["flops"] == pytest.approx(products + attention, rel=1e-3)
    assert report["tokens_per_s"] == pytest.approx(tokens / report["step_seconds"])
    # Compute-bound: the router (f32) and launches aside, products take their operations at the rate of the data sheet times the efficiency.
    counts = share(report, "products")["count"]
    router = 2 * tokens * layers * hidden * experts
    seconds = (products - router) / (989e12 * 0.7) + router / (67e12 * 0.7) + counts * 3.3e-6
    assert share(report, "products")["seconds"] == pytest.approx(seconds, rel=0.1)


def test_gradients_take_twice_the_products_again(make, simulate):
    forward = simulate(make(OLMOE, "--batch=2", "--seq=512", "--dtype=bf16"))
    train = simulate(make(OLMOE, "--batch=2", "--seq=512", "--dtype=bf16", "--task=train"))
    assert 2.9 < train["flops"] / forward["flops"] < 3.1
    again = simulate(make(OLMOE, "--batch=2", "--seq=512", "--dtype=bf16", "--task=train", "--recompute=full"))
    assert 3.7 < again["flops"] / forward["flops"] < 4.1  # but the head


def test_one_token_takes_the_time_of_its_bytes(make, simulate):
    """A step of decoding reads every weight but the table of embeddings, of the experts those that k choices touch, and the cache."""
    config = json.loads(OLMOE.read_text())
    report = simulate(make(OLMOE, "--task=generate", "--batch=1", "--seq=64", "--max-seq=128", "--dtype=bf16"), launch_seconds=1e-12)
    hidden, width, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    experts, k, vocabulary = config["num_experts"], config["num_experts_per_tok"], config["vocab_size"]
    touched = experts * (1 - (1 - 1 / experts) ** k)
    weights = 2 * (layers * (4 * hidden * hidden + touched * 3 * hidden * width) + vocabulary * hidden) + 4 * layers * hidden * experts
    cache = 2 * layers * 2 * 128 * hidden
    assert report["step_seconds"] == pytest.approx((weights + cache) / (3350e9 * 0.9), rel=0.02)


def test_exchanges_of_many_bytes_run_at_the_rate_of_the_link(make, simulate):
    plan = make(OLMOE, "--batch=64", "--seq=4096", "--dtype=bf16", "--mesh=ep=8", "--task=train", "--zero=2")
    report = simulate(plan, node_rate=100e9)
    rows = 8 * 4096 * 8 * 2048 * 2  # tokens, choices, width, bytes: what a rank's tokens send in one exchange, with nothing to spare in its slots
    program = inspect_plan(plan)["programs"][0]
    slots = [c for c in program["collectives"] if c["kind"] == "all_to_all"]
    assert share(report, "ep all_to_all")["count"] == sum(c["count"] for c in slots)
    for kind in ("reduce_scatter", "all_gather"):
        rings = share(report, f"ep {kind}")
        payload = sum(c["payload_bytes"] for c in program["collectives"] if (c["kind"], c["axes"]) == (kind, "ep"))
        assert rings["sent_bytes"] == pytest.approx(payload, rel=1e-6)
        latency = rings["count"] * (14 + 7 * 1.9) * MICRO
        assert rings["sent_bytes"] / 100e9 < rings["seconds"] < rings["sent_bytes"] / 92e9 + latency
    exchanged = share(report, "ep all_to_all")
    assert exchanged["sent_bytes"] >= 4 * 16 * rows * 7 / 8
    assert exchanged["seconds"] == pytest.approx(exchanged["sent_bytes"] / 100e9 + exchanged["count"] * 11.8 * MICRO, rel=1e-6)


# Microseconds of an all_reduce of one number, by hand from NCCL's tables: base latency + steps · latency of a step, the least of ring and tree, LL.
SMALL = [
    ("ep=8", 8, min(6.6 + 14 * 0.6, 6.8 + 2 * 7 * 0.6)),  # one node
    ("ep=8", 4, min(6.6 + 12 * 1.0 + 2 * 2.7, 6.8 + 2 * (3 * 0.6 + 1 * 5.0))),  # two nodes of four
    ("ep=8", 1, min(6.6 + 14 * 5.0, 6.8 + 2 * 3 * 5.0)),  # a rank a node
    ("ep=2", 8, min(6.6 + 2 * 0.6, 6.8 + 2 * 1 * 0.6)),
]


@pytest.mark.parametrize("mesh, devices, micros", SMALL)
def test_small_exchanges_take_their_latency(mesh, devices, micros, make, simulate):
    plan = make(GOLDEN / "olmoe", "--batch=8", "--seq=24", f"--mesh={mesh}")
    reduce = share(simulate(plan, devices_per_node=devices), "ep all_reduce")  # what the ragged bound needs
    assert reduce["seconds"] == pytest.approx(reduce["count"] * micros * MICRO, rel=0.001)


def test_nodes_are_slower_than_one_node(make, simulate):
    plan = make(OLMOE, "--batch=16", "--seq=1024", "--dtype=bf16", "--mesh=ep=8")
    seconds = [share(simulate(plan, devices_per_node=n), "ep all_to_all")["seconds"] for n in (8, 4, 2, 1)]
    assert seconds == sorted(seconds) and seconds[-1] > 5 * seconds[0]


def test_queues_and_events(make, tmp_path):
    """No two instructions of a queue at once; everything that waits for an event is behind what it records; the end is the last of them."""
    plan = make(OLMOE, "--batch=16", "--seq=1024", "--dtype=bf16", "--mesh=dp=2,ep=4", "--task=train", "--zero=3")
    done = run_tool("moe-run", plan, "--device=sim", "--report=json", f"--profile={tmp_path / 'trace.json'}")
    program = json.loads(done.out)["programs"][0]
    events = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e["ph"] == "X" and "instruction" in e["args"]]
    by_queue = {}
    for event in events:
        by_queue.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    assert len(by_queue) >= 2
    for spans in by_queue.values():
        assert all(a[1] <= b[0] + 1e-6 for a, b in zip(spans, spans[1:]))
    end = max(spans[-1][1] for spans in by_queue.values())
    assert program["seconds"] == pytest.approx(end * MICRO)
    busiest = max(sum(b - a for a, b in spans) for spans in by_queue.values())
    everything = sum(b - a for spans in by_queue.values() for a, b in spans)
    assert busiest <= end * (1 + 1e-9) and end <= everything * (1 + 1e-9)
    # Kernels and exchanges overlap, and the time that neither hides is what is left.
    assert program["kernel_seconds"] + program["exposed_seconds"] <= program["seconds"] * (1 + 1e-9)
    exposed = sum(s["exposed_seconds"] for s in program["shares"])
    assert 0 < program["exposed_seconds"] <= exposed * (1 + 1e-9)
    exchanges = sum(s["seconds"] for s in program["shares"] if s["sent_bytes"])
    assert exposed < 0.99 * exchanges, "nothing is hidden"


def test_memory_and_what_fits(make, simulate):
    plan = make(OLMOE, "--batch=16", "--seq=1024", "--dtype=bf16", "--mesh=ep=4", "--task=train")
    planned = inspect_plan(plan)["programs"][0]["memory_per_rank"]["total_bytes"]
    report = simulate(plan)
    assert report["memory_bytes"] == planned
    assert simulate(plan, memory_bytes=planned)["fits"] and not simulate(plan, memory_bytes=planned - 1)["fits"]


def test_parts_of_a_batch(make, simulate):
    report = simulate(make(GOLDEN / "olmoe", "--batch=8", "--seq=24", "--task=train", "--micro-batches=4"))
    names = {p["name"]: p for p in report["programs"]}
    assert names["accumulate"]["repeats"] == 4 and names["update"]["repeats"] == 1
    assert report["step_seconds"] == pytest.approx(4 * names["accumulate"]["seconds"] + names["update"]["seconds"])


def test_load_of_experts(make, simulate):
    plan = make(OLMOE, "--batch=16", "--seq=1024", "--dtype=bf16", "--mesh=ep=8")
    even, loaded = simulate(plan), simulate(plan, "--expert-load=1.5")
    config = json.loads(OLMOE.read_text())
    rows = 2 * 1024 * config["num_experts_per_tok"]
    of_experts = 2 * rows * 3 * config["hidden_size"] * config["intermediate_size"] * config["num_hidden_layers"]
    assert loaded["flops"] - even["flops"] == pytest.approx(0.5 * of_experts, rel=1e-3)
    assert loaded["step_seconds"] > even["step_seconds"]


def test_rates_count(make, simulate):
    plan = make(OLMOE, "--batch=4", "--seq=1024", "--dtype=bf16")
    slow, fast = simulate(plan, flops_bf16=1e14, flops_f32=1e14), simulate(plan, flops_bf16=1e15, flops_f32=1e15)
    assert share(slow, "products")["seconds"] > 7 * share(fast, "products")["seconds"]
    assert math.isclose(share(slow, "other kernels")["seconds"], share(fast, "other kernels")["seconds"])


def test_every_class_is_simulated(make, simulate):
    for kind in sorted(p.name for p in GOLDEN.iterdir() if p.is_dir()):
        seq = ("--batch=2", "--seq=24", *(("--dec-seq=12",) if json.loads((GOLDEN / kind / "config.json").read_text()).get("is_encoder_decoder") else ()))
        report = simulate(make(GOLDEN / kind, *seq, "--mesh=dp=2", "--task=train"))
        assert report["step_seconds"] > 0 and report["flops"] > 0, kind


@pytest.mark.parametrize(
    "options, file, error, words",
    [
        (["--cluster=b400"], None, "MOE-0106", ["b400", "h100"]),
        (["--cluster=/tmp"], None, "MOE-0106", ["/tmp is no file", "h100"]),
        (["--cluster=FILE"], "{", "MOE-0101|MOE-0201", ["cluster.json"]),
        (["--cluster=FILE"], '{"like": "h300"}', "MOE-0204", ["like", "h200"]),
        (["--cluster=FILE"], '{"node_rat": 1}', "MOE-0203", ["node_rat", "did you mean node_rate"]),
        (["--cluster=FILE"], '{"node_rate": -1, "memory_efficiency": 2, "devices_per_node": 0}', "MOE-0204", ["node_rate", "memory_efficiency", "devices_per_node"]),
        (["--expert-load=0"], None, "MOE-0101", ["--expert-load"]),
        (["--report=xml"], None, "MOE-0101", ["--report=xml"]),
        (["--devices=0"], None, "MOE-0102", ["--devices"]),
    ],
)
def test_what_is_refused(options, file, error, words, make, tmp_path):
    plan = make(GOLDEN / "olmoe", "--batch=8", "--seq=24")
    (tmp_path / "cluster.json").write_text(file or "")
    options = [o.replace("FILE", str(tmp_path / "cluster.json")) for o in options]
    done = run_tool("moe-run", plan, "--device=sim", *options)
    assert done.code in (1, 2) and done.out == "" and any(e in done.error_ids for e in error.split("|")), done
    assert all(word in done.err for word in words), done


def test_options_of_simulations_are_for_them(make):
    plan = make(GOLDEN / "olmoe", "--batch=8", "--seq=24")
    done = run_tool("moe-run", plan, "--cluster=h100", "--weights=x", "--inputs=y", "--outputs=z")
    assert done.code == 1 and "--cluster is for --device=sim" in done.err
