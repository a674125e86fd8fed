"""Shows what moe-ckpt promises: tensors come through a round trip byte for byte, conversions and the two ways to change a model's experts
give what NumPy gives, every changed byte is found, bad input is refused with the right id, and a directory is written whole or not at all."""

import json
import os
import shutil
import signal
import struct
import subprocess
import time

import numpy as np
import pytest
from safetensors import safe_open

import oracle
from capacity_oracle import philox
from common import GOLDEN, GOLDEN_CLASSES, ROOT, golden_options, relative_error
from errors import assert_refused
from moira import checkpoint, compile_plan, run_plan, run_tool
from moira.tools import program


def ckpt(*arguments, **kwargs):
    return run_tool("moe-ckpt", *arguments, **kwargs)


def done(*arguments):
    finished = ckpt(*arguments)
    assert finished.code == 0, finished
    return finished


def raw(directory):
    """{name: (dtype, shape, bytes)} of all files that the index names."""
    index = directory / "model.safetensors.index.json"
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
    out = {}
    for file in files:
        header, data = checkpoint.read_raw(directory / file)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            assert name not in out
            out[name] = (entry["dtype"], entry["shape"], data[begin:end])
    return out


def logits(directory, tmp_path, config_of, *options):
    plan, out = tmp_path / "p.moeplan", tmp_path / "o.safetensors"
    inputs = tmp_path / "i.safetensors"
    golden = checkpoint.read(GOLDEN / config_of / "io.safetensors")
    checkpoint.write(inputs, {"input_ids": golden["input_ids"].astype(np.int32)})
    compile_plan(directory, plan, *golden_options(config_of), *options)
    run_plan(plan, directory, inputs, out)
    return checkpoint.read(out)["logits"]


def copy_golden(kind, directory):
    """A writable golden model, as a user would have it."""
    directory.mkdir()
    for file in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(GOLDEN / kind / file, directory / file)
    return directory


# --- round trips --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GOLDEN_CLASSES)
def test_export_keeps_every_byte(kind, tmp_path):
    """Into shards with an index and back into one file; config and companions as they were."""
    source = copy_golden(kind, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "spiece.model", "chat_template.jinja"):
        (source / name).write_text(f"{{}} {name}")
    (source / "optimizer.pt").write_text("no part of the model")
    done("export-hf", source, tmp_path / "shards", "--max-shard-size=100KB")
    done("export-hf", tmp_path / "shards", tmp_path / "back")
    want = raw(source)
    for directory in (tmp_path / "shards", tmp_path / "back"):
        assert raw(directory) == want
        assert (directory / "config.json").read_bytes() == (source / "config.json").read_bytes()
        assert {p.name for p in directory.iterdir() if not p.name.startswith("model")} == {
            "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "spiece.model", "chat_template.jinja"}  # fmt: skip
        assert (directory / "tokenizer.json").read_text() == "{} tokenizer.json"
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in want.values())
    assert len(set(index["weight_map"].values())) > 1
    # As the format's own library and transformers read it.
    for file in set(index["weight_map"].values()):
        with safe_open(tmp_path / "shards" / file, "np") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_transformers_loads_what_is_exported(tmp_path):
    """The logits of transformers on a converted and exported directory are those on the original one."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    done("export-hf", GOLDEN / "mixtral", tmp_path / "out", "--max-shard-size=200KB")
    done("convert", GOLDEN / "mixtral", tmp_path / "bf16", "--dtype=bf16")
    done("convert", GOLDEN / "mixtral", tmp_path / "stacked", "--layout=stacked")
    ids = torch.tensor(checkpoint.read(GOLDEN / "mixtral" / "io.safetensors")["input_ids"].astype(np.int64))

    def run(directory, dtype=torch.float32):
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).float()
        with torch.no_grad():
            return model(ids).logits.numpy()

    want = run(GOLDEN / "mixtral")
    assert np.array_equal(run(tmp_path / "out"), want)
    assert np.array_equal(run(tmp_path / "stacked"), want)
    assert np.array_equal(run(tmp_path / "bf16"), run(GOLDEN / "mixtral", torch.bfloat16)), "torch rounds weights as moe-ckpt does"


def test_layouts_there_and_back(tmp_path):
    """Separate experts to a stack and back: NumPy's stack, the same plan results, and the same bytes in the end."""
    source = GOLDEN / "mixtral"
    done("convert", source, tmp_path / "stacked", "--layout=stacked")
    done("convert", tmp_path / "stacked", tmp_path / "back", "--layout=one tensor an expert")
    assert raw(tmp_path / "back") == raw(source)
    was, stacked = checkpoint.read(source / "model.safetensors"), checkpoint.read(tmp_path / "stacked" / "model.safetensors")
    prefix = "model.layers.1.block_sparse_moe"
    for name, parts in (("gate_up_proj", ("w1", "w3")), ("down_proj", ("w2",))):
        want = np.stack([np.concatenate([was[f"{prefix}.experts.{e}.{p}.weight"] for p in parts]) for e in range(8)])
        assert np.array_equal(stacked[f"model.layers.1.mlp.experts.{name}"], want)
    assert not [name for name in stacked if "block_sparse_moe" in name]
    assert np.array_equal(logits(tmp_path / "stacked", tmp_path, "mixtral"), logits(source, tmp_path, "mixtral"))


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("stored", ["F32", "BF16", "F16"])
def test_types_round_as_numpy_rounds(dtype, stored, tmp_path):
    """Every pair of types, with subnormal numbers, ties, infinities and numbers of no value."""
    rng = np.random.default_rng(5)
    values = np.concatenate([rng.normal(size=4000) * 10.0 ** rng.integers(-9, 4, 4000), [0.0, -0.0, np.inf, -np.inf, 1 + 2**-8, 1 + 2**-9, 6e4]])
    source = copy_golden("mixtral", tmp_path / "model")
    shutil.copy(source / "config.json", tmp_path / "config.json")
    was = checkpoint.stored(values.astype(np.float32), stored)
    checkpoint.write(source / "model.safetensors", {"a": was, "ids": np.arange(3, dtype=np.int64)})
    done("convert", source, tmp_path / "out", f"--dtype={dtype}")
    got = raw(tmp_path / "out")
    exact = checkpoint.read(source / "model.safetensors")["a"].astype(np.float32)
    name = {"f32": "F32", "bf16": "BF16", "f16": "F16"}[dtype]
    want = checkpoint.stored(exact, name)
    assert got["a"][0] == name and got["a"][2] == (want[2] if name == "BF16" else want.tobytes())
    assert got["ids"] == raw(source)["ids"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config.get("dtype") or config.get("torch_dtype")) == {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[dtype]


# --- checksums ----------------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_found(tmp_path):
    """Flips in headers and data are found, and the message names the tensor (or the file) that they are in."""
    model = copy_golden("mixtral", tmp_path / "model")
    done("export-hf", model, tmp_path / "out", "--max-shard-size=300KB", "--checksums")
    assert "all checksums agree" in done("verify", tmp_path / "out").out
    rng, names = np.random.default_rng(8), 0
    for file in sorted((tmp_path / "out").glob("*.safetensors")):
        good = file.read_bytes()
        (length,) = struct.unpack("<Q", good[:8])
        header, _ = checkpoint.read_raw(file)
        for at in [*rng.integers(0, 8 + length, 15), *rng.integers(8 + length, len(good), 25)]:
            bad = bytearray(good)
            bad[at] ^= 1 << rng.integers(8)
            file.write_bytes(bad)
            finished = ckpt("verify", tmp_path / "out")
            assert finished.code == 2 and finished.error_ids, f"a flip at byte {at} of {file.name}\n{finished}"
            if at >= 8 + length:
                (name,) = [n for n, e in header.items() if e["data_offsets"][0] <= at - 8 - length < e["data_offsets"][1]]
                assert_refused(finished, "ChecksumMismatch", [name])
                names += 1
        file.write_bytes(good)
    assert names > 50
    assert "all checksums agree" in done("verify", tmp_path / "out").out


def test_side_file_that_does_not_fit(tmp_path):
    model = copy_golden("olmoe", tmp_path / "model")
    assert "no checksums" in done("verify", model).out
    done("verify", model, "--write-checksums")
    side = model / "model.checksums.jsonl"
    good = side.read_text()
    first = good.splitlines()[1]
    for text, word in (
        (good.replace(first + "\n", ""), "has no record"),
        (good + '{"tensor":"ghost","dtype":"F32","shape":[1],"crc32c":"00000000"}\n', "ghost"),
        (good + "[" * 5000 + "\n", "is no record"),
        (good + "x" * 3_000_000, "longer"),
        (good.replace('"F32"', '"BF16"', 1), "its record says"),
        ("\n\n", "is no record"),
    ):
        side.write_text(text)
        assert_refused(ckpt("verify", model), "ChecksumMismatch", [word])
    done("verify", model, "--write-checksums")
    assert side.read_text() == good
    side.unlink()
    os.mkfifo(side)
    assert_refused(ckpt("verify", model, timeout=30), "FileNotFound", ["not a regular file"])


@pytest.mark.parametrize("command", [("convert", "--dtype=bf16"), ("convert", "--layout=separate"), ("export-hf",), ("prune", "--keep=3", "--random=1")])
def test_damage_gets_no_new_checksums(command, tmp_path):
    """What is read whole is checked, and nothing is written of a model that is damaged. Without records, or with those of others, all is read."""
    model = copy_golden("mixtral", tmp_path / "model")
    done("convert", model, tmp_path / "stacked", "--layout=stacked")
    model = tmp_path / "stacked"
    done("verify", model, "--write-checksums")
    header, _ = checkpoint.read_raw(model / "model.safetensors")
    stacked = [n for n, e in header.items() if len(e["shape"]) == 3]
    good = (model / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", good[:8])
    number = 0
    for name in ("lm_head.weight", "model.layers.1.input_layernorm.weight", stacked[0], stacked[-1]):
        if command[0] == "prune" and name in stacked:
            continue
        bad = bytearray(good)
        bad[8 + length + header[name]["data_offsets"][1] - 1] ^= 4
        (model / "model.safetensors").write_bytes(bad)
        assert_refused(ckpt(command[0], model, tmp_path / "out", *command[1:], "--checksums"), "ChecksumMismatch", [name, "--write-checksums"])
        assert not (tmp_path / "out").exists()
        done("verify", model, "--write-checksums")
        done(command[0], model, tmp_path / f"out-{number}", *command[1:], "--checksums")
        (model / "model.safetensors").write_bytes(good)
        done("verify", model, "--write-checksums")
        number += 1
    side = model / "model.checksums.jsonl"
    for text in ('{"tensor":"lm_head.weight","crc32c":"xyz"}', '{"tensor":"lm_head.weight","crc32c":"0"}', '{"tensor":3,"crc32c":"00000000"}', "{}"):
        side.write_text(text + "\n")
        assert_refused(ckpt(command[0], model, tmp_path / "out", *command[1:]), "ChecksumMismatch", ["line 1 is no record"])
        assert not (tmp_path / "out").exists()
    side.write_text('{"tensor":"ghost","crc32c":"00000000"}\n')
    done(command[0], model, tmp_path / "others", *command[1:])


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return f"{crc ^ 0xFFFFFFFF:08x}"


def test_training_checkpoints_are_verified(tmp_path):
    """One written from docs/checkpoints.md: the run's directory and the step's; a changed byte is named."""
    step = tmp_path / "run" / "step-3"
    step.mkdir(parents=True)
    checkpoint.write(step / "rank-00000.safetensors", {"w": np.arange(6, dtype=np.float32).reshape(2, 3)})
    blob = (step / "rank-00000.safetensors").read_bytes()
    start = len(blob) - 24
    file = {"name": "rank-00000.safetensors", "bytes": len(blob), "header_bytes": start, "header_crc32c": crc32c(blob[:start])}
    box = {"file": 0, "offset": start, "start": [0, 0], "extent": [2, 3], "crc32c": crc32c(blob[start:])}
    manifest = {"format": "moira training checkpoint 1", "step": 3, "seed": 1, "plan": "", "data": "", "files": [file]}
    manifest["tensors"] = [{"name": "w", "dtype": "f32", "shape": [2, 3], "boxes": [box]}]
    text = json.dumps(manifest)
    (step / "manifest.json").write_text(f'{{"crc32c":"{crc32c(text.encode())}","manifest":\n{text}\n}}\n')
    for directory in (tmp_path / "run", step):
        assert "training checkpoint of step 3, 1 tensors in 1 file; all checksums agree" in done("verify", directory).out
    assert_refused(ckpt("verify", step, "--write-checksums"), "BadUsage", ["training checkpoint"])
    (step / "rank-00000.safetensors").write_bytes(blob[:-1] + b"x")
    assert_refused(ckpt("verify", tmp_path / "run"), "BadCheckpoint", ["w", "rank-00000.safetensors"])


# --- Aggregation of Experts and pruning ----------------------------------------------------------------------------------------


def perturbed(kind, directory, seed, dtype="F32"):
    """The golden model with noise on every weight."""
    copy_golden(kind, directory)
    rng = np.random.default_rng(seed)
    tensors = checkpoint.read(directory / "model.safetensors")
    noisy = {n: checkpoint.stored(t + 0.02 * rng.normal(size=t.shape), dtype) for n, t in tensors.items()}
    checkpoint.write(directory / "model.safetensors", noisy)
    return directory


def expect(directory, tensors):
    got = checkpoint.read(directory / "model.safetensors")
    assert set(got) == set(tensors)
    for name, want in tensors.items():
        assert got[name].shape == want.shape and np.array_equal(got[name], want.astype(np.float32)), name


def test_aggregation_of_experts(tmp_path):
    """qwen2_moe twice over: shared weights averaged, gates concatenated, experts united; the result is a model that runs."""
    a, b = GOLDEN / "qwen2_moe", perturbed("qwen2_moe", tmp_path / "b", 17)
    done("aggregate", a, b, tmp_path / "out")
    x, y = (checkpoint.read(d / "model.safetensors") for d in (a, b))
    experts = json.loads((a / "config.json").read_text())["num_experts"]
    want = {}
    for name in x:
        if ".mlp.experts." in name:
            head, number, tail = name.split(".mlp.experts.")[0], *name.split(".mlp.experts.")[1].split(".", 1)
            want[name] = x[name]
            want[f"{head}.mlp.experts.{int(number) + experts}.{tail}"] = y[name]
        elif name.endswith(".mlp.gate.weight"):
            want[name] = np.concatenate([x[name], y[name]])
        else:
            want[name] = (x[name].astype(np.float64) + y[name]) / 2
    expect(tmp_path / "out", want)
    config, tensors = checkpoint.read_model(tmp_path / "out")
    assert config["num_experts"] == 2 * experts
    ids = checkpoint.read(a / "io.safetensors")["input_ids"]
    got = logits(tmp_path / "out", tmp_path, "qwen2_moe", "--mesh=ep=2")
    want = oracle.forward(config, tensors, ids)
    assert want.gap > 1e-4, "the seed makes clear choices"
    assert relative_error(got, want.logits) < 1e-5


def test_aggregation_of_stacked_experts_in_groups(tmp_path):
    """gpt_oss (stacks, biases) and deepseek_v3 (groups, a bias for the choice) in the types of the first."""
    b = perturbed("gpt_oss", tmp_path / "b", 2, "BF16")
    done("aggregate", GOLDEN / "gpt_oss", b, tmp_path / "out")
    x, y = (checkpoint.read(d / "model.safetensors") for d in (GOLDEN / "gpt_oss", b))
    joined = (".mlp.router.", ".mlp.experts.")
    expect(tmp_path / "out", {n: np.concatenate([x[n], y[n]]) if any(j in n for j in joined) else (x[n].astype(np.float64) + y[n]) / 2 for n in x})
    logits(tmp_path / "out", tmp_path, "gpt_oss")

    b = perturbed("deepseek_v3", tmp_path / "c", 3)
    done("aggregate", GOLDEN / "deepseek_v3", b, tmp_path / "groups")
    was, now = (json.loads((d / "config.json").read_text()) for d in (GOLDEN / "deepseek_v3", tmp_path / "groups"))
    assert now == {**was, "n_routed_experts": 2 * was["n_routed_experts"], "n_group": 2 * was["n_group"]}
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    x, y, z = (checkpoint.read(d / "model.safetensors") for d in (GOLDEN / "deepseek_v3", b, tmp_path / "groups"))
    assert np.array_equal(z[bias], np.concatenate([x[bias], y[bias]]))
    logits(tmp_path / "groups", tmp_path, "deepseek_v3")


def test_aggregation_of_encoder_decoders(tmp_path):
    b = perturbed("switch_transformers", tmp_path / "b", 4)
    done("aggregate", GOLDEN / "switch_transformers", b, tmp_path / "out")
    x, y, z = (checkpoint.read(d / "model.safetensors") for d in (GOLDEN / "switch_transformers", b, tmp_path / "out"))
    for stack, layer in (("encoder", 1), ("decoder", 2)):
        prefix = f"{stack}.block.1.layer.{layer}.mlp."
        router = prefix + "router.classifier.weight"
        assert np.array_equal(z[router], np.concatenate([x[router], y[router]]))
        experts = len(x[router])
        assert np.array_equal(z[f"{prefix}experts.expert_{experts + 2}.wo.weight"], y[f"{prefix}experts.expert_2.wo.weight"])


def pruned(tensors, kept):
    """mixtral's tensors with the experts kept[layer] only."""
    want = {}
    for name, value in tensors.items():
        if ".block_sparse_moe." not in name:
            want[name] = value
            continue
        layer = int(name.split(".")[2])
        if name.endswith("gate.weight"):
            want[name] = value[kept[layer]]
            continue
        parts = name.split(".")
        if int(parts[5]) in kept[layer]:
            want[".".join([*parts[:5], str(kept[layer].index(int(parts[5]))), *parts[6:]])] = value
    return want


def test_pruning_at_random(tmp_path):
    """The draws are Philox of (seed; layer, expert), and the pruned model gives what the oracle gives."""
    config, tensors = checkpoint.read_model(GOLDEN / "mixtral")
    finished = done("prune", GOLDEN / "mixtral", tmp_path / "out", "--keep=5", "--random=4")
    kept = {}
    for layer in range(config["num_hidden_layers"]):
        draws = [philox(4, (layer, e, 0, 0))[0] for e in range(8)]
        kept[layer] = sorted(sorted(range(8), key=lambda e: -draws[e])[:5])
    assert finished.out == "".join(f"layer {n}: {','.join(map(str, list_))}\n" for n, list_ in kept.items())
    expect(tmp_path / "out", pruned(tensors, kept))
    config, tensors = checkpoint.read_model(tmp_path / "out")
    assert config["num_local_experts"] == 5
    ids = checkpoint.read(GOLDEN / "mixtral" / "io.safetensors")["input_ids"]
    want = oracle.forward(config, tensors, ids)
    assert want.gap > 1e-4, "the seed makes clear choices"
    assert relative_error(logits(tmp_path / "out", tmp_path, "mixtral"), want.logits) < 1e-5


def test_pruning_the_least_used(tmp_path):
    """From a file that moe-run has written: the most used stay, of equally used ones the first; also where experts are a stack."""
    plan, routing = tmp_path / "p.moeplan", tmp_path / "routing.safetensors"
    compile_plan(GOLDEN / "mixtral", plan, *golden_options("mixtral"))
    run_plan(plan, GOLDEN / "mixtral", GOLDEN / "mixtral" / "io.safetensors", tmp_path / "o.safetensors", f"--dump-routing={routing}")
    choices = checkpoint.read(routing)
    _, tensors = checkpoint.read_model(GOLDEN / "mixtral")
    kept = {}
    for layer in range(2):
        uses = np.bincount(choices[f"layers.{layer}.ids"].ravel(), minlength=8)
        kept[layer] = sorted(sorted(range(8), key=lambda e: (-uses[e], e))[:3])
    done("prune", GOLDEN / "mixtral", tmp_path / "out", "--keep=3", f"--most-used={routing}")
    expect(tmp_path / "out", pruned(tensors, kept))
    done("convert", GOLDEN / "mixtral", tmp_path / "stacked", "--layout=stacked")
    done("prune", tmp_path / "stacked", tmp_path / "small", "--keep=3", f"--most-used={routing}")
    done("convert", tmp_path / "small", tmp_path / "same", "--layout=separate")
    assert raw(tmp_path / "same") == raw(tmp_path / "out")


def test_pruning_in_groups(tmp_path):
    """Every group keeps as many, so that the gate stays one over groups."""
    config = json.loads((GOLDEN / "deepseek_v3" / "config.json").read_text())
    experts, groups = config["n_routed_experts"], config["n_group"]
    size, keep = experts // groups, experts // 2
    finished = done("prune", GOLDEN / "deepseek_v3", tmp_path / "out", f"--keep={keep}", "--random=1")
    for line in finished.out.splitlines():
        kept = [int(e) for e in line.split(": ")[1].split(",")]
        assert np.array_equal(np.bincount(np.array(kept) // size, minlength=groups), [keep // groups] * groups)
    logits(tmp_path / "out", tmp_path, "deepseek_v3")
    uneven = ",".join(map(str, [*range(size), *range(size, size + keep - size)]))
    if keep != size * groups and groups > 2:
        assert_refused(ckpt("prune", GOLDEN / "deepseek_v3", tmp_path / "x", f"--experts={uneven}"), "BadUsage", ["group"])


# --- refusals ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, symbol, words",
    [
        ([], "BadUsage", ["no command", "export-hf"]),
        (["exprot-hf"], "UnknownFlag", ["exprot-hf", "export-hf"]),
        (["convert", "{m}", "{t}"], "BadUsage", ["--dtype", "--layout"]),
        (["convert", "{m}", "{t}", "--dtype=f8"], "UnknownFlag", ["f8", "bf16"]),
        (["convert", "{m}", "{t}", "--dtpye=f16"], "UnknownFlag", ["--dtpye", "--dtype"]),
        (["convert", "{m}", "{t}", "--layout=heap"], "BadUsage", ["heap", "one tensor an expert"]),
        (["export-hf", "{m}"], "BadUsage", ["directory to write"]),
        (["export-hf", "{m}", "{t}", "--max-shard-size=5XB"], "UnknownFlag", ["5XB"]),
        (["export-hf", "{m}/nowhere", "{t}"], "FileNotFound", ["nowhere"]),
        (["export-hf", "{m}", "{m}"], "CannotWrite", ["exists"]),
        (["export-hf", "{m}", "{t}/deep/er"], "CannotWrite", ["No such file"]),
        (["prune", "{m}", "{t}", "--keep=3"], "BadUsage", ["--random", "--most-used", "--experts"]),
        (["prune", "{m}", "{t}", "--random=3"], "BadUsage", ["--keep"]),
        (["prune", "{m}", "{t}", "--random=x", "--keep=3"], "UnknownFlag", ["x"]),
        (["prune", "{m}", "{t}", "--random=3", "--keep=9"], "BadUsage", ["9", "8"]),
        (["prune", "{m}", "{t}", "--random=3", "--keep=1"], "BadUsage", ["2", "token"]),
        (["prune", "{m}", "{t}", "--experts=0,9"], "BadUsage", ["9", "0..7"]),
        (["prune", "{m}", "{t}", "--experts=3,1"], "UnknownFlag", ["3,1"]),
        (["prune", "{m}", "{t}", "--keep=3", "--most-used={m}/config.json"], "BadSafetensors", ["config.json"]),
        (["prune", "{m}", "{t}", "--keep=3", "--most-used={m}/model.safetensors"], "BadInput", ["layers.0.ids"]),
        (["aggregate", "{m}", "{o}", "{t}"], "BadConfigValue", ["model_type", "mixtral", "olmoe"]),
        (["prune", "{d}", "{t}", "--random=3", "--keep=3"], "BadUsage", ["no experts"]),
        (["aggregate", "{d}", "{d}", "{t}"], "BadUsage", ["no experts"]),
        (["convert", "{d}", "{t}", "--layout=stacked"], "BadUsage", ["no experts"]),
    ],
)
def test_commands_that_make_no_sense(arguments, symbol, words, tmp_path):
    names = {"m": copy_golden("mixtral", tmp_path / "m"), "o": GOLDEN / "olmoe", "d": GOLDEN / "m2m_100", "t": tmp_path / "t"}
    assert_refused(ckpt(*[a.format(**names) for a in arguments]), symbol, words)
    assert not (tmp_path / "t").exists()


def without(name):
    return lambda tensors: tensors.pop(name)


EXPERT = "model.layers.1.block_sparse_moe.experts.{}.{}.weight"
SPOILED = [
    ("missing-expert", without(EXPERT.format(3, "w2")), "MissingTensor", [EXPERT.format(3, "w2")]),
    ("missing-router", without("model.layers.0.block_sparse_moe.gate.weight"), "MissingTensor", ["model.layers.0.block_sparse_moe.gate.weight"]),
    ("one-more-expert", lambda t: t.update({EXPERT.format(8, "w1"): t[EXPERT.format(0, "w1")]}), "ExtraTensor", ["experts.8", "8 experts"]),
    ("other-shape", lambda t: t.update({EXPERT.format(2, "w1"): np.zeros((3, 3), np.float32)}), "TensorShape", ["experts.2.w1", "[3, 3]"]),
    ("other-type", lambda t: t.update({EXPERT.format(2, "w1"): checkpoint.stored(t[EXPERT.format(2, "w1")], "BF16")}), "TensorDType", ["BF16"]),
    ("router-rows", lambda t: t.update({"model.layers.0.block_sparse_moe.gate.weight": np.zeros((7, 64), np.float32)}), "TensorShape", ["[7, 64]"]),
    ("two-layouts", lambda t: t.update({"model.layers.0.mlp.experts.down_proj": np.zeros((8, 64, 3), np.float32)}), "ExtraTensor", ["two ways"]),
    ("too-large", lambda t: t.update({"lm_head.weight": np.full((2, 2), 1e6, np.float32)}), "TensorDType", ["lm_head.weight", "4 values"]),
]


@pytest.mark.parametrize("spoil, symbol, words", [case[1:] for case in SPOILED], ids=[case[0] for case in SPOILED])
def test_models_that_are_not_whole(spoil, symbol, words, tmp_path):
    model = copy_golden("mixtral", tmp_path / "m")
    tensors = checkpoint.read(model / "model.safetensors")
    spoil(tensors)
    checkpoint.write(model / "model.safetensors", tensors)
    commands = [("convert", model, tmp_path / "t", "--dtype=f16")] if words[0] == "lm_head.weight" else [
        ("verify", model), ("convert", model, tmp_path / "t", "--layout=stacked"),
        ("prune", model, tmp_path / "t", "--keep=4", "--random=1"), ("aggregate", GOLDEN / "mixtral", model, tmp_path / "t")]  # fmt: skip
    for command in commands:
        assert_refused(ckpt(*command), symbol, words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"], "nothing is left of what failed"


def test_two_models_that_differ(tmp_path):
    """Aggregation names every tensor that the two do not share."""
    other = copy_golden("mixtral", tmp_path / "b")
    tensors = checkpoint.read(other / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.extra"] = np.zeros(3, np.float32)
    tensors["lm_head.weight"] = np.zeros((5, 64), np.float32)
    checkpoint.write(other / "model.safetensors", tensors)
    finished = ckpt("aggregate", GOLDEN / "mixtral", other, tmp_path / "t")
    assert set(finished.error_ids) == {"MOE-0302", "MOE-0303", "MOE-0304"}
    assert all(word in finished.err for word in ("model.norm.weight", "model.extra", "lm_head.weight"))
    done("convert", GOLDEN / "mixtral", tmp_path / "stacked", "--layout=stacked")
    assert_refused(ckpt("aggregate", GOLDEN / "mixtral", tmp_path / "stacked", tmp_path / "t"), "BadUsage", ["layout"])


CONFIGS = [
    ("nothing", "", "BadJson"),
    ("no-json", "{", "BadJson"),
    ("a-list", "[]", "BadJson"),
    ("double-key", '{"model_type": "mixtral", "a": 1, "a": 2}', "BadJson"),
    ("deep", '{"a": ' + "[" * 100000 + "]" * 100000 + "}", "BadJson"),
    ("large", '{"a": "' + "x" * 2_000_000 + '"}', "BadJson"),
    ("no-class", "{}", "MissingConfigField"),
    ("class-is-no-word", '{"model_type": 3}', "BadConfigValue"),
    ("unknown-class", '{"model_type": "mixtrel"}', "UnknownModelClass"),
    ("experts-is-no-number", '{"model_type": "mixtral", "num_local_experts": "many"}', "BadConfigValue"),
]


@pytest.mark.parametrize("text, symbol", [case[1:] for case in CONFIGS], ids=[case[0] for case in CONFIGS])
def test_hostile_configs(text, symbol, tmp_path):
    model = copy_golden("mixtral", tmp_path / "m")
    (model / "config.json").write_text(text)
    assert_refused(ckpt("verify", model), symbol, ["config.json"])


def test_hostile_weights(tmp_path):
    """What opening a checkpoint finds comes through, all at once: the reader itself is tested in test/Unit/SafeTensorsTest.cpp."""
    model = copy_golden("mixtral", tmp_path / "m")
    good = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(good[:-5])
    assert_refused(ckpt("verify", model), "BadSafetensors", ["truncated"])
    (model / "model.safetensors").unlink()
    index = model / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../m.safetensors"}}')
    assert_refused(ckpt("export-hf", model, tmp_path / "t"), "BadIndex", ["../m.safetensors"])
    checkpoint.write(model / "x.safetensors", {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)})
    index.write_text('{"weight_map": {"a": "x.safetensors", "c": "x.safetensors"}}')
    finished = ckpt("export-hf", model, tmp_path / "t")
    assert set(finished.error_ids) == {"MOE-0302", "MOE-0303"}


def test_a_full_disk_leaves_nothing(tmp_path):
    """Files may not grow beyond 64 KiB here, which is what a full disk looks like."""
    command = f'trap "" XFSZ; ulimit -f 64; exec "{program("moe-ckpt")}" export-hf "{GOLDEN / "mixtral"}" "{tmp_path / "t"}"'
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert ended.returncode == 5 and "error MOE-0107: " in ended.stderr, ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_a_link_is_refused_before_the_work(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "t").symlink_to("empty")
    assert_refused(ckpt("export-hf", GOLDEN / "mixtral", tmp_path / "t"), "CannotWrite", ["exists already"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing(number, tmp_path):
    ends = set()
    for _ in range(20):
        command = [program("moe-ckpt"), "export-hf", GOLDEN / "mixtral", tmp_path / "t", "--max-shard-size=10KB"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        while process.poll() is None and not list(tmp_path.glob("t.*.tmp/*")):
            time.sleep(0.0001)
        process.send_signal(number)
        process.communicate(timeout=30)
        ends.add(process.returncode)
        assert process.returncode in (0, -number) and not list(tmp_path.glob("t.*"))
        assert (tmp_path / "t").exists() == (process.returncode == 0)
        shutil.rmtree(tmp_path / "t", ignore_errors=True)
    assert -number in ends


def test_memory_is_bounded(tmp_path):
    """Copying, converting and pruning a 400 MB tensor takes a small part of that; pages of the mapped source do not count as taken."""
    model = copy_golden("mixtral", tmp_path / "m")
    big = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (100_000_000,), (0,))
    checkpoint.write(model / "model.safetensors", {"big": big})
    command = ["prlimit", "--data=134217728", program("moe-ckpt"), "convert", str(model), str(tmp_path / "t"), "--dtype=bf16"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert raw(tmp_path / "t")["big"][2] == bytes(200_000_000)


@pytest.mark.parametrize("kind", sorted(p.stem for p in (ROOT / "lib" / "Import" / "classes").glob("*.json")))
def test_every_class_is_known(kind, tmp_path):
    """The class files are the importer's; moe-ckpt reads each of them. Those that only others include, or that say what is lacking, are no classes."""
    file = json.loads((ROOT / "lib" / "Import" / "classes" / f"{kind}.json").read_text())
    name = file.get("model_type", kind)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
    checkpoint.write(tmp_path / "model.safetensors", {"a": np.zeros(2, np.float32)})
    if "model_type" in file and "lacks" not in file:
        assert f"{name} without experts" in done("verify", tmp_path).out
    else:
        assert_refused(ckpt("verify", tmp_path), "UnknownModelClass", [name, "mixtral"])
