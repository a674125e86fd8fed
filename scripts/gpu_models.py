"""The checks of gpu-conformance.py that run small models: logits, choices, generated tokens, gradients and training beside what is known of them."""

import json
import os
import re
import subprocess
import tempfile
import time

import numpy as np
from safetensors.numpy import load_file, save_file

from gpu_runs import (BF16_TOLERANCE, ENVIRONMENT, F32_TOLERANCE, RANKS, ROOT, RUN, SETTINGS, Runs, Wrong, devices_of, difference, equal_sets, golden,
                      has_experts, model_words, plan_words, routers_of, run, same_choices, time_left)

# SparseMixer's weights jump where another expert's logit comes near enough to share the softmax.
JUMPING = {"phimoe"}
JUMP = 0.05
SAME_CHOICES = 0.9
NEW_TOKENS = 12
# The least difference of two logits, as a share of the largest, that bf16 keeps: each may be off by BF16_TOLERANCE.
NEAR_TIE = 2 * BF16_TOLERANCE
TRAIN_TOLERANCE = 1e-3  # of losses, relative
CLEAR_GAP = 1e-4  # of selection scores: above it f32 runs choose the same experts however they add


class ModelChecks(Runs):

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

    # --- generation ------------------------------------------------------------------------------------------------------------------------

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

    # --- gradients and training ------------------------------------------------------------------------------------------------------------

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
        words = [RUN, f"{SETTINGS.plans}/{plan}.moeplan", *batch, f"--metrics={metrics}", "--timeout=90", *more]
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
        words = [RUN, f"{SETTINGS.plans}/olmoe.ep=2.train.moeplan", f"--weights={ROOT}/models/olmoe", f"--inputs={ROOT}/models/olmoe/io.safetensors",
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
        words = ("--init=3", f"--data={SETTINGS.plans}/text", "--steps=5")
        ours, _ = self.trained("olmoe.one.train.adamw", "olmoe", 1, *words, tag=".data", inputs=False)
        theirs, _ = self.trained("olmoe.one.train.adamw.host", "olmoe", 1, *words, tag=".data", inputs=False)
        worst = max(abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in zip(ours, theirs, strict=True))
        if worst > TRAIN_TOLERANCE:
            raise Wrong(f"losses {[s['loss'] for s in ours]} instead of {[s['loss'] for s in theirs]}")
        return f"losses {worst:.1e} from the host's"
