"""Time and memory of `tav score` on one large video, and which metric the time goes to.

    python benchmarks/score.py [--frames 72] [--side 1024] [--cores 2] [--out benchmarks/results/score.json]

The video is drawn here and written as H.264. The command runs as a user would run it, in a process of its own on some
cores: once with a page, once with its three controls as well (Linux only: the peak of memory comes from /proc). Shares
are measured in this process on the same cores; a metric's time includes flow only where it computes its own flow.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from tav_nb.evaluation import metrics as consistency
from tav_nb.evaluation import score, score_page
from tav_nb.evaluation.records import write_record
from tav_nb.toy.rendering import render
from tav_nb.toy.scenes import random_scene
from tav_nb.utils.video_writer import write_video

RUN = """import sys
from tav_nb.cli.main import main
code = main()
# ru_maxrss would begin with the memory of the process that started this one
peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))
print(peak, file=sys.stderr)
sys.exit(code)"""
PARTS = {
    "flow": ("dis_flow",),
    "occlusion": ("visible_mask",),
    "warping_error and residual": ("warping_error",),
    "motion and fastest": ("motion", "top_speed"),
    "flickering": ("flickering",),
    "smoothness": ("smoothness",),
    "held": ("held_pairs",),
    "drift": ("track_box", "colour_drift"),
    "step_ratio": ("step_ratio",),
}


def write_test_video(path, frames, side):
    "A cartoon, drawn at half the size, with grain added, as H.264"
    small = render(random_scene(3), frames, side // 2, side // 2).frames
    grain = np.random.default_rng(0).integers(-6, 7, (side, side, 1), dtype=np.int16)
    large = [
        np.clip(
            np.asarray(Image.fromarray(x).resize((side, side), Image.Resampling.BICUBIC), np.int16) + grain, 0, 255
        ).astype(np.uint8)
        for x in small
    ]
    return write_video(large, path, 24)


def command(path, folder, *words):
    "Seconds and MB of one run of the command, with a page"
    start = time.perf_counter()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            RUN,
            "score",
            str(path),
            "--html",
            f"{folder}/page.html",
            "--json",
            f"{folder}/scores.json",
            *words,
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    return dict(
        seconds=round(time.perf_counter() - start, 2),
        peak_mb=round(int(done.stderr.split()[-1]) / 1024),
        page_kb=round(Path(folder, "page.html").stat().st_size / 1000),
    )


class Clock:
    "Stands in for a function of `consistency` and adds up its time, without that of other clocks that run inside it"

    inside, spent = [0.0], {}

    def __init__(self, part, name):
        self.part, self.call = part, getattr(consistency, name)
        setattr(consistency, name, self)

    def __call__(self, *args, **kwargs):
        start = time.perf_counter()
        Clock.inside.append(0.0)
        try:
            return self.call(*args, **kwargs)
        finally:
            took = time.perf_counter() - start
            Clock.spent[self.part] = Clock.spent.get(self.part, 0) + took - Clock.inside.pop()
            Clock.inside[-1] += took


def time_parts(path):
    "Seconds and shares of reading and of each metric, then of the page"
    start = time.perf_counter()
    read = score.load_video(path)
    Clock.spent["reading"] = time.perf_counter() - start
    for part, names in PARTS.items():
        for name in names:
            Clock(part, name)
    table = score.score_videos([read])
    middle = time.perf_counter()
    score_page.as_page(table)
    Clock.spent["page"] = time.perf_counter() - middle
    total = time.perf_counter() - start
    Clock.spent["everything else"] = total - sum(Clock.spent.values())
    return {
        part: dict(seconds=round(took, 3), share=round(took / total, 4))
        for part, took in sorted(Clock.spent.items(), key=lambda item: -item[1])
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=72)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/score.json"))
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    with tempfile.TemporaryDirectory() as folder:
        path = write_test_video(Path(folder) / "video.mp4", args.frames, args.side)
        runs = {"without controls": command(path, folder), "with controls": command(path, folder, "--controls")}
        parts = time_parts(path)
    result = dict(
        command=f"python {' '.join(sys.argv)}",
        frames=args.frames,
        side=args.side,
        measured_at=512,
        cores=args.cores,
        machine=platform.machine(),
        python=platform.python_version(),
        opencv=version("opencv-python-headless"),
        numpy=np.__version__,
        runs=runs,
        parts=parts,
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_record(args.out, (), **result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
