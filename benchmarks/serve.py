"""`ovbridge serve` against `Detector.detect`, and many clients against one.

    python benchmarks/serve.py --checkpoint runs/demo/detector.safetensors --images runs/demo/world/val2017
    python benchmarks/serve.py ... --minutes 5

Starts a server process and asks it over HTTP with connections kept open. Direct and served requests alternate, so that
whatever else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


class Client:
    """One connection that is kept open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def detect(self, content: bytes) -> tuple[int, Any]:
        headers = {"Content-Type": "image/jpeg"}
        self._connection.request("POST", "/v1/detect?threshold=0.3", content, headers)
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())


def start_server(checkpoint: str, extra: list[str]) -> tuple[subprocess.Popen[str], int]:
    words = ["-m", "ovbridge.cli.main", "serve", "--port", "0", *(["--checkpoint", checkpoint] if checkpoint else [])]
    process = subprocess.Popen([sys.executable, *words, *extra], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if "http://" not in line:
        raise SystemExit("the server did not start")
    return process, int(line.split("http://127.0.0.1:")[1].split()[0])


def latency(checkpoint: str, port: int, pictures: list[Path], repeats: int) -> dict[str, Any]:
    """Seconds of a detection in this process and of a request, alternating."""
    from ovbridge.inference import Detector

    detector = Detector.load(checkpoint) if checkpoint else Detector.load()
    client = Client(port)
    contents = [path.read_bytes() for path in pictures]
    direct: list[float] = []
    served: list[float] = []
    for i in range(repeats + 2):
        path, content = pictures[i % len(pictures)], contents[i % len(pictures)]
        started = time.perf_counter()
        detector.detect(path, score_threshold=0.3)
        between = time.perf_counter()
        client.detect(content)
        ended = time.perf_counter()
        if i >= 2:  # The first two warm both up.
            direct.append(between - started)
            served.append(ended - between)
    ratios = [b / a for a, b in zip(direct, served, strict=True)]
    return {"direct": spread(direct), "served": spread(served), "ratio_median": statistics.median(ratios)}


def throughput(port: int, contents: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Pictures a second with `clients` that ask without pause, and what they were answered."""
    statuses: Counter[int] = Counter()
    cpu_before = server_cpu_seconds(port)
    answers: dict[int, set[str]] = {}
    lock = threading.Lock()
    begin = time.perf_counter()

    def ask(offset: int) -> None:
        client, i = Client(port), offset
        while time.perf_counter() - begin < seconds:
            status, answer = client.detect(contents[i % len(contents)])
            with lock:
                statuses[status] += 1
                if status == 200:
                    answers.setdefault(i % len(contents), set()).add(json.dumps(rounded(answer)))
            i += 1

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - begin
    return {
        "clients": clients,
        "seconds": round(elapsed, 1),
        "pictures_per_second": round(sum(statuses.values()) / elapsed, 2),
        "server_cpu_ms_per_picture": round(1e3 * (server_cpu_seconds(port) - cpu_before) / sum(statuses.values()), 1),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "pictures_with_differing_answers": sum(len(variants) > 1 for variants in answers.values()),
        "pictures": len(answers),
    }


def server_cpu_seconds(port: int) -> float:
    """Processor time of the server so far: unlike the clock, it hardly feels what else the machine does."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return next(float(line.split()[1]) for line in lines if line.startswith("process_cpu_seconds_total "))


def rounded(answer: Any) -> list[Any]:
    """What must not depend on company: names, scores to 0.01 and boxes to a pixel."""
    return [[d["name"], round(d["score"], 2), [round(v) for v in d["box_xyxy"]]] for d in answer["detections"]]


def spread(values: list[float]) -> dict[str, float]:
    quarters = statistics.quantiles(values, n=4)
    return {"median_ms": 1e3 * statistics.median(values), "q1_ms": 1e3 * quarters[0], "q3_ms": 1e3 * quarters[2]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="", help="by default the built-in detector")
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG files")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each throughput measurement")
    parser.add_argument("--minutes", type=float, default=0.0, help="of 16 clients at the end; no 5xx may come")
    parser.add_argument("--rounds", type=int, default=3, help="of one client against sixteen")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--workers", default="", help="as of ovbridge serve")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    import torch

    pictures = sorted(asked.images.glob("*.jpg"))[:16]
    contents = [path.read_bytes() for path in pictures]
    process, port = start_server(asked.checkpoint, ["--workers", asked.workers] if asked.workers else [])
    try:
        record: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "load_before": [round(v, 1) for v in os.getloadavg()],
            "note": asked.note,
            "torch": str(torch.__version__),
            "torch_threads": torch.get_num_threads(),
            "checkpoint": asked.checkpoint or "builtin",
            "pictures": len(pictures),
            "latency": latency(asked.checkpoint, port, pictures, asked.repeats),
        }
        one, many = [], []
        for _ in range(asked.rounds):
            one.append(throughput(port, contents, 1, asked.seconds))
            many.append(throughput(port, contents, 16, asked.seconds))
        gains = [b["pictures_per_second"] / a["pictures_per_second"] for a, b in zip(one, many, strict=True)]
        record["one_client"], record["sixteen_clients"] = one, many
        record["throughput_gain_median"] = statistics.median(gains)
        if asked.minutes:
            record["soak"] = throughput(port, contents, 16, asked.minutes * 60)
    finally:
        process.terminate()
        process.wait(60)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "serve.json").write_text(json.dumps(record, indent=2) + "\n")
    (asked.out / "serve.md").write_text(summary(record))
    print(summary(record))


def summary(record: dict[str, Any]) -> str:
    lat, one, many = record["latency"], record["one_client"], record["sixteen_clients"]

    def milliseconds(part: dict[str, float]) -> str:
        return f"{part['median_ms']:.1f} ({part['q1_ms']:.1f} to {part['q3_ms']:.1f})"

    def rates(rounds: list[dict[str, Any]]) -> str:
        return ", ".join(f"{r['pictures_per_second']:.1f}" for r in rounds)

    def cpu(rounds: list[dict[str, Any]]) -> str:
        return ", ".join(f"{r['server_cpu_ms_per_picture']:.0f}" for r in rounds)

    failed = sum(n for r in (*one, *many) for status, n in r["statuses"].items() if status >= "500")
    lines = [
        "# Serving",
        "",
        f"{record['date']}; {record['machine']}; torch {record['torch']}, {record['torch_threads']} threads; load "
        f"{record['load_before']}. {record['note']}".rstrip(),
        "",
        f"Checkpoint {record['checkpoint']}, {record['pictures']} pictures. Written by `benchmarks/serve.py`.",
        "",
        "| what | figure |",
        "|---|---|",
        f"| `Detector.detect` of a file, ms: median (quartiles) | {milliseconds(lat['direct'])} |",
        f"| one request over HTTP, ms | {milliseconds(lat['served'])} |",
        f"| request ÷ direct, median of pairs (target 1.3 at most) | {lat['ratio_median']:.2f} |",
        f"| one client, pictures/s, each round | {rates(one)} |",
        f"| 16 clients, pictures/s, each round | {rates(many)} |",
        f"| processor time of the server, ms a picture: one client; 16 clients | {cpu(one)}; {cpu(many)} |",
        f"| gain, median of rounds (target 1.5 at least) | {record['throughput_gain_median']:.2f} |",
        f"| pictures whose answer depended on company (names, scores to 0.01, boxes to 1 px) | "
        f"{max(r['pictures_with_differing_answers'] for r in many)} of {many[0]['pictures']} |",
        f"| answers 5xx | {failed} |",
    ]
    if "soak" in record:
        soak = record["soak"]
        lines.append(f"| 16 clients for {soak['seconds'] / 60:.1f} minutes: answers by status | {soak['statuses']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
