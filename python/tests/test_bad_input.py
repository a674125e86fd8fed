"""Shows that bad input is refused with the right id, numbers and names: never a signal, a bare assert or silence.

Each table below holds (id of the case, how to spoil a good input, the error, words that the message must hold). Plans that are hostile
but have a right checksum are made in C++ (test/Unit); here are the mistakes that users make and the damage that files take.
"""

import json
import os
import struct
import subprocess

import numpy as np
import pytest

from common import ROOT
from errors import assert_refused
from moira import checkpoint, compile_plan, run_tool
from moira.tools import program

TINY = ROOT / "examples" / "tiny-moe"
SHAPE = ("--batch=4", "--seq=24")


@pytest.fixture
def model(tmp_path):
    """A writable copy of the bundled model."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in ("config.json", "model.safetensors", "inputs.safetensors"):
        (folder / file).write_bytes((TINY / file).read_bytes())
    return folder


@pytest.fixture(scope="session")
def plan(tmp_path_factory):
    """A good plan of the bundled model for two ranks; tests copy what they spoil."""
    path = tmp_path_factory.mktemp("plan") / "tiny.moeplan"
    compile_plan(TINY, path, *SHAPE, "--mesh=ep=2")
    return path


def opt(model, *options, output=None):
    return run_tool("moe-opt", model, *(options or SHAPE), "-o", output or model.parent / "p.moeplan")


def run(plan, tmp_path, *options, weights=TINY, inputs=TINY / "inputs.safetensors", output=None, **kwargs):
    files = (f"--weights={weights}", f"--inputs={inputs}", f"--outputs={output or tmp_path / 'out.safetensors'}")
    return run_tool("moe-run", plan, *files, *options, **kwargs)


# --- the command line of moe-opt ----------------------------------------------------------------------------------------------

COMMAND_LINES = [
    ("unknown-flag", [*SHAPE, "--mehs=ep=2"], "UnknownFlag", ["--mehs", "--mesh"]),
    ("unknown-flag-of-a-word", [*SHAPE, "--ragged-bond=3"], "UnknownFlag", ["--ragged-bound"]),
    ("unknown-flag-of-a-switch", [*SHAPE, "--determinstic"], "UnknownFlag", ["did you mean --deterministic"]),
    ("switch-with-a-value", [*SHAPE, "--deterministic=1"], "UnknownFlag", ["--deterministic takes no value, got '1'"]),
    ("switch-with-an-empty-value", [*SHAPE, "--memory-only="], "UnknownFlag", ["--memory-only takes no value"]),
    ("batch-not-a-number", ["--batch=two", "--seq=24"], ("UnknownFlag", "BadUsage"), ["--batch", "two"]),
    ("batch-zero", ["--batch=0", "--seq=24"], ("UnknownFlag", "BadUsage"), ["--batch", "0"]),
    ("seq-negative", ["--batch=4", "--seq=-3"], ("UnknownFlag", "BadUsage"), ["--seq", "-3"]),
    ("batch-overflows", ["--batch=99999999999999999999999", "--seq=24"], ("UnknownFlag", "BadUsage"), ["--batch"]),
    ("limit-of-no-unit", [*SHAPE, "--memory-limit=10XB"], "UnknownFlag", ["--memory-limit expects bytes", "10XB"]),
    ("limit-of-no-number", [*SHAPE, "--memory-limit=GiB"], "UnknownFlag", ["--memory-limit expects bytes", "GiB"]),
    ("unknown-task", [*SHAPE, "--task=dance"], ("UnknownFlag", "BadUsage"), ["dance", "forward"]),
    ("unknown-dtype", [*SHAPE, "--dtype=f17"], ("UnknownFlag", "BadUsage"), ["f17", "f32", "bf16"]),
    ("unknown-target", [*SHAPE, "--target=z80"], ("UnknownFlag", "BadUsage"), ["z80", "host"]),
    ("unknown-axis", [*SHAPE, "--mesh=xp=2"], "BadMesh", ["xp", "dp", "ep", "tp"]),
    ("axis-without-size", [*SHAPE, "--mesh=ep"], "BadMesh", ["ep"]),
    ("axis-of-size-zero", [*SHAPE, "--mesh=ep=0"], "BadMesh", ["ep", "0"]),
    ("axis-of-no-number", [*SHAPE, "--mesh=ep=two"], "BadMesh", ["two"]),
    ("axis-twice", [*SHAPE, "--mesh=ep=2,ep=2"], "BadMesh", ["ep"]),
    ("axis-overflows", [*SHAPE, "--mesh=ep=4611686018427387904,dp=4"], ("BadMesh", "MeshDoesNotDivide"), ["ep"]),
    ("passes-and-model", [*SHAPE, "--canonicalize"], ("BadUsage", "UnknownFlag"), ["canonicalize"]),
]


@pytest.mark.parametrize("options, error, words", [c[1:] for c in COMMAND_LINES], ids=[c[0] for c in COMMAND_LINES])
def test_moe_opt_command_line(model, options, error, words):
    assert_refused(opt(model, *options), error, words)
    assert not (model.parent / "p.moeplan").exists()


def test_moe_opt_says_what_it_needs(tmp_path):
    """An empty stdin is no module that somebody has asked to read. Where one is asked for, it is read."""
    text = tmp_path / "module.mlir"
    text.write_text("func.func @f() { return }")
    for stdin in ("/dev/null", text):
        with open(stdin) as opened:
            done = subprocess.run([program("moe-opt")], stdin=opened, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert "error MOE-0102: no model given; moe-opt MODEL" in done.stderr and "moe-opt - reads a module from stdin" in done.stderr, done
    for option in ("-", "--canonicalize"):
        with open(text) as opened:
            done = subprocess.run([program("moe-opt"), option], stdin=opened, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "func.func @f()" in done.stdout, done


def test_mesh_that_does_not_divide_says_everything_at_once(model):
    finished = opt(model, *SHAPE, "--mesh=dp=3,ep=3,tp=3")
    # 4 sequences, 8 experts, 4 query heads; and meshes that would do.
    assert_refused(finished, "MeshDoesNotDivide", ["dp=3", "ep=3", "tp=3", "num_local_experts", "num_attention_heads", "--mesh="])


def test_memory_limit_is_refused_with_a_table(model):
    finished = opt(model, *SHAPE, "--mesh=ep=2", "--memory-limit=1000")
    assert_refused(finished, "OverMemoryLimit", ["1000", "weights", "activations"])


def test_nearest_meshes_that_are_named_are_valid(model):
    finished = opt(model, *SHAPE, "--mesh=dp=3,ep=2")
    assert_refused(finished, "MeshDoesNotDivide", ["dp=3"])
    named = {w.strip(".,;()`'") for w in finished.err.replace("--mesh=", " ").split() if "=" in w and w[:3] in ("dp=", "ep=", "tp=")}
    named -= {"dp=3", "dp=3,ep=2", "ep=2"}
    assert named, f"no mesh is proposed\n{finished}"
    for mesh in named:
        assert opt(model, *SHAPE, f"--mesh={mesh}").code == 0, mesh


# --- config.json ----------------------------------------------------------------------------------------------------------------


def changed(**fields):
    """Sets fields of config.json; ... removes one."""

    def spoil(model):
        config = json.loads((model / "config.json").read_text())
        for field, value in fields.items():
            if value is ...:
                config.pop(field)
            else:
                config[field] = value
        (model / "config.json").write_text(json.dumps(config))

    return spoil


def config_text(text):
    return lambda model: (model / "config.json").write_bytes(text)


CONFIGS = [
    ("empty", config_text(b""), "BadJson", ["config.json"]),
    ("cut-off", config_text(b'{"model_type": "mixtral", "hidden_si'), "BadJson", ["config.json"]),
    ("no-object", config_text(b"[1, 2]"), "BadJson", ["config.json"]),
    ("not-utf8", config_text(b'{"model_type": "\xff\xfe"}'), ("BadJson", "UnknownModelClass"), ["config.json"]),
    ("nested-too-deep", config_text(b"[" * 200000), "BadJson", ["config.json"]),
    ("binary", config_text(bytes(range(256)) * 40), "BadJson", ["config.json"]),
    ("key-twice", config_text(b'{"model_type": "mixtral", "model_type": "olmoe"}'), ("BadJson", "MissingConfigField"), ["config.json"]),
    ("unknown-class", changed(model_type="mixtrel"), "UnknownModelClass", ["mixtrel", "mixtral", "qwen3_moe"]),
    ("class-missing", changed(model_type=...), ("MissingConfigField", "UnknownModelClass"), ["model_type"]),
    ("class-not-text", changed(model_type=7), ("BadConfigValue", "UnknownModelClass"), ["model_type"]),
    ("unknown-fields", changed(hiden_size=32, surprise=1), "UnknownConfigField", ["hiden_size", "surprise"]),
    ("text-for-number", changed(hidden_size="32"), "BadConfigValue", ["hidden_size"]),
    ("negative", changed(num_hidden_layers=-2), "BadConfigValue", ["num_hidden_layers", "-2"]),
    ("fraction", changed(num_attention_heads=2.5), "BadConfigValue", ["num_attention_heads"]),
    ("huge", changed(hidden_size=1e30), "BadConfigValue", ["hidden_size"]),
    ("product-overflows", changed(vocab_size=2**62, num_hidden_layers=2**20), ("BadConfigValue", "UnsupportedConfig"), []),
    ("more-than-there-are", changed(num_experts_per_tok=9), "BadConfigValue", ["num_experts_per_tok", "9", "8"]),
    ("heads-do-not-group", changed(num_key_value_heads=3), "BadConfigValue", ["num_key_value_heads", "3", "4"]),
    ("zero-eps", changed(rms_norm_eps=-1.0), "BadConfigValue", ["rms_norm_eps"]),
    ("several-at-once", changed(hidden_size="x", num_hidden_layers=-1), "BadConfigValue", ["hidden_size", "num_hidden_layers"]),
    ("activation", changed(hidden_act="gelu_fancy"), ("UnsupportedConfig", "BadConfigValue"), ["hidden_act", "gelu_fancy"]),
    ("rope", changed(rope_parameters={"rope_type": "magic", "rope_theta": 1e4}), ("UnsupportedConfig", "BadConfigValue"), ["magic"]),
    ("quantized", changed(quantization_config={"quant_method": "fp8"}), ("UnsupportedConfig", "UnknownConfigField"), ["quantization_config"]),
]


@pytest.mark.parametrize("spoil, error, words", [c[1:] for c in CONFIGS], ids=[c[0] for c in CONFIGS])
def test_config(model, spoil, error, words):
    spoil(model)
    assert_refused(opt(model), error, words)


# --- checkpoints -----------------------------------------------------------------------------------------------------------------

EXPERT = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
HEAD = "lm_head.weight"


def weights(change):
    """Rewrites the weights after change(header, tensors)."""

    def spoil(model):
        header, data = checkpoint.read_raw(model / "model.safetensors")
        tensors = {n: (e["dtype"], e["shape"], data[slice(*e["data_offsets"])]) for n, e in header.items()}
        change(tensors)
        checkpoint.write(model / "model.safetensors", tensors)

    return spoil


def header(change):
    """Rewrites only the header of the weights after change(header)."""

    def spoil(model):
        entries, data = checkpoint.read_raw(model / "model.safetensors")
        result = change(entries)
        checkpoint.write_raw(model / "model.safetensors", entries if result is None else result, data)

    return spoil


def weight_bytes(change):
    def spoil(model):
        path = model / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return spoil


def drop(*names):
    return weights(lambda t: [t.pop(n) for n in names])


def put(name, dtype, shape, size):
    return weights(lambda t: t.__setitem__(name, (dtype, shape, bytes(size))))


def doubled_key(entries):
    text = json.dumps(entries)[:-1]
    return (text + f', "{HEAD}": {json.dumps(entries[HEAD])}}}').encode()


def move(name, begin, end):
    return header(lambda h: h[name].__setitem__("data_offsets", [begin, end]))


CHECKPOINTS = [
    ("missing", drop(EXPERT), "MissingTensor", [EXPERT]),
    ("two-missing", drop(EXPERT, HEAD), "MissingTensor", [EXPERT, HEAD]),
    ("extra", put("model.layers.0.surprise.weight", "F32", [2], 8), "ExtraTensor", ["model.layers.0.surprise.weight"]),
    ("layer-too-many", put("model.layers.2.input_layernorm.weight", "F32", [32], 128), "ExtraTensor", ["model.layers.2.input_layernorm"]),
    ("shape", put(EXPERT, "F32", [48, 32], 6144), "TensorShape", [EXPERT, "48", "32"]),
    ("rank", put(HEAD, "F32", [4096], 16384), "TensorShape", [HEAD, "4096", "128"]),
    ("type", put(HEAD, "I32", [128, 32], 16384), "TensorDType", [HEAD, "I32"]),
    ("unknown-type", put(HEAD, "Q9", [128, 32], 16384), ("BadSafetensors", "TensorDType"), [HEAD, "Q9"]),
    ("missing-and-extra", lambda m: (drop(EXPERT)(m), put("zzz", "F32", [1], 4)(m)), ("MissingTensor", "ExtraTensor"), [EXPERT, "zzz"]),
    ("empty-file", weight_bytes(lambda b: b""), "BadSafetensors", ["model.safetensors"]),
    ("seven-bytes", weight_bytes(lambda b: b[:7]), "BadSafetensors", ["model.safetensors"]),
    ("header-cut-off", weight_bytes(lambda b: b[:100]), "BadSafetensors", ["model.safetensors"]),
    ("data-cut-off", weight_bytes(lambda b: b[:-1]), "BadSafetensors", ["model.safetensors"]),
    ("data-too-long", weight_bytes(lambda b: b + b"\0"), "BadSafetensors", ["model.safetensors"]),
    ("header-length-huge", weight_bytes(lambda b: struct.pack("<Q", 2**63) + b[8:]), "BadSafetensors", ["model.safetensors"]),
    ("header-length-over-limit", weight_bytes(lambda b: struct.pack("<Q", 100_000_001) + b[8:]), "BadSafetensors", ["model.safetensors"]),
    ("header-is-a-list", header(lambda h: b"[]      "), "BadSafetensors", ["model.safetensors"]),
    ("header-nested-deep", header(lambda h: b'{"a":' * 100000), "BadSafetensors", ["model.safetensors"]),
    ("key-twice", header(doubled_key), "BadSafetensors", [HEAD]),
    ("overlap", move(HEAD, 0, 16384), "BadSafetensors", [HEAD]),
    ("past-the-end", move(HEAD, 2**40, 2**40 + 16384), "BadSafetensors", [HEAD]),
    ("backwards", move(HEAD, 16384, 0), "BadSafetensors", [HEAD]),
    ("negative-offset", move(HEAD, -4, 16380), "BadSafetensors", [HEAD]),
    ("negative-shape", header(lambda h: h[HEAD].__setitem__("shape", [-128, -32])), "BadSafetensors", [HEAD]),
    ("shape-overflows", header(lambda h: h[HEAD].__setitem__("shape", [2**62, 2**62])), ("BadSafetensors", "TensorShape"), [HEAD]),
    ("no-offsets", header(lambda h: h[HEAD].pop("data_offsets") and None), "BadSafetensors", [HEAD]),
]


@pytest.mark.parametrize("spoil, error, words", [c[1:] for c in CHECKPOINTS], ids=[c[0] for c in CHECKPOINTS])
def test_checkpoint_when_compiling(model, spoil, error, words):
    spoil(model)
    assert_refused(opt(model), error, words)


@pytest.mark.parametrize("spoil, error, words", [c[1:] for c in CHECKPOINTS], ids=[c[0] for c in CHECKPOINTS])
def test_checkpoint_when_running(model, plan, spoil, error, words):
    """The weights may change after the compile: moe-run looks at them by itself. It need not mind tensors that the plan does not use."""
    spoil(model)
    finished = run(plan, model.parent, weights=model)
    if error == "ExtraTensor":
        assert finished.code in (0, 2), f"{finished}"
        return
    words = [w for w in words if w != "zzz"]
    assert_refused(finished, error, words)


def sharded(change):
    """Splits the weights into two files with an index, then spoils the folder with change(folder, index)."""

    def spoil(model):
        config, tensors = checkpoint.read_model(model)
        (model / "model.safetensors").unlink()
        checkpoint.write_model(model, config, tensors, shards=2)
        path = model / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        result = change(model, index)
        path.write_bytes(result if isinstance(result, bytes) else json.dumps(index).encode())

    return spoil


FIRST = "model-00001-of-00002.safetensors"
INDEXES = [
    ("broken-json", sharded(lambda m, i: b'{"weight_map": '), ("BadIndex", "BadJson"), ["index.json"]),
    ("no-map", sharded(lambda m, i: i.pop("weight_map") and None), "BadIndex", ["weight_map"]),
    ("map-of-numbers", sharded(lambda m, i: i["weight_map"].__setitem__(HEAD, 3)), "BadIndex", [HEAD]),
    ("shard-gone", sharded(lambda m, i: (m / FIRST).unlink()), ("FileNotFound", "BadIndex"), [FIRST]),
    ("outside-the-folder", sharded(lambda m, i: i["weight_map"].__setitem__(HEAD, "../x.safetensors")), "BadIndex", ["../x.safetensors"]),
    ("absolute", sharded(lambda m, i: i["weight_map"].__setitem__(HEAD, "/etc/passwd")), "BadIndex", ["/etc/passwd"]),
    ("not-in-its-shard", sharded(lambda m, i: i["weight_map"].__setitem__("nowhere.weight", FIRST)), ("BadIndex", "MissingTensor"), ["nowhere.weight"]),
    ("shard-cut-off", sharded(lambda m, i: (m / FIRST).write_bytes((m / FIRST).read_bytes()[:-5])), "BadSafetensors", [FIRST]),
]


@pytest.mark.parametrize("spoil, error, words", [c[1:] for c in INDEXES], ids=[c[0] for c in INDEXES])
def test_sharded_checkpoint(model, plan, spoil, error, words):
    spoil(model)
    assert_refused(opt(model), error, words)
    assert_refused(run(plan, model.parent, weights=model), error, words)


def test_a_byte_order_mark_is_skipped_everywhere(model, tmp_path):
    """Editors of other systems begin files with one. Every program takes it, in a config as in an index."""
    mark = b"\xef\xbb\xbf"
    sharded(lambda m, i: mark + json.dumps(i).encode())(model)
    (model / "config.json").write_bytes(mark + (model / "config.json").read_bytes())
    compiled = opt(model)
    assert compiled.code == 0, f"{compiled}"
    finished = run(tmp_path / "p.moeplan", tmp_path, weights=model)
    assert finished.code == 0, f"{finished}"
    verified = run_tool("moe-ckpt", "verify", model)
    assert verified.code == 0, f"{verified}"
    config, tensors = checkpoint.read_model(model)
    assert config == json.loads((TINY / "config.json").read_text()) and tensors.keys() == checkpoint.read_model(TINY)[1].keys()


# --- files that are not there, and files that cannot be written ------------------------------------------------------------------


def test_missing_files(model, plan, tmp_path):
    nowhere = tmp_path / "nowhere"
    assert_refused(opt(nowhere), "FileNotFound", [nowhere])
    assert_refused(run(nowhere, tmp_path), "FileNotFound", [nowhere])
    assert_refused(run(plan, tmp_path, weights=nowhere), "FileNotFound", [nowhere])
    assert_refused(run(plan, tmp_path, inputs=nowhere), "FileNotFound", [nowhere])
    assert_refused(run_tool("moe-inspect", nowhere), "FileNotFound", [nowhere])
    (model / "config.json").unlink()
    assert_refused(opt(model), "FileNotFound", ["config.json"])


def test_unwritable_outputs(plan, model, tmp_path):
    output = tmp_path / "no-such-folder" / "x"
    assert_refused(opt(model, output=output), "CannotWrite", [output])
    assert_refused(run(plan, tmp_path, output=output), "CannotWrite", [output])
    assert_refused(run(plan, tmp_path, output=tmp_path), "CannotWrite", [tmp_path])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_full_disk(plan, model, tmp_path):
    assert_refused(opt(model, output="/dev/full"), "CannotWrite", ["/dev/full"])
    assert_refused(run(plan, tmp_path, output="/dev/full"), "CannotWrite", ["/dev/full"])


# --- plans -------------------------------------------------------------------------------------------------------------------------

PLAN_DAMAGE = [
    ("empty", lambda b: b"", ("NotAPlan", "PlanTruncated")),
    ("text", lambda b: b"this is no plan, just some text that is long enough for a header", "NotAPlan"),
    ("magic", lambda b: b"XXXX" + b[4:], "NotAPlan"),
    ("header-cut-off", lambda b: b[:20], ("PlanTruncated", "NotAPlan")),
    ("half", lambda b: b[: len(b) // 2], "PlanTruncated"),
    ("last-byte-gone", lambda b: b[:-1], "PlanTruncated"),
    ("byte-too-many", lambda b: b + b"\0", ("PlanTruncated", "PlanStructure", "PlanChecksum")),
    ("one-bit-in-the-middle", lambda b: b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 4]) + b[len(b) // 2 + 1 :], "PlanChecksum"),
    ("last-byte", lambda b: b[:-1] + bytes([b[-1] ^ 255]), "PlanChecksum"),
]


@pytest.mark.parametrize("damage, error", [c[1:] for c in PLAN_DAMAGE], ids=[c[0] for c in PLAN_DAMAGE])
def test_damaged_plan(plan, tmp_path, damage, error):
    broken = tmp_path / "broken.moeplan"
    broken.write_bytes(damage(plan.read_bytes()))
    assert_refused(run(broken, tmp_path), error, ["broken.moeplan"])
    assert_refused(run_tool("moe-inspect", broken), error, ["broken.moeplan"])


def test_every_byte_of_the_header_matters(plan, tmp_path):
    good = plan.read_bytes()
    broken = tmp_path / "broken.moeplan"
    for i in range(32):
        broken.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        assert_refused(run_tool("moe-inspect", broken), ("NotAPlan", "PlanVersion", "PlanTruncated", "PlanChecksum", "PlanStructure"))


def test_plan_of_another_version(plan, tmp_path):
    good = plan.read_bytes()
    refused = set()
    for i in range(4, 32):
        broken = tmp_path / "broken.moeplan"
        broken.write_bytes(good[:i] + bytes([good[i] ^ 0x40]) + good[i + 1 :])
        refused.update(run_tool("moe-inspect", broken).error_ids)
    assert "MOE-0402" in refused, "neither the format version nor the schema hash is looked at"


def test_a_folder_is_no_plan(tmp_path):
    assert_refused(run(tmp_path, tmp_path), ("NotAPlan", "FileNotFound"), [tmp_path])


# --- running -----------------------------------------------------------------------------------------------------------------------


def ids(change):
    """The bundled inputs after change(ids), which may return other tensors."""

    def make(path):
        good = checkpoint.read(TINY / "inputs.safetensors")["input_ids"].copy()
        result = change(good)
        checkpoint.write(path, result if isinstance(result, dict) else {"input_ids": good})

    return make


INPUTS = [
    ("id-too-large", ids(lambda a: a.__setitem__((2, 5), 128)), "BadInput", ["input_ids", "128", "127"]),
    ("id-negative", ids(lambda a: a.__setitem__((0, 0), -1)), "BadInput", ["input_ids", "-1"]),
    ("too-short", ids(lambda a: {"input_ids": a[:, :20]}), "BadInput", ["input_ids", "20", "24"]),
    ("too-many-rows", ids(lambda a: {"input_ids": np.concatenate([a, a])}), "BadInput", ["input_ids", "8", "4"]),
    ("flat", ids(lambda a: {"input_ids": a.reshape(-1)}), "BadInput", ["input_ids", "96"]),
    ("float", ids(lambda a: {"input_ids": a.astype(np.float32)}), "BadInput", ["input_ids", "F32"]),
    ("wide-id", ids(lambda a: {"input_ids": a.astype(np.int64) + 2**33}), "BadInput", ["input_ids"]),
    ("other-name", ids(lambda a: {"inputs": a}), "BadInput", ["input_ids", "inputs"]),
    ("nothing", ids(lambda a: {}), "BadInput", ["input_ids"]),
    ("mask-shape", ids(lambda a: {"input_ids": a, "attention_mask": a[:2]}), "BadInput", ["attention_mask"]),
    ("no-safetensors", lambda p: p.write_bytes(b"hello"), "BadSafetensors", ["bad.safetensors"]),
]


@pytest.mark.parametrize("make, error, words", [c[1:] for c in INPUTS], ids=[c[0] for c in INPUTS])
@pytest.mark.parametrize("options", [(), ("--reference",)], ids=["mesh", "reference"])
def test_inputs(plan, tmp_path, make, error, words, options):
    make(tmp_path / "bad.safetensors")
    assert_refused(run(plan, tmp_path, *options, inputs=tmp_path / "bad.safetensors"), error, words)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("options", [(), ("--reference",)], ids=["mesh", "reference"])
def test_padding_of_a_plan_without(tmp_path, options):
    """A plan of --padding=off takes masks of ones and no other; what it gives then is what every plan gives."""
    outputs = {}
    for padding in ("on", "off"):
        compile_plan(TINY, tmp_path / f"{padding}.moeplan", *SHAPE, "--mesh=dp=2", f"--padding={padding}")
    good = checkpoint.read(TINY / "inputs.safetensors")["input_ids"]
    for ones in (0, 1):
        mask = {"attention_mask": np.ones_like(good, np.int32)} if ones else {}
        checkpoint.write(tmp_path / "good.safetensors", {"input_ids": good, **mask})
        for padding in ("on", "off"):
            finished = run(tmp_path / f"{padding}.moeplan", tmp_path, *options, inputs=tmp_path / "good.safetensors")
            assert finished.code == 0, f"{finished}"
            outputs[padding, ones] = checkpoint.read(tmp_path / "out.safetensors")["logits"]
    first = outputs["on", 0]
    assert all(np.array_equal(first, other) for other in outputs.values())
    (tmp_path / "out.safetensors").unlink()
    mask = np.ones_like(good, np.int32)
    mask[2, 7] = 0
    checkpoint.write(tmp_path / "bad.safetensors", {"input_ids": good, "attention_mask": mask})
    finished = run(tmp_path / "off.moeplan", tmp_path, *options, inputs=tmp_path / "bad.safetensors")
    assert_refused(finished, "BadInput", ["attention_mask", "0", "1"])
    assert not (tmp_path / "out.safetensors").exists()


RUN_COMMANDS = [
    ("unknown-flag", ["--wieghts=x"], "UnknownFlag", ["--wieghts", "--weights"]),
    ("timeout-not-a-number", ["--timeout=soon"], ("UnknownFlag", "BadUsage"), ["--timeout"]),
    ("unknown-device", ["--device=toaster"], ("UnknownFlag", "BadUsage"), ["toaster", "host"]),
    ("unknown-reference", ["--reference=f8"], ("UnknownFlag", "BadUsage"), ["f8"]),
    ("steps-negative", ["--steps=-1"], "UnknownFlag", ["--steps", "-1"]),
    ("steps-zero", ["--steps=0"], "UnknownFlag", ["--steps must be at least 1"]),
    ("save-every-negative", ["--steps=2", "--save-every=-1"], "UnknownFlag", ["--save-every", "-1"]),
    ("keep-negative", ["--steps=2", "--keep=-1"], "UnknownFlag", ["--keep", "-1"]),
    ("weights-read-and-drawn", ["--steps=2", "--init=1"], "BadUsage", ["--weights", "--init", "give one"]),
    ("ranks-are-the-plan-s", ["--ranks=4"], "BadUsage", ["--ranks is for moe-run doctor", "--mesh"]),
    ("graphs-of-a-plan-for-the-host", ["--no-graphs"], "BadUsage", ["--no-graphs is for plans for GPUs", "is compiled for 'host'"]),
    ("graphs-on-the-host", ["--device=host", "--no-graphs"], "BadUsage", ["--no-graphs is for --device=cuda"]),
    ("graphs-of-a-simulation", ["--device=sim", "--graphs"], "BadUsage", ["--graphs is for --device=cuda"]),
    ("repeat-not-whole", ["--repeat=2.5"], "UnknownFlag", ["--repeat", "2.5 is no whole number"]),
    ("learning-rate-no-number", ["--steps=2", "--lr=x"], "UnknownFlag", ["--lr", "x is no number"]),
    ("seed-negative", ["--seed=-1"], "UnknownFlag", ["--seed", "-1 must be 0 or more"]),
    ("init-negative", ["--steps=2", "--init=-1"], "UnknownFlag", ["--init", "-1"]),
    ("tolerance-without-check", ["--check-tolerance=1e-3"], "BadUsage", ["--check-tolerance needs --check"]),
    ("keep-without-checkpoint", ["--steps=2", "--keep=3", "--resume"], "BadUsage", ["--keep needs --checkpoint", "--resume needs --checkpoint"]),
    ("deviation-without-draws", ["--steps=2", "--init-deviation=1"], "BadUsage", ["--init-deviation needs --init"]),
    ("data-seed-without-data", ["--steps=2", "--data-seed=1", "--data-temperature=2"], "BadUsage", ["--data-seed needs --data", "--data-temperature needs"]),
    ("tokens-of-two-files", ["--steps=2", "--data=x"], "BadUsage", ["--data", "--inputs", "give one"]),
]


@pytest.mark.parametrize("options, error, words", [c[1:] for c in RUN_COMMANDS], ids=[c[0] for c in RUN_COMMANDS])
def test_moe_run_command_line(plan, tmp_path, options, error, words):
    assert_refused(run(plan, tmp_path, *options), error, words)


def test_moe_run_needs_its_files(plan):
    assert_refused(run_tool("moe-run", plan), ("BadUsage", "UnknownFlag"), ["--weights", "--inputs", "--outputs"])
    finished = run_tool("moe-run", plan, f"--weights={TINY}", f"--inputs={TINY}/inputs.safetensors")
    assert_refused(finished, "BadUsage", ["missing: --outputs=FILE;"])
    # Without a plan nobody knows what it is to do.
    assert_refused(run_tool("moe-run"), "BadUsage", ["the plan file", "--outputs", "to train --steps=N"])


def test_a_plan_of_a_task_says_what_that_needs(tmp_path):
    """A number of steps or of tokens that is missing is a mistake on the command line, not a plan that cannot be run."""
    files = (f"--weights={TINY}", f"--inputs={TINY}/inputs.safetensors")
    plans = {}
    for task in ("train", "generate"):
        plans[task] = tmp_path / f"{task}.moeplan"
        compile_plan(TINY, plans[task], *SHAPE, f"--task={task}")
    train = run_tool("moe-run", plans["train"])
    assert_refused(train, "BadUsage", ["missing: --steps=N, --weights=DIR or --init=SEED, --inputs=FILE or --data=PREFIXES;"])
    assert "--outputs" not in train.err
    assert_refused(run_tool("moe-run", plans["train"], *files), "BadUsage", ["missing: --steps=N;"])
    assert_refused(run_tool("moe-run", plans["train"], *files, f"--outputs={tmp_path}/o"), "BadUsage", ["trains", "--steps=N"])
    generate = run_tool("moe-run", plans["generate"], *files)
    assert_refused(generate, "BadUsage", ["missing: --max-new-tokens=N, --outputs=FILE or --stream;"])
    assert_refused(run_tool("moe-run", plans["train"], *files, "--lr=1"), "BadUsage", ["--lr", "--steps=N"])


def test_doctor(tmp_path):
    assert_refused(run_tool("moe-run", "doctr", cwd=tmp_path), "FileNotFound", ["cannot open doctr", "did you mean moe-run doctor?"])
    (tmp_path / "doctr").write_bytes(b"")  # then it is a plan's name
    assert_refused(run_tool("moe-run", "doctr", cwd=tmp_path), "BadUsage", ["missing: --weights=DIR"])
    nothing = {"CUDA_VISIBLE_DEVICES": ""}
    finished = run_tool("moe-run", "doctor", env=nothing)
    assert finished.code == 0 and "passed" in finished.out, finished
    for option in ("--ranks=2", "--devices=0"):
        finished = run_tool("moe-run", "doctor", option, env=nothing)
        assert finished.code == 5 and finished.error_ids == ["MOE-0509"], finished
        assert option.split("=")[0] in finished.err and "self test" in finished.out, finished


def test_training_names_the_options_that_it_does_not_take(plan, tmp_path):
    refused = run(plan, tmp_path, "--steps=2", "--dump-routing=x")
    assert_refused(refused, "BadUsage", ["training takes no --outputs", "training takes no --dump-routing"])
    assert "--check" not in refused.err and "--repeat" not in refused.err and "--route-from" not in refused.err, refused


def test_moe_inspect_command_line(plan):
    assert_refused(run_tool("moe-inspect", plan, "--jason"), "UnknownFlag", ["--jason", "--json"])
    assert_refused(run_tool("moe-inspect"), ("BadUsage", "UnknownFlag"))


def test_weights_of_another_model_are_listed_at_once(plan, tmp_path):
    finished = run(plan, tmp_path, weights=ROOT / "test" / "golden" / "mixtral")
    assert_refused(finished, "TensorShape", ["model.embed_tokens.weight", "lm_head.weight"])


def test_wrong_world_size(plan, tmp_path):
    finished = run(plan, tmp_path, mpi=3)
    assert not (tmp_path / "out.safetensors").exists()
    assert "MOE-0501" in finished.error_ids and "3" in finished.err and "2" in finished.err, f"{finished}"
    assert finished.code == 2, f"{finished}"


def test_bad_input_under_mpirun_is_said_once(plan, tmp_path):
    checkpoint.write(tmp_path / "bad.safetensors", {"input_ids": np.full((4, 24), 999, np.int32)})
    finished = run(plan, tmp_path, inputs=tmp_path / "bad.safetensors", mpi=2)
    assert finished.code == 2 and finished.err.count("error MOE-0502") == 1, f"{finished}"
