"""Shows that moe-inspect's page, graph and comparison say what its JSON says (which test_communication.py, test_memory.py and test_recipes.py hold
against formulas), and that they are sound HTML and a sound graph."""

import json
import re
from html.parser import HTMLParser

import pytest

from common import GOLDEN, ROOT
from moira import compile_plan, inspect_plan, run_tool

SHAPE = ("--batch=2", "--seq=24")
PLANS = {
    "forward": ("mixtral", "--batch=4", "--seq=24", "--mesh=dp=2,ep=2"),
    "tensors": ("mixtral", "--batch=4", "--seq=24", "--mesh=ep=2,tp=2"),
    "generate": ("mixtral", *SHAPE, "--mesh=ep=2", "--task=generate", "--max-seq=32"),
    "train": ("deepseek_v3", *SHAPE, "--mesh=dp=2,ep=2", "--task=train", "--zero=2"),
    "micro": ("olmoe", "--batch=4", "--seq=24", "--mesh=ep=2", "--task=train", "--micro-batches=2"),
    "seq2seq": ("switch_transformers", *SHAPE, "--dec-seq=12", "--task=grad"),
}


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    made = {}
    for name, (kind, *options) in PLANS.items():
        made[name] = folder / f"{name}.moeplan"
        compile_plan(GOLDEN / kind, made[name], *options)
    return made


def inspect(plan, *options):
    done = run_tool("moe-inspect", plan, *options)
    assert done.code == 0, done
    return done.out


class Page(HTMLParser):
    """The text of every table cell; complains of tags that do not match."""

    VOID = {"meta", "hr"}

    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.words = [], [], []
        self.feed(text)
        assert self.open == [] and "<script" not in text and "http" not in text

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if "td" in self.open:
            self.cells[-1] += data


def bytes_text(n):
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            break
        n /= 1024
    return f"{n} B" if unit == "B" else f"{n:.1f} {unit}"


@pytest.mark.parametrize("name", PLANS)
def test_page(name, plans, tmp_path):
    assert inspect(plans[name], f"--html={tmp_path / 'page.html'}") == ""
    page = Page((tmp_path / "page.html").read_text())
    for program in inspect_plan(plans[name])["programs"]:
        if program["reference"]:
            continue
        assert f"Memory of a rank: {bytes_text(program['memory_per_rank']['total_bytes'])}" in page.words
        for weight in program["weights"]:
            at = page.cells.index(weight["name"])
            shape, local = ("x".join(map(str, weight[key])) or "scalar" for key in ("shape", "local_shape"))
            assert page.cells[at + 1 : at + 4] == [weight["dtype"], shape, local]
        for row in program["collectives"]:
            layer = "–" if row["layer"] < 0 else str(row["layer"])
            cells = [row["axes"], row["kind"], layer, str(row["count"]), bytes_text(row["payload_bytes"]), bytes_text(row["padding_bytes"])]
            assert any(page.cells[i : i + 6] == cells for i in range(len(page.cells))), row


@pytest.mark.parametrize("name", PLANS)
def test_memory_is_told_in_all_its_parts(name, plans, tmp_path):
    """Programs share their arenas, so each tells of all of them: the update of micro-batches too, which exchanges nothing."""
    inspect(plans[name], f"--html={tmp_path / 'page.html'}")
    cells, text = Page((tmp_path / "page.html").read_text()).cells, inspect(plans[name])
    programs = [p for p in inspect_plan(plans[name])["programs"] if not p["reference"]]
    for what, role in (("activations", "activations"), ("expert exchange", "ragged")):
        sizes = [bytes_text(sum(a["bytes"] for a in p["memory_per_rank"]["arenas"] if a["role"] == role)) for p in programs]
        sizes = [size for size in sizes if size != "0 B"]
        assert [cells[i + 1] for i, cell in enumerate(cells) if cell == what] == sizes
        assert re.findall(rf"^memory a rank .*{what} ([\d.]+ \w+)", text, re.M)[: len(sizes)] == sizes


def graph(text):
    """Labels by node, and the edges."""
    nodes = dict(re.findall(r'^  (n\d+) \[label="((?:[^"\\]|\\.)*)"', text, re.M))
    edges = re.findall(r"^  (n\d+) -> (n\d+) \[", text, re.M)
    return nodes, edges


@pytest.mark.parametrize("name", PLANS)
def test_graph(name, plans, tmp_path):
    inspect(plans[name], f"--dot={tmp_path / 'plan.dot'}")
    text = (tmp_path / "plan.dot").read_text()
    assert text.startswith("digraph plan {") and text.count("{") == text.count("}")
    nodes, edges = graph(text)
    assert all(a in nodes and b in nodes for a, b in edges)
    program = inspect_plan(plans[name])["programs"][0]
    # Every exchange is in it, as often as it is made.
    wanted, found = {}, {}
    for row in program["collectives"]:
        key = f"{row['kind']} over {row['axes']}"
        wanted[key] = wanted.get(key, 0) + row["count"]
    for label in nodes.values():
        if made := re.match(r"(\w+ over [\w,]+)\\n(\d+) call", label):
            found[made[1]] = found.get(made[1], 0) + int(made[2])
    assert found == wanted
    # Modules that read weights are drawn, and what goes in comes out: every result hangs on the ids.
    start = next(n for n, label in nodes.items() if label == "input_ids")
    reached, todo = {start}, [start]
    while todo:
        here = todo.pop()
        fresh = [b for a, b in edges if a == here and b not in reached]
        reached.update(fresh)
        todo += fresh
    results = {"forward": ["logits"], "tensors": ["logits"], "train": ["loss", "grad_norm"], "seq2seq": ["loss"]}.get(name, [])
    for result in results:
        assert any(nodes[n] == result for n in reached), result


def test_graph_has_what_data_takes(plans, tmp_path):
    """One rank of mixtral on dp=2,ep=2, by hand: one sequence of 24 tokens of width 64 in f32, 4 heads of 16, 256 words."""
    inspect(plans["forward"], f"--dot={tmp_path / 'plan.dot'}")
    text = (tmp_path / "plan.dot").read_text()
    nodes, _ = graph(text)
    of = {label.split("\\n")[0]: n for n, label in nodes.items()}
    edges = {(a, b): size for a, b, size in re.findall(r'^  (n\d+) -> (n\d+) \[label="([^"]*)"', text, re.M)}
    layer = "model.layers.0."
    assert edges[of["model.embed_tokens"], of[layer + "input_layernorm"]] == bytes_text(24 * 64 * 4)
    assert edges[of[layer + "self_attn.q_proj"], of[layer + "self_attn"]] == bytes_text(24 * 4 * 16 * 4)
    assert edges[of[layer + "self_attn"], of[layer + "self_attn.o_proj"]] == bytes_text(24 * 4 * 16 * 4)
    assert edges[of["lm_head"], of["logits"]] == bytes_text(24 * 256 * 4)
    into_gate = {nodes[a].split("\\n")[0] for (a, b) in edges if b == of[layer + "mlp.gate"]}
    assert into_gate == {layer + "post_attention_layernorm"}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """The hand-written program, with what pages and graphs have to escape in its names."""
    folder = tmp_path_factory.mktemp("odd")
    text = (ROOT / "examples" / "hand-written" / "block.mlir").read_text().replace('"input_ids"', r'"in\22<i>\\n&"').replace("@embed", r'@"em\22<b>\\N&"')
    embedding = "(tensor<4x8xi32>, tensor<50x16xf32>) -> tensor<4x8x16xf32>"
    (folder / "odd.mlir").write_text(text.replace(embedding, embedding + r' loc("lo\22<c>\\l&.0.x")'))
    compile_plan(folder / "odd.mlir", folder / "odd.moeplan", "--mesh=dp=2")
    return folder / "odd.moeplan"


def test_names_are_escaped(odd, tmp_path):
    inspect(odd, f"--dot={tmp_path / 'plan.dot'}")
    nodes, _ = graph((tmp_path / "plan.dot").read_text())
    labels = {label.split(r"\n")[0] if label[:2] == "lo" else label for label in nodes.values()}
    assert {r"in\"<i>\\n&", r"lo\"<c>\\l&.0.x"} <= labels
    inspect(odd, f"--html={tmp_path / 'page.html'}")
    page = Page((tmp_path / "page.html").read_text())
    assert "custom on dp=2" in page.words and not any("batch" in word for word in page.words)  # which no hand-written program says
    assert 'em"<b>\\N&' in page.cells
    assert 'em"<b>\\N&' in {w["name"] for w in inspect_plan(odd)["programs"][0]["weights"]}


@pytest.mark.parametrize("word, shown", [(r"a\FFb", "a\ufffdb"), ("", "custom")])
def test_any_word_is_a_model_s_class(word, shown, tmp_path):
    """Bytes that are no text do not end a report, and no word is that of programs written by hand."""
    text = (ROOT / "examples" / "hand-written" / "block.mlir").read_text()
    info = f'model_class = "{word}", task = "forward", dtype = f32, batch = 4, seq = 8, parameters = 0, active_parameters = 0'
    info = f"module attributes {{plan.info = #plan.info<{info}, tensors_expected = 0, tensors_found = 0>}} {{"
    (tmp_path / "p.mlir").write_text(text.replace("module {", info))
    compile_plan(tmp_path / "p.mlir", tmp_path / "p.moeplan", "--report=json")
    assert inspect_plan(tmp_path / "p.moeplan")["model_class"] == shown


def test_comparison(plans):
    assert inspect(plans["forward"], f"--diff={plans['forward']}") == "no difference\n"
    text = inspect(plans["forward"], f"--diff={plans['tensors']}")
    assert re.search(r"mesh +dp=2,ep=2 -> ep=2,tp=2", text)
    one, two = (inspect_plan(plans[name])["programs"][0] for name in ("forward", "tensors"))
    total = [p["memory_per_rank"]["total_bytes"] for p in (one, two)]
    change = 100 * (total[1] - total[0]) / total[0]
    assert re.search(rf"in all +{bytes_text(total[0])} -> {bytes_text(total[1])} +{change:+.1f} %", text)
    differ = {a["name"] for a, b in zip(one["weights"], two["weights"]) if (a["local_shape"], a["axes"]) != (b["local_shape"], b["axes"])}
    said = set(re.findall(r"^  (\S+) +f32 .* -> f32 ", text, re.M))
    assert said == {re.sub(r"\.\d+\.", ".*.", name) for name in differ}
    counts = [{k: v for k, v in p["instructions"].items()} for p in (one, two)]
    for name in set(counts[0]) | set(counts[1]):
        before, after = (c.get(name, 0) for c in counts)
        assert bool(re.search(rf"^  {re.escape(name)} +{before} -> {after}$", text, re.M)) == (before != after)


def test_comparison_hides_nothing(plans, odd, tmp_path):
    """What has the same words, and what is in no summary."""
    plan = tmp_path / "p.moeplan"
    kind, *options = PLANS["train"]
    compile_plan(GOLDEN / kind, plan, *options, "--lr=0.5")
    assert inspect(plans["train"], f"--diff={plan}") == "no difference of what is shown; the files differ\n"
    # An expert fewer for a token: the model has as many parameters, and some bytes fewer are sent.
    config = json.loads((GOLDEN / kind / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_experts_per_tok": config["num_experts_per_tok"] - 1}))
    compile_plan(tmp_path / "config.json", plan, *options)
    text = inspect(plans["train"], f"--diff={plan}")
    active = [inspect_plan(p)["active_parameters"] for p in (plans["train"], plan)]
    assert re.search(rf"^  active for a token +{active[0]} -> {active[1]}$", text, re.M) and "  parameters " not in text
    for line in text.splitlines():
        if words := re.match(r" .*  (\S.*\S) +-> (\S+( \S+)*)", line):
            assert words[1] != words[2], line
    text = inspect(odd, f"--diff={plan}")
    assert re.search(r"batch x sequence +not said -> 2 x 24", text) and re.search(r"parameters +not said -> \d+", text)


def test_comparison_of_tasks(plans):
    text = inspect(plans["forward"], f"--diff={plans['train']}")
    assert "program forward: only in the first plan" in text and "program train: only in the second plan" in text


def test_bad_words(plans, tmp_path):
    done = run_tool("moe-inspect", plans["forward"], "--json", f"--html={tmp_path / 'x'}")
    assert done.code == 1 and "one of" in done.err and not (tmp_path / "x").exists()
    done = run_tool("moe-inspect", plans["forward"], f"--html={tmp_path}/none/x.html")
    assert done.code == 5 and "none/x.html" in done.err
    done = run_tool("moe-inspect", plans["forward"], f"--diff={tmp_path}/none.moeplan")
    assert done.code == 2 and "none.moeplan" in done.err
    done = run_tool("moe-inspect", plans["forward"], plans["train"])
    assert done.code == 1 and "unexpected argument" in done.err and "--diff=OTHER" in done.err
    done = run_tool("moe-inspect", plans["forward"], "--htlm=x")
    assert done.code == 1 and "did you mean --html" in done.err
