"""What one video costs: `tav generate`, 16 frames, 20 steps, as a whole process, imports included.

python benchmarks/generate.py [--runs 3] [--out benchmarks/results/generate.json]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from tav_nb.evaluation.records import write_record

PROMPT = "a girl with pink hair and a blue dress walks to the left"


def run(folder, number):
    "Seconds of wall and processor time, and the largest resident size in MiB, of one run"
    start = time.perf_counter()
    command = [
        sys.executable,
        "-c",
        "from tav_nb.cli.main import main; raise SystemExit(main())",
        "generate",
        PROMPT,
        "-o",
        str(folder / f"{number}.mp4"),
        "--seed",
        "3",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"tav generate failed with status {status}")
    return dict(
        wall_s=round(time.perf_counter() - start, 2),
        cpu_s=round(usage.ru_utime + usage.ru_stime, 2),
        peak_mib=round(usage.ru_maxrss / 1024),
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/generate.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(Path(folder), i) for i in range(args.runs)]
    result = dict(
        command="python benchmarks/generate.py",
        device=f"{os.cpu_count()} cores, {platform.machine()}",
        python=platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers")},
        runs=runs,
        median_wall_s=statistics.median(r["wall_s"] for r in runs),
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_record(args.out, **result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
