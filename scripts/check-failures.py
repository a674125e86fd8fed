#!/usr/bin/env python3
"""Kills, stops and miscounts ranks of moe-run at random moments and checks that every run ends as docs/running-on-gpus.md promises.

    check-failures.py PLAN --weights=DIR --inputs=FILE [--launcher=mpirun|processes|torchrun] [--devices=0,0] [--count=20] [--seed=N]
                      [--kinds=kill,stop,world] [--victims=0,2] [--timeout=3] [--window=2] [--train] [--moe-run=FILE]

Every run goes on for long (--repeat, or with --train, for a plan that trains, --steps); once its ranks have met, one of them, by the seed or from
--victims in turn, is ended (kill, SIGKILL) or stopped (stop, SIGSTOP) within the next --window seconds, which covers loading and steps; or the launcher starts another number of ranks than the plan has (world).
Checked: all processes are gone within 5 s (after the timeout, for a stopped rank); one line names the rank and where the others were, no other
line reports an error; exit codes are 5, or 2 for the wrong number. Every second run under mpirun has each rank under a small wrapper that sees
its own exit code. Under torchrun's variables this script is the launcher, so a stopped rank is its own to end.

Needs Python 3 only. Prints one line a run and `N of M as promised`; exit code 0 if all were.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from rank_processes import TAG, Wrong, default_moe_run, has_met, is_there, rank_processes

INSTRUCTION = r"instruction \d+ \([^)]+\)( at \S+)?"
PLACE = rf"rank \d+ was in ({INSTRUCTION}|step \d+(, {INSTRUCTION})?|loading the weights|opening the files|between two steps)"


def as_rank(folder, words):
    """Runs one rank, notes how it ends in `folder`, and ends the same way, so that the launcher sees what it would see."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # the rank has its own; this process must stay to see the end
    child = subprocess.Popen(words)
    code = child.wait()
    with open(os.path.join(folder, os.environ.get("OMPI_COMM_WORLD_RANK", "0")), "w") as file:
        file.write(str(code))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    return code


class Run:
    """One start of a plan under a launcher."""

    def __init__(self, options, ranks, wrapped):
        self.options, self.ranks, self.wrapped = options, ranks, wrapped
        self.folder = tempfile.mkdtemp(prefix="moira-failures-")
        self.tag = os.path.basename(self.folder)
        self.text = tempfile.TemporaryFile()
        long = ["--steps=100000000"] if options.train else [f"--outputs={self.folder}/out.safetensors", "--repeat=100000000"]
        words = [options.moe_run, options.plan, f"--weights={options.weights}", f"--inputs={options.inputs}", *long,
                 f"--timeout={options.timeout}"]
        if options.devices:
            words.append(f"--devices={options.devices}")
        environment = dict(os.environ, **{TAG: self.tag})
        self.processes = []
        if options.launcher == "mpirun":
            wrapper = [sys.executable, os.path.abspath(__file__), "--as-rank", self.folder] if wrapped else []
            root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
            self.start(["mpirun", "--oversubscribe", *root, "-x", TAG, "-np", str(ranks), *wrapper, *words], environment)
        elif options.launcher == "processes":
            self.start(words if options.devices else words + ["--processes"], environment)
        else:
            port = str(20000 + random.Random().randrange(20000))
            for r in range(ranks):
                self.start(words, dict(environment, RANK=str(r), WORLD_SIZE=str(ranks), LOCAL_RANK=str(r), LOCAL_WORLD_SIZE=str(ranks),
                                       MASTER_ADDR="127.0.0.1", MASTER_PORT=port))

    def start(self, words, environment):
        self.processes.append(subprocess.Popen(words, stdout=self.text, stderr=subprocess.STDOUT, env=environment))

    def meet(self):
        deadline = time.time() + self.options.patience
        while time.time() < deadline and all(p.poll() is None for p in self.processes):
            found = rank_processes(self.tag)
            if len(found) == self.ranks and all(has_met(pid) for pid in found.values()):
                return found
            time.sleep(0.02)
        raise Wrong(f"the ranks did not meet: {self.read()}")

    def wait(self, pids, limit, but=()):
        """Until every process is gone; returns the seconds."""
        start = time.time()
        launchers = [p for r, p in enumerate(self.processes) if r not in but]
        while time.time() < start + limit:
            if all(p.poll() is not None for p in launchers) and not any(is_there(pid) for r, pid in pids.items() if r not in but):
                return time.time() - start
            time.sleep(0.02)
        left = [r for r, pid in pids.items() if is_there(pid)]
        raise Wrong(f"after {limit:g} s ranks {left} are there, the launcher is {'gone' if launchers[0].poll() is not None else 'there'}: "
                    + self.read())

    def read(self):
        self.text.seek(0)
        return self.text.read().decode(errors="replace").strip()

    def error(self, pattern):
        """The only line that reports an error."""
        text = self.read()
        lines = [line for line in text.splitlines() if "error MOE-" in line]
        if len(lines) != 1 or not re.search(pattern, lines[0]):
            raise Wrong(f"{len(lines)} lines report errors, one like {pattern!r} was expected: {text}")
        return lines[0][lines[0].index("error MOE-"):]

    def codes(self):
        """{rank: exit code} as far as they can be seen; a launcher's own is not a rank's."""
        if self.options.launcher == "torchrun":
            return {r: p.returncode for r, p in enumerate(self.processes)}
        found = {}
        for r in range(self.ranks):
            try:
                with open(os.path.join(self.folder, str(r))) as file:
                    found[r] = int(file.read())
            except (OSError, ValueError):
                pass
        return found

    def end(self):
        for pid in rank_processes(self.tag).values():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def lose(options, run, kind, victim, delay):
    """Ends or stops rank `victim`, `delay` seconds after the ranks have met."""
    pids = run.meet()
    time.sleep(delay)
    os.kill(pids[victim], signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    limit = 5 if kind == "kill" else options.timeout + 5
    alone = kind == "stop" and options.launcher == "torchrun"
    took = run.wait(pids, limit, but=(victim,) if alone else ())
    if kind == "kill" and options.launcher == "processes":
        line = run.error(rf"MOE-0505: rank {victim} was ended by signal 9 .*{PLACE}")
    elif kind == "kill":
        # A process may take seconds to die, in which its connections break one by one.
        line = run.error(rf"MOE-0505: rank {victim} (has ended without a word|gives no sign of life; it was killed).*{PLACE}")
    else:
        line = run.error(rf"MOE-0505: (rank {victim} has given no sign of life for .*{PLACE}|no answer within .* at \S.* from rank {victim} )")
    codes = run.codes()
    bad = {r: c for r, c in codes.items() if r != victim and c != 5}
    expected = {"mpirun": (5, 137) if kind == "kill" else (5,), "processes": (5,)}.get(options.launcher)
    if bad or (expected and run.processes[0].returncode not in expected):
        raise Wrong(f"exit codes of ranks {codes}, of the launcher {run.processes[0].returncode}: {run.read()}")
    seen = "".join(f", rank {r}: {c}" for r, c in sorted(codes.items()))
    return f"{took:.1f} s, exit {run.processes[0].returncode}{seen}; {line}"


def miscount(options, run):
    """The launcher's number is not the plan's."""
    took = run.wait({}, 5 + options.start)
    line = run.error(r"MOE-0501: .* has \d+ ranks?.*started " + str(run.ranks))
    bad = [p.returncode for p in run.processes if p.returncode != 2]
    if bad:
        raise Wrong(f"exit codes {bad}: {run.read()}")
    return f"{took:.1f} s, exit 2; {line}"


def main():
    if len(sys.argv) > 3 and sys.argv[1] == "--as-rank":
        return as_rank(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--inputs", required=True)
    parser.add_argument("--ranks", type=int, default=4, help="of the plan")
    parser.add_argument("--launcher", choices=("mpirun", "processes", "torchrun"), default="mpirun")
    parser.add_argument("--devices", default="", help="for plans of CUDA devices, as moe-run takes them")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--kinds", default="kill,stop,world")
    parser.add_argument("--victims", default="", help="ranks to lose, in turn; by default at random")
    parser.add_argument("--timeout", type=float, default=3)
    parser.add_argument("--window", type=float, default=2)
    parser.add_argument("--patience", type=float, default=60, help="seconds that the ranks may take to meet")
    parser.add_argument("--start", type=float, default=5, help="seconds that programs may take to start, where that counts")
    parser.add_argument("--train", action="store_true", help="the plan trains")
    parser.add_argument("--moe-run", default=default_moe_run())
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    choose = random.Random(seed)
    kinds = [k for k in options.kinds.split(",") if k != "world" or options.launcher != "processes"]
    victims = [int(v) for v in options.victims.split(",") if v]
    print(f"{options.count} runs, launcher {options.launcher}, seed {seed}", flush=True)
    good = 0
    for i in range(options.count):
        kind = kinds[i % len(kinds)]
        victim, delay = choose.randrange(options.ranks), choose.uniform(0, options.window)
        if victims:
            victim = victims[i // len(kinds) % len(victims)]
        ranks = options.ranks if kind != "world" else choose.choice([n for n in range(1, options.ranks + 3) if n != options.ranks])
        what = f"world of {ranks}" if kind == "world" else f"{kind} rank {victim} after {delay:.2f} s"
        run = Run(options, ranks, wrapped=options.launcher == "mpirun" and i // len(kinds) % 2 == 1)
        try:
            text = miscount(options, run) if kind == "world" else lose(options, run, kind, victim, delay)
            good += 1
            print(f"pass  {what:<26} {text}", flush=True)
        except Wrong as error:
            print(f"FAIL  {what:<26} {error}", flush=True)
        finally:
            run.end()
    print(f"{good} of {options.count} as promised")
    return 0 if good == options.count else 1


if __name__ == "__main__":
    sys.exit(main())
