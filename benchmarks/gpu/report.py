#!/usr/bin/env python3
"""What was measured as lines, as a table in Markdown with what is below its goal, as JSON and as a plot. Belongs here: how figures are shown. Does
not: how they come about.

    benchmarks/gpu/report.py OUT JSON...      joins gpu.json files of several calls of measure.py into the folder OUT
"""

import json
import statistics
import sys
from pathlib import Path

OURS = "moira"


def figures(row):
    """{contestant: (milliseconds, rate, ratio)}: TFLOP/s beside the dense product where a row has operations, TB/s beside the copy where it has bytes."""
    middle = {name: statistics.median(times) for name, times in row["times"].items()}
    if row["flops"]:
        best, work, unit = row["dense_flops"] / middle["dense"], row["flops"], 1e9
    else:
        best, work, unit = row["copy_bytes"] / middle["copy"], row["bytes"], 1e9
    return {name: (ms, work / ms / unit, work / ms / best) for name, ms in middle.items() if name not in ("dense", "copy")}


def anchors(row):
    middle = {name: statistics.median(row["times"][name]) for name in ("dense", "copy")}
    return row["dense_flops"] / middle["dense"] / 1e9, row["copy_bytes"] / middle["copy"] / 1e9


def cell(ms, rate, ratio):
    time = f"{ms:.3f} ms" if ms >= 1 else f"{ms * 1e3:.1f} µs"
    return f"{time}, {rate:.0f} ({ratio:.2f})" if rate >= 20 else f"{time}, {rate:.2f} ({ratio:.2f})"


def ahead(found):
    """How many times the best peer's time ours is contained in it; None without peers."""
    others = [ms for name, (ms, _, _) in found.items() if name != OURS]
    return min(others) / found[OURS][0] if others else None


def line(row):
    found = figures(row)
    dense, copy = anchors(row)
    text = f"{row['title']:20} dense {dense:.0f} copy {copy:.2f} | " + " | ".join(f"{name} {cell(*value)}" for name, value in found.items())
    if ahead(found):
        text += f" | best peer / ours {ahead(found):.2f}"
    if "difference" in row["notes"]:
        text += f" | differs by {row['notes']['difference']:.4f}"
    if clocks(row):
        text += f" | {clocks(row)}"
    for contestant, kernels in row["notes"].get("kernels", {}).items():
        for share, us, name in kernels[:25]:
            text += f"\n    {contestant:15} {100 * share:5.1f} % {us:9.1f} us a launch: {short(name)}"
    return text


def clocks(row):
    """At which clock and power each contestant runs, where that is known: a card that its power limits runs a kernel that takes more of it slower."""
    found = {name: at for name, at in row["notes"].get("clocks", {}).items() if at}
    return ", ".join(f"{name} at {mhz:.0f} MHz, {watts:.0f} W" for name, (mhz, watts) in found.items())


def short(kernel):
    """A kernel's name without what its arguments are."""
    return kernel.replace("(anonymous namespace)::", "").replace("moira::rt::cuda::", "").split("(")[0].removeprefix("void ")[:90]


def table(rows):
    names = list(dict.fromkeys(name for row in rows for name in figures(row)))
    unit = "TFLOP/s" if rows[0]["flops"] else "TB/s"
    lines = [f"| row | {'dense' if rows[0]['flops'] else 'copy'} | {' | '.join(names)} | best peer / {OURS} |", "|---" * (len(names) + 3) + "|"]
    for row in rows:
        found = figures(row)
        anchor = f"{anchors(row)[0]:.0f}" if row["flops"] else f"{anchors(row)[1]:.2f}"
        ratio = f"{ahead(found):.2f}" if ahead(found) else "-"
        cells = [cell(*found[name]) if name in found else "-" for name in names]
        lines.append(f"| {row['title']} | {anchor} | {' | '.join(cells)} | {ratio} |")
    return f"Times, {unit} and the ratio to the {'dense product' if rows[0]['flops'] else 'copy'} of the same rounds.\n\n" + "\n".join(lines) + "\n"


def shortfalls(rows):
    """[(row, what is below its goal)]: the goals of a row are how much of the dense product or the copy it reaches ("ratio"), and how many times
    as fast as the best peer it is ("ahead"); skewed loads may take 5 % longer than balanced ones."""
    by_title, found = {row["title"]: figures(row)[OURS] for row in rows}, []
    for row in rows:
        measured, goal = figures(row), row["goal"]
        missed = []
        if "ratio" in goal and measured[OURS][2] < goal["ratio"]:
            missed.append(f"ratio {measured[OURS][2]:.2f} of {goal['ratio']:.2f}")
        if ahead(measured) is not None and ahead(measured) < goal.get("ahead", 0):
            missed.append(f"{ahead(measured):.2f} times as fast as the best peer, of {goal['ahead']:.2f}")
        balanced = by_title.get(row["title"].removesuffix(" zipf"))
        if balanced and measured[OURS][0] > 1.05 * balanced[0]:
            missed.append(f"{measured[OURS][0] / balanced[0]:.2f} times as long as with balanced loads")
        if missed:
            found.append((row, "; ".join(missed)))
    return found


def profile(kernels, count=8):
    """The largest kernels of a step as a line."""
    return ", ".join(f"{short(name)} {100 * share:.0f} %" for share, _, name in kernels[:count])


def shortfall_list(rows):
    lines = [f"* {row['title']}: {missed}" + (f". {profile(row['notes']['kernels'][OURS])}" if "kernels" in row["notes"] else "")
             + (f". {clocks(row)}" if clocks(row) else "") for row, missed in shortfalls(rows)]
    return "\n".join(lines) + "\n" if lines else "Nothing.\n"


def write(rows, folder):
    """gpu.md, gpu.json and gpu.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(rows, indent=1))
    text = f"{rows[0]['device']}, PyTorch {rows[0]['torch']}, medians of {len(rows[0]['times']['dense'])} rounds.\n" if rows else ""
    for case, of_case in cases(rows).items():
        text += f"\n## {case}\n\n" + table(of_case)
    (folder / "gpu.md").write_text(text + "\n## Below the goals\n\n" + shortfall_list(rows))
    (folder / "gpu.svg").write_text(plot(rows))


def cases(rows):
    """{case: its rows}"""
    return {case: [row for row in rows if row["case"] == case] for case in dict.fromkeys(row["case"] for row in rows)}


COLOURS = ("#1b6ca8", "#e08214", "#5aae61", "#8c6bb1")
BAR, GAP, HEIGHT, PANEL, LEFT, TOP = 14, 18, 240, 400, 50, 40


def plot(rows):
    """Bars of the ratios, a panel a case and a group a row: an SVG."""
    panels = [panel(of_case, i * PANEL) for i, of_case in enumerate(cases(rows).values())]
    width = max((width for width, _ in panels), default=0)
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{PANEL * len(panels)}" font-family="sans-serif" font-size="11">'
            '<rect width="100%" height="100%" fill="white"/>')
    return "\n".join([head, *(part for _, parts in panels for part in parts), "</svg>", ""])


def panel(rows, down):
    """(width, elements) of one case."""
    found = [(row["title"], figures(row)) for row in rows]
    names = list(dict.fromkeys(name for _, one in found for name in one))
    group, bottom = BAR * len(names) + GAP, down + TOP + HEIGHT
    width = LEFT + max(group * len(found), 150 * len(names)) + 80
    parts = []
    for i in range(6):
        y = bottom - HEIGHT * i / 5
        parts.append(f'<line x1="{LEFT}" x2="{width - 20}" y1="{y}" y2="{y}" stroke="#ddd"/><text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{i / 5:.1f}</text>')
    for i, name in enumerate(names):
        colour = COLOURS[i % len(COLOURS)]
        parts.append(f'<rect x="{LEFT + i * 150}" y="{down + 10}" width="12" height="12" fill="{colour}"/><text x="{LEFT + 18 + i * 150}" y="{down + 20}">{name}</text>')
    for i, (title, one) in enumerate(found):
        x = LEFT + GAP / 2 + i * group
        for j, name in enumerate(names):
            if name in one:
                tall = HEIGHT * min(one[name][2], 1.1)
                parts.append(f'<rect x="{x + j * BAR}" y="{bottom - tall:.1f}" width="{BAR - 2}" height="{tall:.1f}" fill="{COLOURS[j % len(COLOURS)]}"/>')
        parts.append(f'<text transform="translate({x + BAR},{bottom + 14}) rotate(40)">{title}</text>')
    return width, parts


if __name__ == "__main__":
    write([row for path in sys.argv[2:] for row in json.loads(Path(path).read_text())], Path(sys.argv[1]))
