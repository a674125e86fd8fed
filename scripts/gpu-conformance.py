#!/usr/bin/env python3
"""Checks the CUDA device with the bundle that scripts/gpu-bundle makes, on one GPU that all ranks share, or on several (--gpus).

Needs Python 3, NumPy and safetensors, the CUDA libraries (cuBLASLt, NCCL) on the loader's path or in Python packages, and nothing else.
Prints one line a check as it ends, then the seconds that every group took, and ends with `N passed, N failed`; exit code 0 only if none
failed. Runs go side by side where they do not disturb each other, `--processes` processes at a time in all.

    run-conformance.py [--groups=LIST] [--only=WORDS] [--processes=N] [--keep=DIR] [--scratch=DIR] [--gpus=N] [--minutes=N]

Groups: doctor, kernels, memcheck, racecheck, f32, bound, graphs, bf16, routing, generate, grad, train, profile, failures, memory, size, train-3b.
kernels runs every test of the library calls at once; memcheck and racecheck run each by itself under that tool of compute-sanitizer, with smaller
cases. size writes a checkpoint of 14 GB to the scratch folder (default: /dev/shm where that has room), and compares with transformers where PyTorch
and transformers are. train-3b trains 3.3 billion weights, in 52 GiB of device memory. After --minutes what has not begun counts as failed, and what
runs is ended.
"""

import argparse
import concurrent.futures
import contextlib
import ctypes
import glob
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

import numpy as np
from safetensors.numpy import load_file, save_file

ROOT = os.path.dirname(os.path.abspath(__file__))
RUN = os.path.join(ROOT, "bin", "moe-run")
REAL = "olmoe-1b-7b"
HOST_BYTES = 20 << 30  # that a host run of it may take
SCRATCH_BYTES = 40 << 30  # the real-size checkpoint, and logits
# These meet all meshes and checks, the others the meshes that they have plans for.
MODELS = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"]
OTHERS = sorted(set(os.listdir(os.path.join(ROOT, "models"))) - {*MODELS, REAL})
RANKS = {"one": 1, "ep=2": 2, "tp=2": 2, "dp=2": 2, "ep=4": 4, "ep=2+tp=2": 4, "dp=2+ep=2": 4}
# SparseMixer's weights jump where another expert's logit comes near enough to share the softmax.
JUMPING = {"phimoe"}
JUMP = 0.05
F32_TOLERANCE = 1e-4
BF16_TOLERANCE = 2e-2
SAME_CHOICES = 0.9
NEW_TOKENS = 12
# The least difference of two logits, as a share of the largest, that bf16 keeps: each may be off by BF16_TOLERANCE.
NEAR_TIE = 2 * BF16_TOLERANCE
GPUS = 1
APART = {"doctor", "kernels", "memcheck", "racecheck", "failures", "memory", "size", "train-3b"}  # groups that do not run beside all others
TOOLS = {"memcheck": 3, "racecheck": 8}  # every n-th case of a test
TRAIN_TOLERANCE = 1e-3  # of losses, relative
PLANS = f"{ROOT}/plans"
DEADLINE = None  # of time.monotonic()
CLEAR_GAP = 1e-4  # of selection scores: above it f32 runs choose the same experts however they add


class Slots:
    """Lets so many processes run side by side."""

    def __init__(self, count):
        self.count, self.free, self.changed = count, count, threading.Condition()
        self.mine = threading.local()  # .waited: seconds that this thread's check has waited for others

    @contextlib.contextmanager
    def take(self, wanted):
        wanted, start = min(wanted, self.count), time.time()
        with self.changed:
            self.changed.wait_for(lambda: self.free >= wanted)
            self.free -= wanted
        self.mine.waited += time.time() - start
        try:
            yield
        finally:
            with self.changed:
                self.free += wanted
                self.changed.notify_all()


TRANSFORMERS = """
import sys
try:
    import torch, transformers
    if not torch.cuda.is_available():
        raise ImportError("PyTorch sees no GPU")
except ImportError as error:
    print(error)
    sys.exit(77)
import numpy, safetensors.numpy
folder, inputs, logits, routes = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cuda", experts_implementation="eager").eval()
ids = torch.from_numpy(safetensors.numpy.load_file(inputs)["input_ids"]).long().cuda()
with torch.no_grad():
    rows = [(out.logits.float().cpu().numpy(), [router.softmax(-1).topk(model.config.num_experts_per_tok).indices.int().cpu().numpy()
                                                for router in out.router_logits])
            for out in (model(row[None], output_router_logits=True) for row in ids)]
numpy.save(logits, numpy.concatenate([row[0] for row in rows]))
safetensors.numpy.save_file({f"layers.{n}.ids": numpy.stack([row[1][n] for row in rows]) for n in range(len(rows[0][1]))}, routes)
"""


class Wrong(Exception):
    """A check that found something else than it should."""


def library_path():
    """LD_LIBRARY_PATH that has cuBLASLt and NCCL, also where they come as Python packages."""
    folders = [f for f in os.environ.get("LD_LIBRARY_PATH", "").split(":") if f]
    for name in ("libcublasLt.so.13", "libnccl.so.2"):
        try:
            ctypes.CDLL(name)
            continue
        except OSError:
            pass
        places = ["/usr/local/cuda/lib64"]
        for root in site.getsitepackages() + [site.getusersitepackages()] + sys.path:
            places += glob.glob(os.path.join(root, "nvidia", "*", "lib"))
        for place in places:
            if os.path.exists(os.path.join(place, name)) and place not in folders:
                folders.append(place)
                break
    return ":".join(folders)


ENVIRONMENT = dict(os.environ, LD_LIBRARY_PATH=library_path())


def time_left(wanted):
    """Seconds that something may take which wants so many."""
    left = wanted if DEADLINE is None else min(wanted, DEADLINE - time.monotonic())
    if left <= 0:
        raise Wrong("no time is left for it")
    return left


def run(words, timeout=240, **more):
    start, timeout = time.time(), time_left(timeout)
    environment = dict(ENVIRONMENT, **more)
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, env=environment)
    return done.returncode, done.stdout.decode(errors="replace"), time.time() - start


def plan_words(plan, weights, inputs, outputs, *more):
    return [RUN, f"{PLANS}/{plan}.moeplan", f"--weights={weights}", f"--inputs={inputs}", f"--outputs={outputs}", *more]


def model_words(plan, model, outputs, ranks, *more):
    folder = f"{ROOT}/models/{model}"
    words = plan_words(plan, folder, f"{folder}/io.safetensors", outputs, *more)
    if not any(word.startswith("--timeout") for word in more):
        words.append("--timeout=90")
    if ranks > 1:
        words.append(devices_of(ranks))
    return words


def devices_of(ranks):
    return "--devices=" + ",".join(str(rank % GPUS) for rank in range(ranks))


def has_experts(model):
    with open(f"{ROOT}/models/{model}/config.json") as file:
        return not {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"}.isdisjoint(json.load(file))


def meshes_of(model):
    return [mesh for mesh in RANKS if os.path.exists(f"{PLANS}/{model}.{mesh}.f32.moeplan")]


def golden(model):
    return load_file(f"{ROOT}/models/{model}/io.safetensors")["logits"]


def difference(got, expected):
    if got.shape != expected.shape:
        raise Wrong(f"shape {got.shape} instead of {expected.shape}")
    worst = np.max(np.abs(got.astype(np.float64) - expected)) / np.max(np.abs(expected))
    return float("inf") if np.isnan(worst) else float(worst)


def routers_of(routing):
    return sorted(name.removesuffix(".ids") for name in routing if name.endswith(".ids"))


def equal_sets(a, b):
    """For each token, whether two routers chose the same experts, in whatever order."""
    return np.all(np.sort(a, axis=-1) == np.sort(b, axis=-1), axis=-1)


def same_choices(ours, theirs):
    """For each token and router of two files, whether the same experts were chosen."""
    ours, theirs = load_file(ours), load_file(theirs)
    return np.concatenate([equal_sets(ours[n + ".ids"], theirs[n + ".ids"]).ravel() for n in routers_of(theirs)])


class Suite:
    def __init__(self, folder, scratch, slots):
        self.folder, self.scratch = folder, scratch
        self.slots = slots
        self.checks = []  # (group, name, function); a function returns what to show
        self.kept, self.locks, self.lock = {}, {}, threading.Lock()

    def once(self, key, function):
        """What `function` returns, called once for all checks that need it."""
        with self.lock:
            own = self.locks.setdefault(key, threading.Lock())
        start = time.time()
        with own:
            self.slots.mine.waited += time.time() - start
            if key not in self.kept:
                self.kept[key] = function()
            return self.kept[key]

    def add(self, group, name, function):
        self.checks.append((group, name, function))

    def execute(self, plan, model, ranks, *more, tag=""):
        """Runs a plan that must succeed. Returns logits and what moe-run said."""
        outputs = os.path.join(self.folder, f"{plan}{tag}.safetensors")
        with self.slots.take(ranks):
            code, text, _ = run(model_words(plan, model, outputs, ranks, *more))
        if code != 0:
            raise Wrong(f"exit code {code}: {text.strip()}")
        if "; as planned" not in text:
            raise Wrong("memory is not as planned: " + text)
        return load_file(outputs)["logits"], text

    def step(self, model, mesh, dtype):
        """One step, in which nothing is replayed: logits, and the file of what the routers chose."""
        path = os.path.join(self.folder, f"{model}.{mesh}.{dtype}.routes.safetensors")

        def execute():
            dump = [f"--dump-routing={path}"] if has_experts(model) else []
            logits, _ = self.execute(f"{model}.{mesh}.{dtype}", model, RANKS[mesh], *dump, tag=".step")
            return logits, path

        return self.once((model, mesh, dtype), execute)

    def f32(self, model, mesh):
        logits, path = self.step(model, mesh, "f32")
        worst = difference(logits, golden(model))
        if worst > F32_TOLERANCE:
            raise Wrong(f"differs by {worst:.2e} of the largest logit")
        if not has_experts(model):
            return f"{worst:.1e} of the largest logit"
        ours, one = load_file(path), load_file(self.step(model, "one", "f32")[1])
        if sorted(ours) != sorted(one) or not routers_of(one):
            raise Wrong(f"dumps {sorted(ours)}, one rank dumps {sorted(one)}")
        tokens = unclear = 0
        for name in routers_of(one):
            gaps = one[name + ".gaps"]
            if np.any(gaps < 0) or np.any(np.isnan(gaps)):
                raise Wrong(f"{name} has gaps that are negative")
            same, clear = equal_sets(ours[name + ".ids"], one[name + ".ids"]), gaps > CLEAR_GAP
            if not np.all(same[clear]):
                raise Wrong(f"{name}: {np.sum(~same[clear])} tokens go to other experts than on one rank")
            tokens, unclear = tokens + same.size, unclear + int(np.sum(~same))
        return f"{worst:.1e} of the largest logit; {tokens - unclear} of {tokens} sets of experts as on one rank"

    def bound(self, model, mesh):
        logits, text = self.execute(f"{model}.{mesh}.f32.bound1", model, RANKS[mesh])
        worst = difference(logits, golden(model))
        retries = int(re.search(r"retries (\d+)", text).group(1))
        if worst > F32_TOLERANCE or retries < 1:
            raise Wrong(f"differs by {worst:.2e}, {retries} retries")
        return f"{worst:.1e}, {retries} retries"

    def graphs(self, model, mesh, dtype="f32"):
        plan = f"{model}.{mesh}.{dtype}"
        eager, _ = self.step(model, mesh, dtype)
        replayed, text = self.execute(plan, model, RANKS[mesh], "--repeat=10", tag=".graphs")
        count = int(re.search(r"(\d+) of \d+ instructions replayed", text).group(1))
        same = np.array_equal(eager, replayed)
        # The order in which NCCL adds is its own.
        if (not same and difference(replayed, eager) > 1e-6) or count == 0:
            raise Wrong(f"{count} instructions replayed, bits {'same' if same else 'differ'}: {text}")
        median = re.search(r"median ([\d.]+) ms", text).group(1)
        return f"{count} instructions replayed, bits {'same' if same else 'within 1e-6'}, {median} ms"

    def forced(self, model, mesh, dtype, *more):
        """A run with the choices that one rank made in f32, if any; they must be the ones that it used. Logits, what moe-run said, routes."""
        if not has_experts(model):
            return self.step(model, mesh, dtype)[0], "", None
        given = self.step(model, "one", "f32")[1]
        path = os.path.join(self.folder, f"{model}.{mesh}.{dtype}.forced-routes.safetensors")
        logits, text = self.execute(f"{model}.{mesh}.{dtype}", model, RANKS[mesh], f"--route-from={given}", f"--dump-routing={path}", *more,
                                    tag=".forced")
        wanted, used = load_file(given), load_file(path)
        for name in routers_of(wanted):
            if not np.array_equal(used[name + ".ids"], wanted[name + ".ids"]):
                raise Wrong(f"{name} did not use the choices of the file")
        return logits, text, path

    def bf16(self, model, mesh):
        """Close to the golden logits with f32's choices."""
        logits, _, routes = self.forced(model, mesh, "bf16")
        expected, note = golden(model), ""
        if model in JUMPING:
            # The same experts do not mean the same weights, so tokens count up to the first of their sequence whose weights jump.
            ours, f32 = load_file(routes), load_file(self.step(model, "one", "f32")[1])
            jumps = np.any([np.abs(ours[n + ".weights"] - f32[n + ".weights"]).max(-1) > JUMP for n in routers_of(f32)], axis=0)
            held = np.cumsum(jumps, axis=1) == 0
            if np.mean(held) < 0.25:
                raise Wrong(f"only {np.sum(held)} of {held.size} tokens come before a jump of weights")
            note = f" of {np.sum(held)} of {held.size} tokens, before a jump of weights"
            logits = np.where(held[..., None], logits, expected)
        worst = difference(logits, expected)
        if worst > BF16_TOLERANCE:
            raise Wrong(f"differs by {worst:.2e} of the largest logit with the choices of f32")
        return f"{worst:.1e} with f32's choices{note}"

    def free(self, model, mesh):
        """Nearly the same choices as f32."""
        same = same_choices(self.step(model, mesh, "bf16")[1], self.step(model, "one", "f32")[1])
        if np.sum(same) < SAME_CHOICES * same.size:
            raise Wrong(f"{np.sum(same)} of {same.size} sets of experts equal those of f32")
        return f"{np.sum(same)} of {same.size} sets of experts as in f32"

    def routing(self, model, mesh):
        """With the choices that it makes anyway, a run gives the same logits, also when it is replayed."""
        free, _ = self.step(model, mesh, "f32")
        logits, text, _ = self.forced(model, mesh, "f32", "--repeat=2")
        same = np.array_equal(logits, free)
        if not same and (RANKS[mesh] == 1 or difference(logits, free) > 1e-6):
            raise Wrong(f"forced to its own choices it differs by {difference(logits, free):.2e}")
        count = int(re.search(r"(\d+) of \d+ instructions replayed", text).group(1))
        if count == 0:
            raise Wrong("nothing was replayed")
        return f"{count} instructions replayed, bits {'same' if same else 'within 1e-6'}"

    def profile(self):
        path = os.path.join(self.folder, "profile.json")
        self.execute("olmoe.ep=2.f32", "olmoe", 2, f"--profile={path}", tag=".profile")
        with open(path) as file:
            events = json.load(file)
        events = events if isinstance(events, list) else events["traceEvents"]
        timed = [e for e in events if e.get("ph") == "X"]
        if not timed or any(e["dur"] < 0 for e in timed):
            raise Wrong("no events with durations")
        return f"{len(timed)} events"

    # --- gradients and training -----------------------------------------------------------------------------------------------------

    def grad(self, model, mesh):
        """The golden loss, and the golden norms of all gradients together and of those that are a tensor of the checkpoint."""
        outputs = os.path.join(self.folder, f"{model}.{mesh}.grad.safetensors")
        with self.slots.take(RANKS[mesh]):
            code, text, _ = run(model_words(f"{model}.{mesh}.grad", model, outputs, RANKS[mesh]))
        if code != 0 or "; as planned" not in text:
            raise Wrong(f"exit code {code}: {text.strip()}")
        tensors, io = load_file(outputs), load_file(f"{ROOT}/models/{model}/io.safetensors")
        with open(f"{ROOT}/models/{model}/grad_norms.json") as file:
            norms = json.load(file)
        loss = abs(float(tensors["loss"][0]) / float(io["loss"].reshape(-1)[0]) - 1)
        squares = {name.removeprefix("grad."): float(np.sum(value.astype(np.float64)**2)) for name, value in tensors.items() if name.startswith("grad.")}
        total = np.sqrt(sum(value**2 for value, _ in norms.values()))
        whole, worst = abs(np.sqrt(sum(squares.values())) / total - 1), 0.0
        for name, (value, shape) in norms.items():
            if name in squares and list(tensors["grad." + name].shape) == shape:
                worst = max(worst, abs(np.sqrt(squares[name]) - value) / (value + 1e-3 * total))
        if not (loss < 1e-5 and whole < 1e-4 and worst < 1e-3):
            raise Wrong(f"loss {loss:.1e}, norm of all gradients {whole:.1e}, of one {worst:.1e} from the golden ones")
        return f"loss {loss:.1e}, norm of all gradients {whole:.1e}, of one at most {worst:.1e} from the golden ones"

    def trained(self, plan, model, ranks, *more, tag="", inputs=True, seconds=240):
        """Trains and returns the metrics of every step and what moe-run said."""
        metrics = os.path.join(self.folder, f"{plan}{tag}.jsonl")
        batch = [f"--weights={ROOT}/models/{model}", f"--inputs={ROOT}/models/{model}/io.safetensors"] if inputs else []
        words = [RUN, f"{PLANS}/{plan}.moeplan", *batch, f"--metrics={metrics}", "--timeout=90", *more]
        if ranks > 1:
            words.append(devices_of(ranks))
        with self.slots.take(ranks):
            code, text, _ = run(words, timeout=seconds)
        if code != 0 or "; as planned" not in text:
            raise Wrong(f"exit code {code}: {text.strip()}")
        with open(metrics) as file:
            return [json.loads(line) for line in file], text

    def train(self, model, mesh, kind="train", tolerance=TRAIN_TOLERANCE):
        """Ten steps of AdamW against the golden losses; those of bf16 relative to the first loss."""
        steps, text = self.trained(f"{model}.{mesh}.{kind}", model, RANKS[mesh], "--steps=10")
        losses, want = np.array([step["loss"] for step in steps]), load_file(f"{ROOT}/models/{model}/io.safetensors")["adamw_losses"].astype(np.float64)
        bf16 = "bf16" in kind
        worst = float(np.max(np.abs(losses - want) / (want[0] if bf16 else want))) if losses.shape == want.shape else float("inf")
        retries, count = (int(re.search(p, text).group(1)) for p in (r"retries (\d+)", r"(\d+) of \d+ instructions replayed"))
        if not worst <= (1e-2 if bf16 else tolerance):
            raise Wrong(f"losses {losses.tolist()} differ by {worst:.2e} from {want.tolist()}")
        if count == 0 or (retries == 0 and "ep=" in mesh and not bf16):
            raise Wrong(f"{count} instructions replayed, {retries} retries: {text}")
        return f"losses {worst:.1e} from the golden ones, {count} instructions replayed, {retries} retries, {steps[-1]['tokens_per_s']:.0f} tokens/s"

    def train_beside_host(self, plan, model):
        ours, _ = self.trained(plan, model, 1, "--steps=10")
        theirs, _ = self.trained(f"{plan}.host", model, 1, "--steps=10")
        worst = max(abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in zip(ours, theirs, strict=True))
        norm = max(abs(a["grad_norm"] - b["grad_norm"]) / abs(b["grad_norm"]) for a, b in zip(ours, theirs, strict=True))
        if not (worst <= TRAIN_TOLERANCE and norm <= 1e-2):
            raise Wrong(f"losses {[s['loss'] for s in ours]} instead of {[s['loss'] for s in theirs]}; norms of gradients differ by {norm:.1e}")
        return f"losses {worst:.1e}, norms of gradients {norm:.1e} from the host's"

    def resume(self, mesh, kind="train", onto=None):
        """A run that ends in the middle and is taken up again is the uninterrupted one; `onto`: by another plan."""
        plan, ranks = f"olmoe.{mesh}.{kind}", RANKS[mesh]
        name = f"{plan}.{onto or 'same'}"
        folders = [os.path.join(self.folder, f"{name}.{which}") for which in ("whole", "parts")]
        whole, _ = self.trained(plan, "olmoe", ranks, "--steps=6", "--save-every=2", f"--checkpoint={folders[0]}", tag=f".{name}.whole")
        first, _ = self.trained(plan, "olmoe", ranks, "--steps=4", "--save-every=2", f"--checkpoint={folders[1]}", tag=f".{name}.first")
        rest, text = self.trained(onto or plan, "olmoe", 1 if onto else ranks, "--steps=6", f"--checkpoint={folders[1]}", "--resume", tag=f".{name}.rest")
        if "resumed from" not in text or [s["step"] for s in first + rest] != [1, 2, 3, 4, 5, 6]:
            raise Wrong(f"steps {[s['step'] for s in first + rest]}: {text}")
        worst = max(abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in zip(first + rest, whole, strict=True))
        if onto or ranks > 1:  # the order in which NCCL adds is its own
            if worst > (TRAIN_TOLERANCE if onto else 1e-6):
                raise Wrong(f"losses differ by {worst:.2e}")
            return f"losses within {worst:.1e} of the uninterrupted run's"
        if worst > 0:
            raise Wrong(f"losses differ by {worst:.2e}")
        for file in sorted(os.listdir(f"{folders[0]}/step-6")):
            with open(f"{folders[0]}/step-6/{file}", "rb") as a, open(f"{folders[1]}/step-6/{file}", "rb") as b:
                if file.endswith(".safetensors") and a.read() != b.read():
                    raise Wrong(f"{file} of step 6 differs")
        return "to the bit, checkpoints too"

    def stopped(self):
        """SIGTERM ends a run after its step, with a checkpoint, also in the middle of saves."""
        folder, metrics = os.path.join(self.folder, "stopped"), os.path.join(self.folder, "stopped.jsonl")
        words = [RUN, f"{PLANS}/olmoe.ep=2.train.moeplan", f"--weights={ROOT}/models/olmoe", f"--inputs={ROOT}/models/olmoe/io.safetensors",
                 "--steps=1000000", "--save-every=5", f"--checkpoint={folder}", f"--metrics={metrics}", "--timeout=90", devices_of(2)]
        with self.slots.take(2), tempfile.TemporaryFile() as output:
            process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=ENVIRONMENT)
            end = time.monotonic() + time_left(120)
            while time.monotonic() < end and not (os.path.exists(metrics) and os.path.getsize(metrics) > 2000) and process.poll() is None:
                time.sleep(0.05)
            process.terminate()
            try:
                code = process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise Wrong("it does not end") from None
            output.seek(0)
            text = output.read().decode(errors="replace")
        with open(metrics) as file:
            last = [json.loads(line)["step"] for line in file][-1]
        if code != 143 or not os.path.exists(f"{folder}/step-{last}/manifest.json"):
            raise Wrong(f"exit code {code}, step {last}, {sorted(os.listdir(folder)) if os.path.exists(folder) else 'no checkpoint'}: {text}")
        return f"after step {last}"

    def from_data(self):
        """From random weights, on a dataset: the host's losses."""
        words = ("--init=3", f"--data={PLANS}/text", "--steps=5")
        ours, _ = self.trained("olmoe.one.train.adamw", "olmoe", 1, *words, tag=".data", inputs=False)
        theirs, _ = self.trained("olmoe.one.train.adamw.host", "olmoe", 1, *words, tag=".data", inputs=False)
        worst = max(abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in zip(ours, theirs, strict=True))
        if worst > TRAIN_TOLERANCE:
            raise Wrong(f"losses {[s['loss'] for s in ours]} instead of {[s['loss'] for s in theirs]}")
        return f"losses {worst:.1e} from the host's"

    def train_real(self, dtype, steps):
        """3.3 billion weights on text: the loss falls."""
        metrics, text = self.trained(f"train-3b.{dtype}", "", 1, "--init=1", f"--data={PLANS}/text", f"--steps={steps}", inputs=False, seconds=500)
        print("\n".join("    " + line for line in text.splitlines() if "bytes" in line or "trained" in line or "of the time" in line), flush=True)
        losses = [step["ce_loss"] for step in metrics]
        print("    " + " ".join(f"{loss:.3f}" for loss in losses), flush=True)
        speed = float(np.median([step["tokens_per_s"] for step in metrics[2:]]))
        self.kept[("train-3b", dtype)] = losses
        if not np.all(np.isfinite(losses)) or (steps > 10 and not np.mean(losses[-5:]) < losses[0] - 1):
            raise Wrong(f"losses {losses}")
        flops = 6 * 169.2e6 + 12 * 16 * 1024 * 1024 / 2
        return f"loss {losses[0]:.3f} to {losses[-1]:.3f}, {speed:.0f} tokens/s, {speed * flops / 1e12:.1f} TFLOP/s"

    def train_real_alike(self, kind, other):
        """The losses of two such runs fall alike."""
        ours, theirs = (np.array(self.kept.get(("train-3b", which), [])) for which in (kind, other))
        n = min(len(ours), len(theirs))
        if n == 0:
            raise Wrong("one of the runs failed")
        worst = float(np.max(np.abs(ours[:n] - theirs[:n]) / theirs[0]))
        if worst > 3e-2:
            raise Wrong(f"losses of {n} steps differ by {worst:.1e} of the first")
        return f"losses of {n} steps within {worst:.1e} of the first"

    # --- failures -----------------------------------------------------------------------------------------------------------------

    def lost(self, launcher, kinds, count):
        """Ranks that are killed, stopped or miscounted; check-failures.py says what is promised of them."""
        if launcher == "mpirun" and not shutil.which("mpirun"):
            return "not available: no mpirun here"
        # NCCL takes some seconds to connect ranks that share a device, and that counts as waiting for a rank.
        code, text, took = run([sys.executable, f"{ROOT}/check-failures.py", f"{PLANS}/mixtral.ep=2.f32.moeplan",
                                f"--weights={ROOT}/models/mixtral", f"--inputs={ROOT}/models/mixtral/io.safetensors", "--ranks=2",
                                devices_of(2), f"--launcher={launcher}", f"--kinds={kinds}", f"--count={count}", "--victims=0,1",
                                "--timeout=10", "--window=6", "--start=30"], timeout=60 * count)
        print("\n".join("    " + line for line in text.splitlines()), flush=True)
        if code != 0:
            raise Wrong(f"exit code {code}")
        return f"{text.splitlines()[-1]}, {took:.0f} s"

    def as_torchrun(self):
        """The same plan run by processes that somebody else has started."""
        port = 20000 + (os.getpid() + 1000) % 20000
        path = os.path.join(self.folder, "torchrun.safetensors")
        words = model_words("mixtral.ep=2.f32", "mixtral", path, 2)
        processes = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                      env=dict(ENVIRONMENT, RANK=str(r), WORLD_SIZE="2", LOCAL_RANK=str(r),
                                               LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)))
                     for r in range(2)]
        texts = [p.communicate(timeout=120)[0].decode(errors="replace") for p in processes]
        if any(p.returncode != 0 for p in processes):
            raise Wrong("".join(texts))
        worst = difference(load_file(path)["logits"], golden("mixtral"))
        if worst > F32_TOLERANCE:
            raise Wrong(f"differs by {worst:.2e}")
        return f"{worst:.1e} of the largest logit"

    def trap(self, mesh):
        """A plan one of whose kernels ends in a trap."""
        words = model_words(f"mixtral.{mesh}.trap", "mixtral", os.path.join(self.folder, f"trap.{mesh}.safetensors"), RANKS[mesh])
        code, text, took = run(words)
        pattern = r"error MOE-0510: rank \d+: cuda:\d+ \(.*\): .* \(\d+\) in instruction \d+ \(.*\) at model\.layers\.\d+\."
        if code != 5 or text.count("error MOE-") != 1 or not re.search(pattern, text):
            raise Wrong(f"exit code {code}: {text}")
        return f"{took:.1f} s, {text.strip()[:200]}"

    def out_of_memory(self):
        inputs = os.path.join(self.folder, "large.safetensors")
        save_file({"input_ids": np.ones((4096, 512), np.int32)}, inputs)
        holder = subprocess.Popen(
            [sys.executable, "-c",
             "import sys, torch\n"
             "free, total = torch.cuda.mem_get_info()\n"
             "held = torch.empty(free - (3 << 30), dtype=torch.uint8, device='cuda')\n"
             "print('held', flush=True)\n"
             "sys.stdin.read()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            if b"held" not in holder.stdout.readline():
                raise Wrong("the device's memory could not be filled by PyTorch")
            code, text, took = run([RUN, f"{PLANS}/large.moeplan", f"--weights={ROOT}/models/mixtral",
                                    f"--inputs={inputs}", f"--outputs={self.folder}/large-out.safetensors"])
        finally:
            holder.stdin.close()
            holder.wait()
        if code != 3 or text.count("error MOE-0503") != 1 or "are free" not in text:
            raise Wrong(f"exit code {code}: {text}")
        return f"{took:.1f} s, {text.strip()[:150]}"

    def tokens(self, model, mesh):
        """The golden tokens, also when decode is replayed from recorded graphs."""
        ranks, inputs = RANKS[mesh], os.path.join(self.folder, f"{model}.{mesh}.prompts.safetensors")
        io = load_file(f"{ROOT}/models/{model}/io.safetensors")
        save_file({"input_ids": io["input_ids"][:ranks]}, inputs)
        path = os.path.join(self.folder, f"{model}.{mesh}.tokens.safetensors")
        words = plan_words(f"{model}.{mesh}.generate", f"{ROOT}/models/{model}", inputs, path, "--max-new-tokens=12", "--ignore-eos", "--repeat=1",
                           "--timeout=90", *([devices_of(ranks)] if ranks > 1 else []))
        with self.slots.take(ranks):
            code, text, _ = run(words)
        if code != 0 or "; as planned" not in text:
            raise Wrong(f"exit code {code}: {text.strip()}")
        ids, expected = load_file(path)["generated_ids"][0].tolist(), io["greedy_ids"].reshape(-1).tolist()
        if ids != expected:
            raise Wrong(f"{ids} instead of {expected}")
        return re.search(r"prefill .*", text).group(0)

    def bf16_tokens(self, model):
        """In bf16 each token is the host's for the same text before it, or nearly as likely: where it is another, the rest is made from the host's."""
        folder = f"{ROOT}/models/{model}"
        given = {"input_ids": load_file(f"{folder}/io.safetensors")["input_ids"][:1]}
        paths = [os.path.join(self.folder, f"{model}.bf16-tokens.{name}.safetensors") for name in ("inputs", "outputs")]

        def execute(plan, inputs, *more):
            save_file(inputs, paths[0])
            with self.slots.take(1):
                code, text, _ = run(plan_words(plan, folder, *paths, "--timeout=90", *more))
            if code != 0:
                raise Wrong(f"{plan}: exit code {code}: {text.strip()}")
            return load_file(paths[1])

        def generate(plan, inputs, count):
            return execute(plan, inputs, f"--max-new-tokens={count}", "--ignore-eos")["generated_ids"][0]

        ids = generate(f"{model}.host.bf16.generate", given, NEW_TOKENS)
        continued = "input_ids" if len(ids) > NEW_TOKENS + 1 else "decoder_input_ids"  # an encoder-decoder's tokens begin with one start token
        first = len(ids) - NEW_TOKENS
        logits = execute(f"{model}.host.bf16.tokens", {**given, continued: ids[None, :-1]})["logits"][0]
        at, ties = first, []
        while at < len(ids):
            made = generate(f"{model}.one.bf16.generate", {**given, continued: ids[None, :at]}, len(ids) - at)
            other = np.flatnonzero(made != ids)
            if len(made) != len(ids) or (len(other) and other[0] < at):
                raise Wrong(f"{made} does not continue {ids[:at]}")
            if not len(other):
                break
            row = logits[other[0] - 1]
            ties.append(float((row[ids[other[0]]] - row[made[other[0]]]) / np.max(np.abs(row))))
            if ties[-1] > NEAR_TIE:
                raise Wrong(f"token {other[0] - first} is {made[other[0]]}, whose logit is {ties[-1]:.2e} of the largest below that of the host's {ids[other[0]]}")
            at = other[0] + 1
        return f"{NEW_TOKENS - len(ties)} of {NEW_TOKENS} tokens as on the host" + (f", others at most {max(ties):.1e} less likely" if ties else "")

    # --- real size ------------------------------------------------------------------------------------------------------------------

    def checkpoint(self):
        """Where the checkpoint of real size is; made on the first call."""

        def make():
            folder = os.path.join(self.scratch, REAL)
            words = [sys.executable, f"{ROOT}/{REAL}/make.py", folder, "--inputs=4x2048", "--inputs=1x128"]
            code, text, took = run(words, timeout=400)
            if code != 0:
                raise Wrong(text)
            return folder, f"{took:.1f} s, {text.strip()}"

        return self.once(REAL, make)

    def real(self, plan, *more):
        """Runs a plan of real size, `plan` being device, type and inputs: files of logits and routes, what moe-run said, bytes resident."""
        shape = plan.split(".")[-1]
        tag = re.sub(r"\W+", "-", " ".join(os.path.basename(word) for word in more))
        files = [os.path.join(self.scratch, f"{plan}.{tag}.{what}.safetensors") for what in ("logits", "routes")]

        def execute():
            folder, _ = self.checkpoint()
            words = plan_words(f"{REAL}.{plan}", folder, f"{folder}/inputs-{shape}.safetensors", files[0], f"--dump-routing={files[1]}", *more)
            with tempfile.TemporaryFile() as output:
                process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=ENVIRONMENT)
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                output.seek(0)
                text = output.read().decode(errors="replace").strip()
            if process.returncode != 0 or "; as planned" not in text:
                raise Wrong(f"exit code {process.returncode}: {text}")
            print("\n".join("    " + line for line in text.splitlines()), flush=True)
            return *files, text, usage.ru_maxrss * 1024

        return self.once((REAL, plan, more), execute)

    def real_speed(self, plan, repeats):
        logits, _, text, resident = self.real(plan, f"--repeat={repeats}")
        values = load_file(logits)["logits"]
        if not np.all(np.isfinite(values)) or np.std(values) < 1e-2:
            raise Wrong(f"logits of deviation {np.std(values)}, or not finite")
        if plan.startswith("host") and resident > HOST_BYTES:
            raise Wrong(f"{resident} bytes were resident, {HOST_BYTES} are allowed")
        return ", ".join(re.search(pattern, text).group(0) for pattern in (r"load [\d.]+ s", r"median .*", r"planned .*?\)")) \
            + f", {resident / 2**30:.1f} GiB of host memory"

    def real_bf16(self, plan, f32):
        """With the choices of f32 on the GPU."""
        given = self.real(f32, "--repeat=3")
        forced = self.real(plan, f"--route-from={given[1]}")
        worst = difference(load_file(forced[0])["logits"], load_file(given[0])["logits"])
        if worst > BF16_TOLERANCE:
            raise Wrong(f"differs by {worst:.2e} of f32's largest logit with its choices")
        return f"{worst:.1e} from f32 with its choices"

    def real_transformers(self):
        """The logits of transformers' own model with the same weights, in f32, by its choices: some experts weigh the same to seven digits."""
        folder, _ = self.checkpoint()
        logits, routes = (os.path.join(self.scratch, name) for name in ("transformers.npy", "transformers.safetensors"))
        code, text, took = run([sys.executable, "-c", TRANSFORMERS, folder, f"{folder}/inputs-4x2048.safetensors", logits, routes], timeout=300)
        if code == 77:
            return "not available: " + text.strip()
        if code != 0:
            raise Wrong(text[-2000:])
        same = same_choices(self.real("cuda.f32.4x2048", "--repeat=3")[1], routes)
        forced = self.real("cuda.f32.4x2048", f"--route-from={routes}")
        worst = difference(load_file(forced[0])["logits"], np.load(logits))
        if worst > F32_TOLERANCE:
            raise Wrong(f"f32 differs by {worst:.2e} of the largest logit of transformers")
        return f"{worst:.1e} of the largest logit of transformers by its choices; {np.sum(~same)} of {same.size} sets differ when free"

    # --- programs -----------------------------------------------------------------------------------------------------------------

    def doctor(self, ranks):
        words = [RUN, "doctor", f"--ranks={ranks}", devices_of(ranks), "--timeout=90"]
        code, text, _ = run(words)
        speeds = re.findall(r"self test +(\w+): right, ([\d.]+) GB/s", text)
        print("\n".join("    " + line for line in text.splitlines()), flush=True)
        if code != 0 or len(speeds) != 4:
            raise Wrong(f"exit code {code}, {len(speeds)} collectives tested")
        return ", ".join(f"{name} {speed} GB/s" for name, speed in speeds)

    def calls(self):
        """The tests of the library calls, which is all our kernels."""
        code, text, took = run([f"{ROOT}/test/CudaCallsTests"], timeout=580, OMP_NUM_THREADS="4")
        passed = re.search(r"\[  PASSED  \] (\d+) tests?", text)
        if code != 0 or not passed or "no CUDA device" in text or "SKIPPED" in text:
            raise Wrong(f"exit code {code}: {text[-4000:]}")
        return f"{passed.group(1)} tests in {took:.0f} s"

    def checked_call(self, test, tool):
        """One of these tests, with fewer and smaller cases, under a tool of compute-sanitizer."""
        program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not os.path.exists(program):
            return "not available: no compute-sanitizer here"
        words = [program, f"--tool={tool}", "--error-exitcode=99", f"{ROOT}/test/CudaCallsTests", f"--gtest_filter={test}"]
        with self.slots.take(1):
            code, text, _ = run(words, timeout=150, OMP_NUM_THREADS="2", MOIRA_TEST_SMALL=str(TOOLS[tool]))
        if "Device not supported" in text:
            return "not available: the tool refuses this machine's device"
        summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", text)
        if code != 0 or not re.search(r"\[  PASSED  \] 1 test", text) or "SKIPPED" in text or not summary:
            raise Wrong(f"exit code {code}: {text[-4000:]}")
        return summary[-1]


def call_tests():
    """The names of the tests of the library calls."""
    done = subprocess.run([f"{ROOT}/test/CudaCallsTests", "--gtest_list_tests"], stdout=subprocess.PIPE, env=ENVIRONMENT, check=False)
    names, suite = [], ""
    for line in done.stdout.decode().splitlines():
        if line.startswith("  "):
            names.append(suite + line.split()[0])
        elif line.endswith("."):
            suite = line.strip()
    return names


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only checks whose group and name contain all of these words")
    parser.add_argument("--processes", type=int, default=12, help="processes at a time, where they do not disturb each other")
    parser.add_argument("--keep", help="keep outputs in this folder")
    parser.add_argument("--scratch", help="a folder with 40 GiB of room, for what is of real size")
    parser.add_argument("--groups", default="", help="only these, with commas between")
    parser.add_argument("--gpus", type=int, default=1, help="that ranks are put on in turn")
    parser.add_argument("--minutes", type=float, help="that all checks together may take")
    options = parser.parse_args()
    global GPUS, PLANS, DEADLINE
    GPUS = options.gpus
    if options.minutes:
        DEADLINE = time.monotonic() + 60 * options.minutes
    folder = options.keep or tempfile.mkdtemp(prefix="moira-conformance-")
    os.makedirs(folder, exist_ok=True)
    with tarfile.open(f"{ROOT}/plans.tar.xz") as plans:
        plans.extractall(folder)
    PLANS = f"{folder}/plans"
    scratch = options.scratch or next((f for f in ("/dev/shm", tempfile.gettempdir())
                                       if os.path.isdir(f) and shutil.disk_usage(f).free > SCRATCH_BYTES), tempfile.gettempdir())
    scratch = tempfile.mkdtemp(prefix="moira-real-size-", dir=scratch)
    suite = Suite(folder, scratch, Slots(max(1, options.processes)))

    suite.add("kernels", "alone", suite.calls)
    for tool in TOOLS:
        for test in call_tests():
            suite.add(tool, test, lambda t=test, tool=tool: suite.checked_call(t, tool))
    for ranks in (1, 2):
        suite.add("doctor", f"{ranks} ranks", lambda ranks=ranks: suite.doctor(ranks))
    for model in MODELS:
        for mesh in meshes_of(model):
            suite.add("f32", f"{model} {mesh}", lambda m=model, x=mesh: suite.f32(m, x))
        for mesh in (m for m in meshes_of(model) if "ep" in m):
            suite.add("bound", f"{model} {mesh}", lambda m=model, x=mesh: suite.bound(m, x))
        for mesh in meshes_of(model):
            suite.add("bf16", f"{model} {mesh}", lambda m=model, x=mesh: suite.bf16(m, x))
            suite.add("bf16", f"{model} {mesh} free", lambda m=model, x=mesh: suite.free(m, x))
        suite.add("graphs", f"{model} one", lambda m=model: suite.graphs(m, "one"))
        suite.add("graphs", f"{model} ep=2", lambda m=model: suite.graphs(m, "ep=2"))
        suite.add("graphs", f"{model} one bf16", lambda m=model: suite.graphs(m, "one", "bf16"))
        suite.add("routing", f"{model} one", lambda m=model: suite.routing(m, "one"))
    suite.add("routing", "olmoe ep=2+tp=2", lambda: suite.routing("olmoe", "ep=2+tp=2"))
    for model in OTHERS:
        for mesh in meshes_of(model):
            suite.add("f32", f"{model} {mesh}", lambda m=model, x=mesh: suite.f32(m, x))
            suite.add("bf16", f"{model} {mesh}", lambda m=model, x=mesh: suite.bf16(m, x))
    for model in MODELS + OTHERS:
        for mesh in ("one", "ep=2" if has_experts(model) else "tp=2"):
            suite.add("generate", f"{model} {mesh}", lambda m=model, x=mesh: suite.tokens(m, x))
        suite.add("generate", f"{model} one bf16", lambda m=model: suite.bf16_tokens(m))
    for model in MODELS + OTHERS:
        for mesh in RANKS:
            if os.path.exists(f"{PLANS}/{model}.{mesh}.grad.moeplan"):
                suite.add("grad", f"{model} {mesh}", lambda m=model, x=mesh: suite.grad(m, x))
                suite.add("train", f"{model} {mesh}", lambda m=model, x=mesh: suite.train(m, x))
            if os.path.exists(f"{PLANS}/{model}.{mesh}.train.bf16.moeplan"):
                suite.add("train", f"{model} {mesh} bf16", lambda m=model, x=mesh: suite.train(m, x, "train.bf16"))
    for mesh, kind in [*((mesh, f"zero{stage}") for mesh in ("dp=2", "dp=2+ep=2") for stage in (1, 2, 3)), ("one", "micro2"), ("ep=2", "micro2"),
                       ("ep=2", "recompute"), ("one", "offload"), ("one", "params"), ("dp=2+ep=2", "offload")]:
        suite.add("train", f"olmoe {mesh} {kind}", lambda x=mesh, k=kind: suite.train("olmoe", x, f"train.{k}"))
    for model, kind in (("olmoe", "adamw"), ("olmoe", "adafactor"), ("olmoe", "sgd"), ("olmoe", "losses"), ("deepseek_v3", "bias")):
        suite.add("train", f"{model} {kind} beside the host", lambda m=model, k=kind: suite.train_beside_host(f"{m}.one.train.{k}", m))
    for mesh, kind in (("one", "train"), ("dp=2+ep=2", "train.zero3")):
        suite.add("train", f"resume {mesh}", lambda x=mesh, k=kind: suite.resume(x, k))
    suite.add("train", "resume dp=2+ep=2 on one rank", lambda: suite.resume("dp=2+ep=2", "train.zero3", "olmoe.one.train"))
    suite.add("train", "resume one on the host", lambda: suite.resume("one", "train", "olmoe.one.train.adamw.host"))
    suite.add("train", "stopped", suite.stopped)
    suite.add("train", "data", suite.from_data)
    for kind, steps in (("bf16", 30), ("f32", 15), ("offload", 8)):
        suite.add("train-3b", kind, lambda k=kind, n=steps: suite.train_real(k, n))
    for kind, other in (("bf16", "f32"), ("offload", "bf16")):
        suite.add("train-3b", f"{kind} as {other}", lambda k=kind, o=other: suite.train_real_alike(k, o))
    suite.add("profile", "olmoe ep=2", suite.profile)
    suite.add("failures", "started by another launcher", suite.as_torchrun)
    suite.add("failures", "lost ranks of moe-run", lambda: suite.lost("processes", "kill,stop", 4))
    suite.add("failures", "lost ranks of torchrun", lambda: suite.lost("torchrun", "kill,stop,world", 6))
    suite.add("failures", "lost ranks of mpirun", lambda: suite.lost("mpirun", "kill,stop,world", 6))
    for mesh in ("one", "ep=2"):
        suite.add("failures", f"trap {mesh}", lambda x=mesh: suite.trap(x))
    suite.add("memory", "out of memory", suite.out_of_memory)
    suite.add("size", "checkpoint", lambda: suite.checkpoint()[1])
    for plan, repeats in (("cuda.bf16.4x2048", 20), ("cuda.f32.4x2048", 3), ("cuda.f32.1x128", 3), ("host.bf16.1x128", 3)):
        suite.add("size", plan, lambda p=plan, n=repeats: suite.real_speed(p, n))
    suite.add("size", "cuda bf16 as f32", lambda: suite.real_bf16("cuda.bf16.4x2048", "cuda.f32.4x2048"))
    suite.add("size", "host bf16 as f32", lambda: suite.real_bf16("host.bf16.1x128", "cuda.f32.1x128"))
    suite.add("size", "f32 as transformers", suite.real_transformers)

    words = options.only.split()
    groups = options.groups.split(",") if options.groups else []
    chosen = [c for c in suite.checks if all(w in f"{c[0]} {c[1]}".split() for w in words) and (not groups or c[0] in groups)]
    passed = failed = 0

    def attempt(check):
        start, suite.slots.mine.waited = time.time(), 0.0
        try:
            ok, text = True, check[2]()
        except Exception as error:  # every surprise is a failed check, and the others still run
            ok, text = False, f"{'' if isinstance(error, Wrong) else type(error).__name__ + ': '}{error}"
        return ok, text, time.time() - start - suite.slots.mine.waited, start

    seconds = {}  # of each group: those that its checks ran, and of the clock at their first start and last end

    def report(check, result, ended):
        nonlocal passed, failed
        ok, text, took, began = result
        passed, failed = passed + ok, failed + (not ok)
        ran, first, last = seconds.get(check[0], (0, began, ended))
        seconds[check[0]] = ran + took, min(first, began), max(last, ended)
        print(f"{'pass' if ok else 'FAIL'}  {check[0]:<9}  {check[1]:<28} {took:6.1f} s  {text}", flush=True)

    # Alone are those that measure speeds or fill the device, and together but apart from the rest those that count seconds, and the kernels,
    # since processes share a GPU by turns and theirs are many and short.
    begin = time.time()
    for group, threads in (("doctor", 1), ("kernels", 1), ("memcheck", 4), ("racecheck", 4), (None, options.processes), ("failures", 5), ("memory", 1),
                           ("size", 1), ("train-3b", 1)):
        part = [c for c in chosen if (c[0] == group if group else c[0] not in APART)]
        with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
            many = {pool.submit(attempt, c): c for c in part}
            for done in concurrent.futures.as_completed(many):
                report(many[done], done.result(), time.time())
    print(f"{time.time() - begin:.0f} s in all; " + ", ".join(
        f"{group} {ran:.0f} s within {last - first:.0f} s" for group, (ran, first, last) in seconds.items()))
    shutil.rmtree(scratch, ignore_errors=True)
    if not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{passed} passed, {failed} failed")
    return 0 if failed == 0 and passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
