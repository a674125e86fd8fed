"""What was measured as lines, as a table in Markdown, as JSON and as a plot. Belongs here: how figures are shown. Does not: how they come about."""

import json
import statistics

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
    for contestant, kernels in row["notes"].get("kernels", {}).items():
        for share, us, name in kernels[:25]:
            text += f"\n    {contestant:15} {100 * share:5.1f} % {us:9.1f} us a launch: {short(name)}"
    return text


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


def write(rows, folder):
    """gpu.md, gpu.json and gpu.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(rows, indent=1))
    cases = list(dict.fromkeys(row["case"] for row in rows))
    text = f"{rows[0]['device']}, PyTorch {rows[0]['torch']}, medians of {len(rows[0]['times']['dense'])} rounds.\n" if rows else ""
    for case in cases:
        text += f"\n## {case}\n\n" + table([row for row in rows if row["case"] == case])
    (folder / "gpu.md").write_text(text)
    (folder / "gpu.svg").write_text(plot(rows))


COLOURS = ("#1b6ca8", "#e08214", "#5aae61", "#8c6bb1")


def plot(rows):
    """Bars of the ratios, a group a row: an SVG."""
    found = [(row["title"], figures(row)) for row in rows]
    names = list(dict.fromkeys(name for _, one in found for name in one))
    bar, gap, height, left, top = 14, 18, 240, 50, 40
    group = bar * len(names) + gap
    width = left + group * len(found) + 20
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + top + 120}" font-family="sans-serif" font-size="11">',
             '<rect width="100%" height="100%" fill="white"/>']
    for i in range(6):
        y = top + height - height * i / 5
        parts.append(f'<line x1="{left}" x2="{width - 20}" y1="{y}" y2="{y}" stroke="#ddd"/><text x="{left - 8}" y="{y + 4}" text-anchor="end">{i / 5:.1f}</text>')
    for i, name in enumerate(names):
        colour = COLOURS[i % len(COLOURS)]
        parts.append(f'<rect x="{left + i * 130}" y="10" width="12" height="12" fill="{colour}"/><text x="{left + 18 + i * 130}" y="20">{name}</text>')
    for i, (title, one) in enumerate(found):
        x = left + gap / 2 + i * group
        for j, name in enumerate(names):
            if name in one:
                tall = height * min(one[name][2], 1.1)
                parts.append(f'<rect x="{x + j * bar}" y="{top + height - tall:.1f}" width="{bar - 2}" height="{tall:.1f}" fill="{COLOURS[j % len(COLOURS)]}"/>')
        parts.append(f'<text transform="translate({x + bar},{top + height + 14}) rotate(40)">{title}</text>')
    return "\n".join([*parts, "</svg>", ""])
