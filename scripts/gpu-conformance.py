#!/usr/bin/env python3
"""Checks the CUDA device with the bundle that scripts/gpu-bundle makes, on one GPU that all ranks share, or on several (--gpus).

Needs Python 3, NumPy and safetensors, the CUDA libraries (cuBLASLt, NCCL) on the loader's path or in Python packages, and nothing else.
Prints one line a check as it ends, then the seconds that every group took, and ends with `N passed, N failed`; exit code 0 only if none
failed. Runs go side by side where they do not disturb each other, `--processes` processes at a time in all.

    run-conformance.py [--groups=LIST] [--only=WORDS] [--processes=N] [--keep=DIR] [--scratch=DIR] [--gpus=N] [--minutes=N]

Groups: doctor, kernels, memcheck, racecheck, f32, bound, graphs, bf16, routing, generate, grad, train, profile, failures, memory, size, decode, train-3b.
kernels runs every test of the library calls at once; memcheck and racecheck run each by itself under that tool of compute-sanitizer, with smaller
cases. size writes a checkpoint of 14 GB to the scratch folder (default: /dev/shm where that has room), and compares with transformers where PyTorch
and transformers are. decode generates with Qwen3-30B-A3B's shape, 61 GB in scratch and device memory, which takes at most twice as long as reading does.
train-3b trains 3.3 billion weights, in 52 GiB of device memory. After --minutes what has not begun counts as failed, and what
runs is ended.
"""

import argparse
import concurrent.futures
import os
import shutil
import sys
import tarfile
import tempfile
import time

from gpu_machine import TOOLS, MachineChecks, call_tests
from gpu_models import ModelChecks
from gpu_runs import RANKS, ROOT, SETTINGS, Slots, Wrong, has_experts

SCRATCH_BYTES = 40 << 30  # the real-size checkpoint, and logits
# These meet all meshes and checks, the others the meshes that they have plans for.
MODELS = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"]
OTHERS = sorted(name for name in os.listdir(f"{ROOT}/models") if os.path.exists(f"{ROOT}/models/{name}/config.json") and name not in MODELS)
# In this order, with the checks that each group runs at a time; None: all other groups together, --processes checks at a time. Alone are those that
# measure speeds or fill the device, and together but apart from the rest those that count seconds, and the kernels, since processes share a GPU by
# turns and theirs are many and short.
TURNS = {"doctor": 1, "kernels": 1, "memcheck": 4, "racecheck": 4, None: None, "failures": 5, "memory": 1, "size": 1, "decode": 1, "train-3b": 1}


class Suite(ModelChecks, MachineChecks):
    """All checks."""


def meshes_of(model):
    return [mesh for mesh in RANKS if os.path.exists(f"{SETTINGS.plans}/{model}.{mesh}.f32.moeplan")]


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
    SETTINGS.gpus = options.gpus
    if options.minutes:
        SETTINGS.deadline = time.monotonic() + 60 * options.minutes
    folder = options.keep or tempfile.mkdtemp(prefix="moira-conformance-")
    os.makedirs(folder, exist_ok=True)
    with tarfile.open(f"{ROOT}/plans.tar.xz") as plans:
        plans.extractall(folder)
    SETTINGS.plans = f"{folder}/plans"
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
            if os.path.exists(f"{SETTINGS.plans}/{model}.{mesh}.grad.moeplan"):
                suite.add("grad", f"{model} {mesh}", lambda m=model, x=mesh: suite.grad(m, x))
                suite.add("train", f"{model} {mesh}", lambda m=model, x=mesh: suite.train(m, x))
            if os.path.exists(f"{SETTINGS.plans}/{model}.{mesh}.train.bf16.moeplan"):
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

    suite.add("decode", "qwen3-30b-a3b", suite.decode)

    words = options.only.split()
    groups = options.groups.split(",") if options.groups else []
    if unknown := set(groups) - {c[0] for c in suite.checks}:
        parser.error(f"no group is called {', '.join(sorted(unknown))}")
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

    begin = time.time()
    for group, threads in TURNS.items():
        part = [c for c in chosen if (c[0] == group if group else c[0] not in TURNS)]
        with concurrent.futures.ThreadPoolExecutor(threads or max(1, options.processes)) as pool:
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
