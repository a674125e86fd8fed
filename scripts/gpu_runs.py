"""How the checks of gpu-conformance.py run the bundle's programs: where things are, processes side by side, what is shared by several checks, and
what makes two results the same. Linux, Python 3, NumPy and safetensors only."""

import contextlib
import ctypes
import glob
import json
import os
import re
import site
import subprocess
import sys
import threading
import time
import types

import numpy as np
from safetensors.numpy import load_file

ROOT = os.path.dirname(os.path.abspath(__file__))
RUN = os.path.join(ROOT, "bin", "moe-run")
RANKS = {"one": 1, "ep=2": 2, "tp=2": 2, "dp=2": 2, "ep=4": 4, "ep=2+tp=2": 4, "dp=2+ep=2": 4}
F32_TOLERANCE = 1e-4
BF16_TOLERANCE = 2e-2
# What the command line says: GPUs that ranks share, the folder of plans, and when all must have ended, of time.monotonic().
SETTINGS = types.SimpleNamespace(gpus=1, plans=f"{ROOT}/plans", deadline=None)


class Wrong(Exception):
    """A check that found something else than it should."""


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


def library_path():
    """LD_LIBRARY_PATH that has cuBLASLt, cuDNN and NCCL, also where they come as Python packages."""
    folders = [f for f in os.environ.get("LD_LIBRARY_PATH", "").split(":") if f]
    for name in ("libcublasLt.so.13", "libcudnn.so.9", "libnccl.so.2"):
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
    left = wanted if SETTINGS.deadline is None else min(wanted, SETTINGS.deadline - time.monotonic())
    if left <= 0:
        raise Wrong("no time is left for it")
    return left


def cut_off(seconds, printed, lines=12):
    """What to say of programs that were ended after so many seconds, having printed these bytes: how far they had come."""
    said = [line for line in (printed or b"").decode(errors="replace").splitlines() if line.strip()]
    return Wrong(f"cut off after {seconds:.0f} s, " +
                 ("its last lines:" + "".join(f"\n        {line[:300]}" for line in said[-lines:]) if said else "before it printed anything"))


def run(words, timeout=240, **more):
    start, timeout = time.time(), time_left(timeout)
    environment = dict(ENVIRONMENT, **more)
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, env=environment)
    except subprocess.TimeoutExpired as late:
        raise cut_off(timeout, late.stdout) from None
    return done.returncode, done.stdout.decode(errors="replace"), time.time() - start


def plan_words(plan, weights, inputs, outputs, *more):
    return [RUN, f"{SETTINGS.plans}/{plan}.moeplan", f"--weights={weights}", f"--inputs={inputs}", f"--outputs={outputs}", *more]


def model_words(plan, model, outputs, ranks, *more):
    folder = f"{ROOT}/models/{model}"
    words = plan_words(plan, folder, f"{folder}/io.safetensors", outputs, *more)
    if not any(word.startswith("--timeout") for word in more):
        words.append("--timeout=90")
    if ranks > 1:
        words.append(devices_of(ranks))
    return words


def devices_of(ranks):
    return "--devices=" + ",".join(str(rank % SETTINGS.gpus) for rank in range(ranks))


def has_experts(model):
    with open(f"{ROOT}/models/{model}/config.json") as file:
        return not {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"}.isdisjoint(json.load(file))


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


def failed_tests(text, lines=12):
    """Of what GoogleTest printed: the names of tests that failed or never ended, each with the first lines that it printed."""
    failed, name, said = [], None, []
    for line in text.splitlines():
        begun = re.match(r"\[ RUN {6}\] (\S+)", line)
        if begun:
            name, said = begun.group(1), []
        elif name and line.startswith("[  FAILED  ]"):
            failed.append((name, said))
            name = None
        elif name and re.match(r"\[ +(OK|SKIPPED) +\]", line):
            name = None
        elif name and not line.startswith("MOIRA_TEST_SEED"):
            said.append(line)
    if name:
        failed.append((f"{name}, which did not end", said))
    return "".join(f"\n    {name}" + "".join(f"\n        {line[:300]}" for line in said[:lines]) for name, said in failed)


class Runs:
    """What all checks share; each belongs to a group, and returns what to show."""

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
