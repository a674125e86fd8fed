"""Shows that documentation does not rot where a program can tell: links lead somewhere, folders and options that are named exist."""

import json
import re
import shlex
import shutil

import pytest

from common import ROOT
from moira import checkpoint, run_tool

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "dialects").glob("*/*.md")])
HELP = {}


def options_of(tool):
    if tool not in HELP:
        HELP[tool] = set(re.findall(r"--[a-z][a-z-]+", run_tool(tool, "--help").out))
    return HELP[tool]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in t]
    broken = [t for t in targets if t and not (page.parent / t).exists()]
    assert not broken


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/compile-your-model.md", "docs/running-on-gpus.md"])
def test_options_in_commands_exist(page):
    """Every --option on a line with one of the programs is one that this program's --help knows."""
    unknown = []
    for line in (ROOT / page).read_text().splitlines():
        tool = re.search(r"\b(moe-opt|moe-run|moe-inspect)\b", line)
        if tool and line.startswith("    "):
            named = re.findall(r"(?<!\S)--[a-z][a-z-]+", line.split("#")[0][tool.end() :])
            unknown += [f"{tool.group(1)} {o}" for o in named if o not in options_of(tool.group(1))]
    assert not unknown


def test_readme_names_every_folder():
    text = (ROOT / "README.md").read_text()
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith((".", "build")) and any(p.iterdir())}
    missing = [f for f in sorted(folders) if f"`{f}/" not in text]
    assert not missing


def test_quickstart_shows_real_output(tmp_path):
    """What docs/quickstart.md prints is what the programs print today (but for what depends on the machine: times, threads and rounding).
    If this fails, bring the page up to date."""

    def without_machine(text):
        return re.sub(r"\d+ library threads|[\d.]+e-\d+|\d+\.\d+ s\b", "#", text)

    page = without_machine((ROOT / "docs" / "quickstart.md").read_text())
    tiny, plan = "examples/tiny-moe", tmp_path / "tiny.moeplan"
    shape = ("--batch=4", "--seq=24")
    compiled = run_tool("moe-opt", tiny, *shape, "--mesh=dp=2,ep=2", "-o", plan, cwd=ROOT)
    files = (f"--weights={tiny}", f"--inputs={tiny}/inputs.safetensors", f"--outputs={tmp_path}/logits.safetensors")
    ran = run_tool("moe-run", plan, *files, "--check", cwd=ROOT)
    refused = run_tool("moe-opt", tiny, *shape, "--mesh=dp=3,ep=3,tp=3", "-o", plan, cwd=ROOT)
    shown = without_machine(compiled.err + ran.err + refused.err).replace(str(tmp_path), "build/quickstart").splitlines()
    stale = [line for line in shown if f"    {line}\n" not in page]
    assert len(shown) > 15 and not stale


def test_partitioning_shows_real_answers():
    """What docs/partitioning.md shows of --explain and --why-not is what they say today."""
    text = (ROOT / "docs" / "partitioning.md").read_text()
    shown = re.findall(r"^    \$ moe-opt (.*)\n((?:    .*\n)+)", text, re.MULTILINE)
    assert len(shown) == 2
    for arguments, answer in shown:
        assert run_tool("moe-opt", *arguments.split(), cwd=ROOT).out == re.sub("^    ", "", answer, flags=re.MULTILINE)


def test_pages_show_real_sizes(tmp_path):
    """Sizes of plans that stand in the text are those that the compiler makes today."""

    def gib(*options):
        words = ("examples/olmoe-1b-7b/config.json", "--batch=8", "--seq=1024", "--task=train", "--zero=3", "--target=sm_90", "--mesh=ep=4,tp=2")
        report = json.loads(run_tool("moe-opt", *words, *options, "--report=json", "--memory-only", cwd=ROOT).out)
        return f"{report['programs'][0]['memory_per_rank']['total_bytes'] / 2**30:.2f} GiB"

    bf16 = [gib("--dtype=bf16", *more) for more in ((), ("--offload=optimizer",), ("--offload=optimizer+params",))]
    said = f"has {gib()} on the device; with `--dtype=bf16`, {bf16[0]} without, {bf16[1]} with it, and {bf16[2]} with `--offload=optimizer+params`"
    assert said in (ROOT / "docs" / "partitioning.md").read_text()
    for name, mesh in (("mixtral", "dp=2,ep=2"), ("other", "ep=2,tp=2")):
        run_tool("moe-opt", "test/golden/mixtral", "--batch=2", "--seq=24", f"--mesh={mesh}", "-o", tmp_path / f"{name}.moeplan", cwd=ROOT)
    diff = run_tool("moe-inspect", tmp_path / "mixtral.moeplan", f"--diff={tmp_path}/other.moeplan").out.splitlines()
    block = "\n".join(f"    {line}" if line else "" for line in diff[:8])
    assert block in (ROOT / "docs" / "inspecting.md").read_text(), block


def test_compile_your_model_shows_real_errors(tmp_path):
    """Each command that docs/compile-your-model.md shows with what it says, on a model that is wrong in the way that the page tells of."""
    page = (ROOT / "docs" / "compile-your-model.md").read_text().split("## When it does not go through")[1]
    shown = re.findall(r"^    \$ (.*)\n    (.*)$", page, re.MULTILINE)
    tiny, model = ROOT / "examples" / "tiny-moe", tmp_path / "my-model"
    config, data = (tiny / "config.json").read_text(), (tiny / "model.safetensors").read_bytes()
    tanh = json.dumps(json.loads(config) | {"hidden_act": "tanh"})
    shutil.copytree(tiny, model)
    checkpoint.write(tmp_path / "inputs.safetensors", {"input_ids": checkpoint.read(tiny / "inputs.safetensors")["input_ids"][:2].copy()})
    run_tool("moe-opt", tiny, "--batch=4", "--seq=24", "-o", tmp_path / "tiny.moeplan")
    faults = [
        (config.replace("num_experts_per_tok", "num_expert_per_tok"), data), (config, data[:200_000]), (config, data), (config, data),
        (config.replace('"mixtral"', '"mixtrall"'), data), (tanh, data), (tanh, data), (config, data),
    ]
    assert len(shown) == len(faults)
    for (command, line), (written, weights) in zip(shown, faults):
        (model / "config.json").write_text(written)
        (model / "model.safetensors").write_bytes(weights)
        tool, *arguments = shlex.split(command)
        said = run_tool(tool, *arguments, cwd=tmp_path).err
        assert any(real.startswith(line) for real in said.splitlines()), f"{command}\n{line}\n{said}"
