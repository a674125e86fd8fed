#!/usr/bin/env python3
"""Kills ranks of a training run at random moments and checks that --resume goes on to the bit, as docs/checkpoints.md promises.

    check-resume.py PLAN --weights=DIR --inputs=FILE [--launchers=threads,processes,mpirun] [--count=20] [--seed=N] [--steps=200] [--save-every=5]
                    [--window=0.6] [--folder=DIR] [--moe-run=FILE]

First the run is made once without an interruption, keeping every checkpoint. Then it is made again and ended by SIGKILL over and over, each time going on with
--resume: a random rank (of ranks as threads: the process) at a random moment, in turn while a save is being written, within the next --window seconds of
training, or while it starts. When a run gets to its last step the next one begins anew. Checked after every kill:

 * all processes are gone within 5 s, and one line names the rank;
 * the newest checkpoint is, in all files of all ranks, that of the uninterrupted run: weights and what the optimizer keeps;
 * the metrics of every step so far are those of the uninterrupted run, in all digits;
 * what must be repeated is one interval between saves at most, and what was trained while the next save was still being written.

And at the end, that the run gets to its last step. Needs Python 3 only. Prints one line a kill and `N of M as promised`; exit code 0 if all were.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rank_processes import TAG, Wrong, default_moe_run, has_met, is_there, rank_processes


def metrics_of(path):
    """{step: what it computed} of the whole lines."""
    text = path.read_text() if path.exists() else ""
    steps = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return {s["step"]: {name: value for name, value in s.items() if name != "tokens_per_s"} for s in steps}


def newest(folder):
    """Of a run's directory: the step of the checkpoint that --resume takes, 0 without one: LATEST's, or the newest where LATEST is missing or names one that is gone."""
    latest, there = folder / "LATEST", finished(folder)
    named = int(re.match(r"step-(\d+) ", latest.read_text())[1]) if latest.exists() else 0
    return named if named in there else max(there, default=0)


def steps_in(folder, pattern):
    names = os.listdir(folder) if folder.exists() else []
    return [int(m[1]) for m in (re.fullmatch(pattern, name) for name in names) if m]


def finished(folder):
    return steps_in(folder, r"step-(\d+)")


def unfinished(folder):
    """Steps of saves that are being written, or never were finished."""
    return steps_in(folder, r"step-(\d+)\.tmp")


class Check:
    def __init__(self, options, folder):
        self.options = options
        self.whole, self.broken = folder / "whole", folder / "broken"
        self.lines = {run: folder / f"{run.name}.jsonl" for run in (self.whole, self.broken)}
        self.tag = folder.name
        self.left = set()  # what earlier kills have left of saves
        self.begun = 0  # the step of the save that was being written at the kill, which ranks that are left may clean away
        self.said = tempfile.TemporaryFile()

    def words(self, run, *more):
        o = self.options
        return [o.moe_run, o.plan, f"--weights={o.weights}", f"--inputs={o.inputs}", f"--steps={o.steps}", f"--save-every={o.save_every}",
                f"--checkpoint={run}", f"--metrics={self.lines[run]}", "--timeout=60", *more]

    def start(self, launcher):
        self.said.seek(0)
        self.said.truncate()
        words = self.words(self.broken, "--resume")
        if launcher == "mpirun":
            root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
            words = ["mpirun", "--oversubscribe", *root, "-x", TAG, "-np", str(self.options.ranks), *words]
        elif launcher == "processes":
            words.append("--processes")
        return subprocess.Popen(words, stdout=self.said, stderr=subprocess.STDOUT, env=dict(os.environ, **{TAG: self.tag}))

    def read(self):
        self.said.seek(0)
        return self.said.read().decode(errors="replace").strip()

    def uninterrupted(self):
        done = subprocess.run(self.words(self.whole, "--keep=1000000"), capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"the uninterrupted run has failed: {done.stderr}")

    def until(self, what, process, true):
        """Whether `true` came true before the process ended."""
        deadline = time.time() + 60
        while time.time() < deadline:
            if true():
                return True
            if process.poll() is not None:
                return False
            time.sleep(0.001)
        raise Wrong(f"waited for 60 s for {what}: {self.read()}")

    def kill(self, launcher, moment, victim, delay):
        """One life of the run. Whether it was ended; otherwise it got to its end."""
        before, lines = newest(self.broken), self.lines[self.broken]
        touched = lines.stat().st_mtime_ns if lines.exists() else 0
        self.left = self.saves()
        process = self.start(launcher)
        try:
            pids = {0: process.pid}
            if launcher != "threads":
                met = lambda: len(rank_processes(self.tag)) == self.options.ranks and all(map(has_met, rank_processes(self.tag).values()))
                if not self.until("the ranks to meet", process, met):
                    return self.end(process)
                pids = rank_processes(self.tag)
            victim = victim if launcher != "threads" else 0
            trains = lambda: lines.exists() and lines.stat().st_mtime_ns != touched and any(s > before for s in metrics_of(lines))
            if moment == "step" and not self.until("a step", process, trains):
                return self.end(process)
            if moment == "save" and not self.until("a save", process, lambda: self.saves() - self.left):
                return self.end(process)
            time.sleep(delay)
            if process.poll() is not None:
                return self.end(process)
            self.begun = max(unfinished(self.broken), default=0)
            os.kill(pids[victim], 9)
            self.gone(process, pids)
            if launcher != "threads" and not re.search(rf"error MOE-0505: rank {victim} ", self.read()):
                if newest(self.broken) == self.options.steps:
                    return False  # it had trained to its end and was about to leave
                raise Wrong(f"no line names rank {victim}: {self.read()}")
            return True
        finally:
            for pid in rank_processes(self.tag).values():
                os.kill(pid, 9)
            process.kill()
            process.wait()

    def saves(self):
        """Those that have not finished, by their directories."""
        found = set()
        for step in unfinished(self.broken):
            try:
                found.add((step, (self.broken / f"step-{step}.tmp").stat().st_ino))
            except FileNotFoundError:
                pass  # it has just been finished
        return found

    def gone(self, process, pids):
        start = time.time()
        while process.poll() is None or any(map(is_there, pids.values())):
            if time.time() > start + 5:
                raise Wrong(f"after 5 s {[r for r, pid in pids.items() if is_there(pid)]} are there: {self.read()}")
            time.sleep(0.005)

    def end(self, process):
        if process.wait() != 0:
            raise Wrong(f"exit code {process.returncode}: {self.read()}")
        if newest(self.broken) != self.options.steps:
            raise Wrong(f"it has ended at step {newest(self.broken)}: {self.read()}")
        return False

    def compare(self):
        """What the killed run has left, against the uninterrupted one; a line about it."""
        step, lines, right = newest(self.broken), metrics_of(self.lines[self.broken]), metrics_of(self.lines[self.whole])
        wrong = [s for s, values in lines.items() if values != right[s]]
        if wrong or list(lines) != list(range(1, len(lines) + 1)):
            raise Wrong(f"the metrics of steps {wrong or list(lines)} are others")
        if step:
            names = sorted(p.name for p in (self.whole / f"step-{step}").iterdir())
            there = sorted(p.name for p in (self.broken / f"step-{step}").iterdir())
            other = [n for n in names if n not in there or (self.whole / f"step-{step}" / n).read_bytes() != (self.broken / f"step-{step}" / n).read_bytes()]
            if names != there or other:
                raise Wrong(f"the checkpoint of step {step} is another: {other or there}")
        last, every = max(lines, default=0), self.options.save_every
        due, being = last // every * every, unfinished(self.broken)
        begun = max([step, self.begun, *being, *finished(self.broken)])
        # A save may not have begun when its step was reported, and one at most is being written: the newest checkpoint is that or the one before it.
        if begun < due - (every if last == due else 0) or step < begun - every:
            raise Wrong(f"{last} steps were made, the newest checkpoint is of step {step}, finished are {finished(self.broken)}, unfinished {being}")
        inside = bool(self.saves() - self.left)
        return inside, last - step, f"step {last}, checkpoint {step}{', inside a save' if inside else ''}; equal"

    def finish(self):
        process = self.start("threads")
        if self.end(process):
            raise Wrong("unreachable")
        if self.compare()[1]:
            raise Wrong("its end is not in its last checkpoint")

    def anew(self):
        shutil.rmtree(self.broken, ignore_errors=True)
        self.lines[self.broken].unlink(missing_ok=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--inputs", required=True)
    parser.add_argument("--ranks", type=int, default=4, help="of the plan")
    parser.add_argument("--launchers", default="threads,processes,mpirun", help="taken in turn")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--save-every", type=int, default=5)
    parser.add_argument("--window", type=float, default=0.6)
    parser.add_argument("--folder", type=Path, help="for both runs, on the file system that is to be tried (default: a temporary one)")
    parser.add_argument("--moe-run", default=default_moe_run())
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    choose = random.Random(seed)
    launchers = options.launchers.split(",")
    print(f"{options.count} kills, launchers {options.launchers}, seed {seed}", flush=True)
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="moira-resume-", dir=options.folder))
    check = Check(options, folder)
    good = inside = most = 0
    try:
        check.uninterrupted()
        i = ended = 0
        while i < options.count:
            launcher, victim = launchers[i % len(launchers)], choose.randrange(options.ranks)
            moment = ("save", "step", "save", "step", "start")[choose.randrange(5)]
            delay = choose.uniform(0, {"save": 0.02, "step": options.window, "start": 0.1}[moment])
            what = f"{launcher}, rank {victim}, {moment} + {delay * 1000:.0f} ms"
            try:
                if not check.kill(launcher, moment, victim, delay):
                    check.compare()
                    check.anew()
                    ended += 1
                    if ended > 10 * options.count:
                        raise Wrong("the run is too short to be killed: give more --steps")
                    continue
                within, again, text = check.compare()
                good, inside, most = good + 1, inside + within, max(most, again)
                print(f"pass  {what:<40} {text}", flush=True)
            except Wrong as error:
                print(f"FAIL  {what:<40} {error}", flush=True)
                check.anew()
            i += 1
        try:
            check.finish()
        except Wrong as error:
            print(f"FAIL  at the end: {error}")
            good = 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{inside} kills inside a save; at most {most} steps were to be repeated; {ended} runs got to their end in between")
    print(f"{good} of {options.count} as promised")
    return 0 if good == options.count else 1


if __name__ == "__main__":
    sys.exit(main())
