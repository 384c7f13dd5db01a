"""Draws the bars of compare_peers.py; runs in the peers' environment, which has matplotlib.

usage: chart.py RESULT_JSON PNG
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def draw(result: dict[str, Any], path: str) -> None:
    """Draws a group of bars per case and a bar per contestant, with its images/s on top."""
    cases = result["cases"]
    names = list(cases[0]["contestants"])
    figure, axes = pyplot.subplots(figsize=(11, 5), layout="constrained")
    width = 0.8 / len(names)
    for position, name in enumerate(names):
        rates = [case["contestants"][name].get("images_per_sec", 0.0) for case in cases]
        places = [
            number + (position - (len(names) - 1) / 2) * width for number in range(len(cases))
        ]
        bars = axes.bar(places, rates, width, label=name)
        axes.bar_label(bars, [f"{rate:.1f}" if rate else "-" for rate in rates], fontsize=8)
    axes.set_xticks(range(len(cases)), [f"{c['task']}, {c['precision']}" for c in cases])
    axes.set_ylabel("images/s (median step)")
    environment = result["environment"]
    axes.set_title(
        f"ResNet-v2-50, {result['image_size']} px, batch {result['batch_size']}: "
        f"{environment['device']}, {environment['cores']} cores, {environment['date'][:10]}"
    )
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2])
