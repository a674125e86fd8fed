"""Shows what run-conformance.py says of tests of kernels that fail or never end, in a bundle beside whose models lie other files. What it says of a
GPU only a GPU shows."""

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile

import pytest

from common import ROOT

LISTED = "Suite.\n  Right\n  Wrong\n  Late\n"
WRONG = "[ RUN      ] Suite.Wrong\nMOIRA_TEST_SEED=1\nsomewhere: Failure\nactual: 2 vs 1\n[  FAILED  ] Suite.Wrong (1 ms)\n"
RIGHT = "[ RUN      ] Suite.Right\nall is well\n[       OK ] Suite.Right (1 ms)\n"
RACE = "========= Error: Race reported between Write access at {}+0x10\n=========     and Read access at {}+0x20 [4 hazards]"
OURS, THEIRS = "void moira::rt::cuda::kernel<(int)2>(long)", "nvjet_sm90"


@pytest.fixture
def conformance(tmp_path):
    """Runs the script in a bundle whose test program prints `text` and ends with `code`, or never if that is None, under a sanitizer that reports a race."""
    for name in ("gpu_runs.py", "gpu_models.py", "gpu_machine.py"):
        shutil.copy(ROOT / "scripts" / name, tmp_path)
    shutil.copy(ROOT / "scripts" / "gpu-conformance.py", tmp_path / "run-conformance.py")
    for folder in ("models/olmoe", "test", "tools"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "models" / "README.md").write_text("not a model")
    (tmp_path / "models" / "olmoe" / "config.json").write_text("{}")
    for model in ("mixtral", "qwen2_moe", "qwen3_moe"):
        shutil.copytree(tmp_path / "models" / "olmoe", tmp_path / "models" / model)
    with tarfile.open(tmp_path / "plans.tar.xz", "w:xz") as plans:
        plans.addfile(tarfile.TarInfo("plans/none"), io.BytesIO())

    def script(path, text):
        path.write_text(f"#!{sys.executable}\n{text}")
        path.chmod(0o755)

    def run(text, code, *words, report=""):
        script(tmp_path / "test" / "CudaCallsTests",
               f"import sys\nif '--gtest_list_tests' in sys.argv:\n    print({LISTED!r}, end='')\n    sys.exit()\nprint({text!r}, flush=True)\n"
               + ("import time\ntime.sleep(600)\n" if code is None else f"sys.exit({code})\n"))
        script(tmp_path / "tools" / "compute-sanitizer",
               f"print({report!r})\nprint({text!r})\nprint('========= RACECHECK SUMMARY: 1 hazard')\nraise SystemExit(99)\n")
        environment = {**os.environ, "PATH": f"{tmp_path}/tools:{os.environ['PATH']}"}
        done = subprocess.run([sys.executable, tmp_path / "run-conformance.py", *words], capture_output=True, text=True, env=environment)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout

    return run


def test_failed_tests_are_named_with_their_first_lines(conformance):
    code, text = conformance(RIGHT + WRONG, 1, "--groups=kernels")
    assert code == 1 and "FAIL  kernels" in text and text.endswith("0 passed, 1 failed\n")
    assert "Suite.Wrong\n        somewhere: Failure\n        actual: 2 vs 1\n" in text
    assert "Suite.Right" not in text and "MOIRA_TEST_SEED" not in text


def test_a_test_in_which_the_program_dies_is_named(conformance):
    code, text = conformance(RIGHT + "[ RUN      ] Suite.Late\nlast words", 139, "--groups=kernels")
    assert code == 1 and "exit code 139\n    Suite.Late, which did not end\n        last words\n" in text


def test_passing_tests_pass(conformance):
    code, text = conformance(RIGHT + "[  PASSED  ] 1 test.", 0, "--groups=kernels")
    assert code == 0 and text.endswith("1 passed, 0 failed\n")


@pytest.mark.parametrize("printed, says", [
    ("gone\n" * 9 + RIGHT + "[ RUN      ] Suite.Late", "its last lines:\n" + "        gone\n" * 8 + "        [ RUN      ] Suite.Right\n        all is well\n        [       OK ] Suite.Right (1 ms)\n"
                                        "        [ RUN      ] Suite.Late\n"),
    ("", "before it printed anything\n"),
])
def test_what_is_cut_off_shows_how_far_it_came(conformance, printed, says):
    code, text = conformance(printed, None, "--groups=kernels", "--minutes=0.15")
    assert code == 1 and re.search(r"cut off after \d+ s, " + re.escape(says), text) and text.endswith("0 passed, 1 failed\n"), text


@pytest.mark.parametrize("report", [RACE.format(OURS, OURS), RACE.format(THEIRS, OURS), RACE.format(THEIRS, THEIRS) + "\n========= Internal error", ""])
def test_what_a_tool_reports_fails(conformance, report):
    code, text = conformance(RIGHT + "[  PASSED  ] 1 test.", 0, "--groups=racecheck", report=report)
    assert code == 1 and text.count("exit code 99") == 3 and text.count(report.split("\n")[0]) >= 3 and text.endswith("0 passed, 3 failed\n")


def test_races_of_a_librarys_kernels_are_named(conformance):
    code, text = conformance(RIGHT + "[  PASSED  ] 1 test.", 0, "--groups=racecheck", report="\n".join([RACE.format(THEIRS, THEIRS)] * 2))
    assert code == 0 and text.count(f"only in kernels of {THEIRS}\n") == 3
    code, text = conformance(RIGHT + WRONG, 0, "--groups=racecheck", report=RACE.format(THEIRS, THEIRS))
    assert code == 1


def test_every_group_runs_where_it_is_asked_for(conformance):
    code, text = conformance(RIGHT, 0, "--groups=decode")
    assert code == 1 and "FAIL  decode" in text and text.endswith("0 passed, 1 failed\n")
    code, text = conformance(RIGHT, 0, "--groups=kernels,decoed")
    assert code == 2 and text == ""
