"""Shows that routings at the edge are right on every mesh: experts without tokens, one token, all tokens to one expert, more ranks than tokens.

Gates by themselves, with and without a capacity: the output is the matrix of weights, which is known without an oracle. And a model of every class
that has experts, against transformers.
"""

import itertools

import numpy as np
import pytest

import tiny_models
from common import relative_error
from expert_programs import Program, weight_matrix
from moira import checkpoint, compile_plan, run_plan

EXPERTS = 8


def valid_meshes(batch, most_tp=2):
    """Every mesh of at most 8 ranks that the batch and the experts allow."""
    sizes = (1, 2, 4, 8)
    for dp, ep, tp in itertools.product(sizes, sizes, [size for size in sizes if size <= most_tp]):
        if 1 < dp * ep * tp <= 8 and batch % dp == 0:
            yield ",".join(f"{axis}={size}" for axis, size in (("dp", dp), ("ep", ep), ("tp", tp)) if size > 1)


def logits_for(choice, batch, seq):
    """Logits under which every token takes experts choice[0], choice[1], …, in this order."""
    logits = np.full((batch, seq, EXPERTS), -4.0, np.float32)
    for rank, expert in enumerate(choice):
        logits[..., expert] = 3.0 - rank
    return logits


def weights_of(logits, choice):
    row = logits[0, 0].astype(np.float64)
    probs = np.exp(row) / np.exp(row).sum()
    return probs[list(choice)]


@pytest.mark.parametrize("limited", (False, True), ids=("dropless", "limited"))
@pytest.mark.parametrize("choice", ((0,), (7,), (3, 4)), ids=str)
@pytest.mark.parametrize("shape", ((1, 1), (1, 3), (2, 1), (4, 2), (1, 8)), ids=str)
def test_edge_routing(shape, choice, limited, tmp_path):
    batch, seq = shape
    tokens, k = batch * seq, len(choice)
    logits = logits_for(choice, batch, seq)
    ids = np.tile(choice, (tokens, 1))
    room = (tokens + 1) // 2  # of each of the few experts that anybody wants
    kept = np.arange(tokens)[:, None] < (room if limited else tokens)
    want = weight_matrix(np.where(kept, ids, -1), np.tile(weights_of(logits, choice), (tokens, 1)), EXPERTS)
    name = "%gate" if limited else "%r"
    lines = [f"{name} = moe.route #moe.router<k = {k}> of %logits_of : ({{L}}) -> {{R}}"]
    if limited:
        capacity = "#moe.capacity<rule = fraction, value = 0.5 : f64>"
        lines.append(f"%r, %dropped = moe.limit {capacity} of %gate : ({{R}}) -> ({{R}}, tensor<2xf32>)")
    program = Program(logits, k, lines)
    program.write(tmp_path)
    for mesh in ("", *valid_meshes(batch)):
        for bound in ((), ("--ragged-bound=1",)):
            got = program.run(tmp_path, mesh, *bound)
            np.testing.assert_allclose(got["weights"].reshape(tokens, EXPERTS), want, rtol=2e-6, atol=1e-12, err_msg=f"{mesh} {bound}")
            if limited:
                assert got["dropped_choices"].tolist() == [(tokens - room) * k, tokens * k]


@pytest.mark.parametrize("kind", [kind for kind in tiny_models.CLASSES if kind not in tiny_models.DENSE])
def test_models_with_few_tokens(kind, tmp_path):
    """One token, in rows that are all alike: most experts get nothing, the others everything, and most meshes have more ranks than there are tokens."""
    case = tiny_models.draw(kind, 1000, tmp_path, tiny_models.alike_inputs)
    print(f"{kind}: {case.fields} inputs {case.inputs}")
    checkpoint.write(tmp_path / "in.safetensors", case.inputs)
    meshes = ("", *valid_meshes(len(case.seen), most_tp=4))
    for number, mesh in enumerate(meshes):
        bound = ("--ragged-bound=1",) if number % 2 else ()
        compile_plan(tmp_path, tmp_path / "p.moeplan", *case.options(), *([f"--mesh={mesh}"] if mesh else []), *bound)
        run_plan(tmp_path / "p.moeplan", tmp_path, tmp_path / "in.safetensors", tmp_path / "o.safetensors")
        assert relative_error(checkpoint.read(tmp_path / "o.safetensors")["logits"], case.logits) <= 1e-5, f"on mesh {mesh or 'one'}"
