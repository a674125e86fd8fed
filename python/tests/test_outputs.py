"""Shows that results arrive whole or not at all, that a failure leaves what was there, and that no output takes the place of what a program reads or of
another output.
"""

import os
import resource
import signal
import subprocess

import pytest

from common import GOLDEN
from errors import assert_refused
from moira import compile_plan, run_tool
from moira.tools import Finished, program

MIXTRAL = GOLDEN / "mixtral"
SHAPE = ("--batch=2", "--seq=24")


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    for task in ("forward", "train", "generate"):
        more = ("--max-seq=40",) if task == "generate" else ()
        compile_plan(MIXTRAL, folder / f"{task}.moeplan", *SHAPE, f"--task={task}", "--mesh=ep=2", *more)
    return folder


@pytest.fixture
def model(tmp_path):
    """A writable copy."""
    (tmp_path / "model").mkdir()
    for file in ("config.json", "model.safetensors", "io.safetensors"):
        (tmp_path / "model" / file).write_bytes((MIXTRAL / file).read_bytes())
    return tmp_path / "model"


def ran(name, *arguments, limit=None, closed=(), **streams):
    """Like run_tool, with no file growing over `limit` bytes, and with these standard streams closed."""

    def before():
        for stream in closed:
            os.close(stream)
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    done = subprocess.run([program(name), *map(str, arguments)], timeout=120, preexec_fn=before, **pipes)
    return Finished([name, *arguments], done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode())


def files(folder=MIXTRAL):
    return (f"--weights={folder}", f"--inputs={folder / 'io.safetensors'}")


# name -> the file that is written, and how
WRITTEN = {
    "plan": ("p.moeplan", lambda plans, path: ("moe-opt", MIXTRAL, *SHAPE, "--task=train", "--mesh=ep=2", "-o", path)),
    "ir": ("x.mlir", lambda plans, path: ("moe-opt", MIXTRAL, *SHAPE, "--compile-to=partition", "-o", path)),
    "phases": ("1-import.mlir", lambda plans, path: ("moe-opt", MIXTRAL, *SHAPE, f"--dump-phases-to={path.parent}", "-o", path.parent / "p.moeplan")),
    "page": ("x.html", lambda plans, path: ("moe-inspect", plans / "train.moeplan", f"--html={path}")),
    "graph": ("x.dot", lambda plans, path: ("moe-inspect", plans / "train.moeplan", f"--dot={path}")),
    "simulation": ("x.json", lambda plans, path: ("moe-run", plans / "train.moeplan", "--device=sim", f"--profile={path}")),
    "profile": ("y.json", lambda plans, path: ("moe-run", plans / "train.moeplan", *files(), "--steps=20", f"--profile={path}")),
}


@pytest.mark.parametrize("what", WRITTEN)
def test_a_full_disk_leaves_the_older_file(what, plans, tmp_path):
    name, command = WRITTEN[what]
    path = tmp_path / name
    path.write_text("older")
    limit = 100_000 if what in ("plan", "profile") else 5000  # both have the plan's kernels in a file of their own
    failed = ran(*command(plans, path), limit=limit)
    assert failed.code == 5 and failed.error_ids == ["MOE-0107"] and str(path) in failed.err and "LLVM ERROR" not in failed.err, failed
    assert path.read_text() == "older" and [p.name for p in tmp_path.iterdir()] == [name]
    whole = ran(*command(plans, path))
    assert whole.code == 0 and path.stat().st_size > limit, whole
    assert not [p.name for p in tmp_path.iterdir() if "tmp" in p.name]


@pytest.mark.parametrize("limit, folder", [(0, "."), (20_000, "."), (None, "missing")])
def test_temporary_files_that_cannot_be_made_are_no_defect(limit, folder, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path / folder)}
    failed = ran("moe-opt", MIXTRAL, *SHAPE, "-o", tmp_path / "p.moeplan", limit=limit, env=environment)
    assert failed.code == 5 and failed.error_ids == ["MOE-0107"] and "$TMPDIR" in failed.err, failed
    assert list(tmp_path.iterdir()) == []


def test_any_name_may_be_written(plans, tmp_path):
    folder = tmp_path / "100% ä\n'\""
    folder.mkdir()
    compile_plan(MIXTRAL, folder / "%n.moeplan", *SHAPE, "--mesh=ep=2")
    assert (folder / "%n.moeplan").read_bytes() == (plans / "forward.moeplan").read_bytes()


# What has its results on stdout.
PRINTED = {
    "ir": lambda plans: ("moe-opt", MIXTRAL, *SHAPE, "--compile-to=import"),
    "report": lambda plans: ("moe-opt", MIXTRAL, *SHAPE, "--report=json", "-o", "/dev/null"),
    "summary": lambda plans: ("moe-inspect", plans / "forward.moeplan"),
    "json": lambda plans: ("moe-inspect", plans / "forward.moeplan", "--json"),
    "ranks": lambda plans: ("moe-inspect", plans / "forward.moeplan", "--ranks=0-1"),
    "difference": lambda plans: ("moe-inspect", plans / "forward.moeplan", f"--diff={plans / 'train.moeplan'}"),
    "simulation": lambda plans: ("moe-run", plans / "forward.moeplan", "--device=sim"),
    "tokens": lambda plans: ("moe-run", plans / "generate.moeplan", *files(), "--max-new-tokens=3", "--stream"),
    "verified": lambda plans: ("moe-ckpt", "verify", MIXTRAL),
}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("what", PRINTED)
def test_what_does_not_arrive_on_stdout_is_a_failure(what, plans):
    with open("/dev/full", "wb") as full:
        failed = ran(*PRINTED[what](plans), stdout=full)
    assert failed.code == 5 and failed.error_ids == ["MOE-0107"] and "stdout" in failed.err and "LLVM ERROR" not in failed.err, failed


def test_closed_streams_keep_their_lines_out_of_files(plans, tmp_path):
    closed = (0, 1, 2)
    assert ran("moe-opt", MIXTRAL, *SHAPE, "--mesh=ep=2", "-o", tmp_path / "p.moeplan", closed=closed).code == 0
    assert (tmp_path / "p.moeplan").read_bytes() == (plans / "forward.moeplan").read_bytes()
    assert ran("moe-run", plans / "forward.moeplan", *files(), f"--outputs={tmp_path / 'closed'}", closed=closed).code == 0
    assert ran("moe-run", plans / "forward.moeplan", *files(), f"--outputs={tmp_path / 'open'}").code == 0
    assert (tmp_path / "closed").read_bytes() == (tmp_path / "open").read_bytes()
    assert ran("moe-inspect", plans / "train.moeplan", f"--html={tmp_path / 'page'}", closed=closed).code == 0


def test_training_goes_on_when_nobody_reads_what_it_says(plans, tmp_path):
    """Neither its lines nor its metrics."""
    for metrics, said in (tmp_path / "m.jsonl", subprocess.PIPE), ("/dev/stdout", open(tmp_path / "said", "wb")):
        run = tmp_path / ("run" if said == subprocess.PIPE else "run2")
        command = [program("moe-run"), plans / "train.moeplan", *files(), "--steps=20", f"--checkpoint={run}", f"--metrics={metrics}"]
        process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=said)
        process.stdout.close()
        if said == subprocess.PIPE:
            process.stderr.close()
        assert process.wait(60) == 0
        assert (run / "step-20").is_dir()
    assert "the metrics of some steps are lost; training goes on" in (tmp_path / "said").read_text()
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 20


# what would be lost, and the command line of the program
REPLACED = {
    "inputs": ("io.safetensors", lambda m, p: ("moe-run", p / "forward.moeplan", *files(m), f"--outputs={m}/io.safetensors")),
    "weights": ("model.safetensors", lambda m, p: ("moe-run", p / "forward.moeplan", *files(m), f"--outputs={m}/model.safetensors")),
    "weights-by-another-name": ("model.safetensors", lambda m, p: ("moe-run", p / "forward.moeplan", *files(m), f"--outputs={m.parent}/link")),
    "routing": ("io.safetensors", lambda m, p: ("moe-run", p / "forward.moeplan", *files(m), f"--outputs={m}/o", f"--dump-routing={m}/io.safetensors")),
    "profile": ("config.json", lambda m, p: ("moe-run", p / "forward.moeplan", *files(m), f"--outputs={m}/o", f"--profile={m}/config.json")),
    "metrics": ("io.safetensors", lambda m, p: ("moe-run", p / "train.moeplan", *files(m), "--steps=1", f"--metrics={m}/io.safetensors")),
    "compiled": ("model.safetensors", lambda m, p: ("moe-opt", m, *SHAPE, "-o", m / "model.safetensors")),
    "config": ("config.json", lambda m, p: ("moe-opt", m / "config.json", *SHAPE, "-o", m / "config.json")),
    "plan": ("forward.moeplan", lambda m, p: ("moe-inspect", m / "forward.moeplan", f"--html={m}/forward.moeplan")),
    "plan-of-a-run": ("forward.moeplan", lambda m, p: ("moe-run", m / "forward.moeplan", *files(m), f"--outputs={m}/forward.moeplan")),
}


@pytest.mark.parametrize("what", REPLACED)
def test_no_output_replaces_what_is_read(what, plans, model):
    name, command = REPLACED[what]
    (model / "forward.moeplan").write_bytes((plans / "forward.moeplan").read_bytes())
    (model.parent / "link").symlink_to("model/model.safetensors")
    before = (model / name).read_bytes()
    assert_refused(run_tool(*command(model, plans)), "BadUsage", ["would replace what"])
    assert (model / name).read_bytes() == before


def test_two_outputs_are_two_files(plans, model):
    one = (f"--outputs={model}/o", f"--dump-routing={model}/../model/o")
    assert_refused(run_tool("moe-run", plans / "forward.moeplan", *files(model), *one), "BadUsage", ["would be one file"])
    # A result beside the weights is no part of the model, and may be written anew.
    for _ in range(2):
        assert run_tool("moe-run", plans / "forward.moeplan", *files(model), f"--outputs={model}/o.safetensors").code == 0


@pytest.mark.parametrize("option, next", [("--metrics=", "--resume"), ("--metrics", "--resume"), ("--weights=", "--keep=3")])
def test_an_option_without_its_value_does_not_swallow_the_next_one(option, next, plans, tmp_path):
    command = (plans / "train.moeplan", *files()[1:], "--steps=1", f"--checkpoint={tmp_path}/run", option, next)
    name = option.removesuffix("=")
    assert_refused(run_tool("moe-run", *command, cwd=tmp_path), "UnknownFlag", [f"{name} has no value"])
    assert list(tmp_path.iterdir()) == []
