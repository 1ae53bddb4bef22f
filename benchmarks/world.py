"""The demo on several seeds: AP50 of every stage, mean and spread, with time and memory.

    python benchmarks/world.py --seeds 0 1 2 --proposers builtin --runs runs/seeds

A run that is there already is read, not repeated; its memory is known only where this script made it. Writes
benchmarks/results/world.json and world.md, or others with --name.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("base", "novel", "all")


def run_seed(out: Path, seed: int, proposer: str) -> dict[str, Any]:
    """The demo's results.json of one seed, with the peak memory of its process in MiB, None where it is not known."""
    measured = out / "peak_mib.txt"
    if not (out / "results.json").exists():
        command = ["demo", "--out", str(out), "--seed", str(seed), "--proposer", proposer]
        subprocess.run([sys.executable, "-m", "ovbridge.cli.main", *command], check=True)
        # Of the largest child so far: the demo's process, since runs come one after the other.
        measured.write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024))
    record: dict[str, Any] = json.loads((out / "results.json").read_text())
    return record | {"peak_mib": int(measured.read_text()) if measured.exists() else None}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Stage → column → every seed's AP50, mean and standard deviation (of a sample); the ratio novel / base too."""
    stages: dict[str, Any] = {}
    for stage in runs[0]["stages"]:
        values = {c: [run["stages"][stage]["ap50"][c] for run in runs] for c in COLUMNS}
        values["ratio"] = [n / b for n, b in zip(values["novel"], values["base"], strict=True)]
        stages[stage] = {
            c: {"runs": v, "mean": statistics.mean(v), "spread": statistics.stdev(v) if len(v) > 1 else None}
            for c, v in values.items()
        }
    return stages


def table(name: str, stages: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    """Markdown."""

    def cell(entry: dict[str, Any], digits: int) -> str:
        spread = "" if entry["spread"] is None else f" ± {entry['spread']:.{digits}f}"
        return f"{entry['mean']:.{digits}f}{spread}"

    seeds = ", ".join(str(run["seed"]) for run in runs)
    seconds = ", ".join(f"{run['seconds']:.0f}" for run in runs)
    peaks = [run["peak_mib"] for run in runs if run["peak_mib"]]
    memory = f", at most {max(peaks)} MiB" if peaks else ""
    lines = [
        f"Proposer `{name}` ({runs[0]['proposer_trained_on']}), seeds {seeds}; {seconds} s{memory}.",
        "",
        "| stage | base | novel | all | novel / base |",
        "|---|---:|---:|---:|---:|",
    ]
    for stage, entry in stages.items():
        cells = [cell(entry[c], 1) for c in COLUMNS] + [cell(entry["ratio"], 2)]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--proposers", nargs="+", default=["builtin"])
    parser.add_argument("--runs", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--note", default="", help="what else ran on the machine meanwhile")
    parser.add_argument("--name", default="world", help="of the result files")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "note": arguments.note,
    }
    tables = []
    for proposer in arguments.proposers:
        runs = [run_seed(arguments.runs / f"{proposer}_{seed}", seed, proposer) for seed in arguments.seeds]
        stages = summary(runs)
        report[proposer] = {
            "stages": stages,
            "seconds": [run["seconds"] for run in runs],
            "peak_mib": [run["peak_mib"] for run in runs],
        }
        tables.append(table(proposer, stages, runs))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps(report, indent=2) + "\n")
    head = f"# The built-in world: AP50 in percent, protocol ov-coco\n\n{report['machine']}, torch {report['torch']}, "
    head += f"{report['threads']} threads. {arguments.note}".strip()
    (RESULTS / f"{arguments.name}.md").write_text("\n\n".join([head, *tables]) + "\n")
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
