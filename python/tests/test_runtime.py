"""Shows that plans run inside a Python process with the values of a run by moe-run, that states can be written from memory, and that misuse
becomes the errors of the programs."""

from pathlib import Path

import numpy as np
import pytest

from common import ROOT
from moira import checkpoint, compile_plan, run_plan, run_tool
from moira.runtime import MESH, REFERENCE_F32, Refused, Session, library, version

BATCH, SEQ = 2, 8


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The bundled model's plans on one rank and on four, inputs, and what moe-run gives for them."""
    folder, tiny = tmp_path_factory.mktemp("runtime"), ROOT / "examples" / "tiny-moe"
    inputs = {"input_ids": np.random.default_rng(1).integers(0, 100, (BATCH, SEQ)).astype(np.int32)}
    checkpoint.write(folder / "in.safetensors", inputs)
    wanted = {}
    for name, options in {"one": (), "four": ("--mesh=dp=2,ep=2",), "grad": ("--task=grad",)}.items():
        compile_plan(tiny, folder / f"{name}.moeplan", f"--batch={BATCH}", f"--seq={SEQ}", *options)
        run_plan(folder / f"{name}.moeplan", tiny, folder / "in.safetensors", folder / "out.safetensors")
        wanted[name] = checkpoint.read(folder / "out.safetensors")
    return folder, tiny, inputs, wanted


@pytest.mark.parametrize("name", ["one", "four", "grad"])
def test_a_session_gives_what_moe_run_gives(model, name):
    folder, tiny, inputs, wanted = model
    with Session(folder / f"{name}.moeplan", tiny) as session:
        for _ in range(2):
            got = session.forward(inputs)
            assert len(got) == (len(session.states) + 1 if name == "grad" else 1)
            for key, value in got.items():
                np.testing.assert_array_equal(value, as_state(wanted[name], key, value.shape))
        times = session.steps(inputs, 3)
        assert len(times) == 3 and all(time > 0 for time in times)


def test_sessions_of_several_plans_are_open_at_once(model):
    folder, tiny, inputs, wanted = model
    sessions = {name: Session(folder / f"{name}.moeplan", tiny) for name in ("one", "four", "grad")}
    for name in ("grad", "one", "four"):
        for key, value in sessions[name].forward(inputs).items():
            np.testing.assert_array_equal(value, as_state(wanted[name], key, value.shape))
    for session in sessions.values():
        session.close()


def test_a_session_that_is_forgotten_is_closed(model):
    folder, tiny, _, _ = model
    files = lambda: len(list(Path("/proc/self/fd").iterdir()))
    before = files()
    session = Session(folder / "one.moeplan", tiny)
    assert files() > before  # its kernels
    del session
    assert files() == before


def test_the_reference_program_runs_too(model):
    folder, tiny, inputs, wanted = model
    with Session(folder / "four.moeplan", tiny, REFERENCE_F32) as session:
        np.testing.assert_allclose(session.forward(inputs)["logits"], wanted["four"]["logits"], atol=1e-4)


@pytest.mark.parametrize("mesh", ["", "dp=2,ep=2"])
def test_generation_gives_the_tokens_of_moe_run(model, tmp_path, mesh):
    _, tiny, inputs, _ = model
    compile_plan(tiny, tmp_path / "p.moeplan", "--task=generate", f"--batch={BATCH}", f"--seq={SEQ}", f"--max-seq={SEQ + 6}", *([f"--mesh={mesh}"] if mesh else []))
    prompts = inputs["input_ids"][:, 2:]  # shorter than the plan has room for
    checkpoint.write(tmp_path / "in.safetensors", {"input_ids": prompts})
    run_plan(tmp_path / "p.moeplan", tiny, tmp_path / "in.safetensors", tmp_path / "out.safetensors", "--max-new-tokens=6", "--ignore-eos")
    wanted = checkpoint.read(tmp_path / "out.safetensors")["generated_ids"][:, prompts.shape[1] :]
    for program in (MESH, REFERENCE_F32):
        with Session(tmp_path / "p.moeplan", tiny, program) as session:
            for _ in range(2):
                ids, times = session.generate(prompts, 6)
                np.testing.assert_array_equal(ids, wanted)
                assert len(times) == 6 and all(time > 0 for time in times)
            np.testing.assert_array_equal(session.generate(prompts, 2)[0], wanted[:, :2])
            for bad, why in ((prompts[:1], r"prompts of shape \[1, 6\]: the plan was compiled for \[2, up to 8\]"), (prompts - 1000, "token -.* of a prompt is out of range 0..")):
                with pytest.raises(Refused, match=f"error MOE-0502: {why}"):
                    session.generate(bad, 1)
            for bad in (prompts[0], prompts[:, :, None], prompts + np.int64(2**32), prompts + 0.5):
                with pytest.raises(ValueError, match="prompts are"):
                    session.generate(bad, 1)
            with pytest.raises(Refused, match="error MOE-0508: .*room for 6 new tokens"):
                session.generate(prompts, 7)
            # As C has a count of -1.
            assert library().moira_generate(session._handle, prompts.ctypes.data, *prompts.shape, 2**64 - 1, ids.ctypes.data, None) == 2


def test_states_are_written_from_arrays_and_addresses(model):
    folder, tiny, inputs, wanted = model
    tensors = checkpoint.read(tiny / "model.safetensors")
    with Session(folder / "one.moeplan") as session:
        assert not session.forward(inputs)["logits"].any()
        for state in session.states:
            value = as_state(tensors, state.name, state.shape)
            session.write(state.name, value if value.ndim > 1 else value.ctypes.data)
        np.testing.assert_array_equal(session.forward(inputs)["logits"], wanted["one"]["logits"])


@pytest.mark.parametrize("options", [(), ("--capacity-factor=1", "--drop-policy=random")])
def test_a_plan_that_trains_begins_at_step_1(model, options):
    folder, tiny, inputs, _ = model
    compile_plan(tiny, folder / "train.moeplan", f"--batch={BATCH}", f"--seq={SEQ}", "--task=train", *options)
    losses = []
    for steps in (({}, {}), [{"step": np.array([i], np.int32)} for i in (1, 1)]):
        with Session(folder / "train.moeplan", tiny) as session:
            losses.append([session.forward(inputs | step)["loss"].item() for step in steps])
            with pytest.raises(Refused, match=r"error MOE-0502: .*step\[0\] = 0 is out of range 1"):
                session.forward(inputs | {"step": np.array([0], np.int32)})
    assert losses[0] == losses[1] and np.isfinite(losses).all()


def as_state(tensors, name, shape):
    """A tensor of the bundled model (mixtral) as its state is shaped: experts' tensors are one stack."""
    name = name.replace(".mlp.", ".block_sparse_moe.")
    if name in tensors:
        return np.ascontiguousarray(tensors[name].reshape(shape))
    base, kind = name.rsplit(".", 1)
    parts = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}[kind]
    return np.array([[tensors[f"{base}.{e}.{part}.weight"] for part in parts] for e in range(shape[0])]).reshape(shape)


def test_misuse_is_told(model):
    folder, tiny, inputs, _ = model
    assert version() in run_tool("moe-run", "--version").out
    with pytest.raises(Refused, match="error MOE-0106: .*absent") as refused:
        Session(folder / "absent", tiny)
    assert str(refused.value) == str(refused.value).strip()
    with pytest.raises(Refused, match="error MOE-0106"):
        Session(folder / "one.moeplan", folder / "absent")
    with pytest.raises(Refused, match="error MOE-0102: 7 is no moira_program"):
        Session(folder / "one.moeplan", tiny, 7)
    with Session(folder / "one.moeplan", tiny, MESH) as session:
        with pytest.raises(Refused, match="error MOE-0502: .*input_ids"):
            session.steps({}, 1)
        with pytest.raises(Refused, match="error MOE-0502"):
            session.forward({"input_ids": inputs["input_ids"][:1]})
        with pytest.raises(Refused, match="error MOE-0508: the plan generates no tokens"):
            session.generate(inputs["input_ids"], 1)
        with pytest.raises(KeyError, match="no state"):
            session.write("lm_head", np.zeros(1, np.float32))
        with pytest.raises(ValueError, match="lm_head.weight is float32"):
            session.write("lm_head.weight", np.zeros(1, np.float32))
        assert session.forward(inputs)["logits"].any()
    with Session(folder / "four.moeplan", tiny) as session, pytest.raises(Refused, match="error MOE-0508: .*4"):
        session.write(session.states[0].name, np.zeros(session.states[0].shape, session.states[0].dtype))
    compile_plan(tiny, folder / "parts.moeplan", f"--batch={BATCH}", f"--seq={SEQ}", "--task=train", "--micro-batches=2")
    with pytest.raises(Refused, match="error MOE-0508: .*in parts"):
        Session(folder / "parts.moeplan", tiny)
    compile_plan(tiny, folder / "gpus.moeplan", f"--batch={BATCH}", f"--seq={SEQ}", "--mesh=ep=2", "--target=sm_90")
    with pytest.raises(Refused, match="error MOE-0508: .*2 ranks on GPUs"):
        Session(folder / "gpus.moeplan", tiny)
