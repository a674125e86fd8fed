"""The checks of gpu-conformance.py of a machine: its doctor, every kernel by itself, what happens when ranks or memory fail, and models of real
size."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from safetensors.numpy import load_file, save_file

from gpu_runs import (BF16_TOLERANCE, ENVIRONMENT, F32_TOLERANCE, RANKS, ROOT, RUN, SETTINGS, Runs, Wrong, cut_off, devices_of, difference, failed_tests,
                      golden, model_words, plan_words, run, same_choices, time_left)

REAL = "olmoe-1b-7b"
DECODER, DECODER_BYTES = "qwen3-30b-a3b", 62 * 10**9
HOST_BYTES = 20 << 30  # that a host run of it may take
TOOLS = {"memcheck": 3, "racecheck": 8}  # every n-th case of a test

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


def races_of_others(text):
    """The kernels that races were reported in, if all of these and of what else the tool reported are of a library, not of Moira."""
    reports, kernels = len(re.findall(r"^=+ (?:Error|Warning|Internal)\b", text, re.M)), set()
    races = re.findall(r"^=+ (?:Error|Warning): Race reported between .*(?:\n=+ +and .*)*", text, re.M)
    for race in races:
        places = re.findall(r" access at (.*?)\+0x", race)
        if not places or any("moira::" in place for place in places):
            return []
        kernels.update(places)
    return sorted(kernels) if len(races) == reports else []


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


class MachineChecks(Runs):

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
            raise Wrong(f"exit code {code}{failed_tests(text) or ': ' + text[-4000:]}")
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
        if "terminated before first instrumented API call" in text and re.search(r"\[  PASSED  \] 1 test", text):
            return "calls nothing of CUDA"
        summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", text)
        foreign = races_of_others(text)
        if (code != 0 and not (code == 99 and foreign)) or not re.search(r"\[  PASSED  \] 1 test", text) or "SKIPPED" in text or not summary:
            found = [line for line in text.splitlines() if line.startswith("=========") and len(line) > 10]
            raise Wrong(f"exit code {code}{failed_tests(text)}" + "".join(f"\n    {line[:300]}" for line in found[:20] + found[20:][-1:]))
        return f"only in kernels of {', '.join(foreign)}" if foreign else summary[-1]

    # --- failures --------------------------------------------------------------------------------------------------------------------------

    def lost(self, launcher, kinds, count):
        """Ranks that are killed, stopped or miscounted; check-failures.py says what is promised of them."""
        if launcher == "mpirun" and not shutil.which("mpirun"):
            return "not available: no mpirun here"
        # NCCL takes some seconds to connect ranks that share a device, and that counts as waiting for a rank.
        code, text, took = run([sys.executable, f"{ROOT}/check-failures.py", f"{SETTINGS.plans}/mixtral.ep=2.f32.moeplan",
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
        seconds = time_left(120)
        end = time.monotonic() + seconds
        try:
            texts = [p.communicate(timeout=max(0, end - time.monotonic()))[0].decode(errors="replace") for p in processes]
        except subprocess.TimeoutExpired:
            for process in processes:
                process.kill()
            raise cut_off(seconds, b"".join(p.communicate()[0] for p in processes)) from None
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
            code, text, took = run([RUN, f"{SETTINGS.plans}/large.moeplan", f"--weights={ROOT}/models/mixtral",
                                    f"--inputs={inputs}", f"--outputs={self.folder}/large-out.safetensors"])
        finally:
            holder.stdin.close()
            holder.wait()
        if code != 3 or text.count("error MOE-0503") != 1 or "are free" not in text:
            raise Wrong(f"exit code {code}: {text}")
        return f"{took:.1f} s, {text.strip()[:150]}"

    # --- real size -------------------------------------------------------------------------------------------------------------------------

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

    def decode(self):
        """Steps of decoding with random weights, for 1, 8, 32 and 128 prompts, beside the time that a copy takes for what they read."""
        if shutil.disk_usage(self.scratch).free < DECODER_BYTES:
            raise Wrong(f"{self.scratch} has no room for {DECODER_BYTES / 1e9:.0f} GB of weights; name another folder with --scratch")
        folder = os.path.join(self.scratch, DECODER)
        try:
            code, text, _ = run([sys.executable, f"{ROOT}/{REAL}/make.py", folder, f"--config={ROOT}/{DECODER}/config.json"], timeout=400)
            if code != 0:
                raise Wrong(text)
            plans = [f"{SETTINGS.plans}/{DECODER}.{batch}.moeplan" for batch in (1, 8, 32, 128)]
            code, text, _ = run([sys.executable, f"{ROOT}/decode.py", folder, *plans, f"--run={RUN}"], timeout=500)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print("\n".join("    " + line for line in text.splitlines()), flush=True)
        shares = [float(line.split()[6]) for line in text.splitlines() if re.match(r" *\d+ +\d+ +[\d.]+ GB ", line)]
        if code != 0 or len(shares) != len(plans) or min(shares) < 0.5:
            raise Wrong(f"exit code {code}, shares of the bound {shares}")
        return f"shares of the bound {', '.join(map(str, shares))}"

    def real(self, plan, *more):
        """Runs a plan of real size, `plan` being device, type and inputs: files of logits and routes, what moe-run said, bytes resident."""
        shape = plan.split(".")[-1]
        tag = re.sub(r"\W+", "-", " ".join(os.path.basename(word) for word in more))
        files = [os.path.join(self.scratch, f"{plan}.{tag}.{what}.safetensors") for what in ("logits", "routes")]

        def execute():
            folder, _ = self.checkpoint()
            words = plan_words(f"{REAL}.{plan}", folder, f"{folder}/inputs-{shape}.safetensors", files[0], f"--dump-routing={files[1]}", *more)
            with tempfile.TemporaryFile() as output:
                seconds = time_left(580)
                process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=ENVIRONMENT)
                late = threading.Event()
                watch = threading.Timer(seconds, lambda: (late.set(), process.kill()))
                watch.start()
                _, status, usage = os.wait4(process.pid, 0)
                watch.cancel()
                process.returncode = os.waitstatus_to_exitcode(status)
                output.seek(0)
                printed = output.read()
                if late.is_set():
                    raise cut_off(seconds, printed)
                text = printed.decode(errors="replace").strip()
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

    def train_real(self, dtype, steps):
        """3.3 billion weights on text: the loss falls."""
        metrics, text = self.trained(f"train-3b.{dtype}", "", 1, "--init=1", f"--data={SETTINGS.plans}/text", f"--steps={steps}", inputs=False, seconds=500)
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
