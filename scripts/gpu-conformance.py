#!/usr/bin/env python3
"""Checks the CUDA device with the bundle that scripts/gpu-bundle makes, on one GPU that all ranks share.

Needs Python 3, NumPy and safetensors, the CUDA libraries (cuBLASLt, NCCL) on the loader's path or in Python packages, and nothing else.
Prints one line a check and ends with `N passed, N failed`; exit code 0 only if none failed.

    run-conformance.py [--only=WORDS] [--jobs=N] [--keep=DIR] [--no-sanitizer]

Groups: doctor, f32, bound, graphs, bf16, routing, profile, failures, calls, sanitizer.
"""

import argparse
import concurrent.futures
import ctypes
import glob
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tempfile
import time

import numpy as np
from safetensors.numpy import load_file, save_file

ROOT = os.path.dirname(os.path.abspath(__file__))
RUN = os.path.join(ROOT, "bin", "moe-run")
MODELS = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"]
RANKS = {"one": 1, "ep=2": 2, "tp=2": 2, "dp=2": 2, "ep=4": 4, "ep=2+tp=2": 4}
F32_TOLERANCE = 1e-4
BF16_TOLERANCE = 2e-2
SAME_CHOICES = 0.9


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


def run(words, timeout=240, **more):
    start = time.time()
    environment = dict(ENVIRONMENT, **more)
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, env=environment)
    return done.returncode, done.stdout.decode(errors="replace"), time.time() - start


def model_words(plan, model, outputs, ranks, *more):
    words = [RUN, f"{ROOT}/plans/{plan}.moeplan", f"--weights={ROOT}/models/{model}",
             f"--inputs={ROOT}/models/{model}/io.safetensors", f"--outputs={outputs}", *more]
    if not any(word.startswith("--timeout") for word in more):
        words.append("--timeout=90")
    if ranks > 1:
        words.append("--devices=" + ",".join(["0"] * ranks))
    return words


def golden(model):
    return load_file(f"{ROOT}/models/{model}/io.safetensors")["logits"]


def difference(got, expected):
    if got.shape != expected.shape:
        raise Wrong(f"shape {got.shape} instead of {expected.shape}")
    worst = np.max(np.abs(got.astype(np.float64) - expected)) / np.max(np.abs(expected))
    return float("inf") if np.isnan(worst) else float(worst)


class Suite:
    def __init__(self, folder):
        self.folder = folder
        self.checks = []  # (group, name, function); a function returns what to show

    def add(self, group, name, function):
        self.checks.append((group, name, function))

    def execute(self, plan, model, ranks, *more, tag=""):
        """Runs a plan that must succeed. Returns logits and what moe-run said."""
        outputs = os.path.join(self.folder, f"{plan}{tag}.safetensors")
        code, text, _ = run(model_words(plan, model, outputs, ranks, *more))
        if code != 0:
            raise Wrong(f"exit code {code}: {text.strip()}")
        if "; as planned" not in text:
            raise Wrong("memory is not as planned: " + text)
        return load_file(outputs)["logits"], text

    def f32(self, model, mesh):
        logits, _ = self.execute(f"{model}.{mesh}.f32", model, RANKS[mesh])
        worst = difference(logits, golden(model))
        if worst > F32_TOLERANCE:
            raise Wrong(f"differs by {worst:.2e} of the largest logit")
        return f"{worst:.1e} of the largest logit"

    def bound(self, model, mesh):
        logits, text = self.execute(f"{model}.{mesh}.f32.bound1", model, RANKS[mesh])
        worst = difference(logits, golden(model))
        retries = int(re.search(r"retries (\d+)", text).group(1))
        if worst > F32_TOLERANCE or retries < 1:
            raise Wrong(f"differs by {worst:.2e}, {retries} retries")
        return f"{worst:.1e}, {retries} retries"

    def graphs(self, model, mesh, dtype="f32"):
        plan = f"{model}.{mesh}.{dtype}"
        eager, _ = self.execute(plan, model, RANKS[mesh], "--no-graphs", tag=".eager")
        replayed, text = self.execute(plan, model, RANKS[mesh], "--repeat=20", tag=".graphs")
        count = int(re.search(r"(\d+) of \d+ instructions replayed", text).group(1))
        same = np.array_equal(eager, replayed)
        # The order in which NCCL adds is its own.
        if (not same and difference(replayed, eager) > 1e-6) or count == 0:
            raise Wrong(f"{count} instructions replayed, bits {'same' if same else 'differ'}: {text}")
        median = re.search(r"median ([\d.]+) ms", text).group(1)
        return f"{count} instructions replayed, bits {'same' if same else 'within 1e-6'}, {median} ms"

    def choices(self, model, dtype, *more):
        path = os.path.join(self.folder, f"{model}.{dtype}.routes.safetensors")
        logits, _ = self.execute(f"{model}.one.{dtype}", model, 1, f"--dump-routing={path}", *more, tag=".routes")
        return logits, path

    def bf16(self, model):
        _, routes = self.choices(model, "f32")
        logits, _ = self.execute(f"{model}.one.bf16", model, 1, f"--route-from={routes}", tag=".forced")
        worst = difference(logits, golden(model))
        if worst > BF16_TOLERANCE:
            raise Wrong(f"differs by {worst:.2e} of the largest logit with the choices of f32")
        _, free = self.choices(model, "bf16")
        ours, theirs = load_file(free), load_file(routes)
        same = total = 0
        for name, ids in theirs.items():
            if name.endswith(".ids"):
                a = np.sort(ids.reshape(-1, ids.shape[-1]), axis=1)
                b = np.sort(ours[name].reshape(-1, ids.shape[-1]), axis=1)
                same += int(np.sum(np.all(a == b, axis=1)))
                total += len(a)
        if total == 0 or same < SAME_CHOICES * total:
            raise Wrong(f"{same} of {total} sets of experts equal those of f32")
        return f"{worst:.1e} with f32's choices; {same} of {total} sets equal when free"

    def bf16_mesh(self, model):
        one, _ = self.execute(f"{model}.one.bf16", model, 1, tag=".one")
        two, _ = self.execute(f"{model}.ep=2.bf16", model, 2)
        worst = difference(two, one)
        if worst > BF16_TOLERANCE:
            raise Wrong(f"two ranks differ from one by {worst:.2e}")
        return f"two ranks differ from one by {worst:.1e}"

    def routing(self, model):
        """Forced to its own choices, a run gives the same bits."""
        logits, routes = self.choices(model, "f32")
        again, _ = self.execute(f"{model}.one.f32", model, 1, f"--route-from={routes}", tag=".again")
        if not np.array_equal(logits, again):
            raise Wrong(f"forced to its own choices it differs by {difference(again, logits):.2e}")
        found = load_file(routes)
        gaps = [v for k, v in found.items() if k.endswith(".gaps")]
        if not gaps or any(np.any(g < 0) or np.any(np.isnan(g)) for g in gaps):
            raise Wrong("gaps are missing or negative")
        return f"{len(gaps)} routers, same bits"

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

    # --- failures -----------------------------------------------------------------------------------------------------------------

    def lost(self, launcher, kinds, count):
        """Ranks that are killed, stopped or miscounted; check-failures.py says what is promised of them."""
        if launcher == "mpirun" and not shutil.which("mpirun"):
            return "not available: no mpirun here"
        # NCCL takes some seconds to connect ranks that share a device, and that counts as waiting for a rank.
        code, text, took = run([sys.executable, f"{ROOT}/check-failures.py", f"{ROOT}/plans/mixtral.ep=4.f32.moeplan",
                                f"--weights={ROOT}/models/mixtral", f"--inputs={ROOT}/models/mixtral/io.safetensors", "--devices=0,0,0,0",
                                f"--launcher={launcher}", f"--kinds={kinds}", f"--count={count}", "--victims=0,2", "--timeout=20",
                                "--window=15", "--start=30"], timeout=60 * count)
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
            code, text, took = run([RUN, f"{ROOT}/plans/large.moeplan", f"--weights={ROOT}/models/mixtral",
                                    f"--inputs={inputs}", f"--outputs={self.folder}/large-out.safetensors"])
        finally:
            holder.stdin.close()
            holder.wait()
        if code != 3 or text.count("error MOE-0503") != 1 or "are free" not in text:
            raise Wrong(f"exit code {code}: {text}")
        return f"{took:.1f} s, {text.strip()[:150]}"

    # --- programs -----------------------------------------------------------------------------------------------------------------

    def doctor(self, ranks):
        words = [RUN, "doctor", f"--ranks={ranks}", "--devices=" + ",".join(["0"] * ranks), "--timeout=90"]
        code, text, _ = run(words)
        speeds = re.findall(r"self test +(\w+): right, ([\d.]+) GB/s", text)
        print("\n".join("    " + line for line in text.splitlines()), flush=True)
        if code != 0 or len(speeds) != 4:
            raise Wrong(f"exit code {code}, {len(speeds)} collectives tested")
        return ", ".join(f"{name} {speed} GB/s" for name, speed in speeds)

    def calls(self):
        code, text, took = run([f"{ROOT}/test/CudaCallsTests"], timeout=600)
        passed = re.search(r"\[  PASSED  \] (\d+) tests?", text)
        if code != 0 or not passed or "no CUDA device" in text or "SKIPPED" in text:
            raise Wrong(text[-4000:])
        return f"{passed.group(1)} tests in {took:.0f} s"

    def sanitizer(self, tool):
        program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not os.path.exists(program):
            return "not available: no compute-sanitizer here"
        code, text, took = run([program, f"--tool={tool}", "--error-exitcode=99", f"{ROOT}/test/CudaCallsTests"],
                               timeout=580)
        if "Device not supported" in text:
            return "not available: the tool refuses this machine's device"
        summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
        if code != 0 or not summary:
            raise Wrong(f"exit code {code}: {text[-4000:]}")
        return f"{summary[-1]}, {took:.0f} s"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only checks whose group and name contain all of these words")
    parser.add_argument("--jobs", type=int, default=3, help="runs at a time, where they do not disturb each other")
    parser.add_argument("--keep", help="keep outputs in this folder")
    parser.add_argument("--no-sanitizer", action="store_true")
    options = parser.parse_args()
    folder = options.keep or tempfile.mkdtemp(prefix="moira-conformance-")
    os.makedirs(folder, exist_ok=True)
    suite = Suite(folder)

    # Alone, in this order: what shows the machine, then what fills it or counts seconds.
    for ranks in (1, 2):
        suite.add("doctor", f"{ranks} ranks", lambda ranks=ranks: suite.doctor(ranks))
    for model in MODELS:
        for mesh in RANKS:
            suite.add("f32", f"{model} {mesh}", lambda m=model, x=mesh: suite.f32(m, x))
        for mesh in (m for m in RANKS if "ep" in m):
            suite.add("bound", f"{model} {mesh}", lambda m=model, x=mesh: suite.bound(m, x))
        suite.add("graphs", f"{model} one", lambda m=model: suite.graphs(m, "one"))
        suite.add("graphs", f"{model} ep=2", lambda m=model: suite.graphs(m, "ep=2"))
        suite.add("graphs", f"{model} one bf16", lambda m=model: suite.graphs(m, "one", "bf16"))
        suite.add("bf16", model, lambda m=model: suite.bf16(m))
        suite.add("bf16", f"{model} ep=2", lambda m=model: suite.bf16_mesh(m))
        suite.add("routing", model, lambda m=model: suite.routing(m))
    suite.add("profile", "olmoe ep=2", suite.profile)
    suite.add("failures", "started by another launcher", suite.as_torchrun)
    suite.add("failures", "out of memory", suite.out_of_memory)
    suite.add("failures", "lost ranks of moe-run", lambda: suite.lost("processes", "kill,stop", 4))
    suite.add("failures", "lost ranks of torchrun", lambda: suite.lost("torchrun", "kill,stop,world", 6))
    suite.add("failures", "lost ranks of mpirun", lambda: suite.lost("mpirun", "kill,stop,world", 6))
    suite.add("calls", "every library call", suite.calls)
    if not options.no_sanitizer:
        for tool in ("memcheck", "racecheck"):
            suite.add("sanitizer", tool, lambda t=tool: suite.sanitizer(t))

    words = options.only.split()
    chosen = [c for c in suite.checks if all(w in f"{c[0]} {c[1]}".split() for w in words)]
    passed = failed = 0

    def attempt(check):
        start = time.time()
        try:
            return True, check[2](), time.time() - start
        except Exception as error:  # every surprise is a failed check, and the others still run
            return False, f"{'' if isinstance(error, Wrong) else type(error).__name__ + ': '}{error}", time.time() - start

    def report(check, result):
        nonlocal passed, failed
        ok, text, took = result
        passed, failed = passed + ok, failed + (not ok)
        print(f"{'pass' if ok else 'FAIL'}  {check[0]:<9}  {check[1]:<28} {took:6.1f} s  {text}", flush=True)

    together = {"f32", "bound", "bf16", "routing", "profile"}
    with concurrent.futures.ThreadPoolExecutor(max(1, options.jobs)) as pool:
        for check in (c for c in chosen if c[0] == "doctor"):
            report(check, attempt(check))
        many = [c for c in chosen if c[0] in together]
        for check, result in zip(many, pool.map(attempt, many)):
            report(check, result)
    for check in (c for c in chosen if c[0] not in together and c[0] != "doctor"):
        report(check, attempt(check))
    if not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{passed} passed, {failed} failed")
    return 0 if failed == 0 and passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
