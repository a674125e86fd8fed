"""Shows that scripts/summarize.py counts right, and that a suite which crashed or never ran cannot pass."""

import subprocess
import sys

from common import ROOT

SUITE = '<testsuites><testsuite name="s">{}</testsuite></testsuites>'


def summarize(folder, **files):
    (folder / "gtest").mkdir()
    for name, text in files.items():
        (folder / name.replace("__", "/").replace("_", ".")).write_text(text)
    done = subprocess.run([sys.executable, ROOT / "scripts" / "summarize.py", folder], capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines()


def test_counts_every_suite(tmp_path):
    code, lines = summarize(
        tmp_path,
        steps_txt="pass format check\n",
        expected_txt="lit\npython\nunit\n",
        lit_xml=SUITE.format('<testcase classname="a" name="x"/><testcase classname="a" name="y"><skipped/></testcase>'),
        python_xml=SUITE.format('<testcase classname="t" name="p"/>'),
        ctest_xml='<testsuite><testcase name="Core" classname="Core" status="run"/></testsuite>',
        gtest__Core_xml=SUITE.format('<testcase name="a" classname="C"/><testcase name="b" classname="C"/>'),
    )
    assert (code, lines[-1]) == (0, "5 passed, 0 failed, 1 skipped")


def test_failures_are_named_and_fail(tmp_path):
    code, lines = summarize(
        tmp_path, expected_txt="lit", lit_xml=SUITE.format('<testcase classname="a" name="x"><failure/></testcase><testcase name="y"/>')
    )
    assert code == 1 and lines[-1] == "1 passed, 1 failed" and "FAILED lit: a.x" in lines


def test_crashed_executable_counts_as_failed(tmp_path):
    # The executable passed two cases and then died: CTest says fail, its report has no failing case (or there is no report).
    code, lines = summarize(
        tmp_path,
        expected_txt="unit",
        ctest_xml='<testsuite><testcase name="A" status="fail"><failure/></testcase><testcase name="B" status="run"/></testsuite>',
        gtest__A_xml=SUITE.format('<testcase name="a" classname="C"/>'),
        gtest__B_xml=SUITE.format('<testcase name="b" classname="C"/>'),
    )
    assert code == 1 and lines[-1] == "2 passed, 1 failed"


def test_missing_report_fails(tmp_path):
    code, lines = summarize(tmp_path, steps_txt="pass format check\n", expected_txt="python")
    assert code == 1 and lines[-1] == "1 passed, 1 failed"


def test_nothing_run_fails(tmp_path):
    code, lines = summarize(tmp_path)
    assert code == 1 and lines[-1] == "0 passed, 0 failed"
