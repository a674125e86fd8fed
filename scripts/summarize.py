"""Adds up what scripts/test ran: prints every failure, a line a suite, and last `N passed, N failed` (and `, N skipped` if any).

    python3 scripts/summarize.py build/logs/results

Exit code 1 if anything failed, if a suite that was started left no report, or if nothing ran. Reads: steps.txt ("pass NAME" or
"fail NAME"), expected.txt (suites that were started: unit, lit, roundtrip, python), ctest.xml,
gtest/*.xml, lit.xml, roundtrip.xml, python.xml.
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path


def cases(path):
    """Yields (name, "passed" | "failed" | "skipped") of each test case of a JUnit-like report."""
    for case in ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname', '')}.{case.get('name', '')}".strip(".")
        if case.find("failure") is not None or case.find("error") is not None or case.get("status") == "fail":
            yield name, "failed"
        elif case.find("skipped") is not None or case.get("status") in ("notrun", "disabled") or case.get("result") == "skipped":
            yield name, "skipped"
        else:
            yield name, "passed"


def unit_cases(folder):
    """GoogleTest cases; an executable that left no report, or failed without a failing case (it crashed), counts as one case."""
    reports = {path.stem: list(cases(path)) for path in sorted((folder / "gtest").glob("*.xml")) if path.stat().st_size}
    for name, state in cases(folder / "ctest.xml"):
        name = name.rsplit(".", 1)[-1]
        inner = reports.get(name, [])
        yield from ((f"{name}: {case}", inner_state) for case, inner_state in inner)
        if not inner or (state == "failed" and all(s != "failed" for _, s in inner)):
            yield name, state


def suite_cases(folder, suite):
    if suite == "unit":
        return list(unit_cases(folder))
    return list(cases(folder / f"{suite}.xml"))


def main():
    folder = Path(sys.argv[1])
    found = {}
    steps = folder / "steps.txt"
    if steps.exists():
        lines = (line.split(" ", 1) for line in steps.read_text().splitlines())
        found["steps"] = [(name, {"pass": "passed", "fail": "failed"}[state]) for state, name in lines]
    expected = folder / "expected.txt"
    for suite in expected.read_text().split() if expected.exists() else []:
        try:
            found[suite] = suite_cases(folder, suite)
        except (OSError, ElementTree.ParseError) as problem:
            found[suite] = [(f"no readable report ({problem})", "failed")]
        if not found[suite]:
            found[suite] = [("no test ran", "failed")]

    total = Counter()
    for suite, results in found.items():
        count = Counter(state for _, state in results)
        total += count
        for name, state in results:
            if state == "failed":
                print(f"FAILED {suite}: {name}")
        print(f"{suite}: {count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    line = f"{total['passed']} passed, {total['failed']} failed"
    print(line + (f", {total['skipped']} skipped" if total["skipped"] else ""))
    return 1 if total["failed"] or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
