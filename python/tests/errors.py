"""The table of error ids, read from Errors.def, and what every failure must look like."""

import re

from common import ROOT

TABLE = ROOT / "runtime" / "include" / "moira" / "rt" / "Errors.def"
ENTRY = re.compile(r'^MOIRA_ERROR\((\w+), (\d+), (\d), "([^"]+)"\)', re.MULTILINE)
# symbol -> (id, exit code, title)
ERRORS = {s: (f"MOE-{int(n):04d}", int(code), title) for s, n, code, title in ENTRY.findall(TABLE.read_text())}

# What a crash prints; none of it may ever reach a user.
CRASH = re.compile(r"Assertion|Stack dump|PLEASE submit|terminate called|Segmentation|core dumped|AddressSanitizer|runtime error:")


def assert_refused(finished, symbols, words=()):
    """The program refused its input: the id (one of `symbols`; the first problem decides), the exit code that belongs to it, every one
    of `words` in the message, nothing on stdout, and no trace of a crash."""
    symbols = (symbols,) if isinstance(symbols, str) else symbols
    assert 0 < finished.code < 128, f"ended by a signal or with success\n{finished}"
    assert not CRASH.search(finished.err), f"{finished}"
    ids = finished.error_ids
    allowed = {ERRORS[s][0]: ERRORS[s][1] for s in symbols}
    assert ids, f"no error id on stderr\n{finished}"
    assert ids[0] in allowed, f"expected one of {sorted(allowed)}\n{finished}"
    assert finished.code == allowed[ids[0]], f"expected exit code {allowed[ids[0]]}\n{finished}"
    missing = [w for w in words if str(w) not in finished.err]
    assert not missing, f"the message does not say {missing}\n{finished}"
    assert finished.out == "", f"a refusal belongs on stderr, stdout has {finished.out[:200]!r}"
