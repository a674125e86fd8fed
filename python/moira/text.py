"""Text in, text out: moira.generate and moira.stream. The command `python -m moira.generate` is generate.py's.

    for row, text in moira.stream("my-model", ["Once upon a time"], max_new_tokens=100):
        print(text, end="", flush=True)

A model is a Hugging Face directory with tokenizer.json. A plan is compiled for the shape that the prompts need (lengths are rounded up, so that
plans are used again) and kept in a cache directory; moe-run makes the tokens and hands them over one by one. Needs the package `tokenizers`.
Belongs here: text, plans in the cache, the stream. Does not: how tokens are chosen (moe-run).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moira import checkpoint
from moira.tools import Failed, Finished, compile_plan, program

_SHORTEST = 16  # lengths are rounded up to powers of two from here on


class Unusable(Exception):
    """The model or this Python cannot do what was asked; `code` is the exit code that fits, the text has an id of docs/errors.md."""

    def __init__(self, error: str, code: int):
        super().__init__(error)
        self.code = code


@dataclass(frozen=True)
class Options:
    """How to generate.

    max_new_tokens             at most so many tokens a prompt
    temperature, top_k, top_p  None: greedy; docs/text.md says what each does
    seed                       of the draws
    ignore_eos                 go on past stop tokens
    mesh, dtype, device        as moe-opt and moe-run have them; device is "host" or "cuda"
    cache                      directory of plans; default: $XDG_CACHE_HOME/moira or ~/.cache/moira
    """

    max_new_tokens: int = 64
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    ignore_eos: bool = False
    mesh: str | None = None
    dtype: str = "f32"
    device: str = "host"
    cache: str | Path | None = None


def load_tokenizer(model: str | Path):
    """The tokenizer of MODEL/tokenizer.json. Unusable if the package or the file is missing, or the file is none."""
    try:
        import tokenizers
    except ImportError:
        raise Unusable("error MOE-0102: text needs the Python package tokenizers, which is not installed; pip install tokenizers", 1) from None
    path = Path(model) / "tokenizer.json"
    if not path.is_file():
        raise Unusable(
            f"error MOE-0106: cannot open {path}; moira needs it to make tokens of text, moe-run --max-new-tokens takes tokens as they are", 2
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more special
        raise Unusable(f"error MOE-0201: {path} is no tokenizer: {error}", 2) from None
    # The file may keep how its batches were made in training; a prompt is all of its tokens and no others.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@dataclass(frozen=True)
class _Config:
    """What generation needs to know of a model's files."""

    stops: frozenset[int]
    pad: int
    encoder_decoder: bool

    @staticmethod
    def read(model: Path) -> _Config:
        path = model / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8-sig"))
            own = model / "generation_config.json"
            generation = json.loads(own.read_text(encoding="utf-8-sig")) if own.exists() else {}
        except OSError as error:
            raise Unusable(f"error MOE-0106: cannot open {path}: {error.strerror}", 2) from None
        except ValueError as error:
            raise Unusable(f"error MOE-0201: {model}: a config is not valid JSON: {error}", 2) from None

        def first(name: str):
            return generation.get(name) if generation.get(name) is not None else config.get(name)

        stops = first("eos_token_id")
        stops = frozenset(token for token in (stops if isinstance(stops, list) else [stops]) if token is not None and token >= 0)
        pad = first("pad_token_id")
        has_pad = pad is not None and pad >= 0  # -1 is none, as moe-run has it
        return _Config(stops, pad if has_pad else min(stops, default=0), bool(config.get("is_encoder_decoder")))


class _Pieces:
    """Text of tokens that come one by one. A token's text may depend on its neighbours, so the last few are decoded again with each new one."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._begin = self._read = 0  # text up to token `_read` has been given, tokens from `_begin` on are its neighbours

    def add(self, token: int, last: bool = False) -> str:
        """The text that this token completes: nothing while a character lacks bytes."""
        self._ids.append(token)
        return self._take(last)

    def finish(self) -> str:
        """What is left at the end, complete or not."""
        return self._take(True)

    def _take(self, last: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._begin : self._read])
        now = self._tokenizer.decode(self._ids[self._begin :])
        if len(now) <= len(before) or (now.endswith("\ufffd") and not last):
            return ""
        self._begin, self._read = self._read, len(self._ids)
        return now[len(before) :]


def _rounded(length: int) -> int:
    size = _SHORTEST
    while size < length:
        size *= 2
    return size


def _cached_plan(model: Path, options: Options, arguments: Sequence[str]) -> Path:
    """The plan that moe-opt makes with these arguments, from the cache where it is there."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moira"
    cache = Path(options.cache) if options.cache else default
    try:
        cache.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=cache).cleanup()
    except OSError as error:
        raise Unusable(f"error MOE-0107: cannot keep plans in {cache}: {error.strerror}; name another directory with --cache", 5) from error
    compiler = Path(program("moe-opt"))
    files = [compiler, *sorted(p for p in model.iterdir() if p.name == "config.json" or ".safetensors" in p.name)]
    key = hashlib.sha256()
    for path in files:
        status = path.stat()
        key.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    key.update("\n".join(arguments).encode())
    plan = cache / f"{model.resolve().name}-{key.hexdigest()[:24]}.moeplan"
    if not plan.exists():
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / "plan.moeplan"
            compile_plan(model, made, *arguments, timeout=None)
            os.replace(made, plan)
    return plan


@contextmanager
def _running(command: list[str], err_path: Path):
    """moe-run as a process whose stdout is read line by line; ended when the reader stops reading."""
    with open(err_path, "w+", errors="replace") as err:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True)
        try:
            yield process
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            process.stdout.close()
        if code != 0:
            err.seek(0)
            raise Failed(Finished(command, code, "", err.read()))


def _inputs(rows: list[list[int]], config: _Config) -> dict[str, np.ndarray]:
    """input_ids and attention_mask [B, S]; padding stands before prompts that are continued, and behind those that an encoder reads."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), config.pad, np.int32)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        place = slice(0, len(tokens)) if config.encoder_decoder else slice(longest - len(tokens), longest)
        ids[row, place] = tokens
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def stream(model: str | Path, prompts: Sequence[str], **fields) -> Iterator[tuple[int, str]]:
    """(row, text) pieces as they are made: the pieces of a row, joined, are what follows prompts[row]. Takes the fields of Options.

    Raises Unusable for what is wrong with the model's files or a prompt, Failed if moe-opt or moe-run does not succeed.
    """
    options = Options(**fields)
    model = Path(model)
    config = _Config.read(model)
    tokenizer = load_tokenizer(model)
    if options.max_new_tokens < 1:
        raise Unusable(f"error MOE-0101: --max-new-tokens={options.max_new_tokens} must be at least 1", 1)
    if any("\ud800" <= character <= "\udfff" for prompt in prompts for character in prompt):
        raise Unusable("error MOE-0102: a prompt is not UTF-8", 1)
    rows = [tokenizer.encode(prompt).ids for prompt in prompts]
    if not rows or not all(rows):
        raise Unusable("error MOE-0102: a prompt has no tokens; every prompt needs at least one", 1)
    seq = _rounded(max(map(len, rows)))
    most = _rounded(options.max_new_tokens + 1) if config.encoder_decoder else seq + _rounded(options.max_new_tokens)
    arguments = ["--task=generate", f"--batch={len(rows)}", f"--seq={seq}", f"--max-seq={most}", f"--dtype={options.dtype}"]
    arguments += [f"--mesh={options.mesh}"] if options.mesh else []
    arguments += ["--target=sm_90"] if options.device == "cuda" else []
    plan = _cached_plan(model, options, arguments)
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.safetensors"
        checkpoint.write(inputs, _inputs(rows, config))
        command = [program("moe-run"), str(plan), f"--weights={model}", f"--inputs={inputs}", f"--max-new-tokens={options.max_new_tokens}", "--stream"]
        command += ["--ignore-eos"] if options.ignore_eos else []
        for name in ("temperature", "top_k", "top_p", "seed"):
            if getattr(options, name) is not None:
                command.append(f"--{name.replace('_', '-')}={getattr(options, name)}")
        pieces = [_Pieces(tokenizer) for _ in rows]
        ended = [False] * len(rows)
        with _running(command, Path(folder) / "err.txt") as process:
            for line in process.stdout:
                for row, token in enumerate(json.loads(line)["ids"]):
                    if ended[row]:
                        continue
                    ended[row] = token in config.stops and not options.ignore_eos
                    text = pieces[row].finish() if ended[row] else pieces[row].add(token)
                    if text:
                        yield row, text
            for row, end in enumerate(ended):
                if not end and (text := pieces[row].finish()):
                    yield row, text


def generate(model: str | Path, prompts: Sequence[str], **fields) -> list[str]:
    """What follows each prompt, whole. Takes and raises what stream() does."""
    texts = [""] * len(prompts)
    for row, text in stream(model, prompts, **fields):
        texts[row] += text
    return texts
