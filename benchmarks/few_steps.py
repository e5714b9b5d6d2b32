"""Quality of the embedded model's videos against the number of DPM++ 2M Karras steps, each number with the guidance
that suits it.

python benchmarks/few_steps.py [--out benchmarks/results/few_steps.json] [--sheets FOLDER]   two minutes on a GPU
python benchmarks/few_steps.py --presets     choose draft, good and best again from the rows of the record
python benchmarks/few_steps.py --toy     two scenes, few settings, on the CPU

Guidance is chosen on validation scenes, for each number of steps: the fewest UNet calls of those settings whose
quality is within one standard error of the best one. The report is on test scenes, with the chosen guidance and with
the one that ships. The quality of a video is the share of its checks that are right, minus drift and jitter.
`good` is what ships, `draft` the fewest UNet calls with three quarters of its quality, `best` the highest quality with
20 steps or more if it differs from that of `good` by more than two standard errors, else `good`.
"""

import argparse
import json
import os
import sys
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from toy_scores import SCENES, draw_scenes, mean_scores, sample_frames, save_sheet

from tav_nb.evaluation.records import environment, write_record
from tav_nb.models.adapter_file import EMBEDDED_ADAPTER, load_adapter
from tav_nb.models.base import EMBEDDED
from tav_nb.sampling.generate import resolve_noise
from tav_nb.sampling.guidance import Guidance
from tav_nb.toy.reader import CHECKS, read_scene
from tav_nb.toy.tiny_model import FRAMES, load_tiny
from tav_nb.toy.tiny_sdxl import GUIDANCE, start_noise
from tav_nb.toy.training_data import worker_pool

STEPS = (4, 6, 8, 10, 15, 20, 30)
GRID = [
    Guidance(*values)  # scale, min_sigma, temporal
    for values in (
        (1.0, 0.0, 0.0),
        (1.75, 0.5, 0.0),
        (1.75, 0.5, 1.5),
        (2.5, 2.0, 0.0),
        (2.5, 0.5, 0.0),
        (2.5, 0.5, 0.75),
        (2.5, 0.5, 1.5),
        (2.5, 0.5, 2.5),
        (4.0, 0.5, 0.0),
        (4.0, 0.5, 1.5),
    )
]
CHECKED = ("direction", "gait", "stand", "jump", "wave", "dance", "camera", "style")
SHARE_OF_GOOD = 0.75  # of the quality of `good`, that `draft` has at least


def video_quality(scene, reading):
    "The share of checks that are right, minus drift and jitter; held drawings and dances move in jerks by design"
    right = [bool(hit) for name in CHECKED if (hit := CHECKS[name](scene, reading)) is not None]
    smooth = scene.hold == 1 and scene.action != "dance" and np.isfinite(reading.jitter)
    return np.mean(right) - reading.drift - (reading.jitter if smooth else 0.0)


class Sampler:
    "Makes videos of scenes, while a pool of processes reads those made before"

    def __init__(self, pipe, pool, device):
        self.pipe, self.pool, self.device, self.waiting = pipe, pool, device, deque()
        self.calls = 0  # of the UNet, one for each clip and side of the guidance
        pipe.unet.register_forward_pre_hook(self.count)

    def count(self, unet, inputs):
        self.calls += len(inputs[0]) // FRAMES

    def run(self, scenes, rows, steps_and_guidance, sheets=None):
        "Fill `rows` with what is found for each (steps, guidance)"
        scenes, captions, noise = scenes
        for steps, guidance in steps_and_guidance:
            self.calls, start = 0, time.perf_counter()
            frames = sample_frames(self.pipe, captions, noise, steps, guidance)
            row = dict(
                steps=steps,
                guidance=asdict(guidance),
                unet_calls=round(self.calls / len(frames), 2),
                seconds=round((time.perf_counter() - start) / len(frames), 5),  # of sampling and decoding, for a video
            )
            rows.append(row)
            if sheets:
                name = f"{steps}-{guidance.scale:g}-{guidance.min_sigma:g}-{guidance.temporal:g}.png"
                save_sheet(frames, Path(sheets) / name)
            self.waiting.append((row, scenes, self.pool.map_async(read_scene, list(frames), chunksize=4)))
            self.collect(4)  # no more videos wait in memory
        self.collect(0)

    def collect(self, left):
        while len(self.waiting) > left:
            row, scenes, result = self.waiting.popleft()
            readings = result.get()
            row["qualities"] = [video_quality(scene, reading) for scene, reading in zip(scenes, readings)]
            row["score"] = mean_scores(scenes, readings)
            print(*(f"{key} {row[key]}" for key in ("steps", "guidance", "unet_calls", "seconds")), end=" ")
            print(f"quality {np.mean(row['qualities']):.4f}", flush=True)


def choose(rows):
    "The row with the fewest UNet calls of those that differ from the best by at most one standard error"
    best = max(rows, key=lambda row: np.mean(row["qualities"]))

    def within(row):
        lost = np.subtract(best["qualities"], row["qualities"])
        return lost.mean() <= lost.std() / len(lost) ** 0.5

    return min(filter(within, rows), key=lambda row: (row["unet_calls"], -np.mean(row["qualities"])))


def summary(row, chosen):
    "A row with mean and standard error in place of the quality of each video"
    qualities = row["qualities"]
    mean, error = float(np.mean(qualities)), float(np.std(qualities) / len(qualities) ** 0.5)
    kept = {name: value for name, value in row.items() if name != "qualities"}
    return kept | dict(quality=round(mean, 4), error=round(error, 4), chosen=(row["steps"], row["guidance"]) in chosen)


def presets(rows, shipped):
    """Steps and guidance of draft, good and best, from the rows of validation scenes. `draft` has the guidance that
    ships: the captions here name all colours, and where a caption leaves one open, it changes from frame to frame
    without guidance by time
    """
    good = next((row for row in rows if (row["steps"], row["guidance"]) == (20, shipped)), rows[-1])
    draft = min(
        (row for row in rows if row["guidance"] == shipped and row["quality"] >= SHARE_OF_GOOD * good["quality"]),
        key=lambda row: row["unet_calls"],
        default=good,
    )
    best = max((row for row in rows if row["steps"] >= good["steps"]), key=lambda row: row["quality"])
    if best["quality"] - good["quality"] <= 2 * np.hypot(best["error"], good["error"]):
        best = good
    return {
        name: dict(steps=row["steps"], **row["guidance"])
        for name, row in dict(draft=draft, good=good, best=best).items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--validation", type=int, default=128, help="scenes that guidance is chosen on")
    parser.add_argument("--test", type=int, default=512, help="scenes of the report")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--grid", type=int, nargs="+", default=range(len(GRID)), help="numbers of the guidance tried")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="that read videos")
    parser.add_argument("--sheets", type=Path, help="folder for images of some frames of each row of the report")
    parser.add_argument(
        "--presets", action="store_true", help="only choose draft, good and best again, from the record"
    )
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/few_steps.json"))
    args = parser.parse_args()
    if args.toy:
        args.validation, args.test, args.steps, args.grid, args.device, args.workers = 2, 2, (2, 3), (0, 6), "cpu", 1
    if args.presets:
        record = json.loads(args.out.read_text())
        record |= dict(share_of_good=SHARE_OF_GOOD, presets=presets(record["validation"], record["shipped"]))
        return write_record(args.out, **record)
    if args.sheets:
        args.sheets.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    pipe = load_tiny(EMBEDDED, args.device)
    load_adapter(pipe.unet, EMBEDDED_ADAPTER)
    kind, strength = resolve_noise(pipe)
    scenes = {
        name: (*draw_scenes(n, first), start_noise(n, kind, strength, seed=first // 10**8))
        for (name, first), n in zip(SCENES.items(), (args.validation, args.test))
    }
    grid = [GRID[i] for i in args.grid]
    settings = [(steps, guidance) for steps in args.steps for guidance in grid]
    start, tried, chosen, report = time.perf_counter(), [], [], []
    with worker_pool(args.workers) as pool:
        sampler = Sampler(pipe, pool, args.device)
        if args.device == "cuda":  # cuDNN measures its kernels
            sample_frames(pipe, scenes["test"][1][:64], scenes["test"][2][:64], 1)
        sampler.run(scenes["validation"], tried, settings)
        chosen = [choose([row for row in tried if row["steps"] == steps]) for steps in args.steps]
        final = [(row["steps"], Guidance(**row["guidance"])) for row in chosen]
        final += [(steps, GUIDANCE) for steps in args.steps if (steps, GUIDANCE) not in final]
        sampler.run(scenes["test"], report, sorted(final, key=lambda pair: pair[0]), args.sheets)
    pairs = [(row["steps"], row["guidance"]) for row in chosen]
    tried, report = ([summary(row, pairs) for row in rows] for rows in (tried, report))
    write_record(
        args.out,
        command="python " + " ".join(sys.argv).split(" --out")[0].split(" --sheets")[0],
        scenes={name: len(some[0]) for name, some in scenes.items()},
        frames=FRAMES,
        total_seconds=round(time.perf_counter() - start, 1),
        **environment(args.device),
        shipped=asdict(GUIDANCE),
        share_of_good=SHARE_OF_GOOD,
        presets=presets(tried, asdict(GUIDANCE)),
        test=report,
        validation=tried,
    )


if __name__ == "__main__":
    main()
