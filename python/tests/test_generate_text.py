"""Shows that text comes out as it goes in: pieces of a stream add up to what the tokenizer makes of all tokens, prompts of other lengths do not
disturb each other, plans are kept, and what is missing is said. The tokens are those that transformers makes."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from common import GOLDEN, ROOT
from errors import ERRORS

tokenizers = pytest.importorskip("tokenizers")

from moira import generate, stream, text  # noqa: E402  (the tests need tokenizers)

PROMPTS = ["Experts share the work.", "Grüße: 你好"]


def bytes_tokenizer():
    """Token n of 256 is the byte that GPT-2's alphabet has at place n, so characters may take several tokens."""
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def words_tokenizer():
    """Whole words, which a decoder joins by spaces: a token's text depends on what stands before it."""
    from tokenizers import decoders, models, pre_tokenizers

    words = ["[UNK]", "the", "plan", "says", "it", "all", "▁the", "▁plan"]
    tokenizer = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def copy_golden(kind, folder):
    """A golden model with a tokenizer."""
    folder.mkdir()
    for file in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(GOLDEN / kind / file, folder / file)
    bytes_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def model(tmp_path):
    return copy_golden("mixtral", tmp_path / "model")


def expected(model, prompts, count, stops):
    """What transformers continues each prompt with, alone, greedily: lists of tokens that end at a stop."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(model)
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    network = kind.from_pretrained(model)
    rows = []
    for prompt in prompts:
        source = torch.tensor([bytes_tokenizer().encode(prompt).ids])
        ids = torch.tensor([[config.decoder_start_token_id]]) if config.is_encoder_decoder else source
        begin = ids.shape[1]
        with torch.no_grad():
            for _ in range(count):
                out = network(input_ids=source, decoder_input_ids=ids) if config.is_encoder_decoder else network(ids)
                ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], 1)
        made = ids[0, begin:].tolist()
        ends = [i for i, token in enumerate(made) if token in stops]
        rows.append(made[: ends[0]] if ends else made)
    return rows


def test_a_prompt_is_all_of_its_tokens_and_no_others(model, tmp_path):
    """Also where tokenizer.json cuts and pads, and a config says -1 for no token."""
    options = {"max_new_tokens": 4, "cache": tmp_path / "cache"}
    want = [generate(model, [prompt], **options)[0] for prompt in PROMPTS]
    tokenizer = bytes_tokenizer()
    tokenizer.enable_truncation(max_length=5)
    tokenizer.enable_padding(length=24, pad_id=0, pad_token="!")
    tokenizer.save(str(model / "tokenizer.json"))
    for file in ("config.json", "generation_config.json"):
        config = json.loads((model / file).read_text())
        (model / file).write_text(json.dumps(config | {"pad_token_id": -1}))
    assert generate(model, PROMPTS, **options) == want


@pytest.mark.parametrize("make", [bytes_tokenizer, words_tokenizer])
def test_pieces_add_up(make):
    """For random tokens, most of which are parts of characters, and for real text."""
    rng = np.random.default_rng(4)
    tokenizer = make()
    size = tokenizer.get_vocab_size()
    texts = [rng.integers(0, size, length).tolist() for length in (0, 1, 2, 7, 40, 200)] + [tokenizer.encode(p).ids for p in PROMPTS]
    for ids in texts:
        pieces = text._Pieces(tokenizer)
        parts = [pieces.add(token) for token in ids]
        assert not any(part.endswith("\ufffd") for part in parts), "half a character is not shown"
        assert "".join(parts) + pieces.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize("kind, mesh", [("mixtral", None), ("mixtral", "ep=2"), ("switch_transformers", None), ("m2m_100", "dp=2")])
def test_greedy_text_is_that_of_transformers(kind, mesh, tmp_path):
    """Two prompts of unequal length in one batch give what each gives alone, of decoders and of encoder-decoders."""
    model = copy_golden(kind, tmp_path / "model")
    stops = {json.loads((model / "generation_config.json").read_text())["eos_token_id"]}
    want = expected(model, PROMPTS, 12, stops)
    options = {"max_new_tokens": 12, "mesh": mesh, "cache": tmp_path / "cache"}
    got = generate(model, PROMPTS, **options)
    assert got == [bytes_tokenizer().decode(ids) for ids in want]
    (plan,) = (tmp_path / "cache").glob("*.moeplan")
    made = plan.stat().st_mtime_ns
    again = list(stream(model, PROMPTS, **options))
    assert ["".join(part for r, part in again if r == row) for row in (0, 1)] == got
    assert plan.stat().st_mtime_ns == made, "the plan was kept"


def test_stop_tokens(model, tmp_path):
    """A stop token that the model comes to ends a row, and its text is not shown; --ignore-eos goes on."""
    row = expected(model, PROMPTS[:1], 12, set())[0]
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [row[5], 255]}))
    options = {"max_new_tokens": 12, "cache": tmp_path / "cache"}
    assert generate(model, PROMPTS[:1], **options) == [bytes_tokenizer().decode(row[: row.index(row[5])])]
    assert generate(model, PROMPTS[:1], **options, ignore_eos=True) == [bytes_tokenizer().decode(row)]


def test_draws_depend_on_the_seed(model, tmp_path):
    options = {"max_new_tokens": 16, "temperature": 1.0, "top_k": 50, "top_p": 0.9, "cache": tmp_path / "cache", "ignore_eos": True}
    first, same, other = (generate(model, PROMPTS[:1], **options, seed=seed) for seed in (1, 1, 2))
    assert first == same != other


def command(*arguments, **env):
    path = {"PYTHONPATH": str(ROOT / "python"), **env}
    line = [sys.executable, "-m", "moira.generate", *(a if isinstance(a, bytes) else str(a) for a in arguments)]
    return subprocess.run(line, capture_output=True, text=True, env={**os.environ, **path}, timeout=300)


def test_command_line(model, tmp_path):
    """One prompt's text as it is, several prompts' a line each; the cache in $XDG_CACHE_HOME."""
    texts = generate(model, PROMPTS, max_new_tokens=6, cache=tmp_path / "a")
    ended = command(model, "--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--max-new-tokens=6", XDG_CACHE_HOME=str(tmp_path / "x"))
    assert ended.stdout == "".join(f"[{row}] {line}\n" for row, line in enumerate(texts)), ended.stderr
    assert len(list((tmp_path / "x" / "moira").glob("*.moeplan"))) == 1
    one = command(model, "--prompt", PROMPTS[0], "--max-new-tokens=6", f"--cache={tmp_path / 'a'}")
    assert one.stdout == texts[0] + "\n" and one.returncode == 0, one.stderr


def test_where_it_is_printed(model, tmp_path):
    """A terminal may lack characters, and a reader may have enough."""
    options = (model, "--prompt", PROMPTS[1], "--max-new-tokens=30", "--ignore-eos", f"--cache={tmp_path}")
    ended = command(*options, PYTHONIOENCODING="ascii")
    assert ended.returncode == 0 and "?" in ended.stdout and not ended.stderr, ended.stderr
    line = [sys.executable, "-m", "moira.generate", *map(str, options)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT / "python")})
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_what_is_wrong_is_said(model, tmp_path):
    """With ids and exit codes of docs/errors.md; what the programs refuse comes through."""

    def refused(symbol, *words, prompt="x", options=(), env=None):
        ended = command(model, "--prompt", prompt, f"--cache={tmp_path}", *options, **(env or {}))
        number, code, _ = ERRORS[symbol]
        assert ended.returncode == code and f"error {number}: " in ended.stderr and "Traceback" not in ended.stderr, ended.stderr
        assert all(word in ended.stderr for word in words), ended.stderr
        assert ended.stdout == ""

    refused("UnknownFlag", "--max-new-tokns", options=["--max-new-tokns=3"])
    refused("UnknownFlag", "--max-new-tokens=0 must be at least 1", options=["--max-new-tokens=0"])
    refused("BadUsage", "prompt", prompt="")
    refused("BadUsage", "a prompt is not UTF-8", prompt=b"\xff")
    refused("CannotWrite", "tokenizer.json", "--cache", options=[f"--cache={model}/tokenizer.json"])
    refused("MeshDoesNotDivide", "ep=3", options=["--mesh=ep=3"])
    refused("UnknownFlag", "f17", options=["--dtype=f17"])
    (model / "tokenizer.json").write_text("{}")
    refused("BadJson", "tokenizer.json")
    (model / "tokenizer.json").unlink()
    refused("FileNotFound", "tokenizer.json")
    (model / "config.json").write_text("{")
    refused("BadJson", "config")
    (model / "config.json").unlink()
    refused("FileNotFound", "config.json")
    # A Python without the package: an import that fails stands before it.
    (tmp_path / "none" / "tokenizers").mkdir(parents=True)
    (tmp_path / "none" / "tokenizers" / "__init__.py").write_text("raise ImportError")
    shutil.copy(GOLDEN / "mixtral" / "config.json", model / "config.json")
    refused("BadUsage", "pip install tokenizers", env={"PYTHONPATH": f"{tmp_path / 'none'}:{ROOT / 'python'}"})
