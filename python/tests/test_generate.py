"""Shows that generation gives the golden tokens on every kind of mesh, and that rows of a batch, seeds and stop tokens do what docs/generation.md says.

The goldens' `greedy_ids` come from transformers. Rows of unequal lengths are held against each prompt alone, draws against other meshes and against what
top-k and top-p leave over, everything against the reference program, which has no cache.
"""

import json
import re
import shutil

import numpy as np
import pytest

from common import GOLDEN, GOLDEN_CLASSES, has_experts
from moira import checkpoint, compile_plan, run_plan, run_tool

NEW = 12
ENCODER_DECODERS = [kind for kind in GOLDEN_CLASSES if json.loads((GOLDEN / kind / "config.json").read_text()).get("is_encoder_decoder")]
# Batch 2: ep=2 and dp=2 cut the batch; batch 1: ep=2 cuts the prompt, and decode's one token not at all.
CASES = [
    (kind, batch, mesh)
    for kind in GOLDEN_CLASSES
    for batch, mesh in ((1, ""), (1, "ep=2"), (2, "ep=2"), (2, "dp=2"), (1, "tp=2"), (2, "ep=2,tp=2"))
    if "ep=" not in mesh or has_experts(kind)
]


def name(case):
    return "-".join(str(part) or "one" for part in case)


def compiled(kind, folder, batch, mesh="", *options, seq=24, max_seq=48):
    plan = folder / "model.moeplan"
    compile_plan(GOLDEN / kind, plan, "--task=generate", f"--batch={batch}", f"--seq={seq}", f"--max-seq={max_seq}",
                 *([f"--mesh={mesh}"] if mesh else []), *options)
    return plan


def generate(plan, weights, inputs, folder, *options, new=NEW, ignore_eos=True, **kwargs):
    """-> (generated_ids, stderr)"""
    checkpoint.write(folder / "in.safetensors", inputs)
    flags = (f"--max-new-tokens={new}", *(("--ignore-eos",) if ignore_eos else ()), *options)
    done = run_plan(plan, weights, folder / "in.safetensors", folder / "out.safetensors", *flags, **kwargs)
    return checkpoint.read(folder / "out.safetensors")["generated_ids"], done.err


def golden(kind):
    return checkpoint.read(GOLDEN / kind / "io.safetensors")


@pytest.mark.parametrize("case", CASES, ids=name)
def test_golden_tokens(case, tmp_path):
    kind, batch, mesh = case
    io = golden(kind)
    # A bound of one row: steps are repeated, and caches must be none the worse for it.
    for options in ((), ("--ragged-bound=1",)) if "ep=" in mesh else ((),):
        plan = compiled(kind, tmp_path, batch, mesh, *options)
        ids, err = generate(plan, GOLDEN / kind, {"input_ids": io["input_ids"][:batch]}, tmp_path)
        assert ids[:1].tolist() == io["greedy_ids"].tolist()
        assert "; as planned" in err
        assert not options or int(re.search(r"\bretries (\d+)", err).group(1)) >= 1


@pytest.mark.parametrize("kind", GOLDEN_CLASSES)
def test_reference_has_no_cache(kind, tmp_path):
    io = golden(kind)
    plan = compiled(kind, tmp_path, 1)
    ids, _ = generate(plan, GOLDEN / kind, {"input_ids": io["input_ids"][:1]}, tmp_path, "--reference", new=4)
    assert ids.tolist() == io["greedy_ids"][:, : ids.shape[1]].tolist()


@pytest.mark.parametrize("kind", ("olmoe", "deepseek_v3", "gpt_oss", "xglm", "m2m_100", "mt5"))
@pytest.mark.parametrize("mesh", ("", "dp=2", "ep=2,tp=2"))
def test_rows_of_unequal_length(kind, mesh, tmp_path):
    """Each row gives what it gives alone, on whichever side its padding stands."""
    if "ep=" in mesh and not has_experts(kind):
        mesh = "dp=2,tp=2"
    ids = np.concatenate([golden(kind)["input_ids"]] * 2)
    lengths = (24, 17, 9, 1)
    pad = 1 if kind in ("m2m_100",) else 0  # m2m_100 knows padding by its id, too
    batch, mask = np.full_like(ids, pad), np.zeros_like(ids)
    for row, length in enumerate(lengths):
        where = slice(24 - length, 24) if row % 2 else slice(0, length)
        batch[row, where], mask[row, where] = ids[row, :length], 1
    together, _ = generate(compiled(kind, tmp_path, 4, mesh), GOLDEN / kind, {"input_ids": batch, "attention_mask": mask}, tmp_path)
    alone = compiled(kind, tmp_path, 1)
    for row, length in enumerate(lengths):
        one, _ = generate(alone, GOLDEN / kind, {"input_ids": ids[row : row + 1, :length]}, tmp_path)
        assert together[row, -NEW:].tolist() == one[0, -NEW:].tolist(), f"row {row} of {length} tokens"


def test_draws_depend_on_the_seed_alone(tmp_path):
    inputs = {"input_ids": golden("qwen3_moe")["input_ids"]}
    seen = {}
    for mesh in ("", "dp=2", "ep=2", "tp=2", "ep=2,tp=2"):
        plan = compiled("qwen3_moe", tmp_path, 2, mesh)
        for seed in (1, 2, 2**40):
            options = ("--temperature=0.8", "--top-p=0.9", "--top-k=50", f"--seed={seed}")
            ids, _ = generate(plan, GOLDEN / "qwen3_moe", inputs, tmp_path, *options)
            assert seen.setdefault(seed, ids.tolist()) == ids.tolist(), f"seed {seed} on {mesh or 'one rank'}"
    assert len({str(ids) for ids in seen.values()}) == 3
    assert seen[1][0][24:] != seen[1][1][24:], "rows have draws of their own"


def test_what_top_k_and_top_p_leave(tmp_path):
    """One token left over is the greedy one, as is that of a temperature of 0, whatever is left; and draws follow the probabilities."""
    io = golden("olmoe")
    plan = compiled("olmoe", tmp_path, 1)
    for options in (("--temperature=1", "--top-k=1"), ("--temperature=1", "--top-p=1e-6"), ("--temperature=0", "--top-k=50", "--top-p=0.9")):
        ids, _ = generate(plan, GOLDEN / "olmoe", {"input_ids": io["input_ids"][:1]}, tmp_path, *options)
        assert ids.tolist() == io["greedy_ids"].tolist()
    # The first new token of 512 equal rows, against softmax of the golden logits after the prompt.
    rows = np.repeat(io["input_ids"][:1], 512, axis=0)
    plan = compiled("olmoe", tmp_path, 512, max_seq=25)
    ids, _ = generate(plan, GOLDEN / "olmoe", {"input_ids": rows}, tmp_path, "--temperature=0.25", "--top-k=8", new=1)
    logits = io["logits"][0, -1].astype(np.float64) / 0.25
    kept = np.argsort(-logits)[:8]
    p = np.exp(logits[kept] - logits[kept].max())
    p /= p.sum()
    counts = np.array([(ids[:, -1] == token).sum() for token in kept])
    assert counts.sum() == 512, "a token outside of the first 8 was drawn"
    assert (np.abs(counts / 512 - p) < 5 * np.sqrt(p * (1 - p) / 512) + 1e-3).all()


def test_stop_tokens_and_padding(tmp_path):
    """A row ends at a stop token and is padded; generation ends with the last row."""
    io = golden("olmoe")
    model = tmp_path / "model"
    shutil.copytree(GOLDEN / "olmoe", model)
    plan = compiled("olmoe", tmp_path, 2)
    free, _ = generate(plan, model, {"input_ids": io["input_ids"]}, tmp_path)
    new = free[:, 24:].tolist()
    stops = [new[0][3], new[1][7]]
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": stops, "pad_token_id": 5}))
    ends = [next(i for i, token in enumerate(row) if token in stops) for row in new]
    got, _ = generate(plan, model, {"input_ids": io["input_ids"]}, tmp_path, ignore_eos=False)
    assert got.shape[1] == 24 + max(ends) + 1
    for row, end in enumerate(ends):
        assert got[row, 24:].tolist() == new[row][: end + 1] + [5] * (max(ends) - end)
    # Without a pad token the first stop token follows; config.json is asked last.
    (model / "generation_config.json").unlink()
    config = json.loads((model / "config.json").read_text())
    config.update(eos_token_id=stops[0], pad_token_id=None)
    (model / "config.json").write_text(json.dumps(config))
    got, _ = generate(plan, model, {"input_ids": io["input_ids"]}, tmp_path, ignore_eos=False)
    end = new[0].index(stops[0])
    assert set(got[0, 24 + end :].tolist()) == {stops[0]}


def test_settings_that_are_not_applied_are_named(tmp_path):
    """Where transformers would choose other tokens without sampling; not where a setting changes nothing."""
    model = tmp_path / "model"
    shutil.copytree(GOLDEN / "olmoe", model)
    settings = {"eos_token_id": 1, "num_beams": 5, "repetition_penalty": 1.0, "forced_bos_token_id": 1, "suppress_tokens": [], "min_length": 0, "top_k": 50}
    (model / "generation_config.json").write_text(json.dumps(settings))
    plan = compiled("olmoe", tmp_path, 2, "dp=2")
    _, err = generate(plan, model, {"input_ids": golden("olmoe")["input_ids"]}, tmp_path)
    assert err.count("generation_config.json: not done, moe-run has no num_beams=5, forced_bos_token_id=1\n") == 1
    _, err = generate(plan, GOLDEN / "olmoe", {"input_ids": golden("olmoe")["input_ids"]}, tmp_path)
    assert "not done" not in err


def test_decoder_prompts(tmp_path):
    """A decoder may begin with more than its start token."""
    io = golden("mt5")
    plan = compiled("mt5", tmp_path, 1, "", "--dec-seq=4", max_seq=16)
    inputs = {"input_ids": io["input_ids"][:1], "decoder_input_ids": io["greedy_ids"][:, :4]}
    ids, _ = generate(plan, GOLDEN / "mt5", inputs, tmp_path, new=9)
    assert ids.tolist() == io["greedy_ids"].tolist()


@pytest.mark.parametrize("mesh", ("", "dp=2", "tp=2"))
@pytest.mark.parametrize("kind, often", (("m2m_100", 123), ("nllb_moe", 237)))
def test_pads_among_the_decoders_tokens(kind, often, mesh, tmp_path):
    """Positions leave out pads of the prompt, not those that generation gives, nor slots before a short prompt: the tokens are those of transformers, and
    of the reference program."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config, tensors = checkpoint.read_model(GOLDEN / kind)
    pad, start, io, rng = config["pad_token_id"], config["decoder_start_token_id"], golden(kind), np.random.default_rng(1)
    # Small embeddings, so that rows do not end in repeating a token; and the pad has a little more than the logit of one that is often generated.
    table = 0.03 * tensors["model.shared.weight"]
    table[pad] = 1.01 * table[often]
    checkpoint.write_model(tmp_path / "model", config, {**tensors, "model.shared.weight": table})
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    plan = compiled(kind, tmp_path, 2, mesh, "--dec-seq=6", max_seq=18)
    for width, pads in ((6, 0.0), (6, 0.5), (3, 0.0), (3, 0.5)):
        prompt = rng.integers(3, config["vocab_size"], (2, width))
        prompt[rng.random(prompt.shape) < pads] = pad
        prompt[:, 0] = start
        inputs = {"input_ids": io["input_ids"], "decoder_input_ids": prompt}
        with torch.no_grad():
            given = {name: torch.tensor(ids) for name, ids in inputs.items()}
            want = model.generate(**given, attention_mask=torch.ones_like(given["input_ids"]), max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        got, err = generate(plan, tmp_path / "model", inputs, tmp_path, "--check")
        assert got.tolist() == want.tolist(), f"prompts of {width}"
        assert f"{2 * NEW} of {2 * NEW} tokens are those of the one-rank reference" in err
        new = got[:, width:].tolist()
        assert all(pad in row[:-1] and set(row[row.index(pad) :]) != {pad} for row in new), "rows go on after a generated pad"


def test_stream_check_and_processes(tmp_path):
    io = golden("mixtral")
    plan = compiled("mixtral", tmp_path, 2, "ep=2")
    checkpoint.write(tmp_path / "in.safetensors", {"input_ids": io["input_ids"]})
    common = ("moe-run", plan, f"--weights={GOLDEN / 'mixtral'}", f"--inputs={tmp_path / 'in.safetensors'}", "--max-new-tokens=12", "--ignore-eos")
    done = run_tool(*common, "--stream", "--check")
    assert done.code == 0, done
    steps = [json.loads(line) for line in done.out.splitlines()]
    assert [step["step"] for step in steps] == list(range(12))
    assert [step["ids"][0] for step in steps] == io["greedy_ids"][0, 24:].tolist()
    assert "24 of 24 tokens are those of the one-rank reference" in done.err
    done = run_tool(*common, "--stream", mpi=2)
    assert [json.loads(line) for line in done.out.splitlines()] == steps, done


@pytest.mark.parametrize(
    "task, options, error",
    (
        ("generate", (), "MOE-0102"),
        ("generate", ("--max-new-tokens=25",), "MOE-0508"),
        ("generate", ("--max-new-tokens=4", "--temperature=1", "--top-p=2"), "MOE-0101"),
        ("generate", ("--max-new-tokens=4", "--temperature=-1"), "MOE-0101"),
        ("generate", ("--temperature=1",), "MOE-0102"),
        ("generate", ("--max-new-tokens=4", "--top-k=5"), "MOE-0102"),
        ("generate", ("--max-new-tokens=4", "--dump-routing=r.safetensors"), "MOE-0508"),
        ("forward", ("--max-new-tokens=4",), "MOE-0508"),
    ),
)
def test_refusals(task, options, error, tmp_path):
    plan = tmp_path / "model.moeplan"
    compile_plan(GOLDEN / "olmoe", plan, f"--task={task}", "--batch=2", "--seq=24", *(("--max-seq=48",) if task == "generate" else ()))
    done = run_tool("moe-run", plan, f"--weights={GOLDEN / 'olmoe'}", f"--inputs={GOLDEN / 'olmoe' / 'io.safetensors'}",
                    f"--outputs={tmp_path / 'o.safetensors'}", *options, cwd=tmp_path)
    assert done.error_ids == [error], done


def test_bad_prompts(tmp_path):
    plan = compiled("olmoe", tmp_path, 2)
    ids = golden("olmoe")["input_ids"]
    for inputs, words in (
        ({"input_ids": ids[:1]}, "compiled for [2, up to 24]"),
        ({"input_ids": np.concatenate([ids, ids], axis=1)}, "compiled for [2, up to 24]"),
        ({"input_ids": ids + 300}, "out of range"),
        ({"input_ids": ids.astype(np.float32)}, "takes I32 or I64"),
        ({"input_ids": ids, "attention_mask": np.zeros_like(ids)}, "row 1 has no token"),
        ({"input_ids": ids, "attention_mask": np.ones((2, 3), np.int64)}, "attention_mask has shape"),
        ({"ids": ids}, "input_ids is missing"),
    ):
        checkpoint.write(tmp_path / "in.safetensors", inputs)
        done = run_tool("moe-run", plan, f"--weights={GOLDEN / 'olmoe'}", f"--inputs={tmp_path / 'in.safetensors'}",
                        f"--outputs={tmp_path / 'o.safetensors'}", "--max-new-tokens=4")
        assert done.code == 2 and words in done.err, done


def test_max_seq_leaves_room(tmp_path):
    done = run_tool("moe-opt", GOLDEN / "olmoe", "--task=generate", "--seq=24", "--max-seq=24", "-o", tmp_path / "p.moeplan")
    assert done.error_ids == ["MOE-0102"] and "leaves no room" in done.err
    done = run_tool("moe-opt", GOLDEN / "olmoe", "--seq=24", "--max-seq=48", "-o", tmp_path / "p.moeplan")
    assert done.error_ids == ["MOE-0102"] and "--task=generate" in done.err


@pytest.mark.parametrize("kind", ("olmoe", "qwen3_moe", "gpt_oss", "deepseek_v2", "xglm", "m2m_100", "mt5"))
def test_padded_batches_as_transformers(kind, tmp_path):
    """Prompts padded on the left, stop tokens and the padding behind them: what transformers' generate returns, shape and all."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(GOLDEN / kind)
    model_class = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = model_class.from_pretrained(GOLDEN / kind, attn_implementation="eager", dtype=torch.float32).eval()
    ids = golden(kind)["input_ids"].copy()
    mask = np.ones_like(ids)
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    for row, length in enumerate((24, 11)):
        ids[row, : 24 - length], mask[row, : 24 - length] = pad, 0
    ids[ids == pad] = np.where(mask[ids == pad] == 0, pad, pad + 3)  # a token that is none of the padding
    # The token that comes fifth in the second row ends rows.
    plan = compiled(kind, tmp_path, 2)
    free, _ = generate(plan, GOLDEN / kind, {"input_ids": ids, "attention_mask": mask}, tmp_path)
    stop = int(free[1, -NEW + 4])
    directory = tmp_path / "model"
    shutil.copytree(GOLDEN / kind, directory)
    settings = json.loads((directory / "generation_config.json").read_text())
    (directory / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [stop, 255], "pad_token_id": 7}))
    got, _ = generate(plan, directory, {"input_ids": ids, "attention_mask": mask}, tmp_path, ignore_eos=False)
    with torch.no_grad():
        want = model.generate(
            torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), max_new_tokens=NEW, do_sample=False, eos_token_id=[stop, 255], pad_token_id=7
        )
    # What stands in place of masked prompt tokens is nobody's business.
    new = got.shape[1] - (1 if config.is_encoder_decoder else 24)
    assert got.shape == tuple(want.shape)
    assert got[:, -new:].tolist() == want[:, -new:].tolist()
