"""Shows that documentation does not rot where a program can tell: links lead somewhere, folders and options that are named exist."""

import re

import pytest

from common import ROOT
from moira import run_tool

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "dialects").glob("*/*.md")])
HELP = {}


def options_of(tool):
    if tool not in HELP:
        HELP[tool] = set(re.findall(r"--[a-z][a-z-]+", run_tool(tool, "--help").out))
    return HELP[tool]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in t]
    broken = [t for t in targets if t and not (page.parent / t).exists()]
    assert not broken


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_options_in_commands_exist(page):
    """Every --option on a line with one of the programs is one that this program's --help knows."""
    unknown = []
    for line in (ROOT / page).read_text().splitlines():
        tool = re.search(r"\b(moe-opt|moe-run|moe-inspect)\b", line)
        if tool and line.startswith("    "):
            named = re.findall(r"(?<!\S)--[a-z][a-z-]+", line.split("#")[0][tool.end() :])
            unknown += [f"{tool.group(1)} {o}" for o in named if o not in options_of(tool.group(1))]
    assert not unknown


def test_readme_names_every_folder():
    text = (ROOT / "README.md").read_text()
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith((".", "build")) and any(p.iterdir())}
    missing = [f for f in sorted(folders) if f"`{f}/" not in text]
    assert not missing
