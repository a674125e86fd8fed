"""Shows that docs/errors.md explains every error id once, under its title, and no id that does not exist."""

import re

import pytest

from common import ROOT
from errors import ERRORS

TEXT = (ROOT / "docs" / "errors.md").read_text()
SECTIONS = dict(re.findall(r"^### (MOE-\d{4}) (.+)$", TEXT, re.MULTILINE))


@pytest.mark.parametrize("symbol", ERRORS)
def test_id_is_documented(symbol):
    number, code, title = ERRORS[symbol]
    assert SECTIONS.get(number) == f"{title} (exit {code})"
    body = TEXT.split(f"### {number} ", 1)[1].split("\n### ", 1)[0]
    assert f"error {number}: " in body, "an example of the message"


def test_nothing_else_is_documented():
    assert sorted(SECTIONS) == sorted(number for number, _, _ in ERRORS.values())
    assert len(re.findall(r"^### MOE-", TEXT, re.MULTILINE)) == len(SECTIONS)
