"""Shows that --dump-routing and --route-from speak of the same global tensors on every mesh: what a mesh dumps is what one rank dumps, and
choices that are forced give the same logits on a mesh as on one rank.

Golden models on meshes, one sequence that is split over ep, more ranks than tokens, processes instead of threads, and random models (as
in test_random_mesh.py: MOIRA_SEED chooses them; MOIRA_ROUTING_CASES is their number).
"""

import os
import socket
import subprocess

import numpy as np
import pytest

import oracle
from common import CLASSES, GOLDEN, relative_error
from errors import assert_refused
from moira import checkpoint, compile_plan, run_plan, run_tool
from moira.tools import program
from test_random_mesh import SEED, draw_with_clear_routing

CASES = int(os.environ.get("MOIRA_ROUTING_CASES", "20"))
MESHES = ("ep=2", "tp=2", "dp=2", "ep=4", "ep=2,tp=2")


class Model:
    """A model directory with inputs of some batch and sequence, its plans, and what runs of them dump."""

    def __init__(self, folder, weights, inputs, batch, seq):
        self.folder, self.weights, self.inputs = folder, weights, inputs
        self.shape = [f"--batch={batch}", f"--seq={seq}"]

    def plan(self, mesh, *options):
        path = self.folder / f"{mesh or 'one'}.moeplan"
        if not path.exists():
            compile_plan(self.weights, path, *self.shape, *([f"--mesh={mesh}"] if mesh else []), "--report=none", *options)
        return path

    def dump(self, mesh, *options, **kwargs):
        """The routing that a run dumps."""
        path = self.folder / "dump.safetensors"
        run_plan(self.plan(mesh), self.weights, self.inputs, self.folder / "o.safetensors", f"--dump-routing={path}", *options, **kwargs)
        return checkpoint.read(path)

    def forced(self, mesh, file, *options, **kwargs):
        """The logits with the choices of a file."""
        output = self.folder / "o.safetensors"
        run_plan(self.plan(mesh), self.weights, self.inputs, output, f"--route-from={file}", *options, **kwargs)
        return checkpoint.read(output)["logits"]


def golden_model(kind, folder, batch=2, seq=24):
    ids = checkpoint.read(GOLDEN / kind / "io.safetensors")["input_ids"]
    checkpoint.write(folder / "ids.safetensors", {"input_ids": ids[:batch, :seq]})
    return Model(folder, GOLDEN / kind, folder / "ids.safetensors", batch, seq)


def assert_same_routing(got, want):
    """The same experts in the same order. Weights and gaps of two float32 runs are each about 1e-6 from the exact ones."""
    assert sorted(got) == sorted(want)
    for name, values in want.items():
        assert got[name].shape == values.shape and got[name].dtype == values.dtype, name
        if name.endswith(".ids"):
            assert np.array_equal(got[name], values), name
        else:
            assert np.abs(got[name] - values).max() <= 2e-6, name


def moved(routing, path):
    """Writes choices of which each is the expert after the one that the gate chose."""
    ids = {n: v for n, v in routing.items() if n.endswith(".ids")}
    experts = max(int(v.max()) for v in ids.values()) + 1
    checkpoint.write(path, {n: ((v + 1) % experts).astype(np.int32) for n, v in ids.items()})
    return path


def check_mesh(model, mesh, want, file, logits):
    assert_same_routing(model.dump(mesh), want)
    assert relative_error(model.forced(mesh, file), logits) <= 1e-5


@pytest.mark.parametrize("kind", CLASSES)
def test_meshes_equal_one_rank(kind, tmp_path):
    model = golden_model(kind, tmp_path)
    want = model.dump("")
    assert any(n.endswith(".gaps") and (v > 0).all() for n, v in want.items())
    assert_same_routing(model.dump("", "--reference"), want)
    free = checkpoint.read(tmp_path / "o.safetensors")["logits"]
    file = moved(want, tmp_path / "moved.safetensors")
    logits = model.forced("", file)
    assert relative_error(logits, free) > 1e-3, "other experts must give other logits"
    assert relative_error(model.forced("", file, "--reference"), logits) <= 1e-5
    for mesh in MESHES:
        check_mesh(model, mesh, want, file, logits)


@pytest.mark.parametrize("kind", CLASSES)
def test_bf16_on_meshes_with_the_choices_of_f32_and_free(kind, tmp_path):
    f32 = golden_model(kind, tmp_path)
    want = f32.dump("")
    (tmp_path / "dump.safetensors").rename(tmp_path / "f32.safetensors")
    logits = checkpoint.read(GOLDEN / kind / "io.safetensors")["logits"]
    folder = tmp_path / "bf16"
    folder.mkdir()
    model = Model(folder, f32.weights, f32.inputs, 2, 24)
    for mesh in ("", *MESHES):
        model.plan(mesh, "--dtype=bf16")
        assert relative_error(model.forced(mesh, tmp_path / "f32.safetensors"), logits) <= 2e-2, mesh
        free = model.dump(mesh)
        same = [np.sort(free[n], -1) == np.sort(v, -1) for n, v in want.items() if n.endswith(".ids")]
        assert np.mean([s.all(-1) for s in same]) >= 0.9, mesh


# One sequence cut over ep, over ep beside tp, and fewer tokens than ranks, which are then on all of them.
SPLITS = [("ep=2", 1, 24), ("ep=4", 1, 24), ("ep=2,tp=2", 1, 6), ("dp=2,ep=2", 2, 8), ("ep=4", 1, 1), ("ep=2", 1, 3), ("dp=2,ep=2,tp=2", 2, 1)]


@pytest.mark.parametrize("mesh, batch, seq", SPLITS)
def test_cuts_of_few_tokens(mesh, batch, seq, tmp_path):
    model = golden_model("qwen2_moe", tmp_path, batch, seq)
    want = model.dump("")
    file = moved(want, tmp_path / "moved.safetensors")
    check_mesh(model, mesh, want, file, model.forced("", file))


def test_a_repeated_step_and_a_check_see_the_same(tmp_path):
    model = golden_model("olmoe", tmp_path)
    want = model.dump("")
    model.plan("ep=2", "--ragged-bound=1")
    assert_same_routing(model.dump("ep=2", "--repeat=2"), want)
    file = moved(want, tmp_path / "moved.safetensors")
    model.forced("ep=2", file, "--check")  # both programs take the choices


def test_mpi_processes_write_the_file_of_threads(tmp_path):
    model = golden_model("mixtral", tmp_path)
    path = tmp_path / "dump.safetensors"
    model.dump("ep=2,tp=2")
    threads = path.read_bytes()
    model.dump("ep=2,tp=2", mpi=4)
    assert path.read_bytes() == threads
    file = moved(checkpoint.read(path), tmp_path / "moved.safetensors")
    assert np.array_equal(model.forced("ep=2,tp=2", file, mpi=4), model.forced("ep=2,tp=2", file))


def test_tcp_processes_write_the_file_of_threads(tmp_path):
    """Two processes as torchrun starts them."""
    model = golden_model("mixtral", tmp_path)
    model.dump("ep=2")
    threads = (tmp_path / "dump.safetensors").read_bytes()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [program("moe-run"), model.plan("ep=2"), f"--weights={model.weights}", f"--inputs={model.inputs}",
             f"--outputs={tmp_path}/o.safetensors", f"--dump-routing={tmp_path}/tcp.safetensors"]
    ranks = []
    for rank in range(2):
        place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = {**os.environ, **{k: str(v) for k, v in place.items()}}
        ranks.append(subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    said = [r.communicate(timeout=60)[0] for r in ranks]
    assert [r.returncode for r in ranks] == [0, 0], said
    assert (tmp_path / "tcp.safetensors").read_bytes() == threads


def by_expert(routing):
    """The same with every token's choices in the order of their experts: near ties among those that are chosen may swap."""
    out = dict(routing)
    for name in [n for n in routing if n.endswith(".ids")]:
        order = np.argsort(routing[name], axis=-1)
        weights = name.removesuffix("ids") + "weights"
        out[name] = np.take_along_axis(routing[name], order, -1)
        out[weights] = np.take_along_axis(routing[weights], order, -1)
    return out


@pytest.mark.parametrize("number", range(CASES), ids=lambda n: f"case{n}-")
def test_random_models(number, tmp_path):
    case, _, _ = draw_with_clear_routing(number)
    print(f"seed {SEED} case {number}: {case.config['model_type']} {' '.join(case.options)}\n{case.config}")
    case.write(tmp_path)
    model = Model(tmp_path, tmp_path, tmp_path / "inputs.safetensors", *case.input_ids.shape)
    model.plan(case.mesh, *([f"--ragged-bound={case.bound}"] if case.bound else []))
    sparse = oracle.Model(case.config, case.tensors).is_sparse
    if not any(sparse(layer) for layer in range(case.config["num_hidden_layers"])):  # a model that was drawn without experts
        files = (f"--weights={tmp_path}", f"--inputs={model.inputs}", f"--outputs={tmp_path}/o.safetensors")
        finished = run_tool("moe-run", model.plan(case.mesh), *files, f"--dump-routing={tmp_path}/dump.safetensors")
        assert_refused(finished, "BadRun", ["the plan's model has no router"])
        return
    want = model.dump(case.mesh, "--reference")
    got = model.dump(case.mesh)
    want, got = by_expert(want), by_expert(got)
    assert sorted(got) == sorted(want)
    for name, values in want.items():
        if name.endswith(".ids"):
            assert np.array_equal(got[name], values), name
        else:
            assert np.abs(got[name] - values).max() <= 1e-5, name
    file = moved(want, tmp_path / "moved.safetensors")
    assert relative_error(model.forced(case.mesh, file), model.forced(case.mesh, file, "--reference")) <= 1e-5


def test_a_bad_file_says_everything_at_once(tmp_path):
    model = golden_model("mixtral", tmp_path)
    ids = {n: v.copy() for n, v in model.dump("").items() if n.endswith(".ids")}
    first, second = sorted(ids)[:2]
    ids[first][1, 3] = [99, -1]
    ids[first][0, 2] = ids[first][0, 2, 0]
    ids[second] = ids[second].reshape(48, 2)
    checkpoint.write(tmp_path / "bad.safetensors", {**ids, "layers.77.ids": ids[second]})
    for mesh in ("", "ep=2"):
        files = (f"--weights={model.weights}", f"--inputs={model.inputs}", f"--outputs={tmp_path}/o.safetensors")
        finished = run_tool("moe-run", model.plan(mesh), *files, f"--route-from={tmp_path}/bad.safetensors")
        words = [f"{first}[1, 3, 0] = 99 is out of range", "and so are 1 other values", f"{first}[0, 2] names expert", "twice",
                 f"{second} is I32 [48, 2], the plan needs I32 [2, 24, 2]", "'layers.77.ids' is of no router"]
        assert_refused(finished, "BadInput", words)
        assert finished.err.count("error MOE-0502") == 4
        checkpoint.write(tmp_path / "none.safetensors", {first.replace("ids", "weights"): np.zeros(1, np.float32)})
        finished = run_tool("moe-run", model.plan(mesh), *files, f"--route-from={tmp_path}/none.safetensors")
        assert_refused(finished, "BadInput", [f"tensor {first} [2, 24, 2] is missing", f"tensor {second} [2, 24, 2] is missing"])
