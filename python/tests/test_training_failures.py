"""Shows that a training run loses nothing that it has promised to keep: killed at random moments it goes on to the bit, ranks that are lost or hang are named with
the step, signals end it with a checkpoint under every launcher, a full disk costs a checkpoint and nothing else, and the bits do not depend on threads or chance.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from common import GOLDEN, ROOT
from moira import checkpoint, compile_plan, run_tool
from moira.tools import program

OLMOE = GOLDEN / "olmoe"
FILES = (f"--weights={OLMOE}", f"--inputs={OLMOE / 'io.safetensors'}")


def compiled(path, *options):
    compile_plan(OLMOE, path, "--task=train", "--batch=2", "--seq=24", "--mesh=dp=2,ep=2", *options)
    return path


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("plan") / "train.moeplan")


def script(name, *arguments):
    done = subprocess.run([sys.executable, ROOT / "scripts" / name, *map(str, arguments), f"--moe-run={program('moe-run')}"],
                          capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def need_mpirun():
    if not shutil.which("mpirun"):
        pytest.skip("no mpirun here")


@pytest.mark.parametrize("zero, count", [(0, 20), (3, 10)])
def test_killed_runs_go_on_to_the_bit(zero, count, plan, tmp_path):
    """Where every rank has whole states, and where it has a part of what others do not have."""
    if zero:
        plan = compiled(tmp_path / "zero.moeplan", f"--zero={zero}")
    launchers = "threads,processes,mpirun" if shutil.which("mpirun") else "threads,processes"
    said = script("check-resume.py", plan, *FILES, f"--launchers={launchers}", f"--count={count}", f"--folder={tmp_path}", "--window=0.3", "--save-every=10")
    assert f"{count} of {count} as promised" in said and not said.splitlines()[-2].startswith("0 kills inside a save"), said


@pytest.mark.parametrize("launcher", ["mpirun", "processes"])
def test_lost_and_hung_ranks_are_named_with_the_step(launcher, plan):
    if launcher == "mpirun":
        need_mpirun()
    said = script("check-failures.py", plan, *FILES, "--train", f"--launcher={launcher}", "--kinds=kill,stop", "--count=2", "--timeout=2", "--window=0.5")
    assert "was in step" in said, said


@pytest.fixture
def start():
    """Running(…) once it has made some steps; it is ended with its ranks when the test is over."""
    begun = []

    def begin(*arguments, **more):
        begun.append(Running(*arguments, **more))
        begun[-1].wait(lambda: begun[-1].steps() >= 3)
        return begun[-1]

    yield begin
    for running in begun:
        running.kill()


class Running:
    """A training run that would go on for long."""

    def __init__(self, plan, folder, *options, files=FILES, launcher=(), limit=None):
        self.metrics, self.run, self.text = folder / "m.jsonl", folder / "run", folder / "said"
        words = [*launcher, program("moe-run"), plan, *files, f"--checkpoint={self.run}", f"--metrics={self.metrics}", "--steps=1000000", *options]
        self.process = subprocess.Popen([*map(str, words)], stderr=self.text.open("w"), start_new_session=True, preexec_fn=limit)

    def steps(self):
        return self.metrics.read_text().count("\n") if self.metrics.exists() else 0

    def said(self):
        return self.text.read_text()

    def wait(self, true, seconds=60):
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline and self.process.poll() is None, self.said()
            time.sleep(0.01)

    def end(self):
        return self.process.wait(30)

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


# To the launcher, or as a terminal does it, to everybody.
@pytest.mark.parametrize("number, everybody", [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, True)])
def test_ranks_as_processes_are_told_to_end(number, everybody, start, plan, tmp_path):
    running = start(plan, tmp_path, "--processes")
    (os.killpg if everybody else os.kill)(running.process.pid, number)
    assert running.end() == 128 + number, running.said()
    assert "error" not in running.said()
    last = running.steps()
    assert (running.run / "LATEST").read_text().startswith(f"step-{last} ")
    whole = run_tool("moe-run", plan, *FILES, f"--steps={last}", f"--checkpoint={tmp_path}/whole", f"--metrics={tmp_path}/whole.jsonl")
    assert whole.code == 0, whole
    for name in ("rank-00000.safetensors", "rank-00001.safetensors"):
        assert (running.run / f"step-{last}" / name).read_bytes() == (tmp_path / "whole" / f"step-{last}" / name).read_bytes()


def test_a_shell_that_ends_hangs_up_twice(start, plan, tmp_path):
    running = start(plan, tmp_path)
    for _ in range(3):
        running.process.send_signal(signal.SIGHUP)
        time.sleep(0.001)
    assert running.end() == 128 + signal.SIGHUP, running.said()
    assert (running.run / "LATEST").read_text().startswith(f"step-{running.steps()} ")


# mpirun passes SIGUSR1 on at once; on SIGTERM it waits for the time that it is given here, sends it, waits again, and sends SIGKILL.
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_launchers_ranks_are_told_to_end(number, start, plan, tmp_path):
    need_mpirun()
    mpirun = ("mpirun", "--oversubscribe", "--allow-run-as-root", "--mca", "odls_base_sigkill_timeout", "3", "-np", "4")
    running = start(plan, tmp_path, launcher=mpirun)
    running.process.send_signal(number)
    running.end()
    assert "MOE-" not in running.said()
    assert (running.run / "LATEST").read_text().startswith(f"step-{running.steps()} ")


def test_a_second_signal_ends_at_once(start, plan, tmp_path):
    running = start(plan, tmp_path)
    # It is stopped meanwhile, so that it cannot have ended by the first one before the second one is there.
    for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        running.process.send_signal(number)
    assert running.end() in (-signal.SIGINT, -signal.SIGTERM)  # whichever a thread takes last
    assert not (running.run / "LATEST").exists()


def limited(bytes):
    """Before a program starts: no file of its may grow over so many bytes; prlimit changes that later."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, resource.RLIM_INFINITY))

    return limit


def steps_of(metrics):
    assert metrics.read_text().endswith("\n")
    return [json.loads(line)["step"] for line in metrics.read_text().splitlines()]


def test_a_full_disk_costs_a_checkpoint_only(start, plan, tmp_path):
    # The files of the ranks have more bytes, metrics and manifest have not.
    running = start(plan, tmp_path, "--save-every=5", limit=limited(1 << 20))
    running.wait(lambda: running.said().count("was not saved; training goes on") >= 2)
    assert "error MOE-0107" in running.said() and "the file needs 3196752 bytes" in running.said(), running.said()
    assert not (running.run / "LATEST").exists()
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    running.wait(lambda: (running.run / "LATEST").exists())
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 128 + signal.SIGTERM, running.said()
    last = running.steps()
    assert steps_of(running.metrics) == list(range(1, last + 1))
    assert (running.run / "LATEST").read_text().startswith(f"step-{last} ")
    assert not [p for p in running.run.iterdir() if p.name.endswith(".tmp")]


def test_metrics_that_cannot_be_written_do_not_end_a_run(start, plan, tmp_path):
    running = start(plan, tmp_path, limit=limited(1 << 20))
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (running.metrics.stat().st_size + 1000, resource.RLIM_INFINITY))
    running.wait(lambda: "the metrics of some steps are lost; training goes on" in running.said())
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    written = running.steps()
    running.wait(lambda: running.steps() > written + 3)
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 128 + signal.SIGTERM, running.said()
    steps = steps_of(running.metrics)
    assert steps == sorted(set(steps)) and len(steps) < steps[-1] and running.said().count("metrics of some steps") == 1


@pytest.mark.parametrize("options", [(), ("--processes",)])
def test_two_runs_do_not_save_in_one_directory(options, start, plan, tmp_path):
    """They would remove parts of each other's checkpoints, until none is whole."""
    running = start(plan, tmp_path, "--save-every=1000000", *options)
    second = (plan, *FILES, "--steps=1000000", f"--checkpoint={running.run}", "--save-every=1", "--resume")
    refused = run_tool("moe-run", *second)
    assert refused.code == 1 and refused.error_ids == ["MOE-0102"] and "another run saves in --checkpoint=" in refused.err, refused
    assert list(running.run.iterdir()) == []
    running.process.send_signal(signal.SIGKILL)  # what is left of it holds nothing for long
    running.process.wait()
    again = run_tool("moe-run", plan, *FILES, "--steps=1", f"--checkpoint={running.run}", "--resume")
    assert again.code == 0 and (running.run / "step-1").is_dir(), again


def test_a_last_checkpoint_that_fails_is_a_failure(plan, tmp_path):
    (tmp_path / "file").write_text("")
    ended = run_tool("moe-run", plan, *FILES, "--steps=4", "--save-every=2", f"--checkpoint={tmp_path}/file/run", f"--metrics={tmp_path}/m.jsonl")
    assert ended.code == 5 and ended.err.count("training goes on") == 1 and "the checkpoint of step 4 was not saved" in ended.err, ended
    first = ended.err.index("file/run: Not a directory; no checkpoint can be saved while that is so")
    assert first < ended.err.index("step 1/4"), ended  # not only when the steps are done
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 4


KEPT = {"adamw": (), "adafactor": ("--lr=1e-3",), "sgd and a --momentum": ("--momentum=0.9",), "sgd without --momentum": ()}


@pytest.mark.parametrize("made, other", [("adamw", other) for other in KEPT if other != "adamw"] + [(made, "adamw") for made in KEPT if made != "adamw"] + [tuple(KEPT)[2:]])
def test_another_optimizer_is_refused_by_its_name(made, other, tmp_path):
    run = f"--checkpoint={tmp_path}/run"
    for name, plan in (made, "made"), (other, "other"):
        compile_plan(OLMOE, tmp_path / f"{plan}.moeplan", "--task=train", "--batch=2", "--seq=24", f"--optimizer={name.split()[0]}", *KEPT[name])
    assert run_tool("moe-run", tmp_path / "made.moeplan", *FILES, "--steps=1", run).code == 0
    refused = run_tool("moe-run", tmp_path / "other.moeplan", *FILES, "--steps=2", run, "--resume")
    assert refused.code == 2 and refused.error_ids == ["MOE-0302" if "without" in made else "MOE-0303"], refused
    assert f"run/step-1: was trained with --optimizer={made}, the plan with --optimizer={other}. To go on from it, compile" in refused.err
    assert "looking for an older one" not in refused.err, refused


def test_another_model_is_refused(plan, tmp_path):
    run = f"--checkpoint={tmp_path}/run"
    assert run_tool("moe-run", plan, *FILES, "--steps=1", run).code == 0
    for options, lines in ((), 0), (("--optimizer=sgd",), 1):
        compile_plan(GOLDEN / "qwen3_moe", tmp_path / "model.moeplan", "--task=train", "--batch=2", "--seq=24", *options)
        refused = run_tool("moe-run", tmp_path / "model.moeplan", *FILES, "--steps=2", run, "--resume")
        assert refused.code == 2 and refused.err.count("error MOE-0304") > 10 and refused.err.count("was trained with") == lines, refused


def test_bits_depend_on_neither_threads_nor_chance(tmp_path):
    # Wide enough for every product and update to be divided among threads.
    config = dict(json.loads((OLMOE / "config.json").read_text()), hidden_size=128, intermediate_size=256, num_experts=4, num_experts_per_tok=2)
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = tmp_path / "p.moeplan"
    compile_plan(tmp_path / "config.json", plan, "--task=train", "--batch=4", "--seq=64", "--clip-norm=1")
    checkpoint.write(tmp_path / "ids.safetensors", {"input_ids": np.random.default_rng(0).integers(0, 256, (4, 64)).astype(np.int32)})
    seen = set()
    for i, threads in enumerate((1, 2, 8, 8, 3, 1)):
        run = tmp_path / f"run{i}"
        done = run_tool("moe-run", plan, f"--inputs={tmp_path}/ids.safetensors", "--init=3", "--steps=3", f"--threads={threads}",
                        f"--checkpoint={run}", f"--metrics={run}.jsonl")
        assert done.code == 0 and f"{threads} library threads" in done.err, done
        lines = [json.loads(line) for line in (tmp_path / f"run{i}.jsonl").read_text().splitlines()]
        losses = tuple((line["loss"], line["grad_norm"]) for line in lines)
        seen.add((losses, (run / "step-3" / "rank-00000.safetensors").read_bytes()))
    assert len(seen) == 1 and len(losses) == 3
