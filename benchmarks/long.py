"""Videos three times as long as the adapter's: windows inside the attention, over the predictions, plain extrapolation
and FreeNoise's shuffled noise, on the cartoon world.

    python benchmarks/long.py [--scenes 32] [--device cuda] [--rows ROW ...] [--out benchmarks/results/long.json]
    python benchmarks/long.py --toy        # one scene, few steps, three rows, on the CPU; writes nothing

Rows of the same scenes and settings that are in the file already stay in it, so several processes can share the rows.

Every row samples the same test scenes (never in training) from the same noise. Real clips are measured as well, drawn
by the cartoon world itself: a character that leaves on one side enters on the other, so even they do not score 1
everywhere. What is measured, with 95 % intervals (Wilson for shares, 2000 bootstrap samples of scenes for means):

- adjacent: 1 - mean difference of neighbouring frames; warping: the error of `evaluation.metrics` along the flow;
  motion: the length of that flow. A frozen video has the best values: compare them only at similar motion
- identity: does the last third show the same hair, style, outfit and place as the first? as_prompted: are they the
  caption's, in the last third?
- direction: does each third in which a character is found move in the caption's direction? third: the same of single
  thirds, so that chance does not count three times
- window_border: residual at the borders of windows (where one begins or ends) against elsewhere, a score of
  `evaluation.metrics`; middle: the same half-way between borders; border: the one minus the other in the same video,
  which is 0 where borders do not differ from the middle. Rows without windows are measured at the borders of
  `attention, overlap 12`
- jitter: standard deviation of the second difference of the position, without scenes held on twos and threes and dances
- loop: residual from the last frame to the first against elsewhere
"""

import argparse
import fcntl
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from tav_nb.evaluation.metrics import measure_video
from tav_nb.evaluation.records import environment, write_record
from tav_nb.models.windows import Context, plan_windows
from tav_nb.sampling import generate as inference
from tav_nb.sampling.guidance import resolve_guidance
from tav_nb.toy.captions import caption
from tav_nb.toy.reader import read_scene, wilson_interval
from tav_nb.toy.rendering import render
from tav_nb.toy.tiny_model import SIZE
from tav_nb.toy.tiny_sdxl import scenes_for_tests
from tav_nb.toy.training_data import worker_pool

ROWS = {  # name: (Context, is the noise shuffled?)
    "attention, overlap 12": (Context(overlap=12), False),
    "attention, overlap 6": (Context(overlap=6), False),
    "attention, overlap 18": (Context(overlap=18), False),
    "attention, overlap 12, flat": (Context(overlap=12, weights="flat"), False),
    "attention, 16 frames, overlap 8": (Context(length=16, overlap=8), False),
    "attention, overlap 6, loop": (Context(overlap=6, loop=True), False),
    "attention, overlap 12, loop": (Context(overlap=12, loop=True), False),
    "predictions, overlap 6": (Context("predictions", overlap=6), False),
    "predictions, overlap 12": (Context("predictions", overlap=12), False),
    "plain extrapolation": (Context("none"), False),
    "FreeNoise's shuffled noise": (Context(overlap=12), True),
}
TOY = "attention, overlap 12", "predictions, overlap 12", "plain extrapolation"


def shuffled(latents, length, chunk, seed):
    """FreeNoise (Qiu et al. 2023, arXiv 2310.15169, section 3.2): the noise of one window again and again, each time
    shuffled within chunks
    """
    rng, frames = np.random.default_rng(seed), list(range(length))
    while len(frames) < len(latents):
        at = len(frames) % length
        frames += rng.permutation(range(at, min(at + chunk, length))).tolist()
    return latents[frames[: len(latents)]]


def sample_video(pipe, text, seed, context, shuffle, args):
    "One video, its seconds and its peak of memory in MiB"
    start_latents, longest, cuda = (
        inference.start_latents,
        pipe.unet.temporal_config["max_frames"],
        args.device == "cuda",
    )
    start = (
        (lambda *args, **kwargs: shuffled(start_latents(*args, **kwargs), longest, longest // 2, seed))
        if shuffle
        else start_latents
    )
    if cuda:
        torch.cuda.reset_peak_memory_stats(), torch.cuda.synchronize()
    began = time.perf_counter()
    with patch.object(inference, "start_latents", start):
        frames = inference.generate(text, pipe, num_frames=args.frames, steps=args.steps, seed=seed, context=context)
    return frames, time.perf_counter() - began, torch.cuda.max_memory_allocated() / 2**20 if cuda else None


def borders(num_frames, context, longest):
    "Frames at which a window begins, or the first after one ended"
    windows = plan_windows(num_frames, context if context.kind != "none" else Context(overlap=longest // 2), longest)
    at = {b % num_frames for start in windows.starts for b in (start, start + windows.length)} if windows else set()
    return sorted(at - {0})


def halfway(at, num_frames):
    "Frames in the middle between two borders"
    return [(a + b) // 2 for a, b in pairwise([0, *at, num_frames]) if b - a > 1]


def speed(reading):
    "Over the ground, without the step from one side of the frame to the other; nan without a character"
    steps = np.diff(reading.position[:, 0])
    steps = steps[np.abs(steps) < 0.3]
    return (
        float(steps.mean() + reading.pan)
        if len(steps) and np.isfinite(steps).any() and reading.face_fraction >= 0.5
        else np.nan
    )


def jitter(x):
    second = np.diff(x, 2)
    return float(np.nanstd(second[~(np.abs(second) > 0.3)])) if np.isfinite(second).any() else np.nan


def figures(job):
    "The figures of one video"
    import cv2

    scene, context, longest, frames = job
    cv2.setNumThreads(1)
    at = borders(len(frames), context, longest)
    scores = measure_video(frames, fps=8, windows=at)
    metrics, residual, usual = scores.video, scores.per_pair["residual"], ~scores.per_pair["held"].astype(bool)
    usual[np.array(at, int) - 1] = False  # pair t is frames t and t + 1
    middle = (
        residual[np.array(halfway(at, len(frames))) - 1].mean() / np.median(residual[usual]) if usual.any() else np.nan
    )
    thirds = [read_scene(part) for part in np.array_split(frames, 3)]
    first, last, reading = thirds[0], thirds[-1], read_scene(frames)

    def attributes(r):
        return (r.hair, r.style, r.outfit, r.background)

    ways = [speed(r) * np.sign(scene.speed) > 0.008 for r in thirds if np.isfinite(speed(r))] if scene.speed else []
    return dict(
        adjacent=metrics["flickering"],
        warping=metrics["warping_error"],
        motion=metrics["motion"],
        window_border=metrics["window_border"],
        middle=float(middle),
        border=float(metrics["window_border"] - middle),
        loop=metrics["loop_closure"],
        jitter=jitter(reading.position[:, 0]) if scene.hold == 1 and scene.action != "dance" else np.nan,
        drift=reading.drift,
        identity=[attributes(first) == attributes(last)] if min(first.face_fraction, last.face_fraction) >= 0.5 else [],
        as_prompted=[attributes(last) == attributes(scene)] if last.face_fraction >= 0.5 else [],
        direction=[all(ways)] if ways else [],
        third=ways,
    )


def mean(values, samples=2000):
    "Mean and 95 % interval over resampled scenes"
    values = np.array([v for v in values if np.isfinite(v)])
    if not len(values):
        return None
    drawn = values[np.random.default_rng(0).integers(0, len(values), (samples, len(values)))].mean(1)
    return [float(values.mean()), *map(float, np.percentile(drawn, (2.5, 97.5))), len(values)]


def row(rows):
    "Videos' figures -> {name: [value, low, high, n]}"
    table = {}
    for name, value in rows[0].items():
        values = [one[name] for one in rows]
        if isinstance(value, list):
            hits = [hit for some in values for hit in some]
            table[name] = [*wilson_interval(sum(hits), len(hits)), len(hits)] if hits else None
        else:
            table[name] = mean(values)
    return table


def keep(path, about, name, values):
    "Add a row to those with the same settings"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(Path(tempfile.gettempdir(), "long.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        old = json.loads(path.read_text()) if path.exists() else {}
        alike = all(
            old.get(name) == about[name] for name in ("scenes", "frames", "steps", "guidance", "longest", "noise")
        )
        rows = old["table"] if alike else {}
        write_record(
            path,
            **about,
            **(dict(note=old["note"]) if alike and "note" in old else {}),
            table={row: (rows | {name: values})[row] for row in ("real clips", *ROWS) if row in rows or row == name},
        )


def brief(name, row):
    def format_interval(key):
        return f"{key} -" if not row.get(key) else f"{key} {row[key][0]:.4f} ({row[key][1]:.4f} to {row[key][2]:.4f})"

    return (
        f"{name:32} "
        + ", ".join(
            map(
                format_interval,
                (
                    "adjacent",
                    "warping",
                    "motion",
                    "window_border",
                    "border",
                    "identity",
                    "as_prompted",
                    "direction",
                    "third",
                    "jitter",
                    "loop",
                ),
            )
        )
        + f", {row.get('seconds', 0):.1f} s"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=32)
    parser.add_argument("--frames", type=int, default=72)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--toy", action="store_true", help="see that it runs; writes nothing unless --out is given")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.toy:
        args.scenes, args.frames, args.steps, args.rows, args.workers = 1, 36, 2, list(TOY), 1
    _start, scenes = time.time(), scenes_for_tests(args.scenes)
    pipe = inference.load_video_pipeline(device=args.device, dtype=torch.float32)
    longest, table = pipe.unet.temporal_config["max_frames"], {}
    texts = [caption(scene, 10**8 + i, complete=True) for i, scene in enumerate(scenes)]

    out = args.out or (None if args.toy else Path("benchmarks/results/long.json"))

    def add(name, videos, context, **costs):
        table[name] = (
            row(pool.map(figures, [(scene, context, longest, frames) for scene, frames in zip(scenes, videos)])) | costs
        )
        print(brief(name, table[name]), flush=True)
        about = dict(
            command=f"python {' '.join(sys.argv)}".split(" --out")[0].split(" --rows")[0],
            scenes=args.scenes,
            frames=args.frames,
            steps=args.steps,
            guidance=asdict(resolve_guidance(pipe.unet)),
            longest=longest,
            noise=list(inference.resolve_noise(pipe)),
            **environment(args.device),
            intervals="95 %",
        )
        if out:
            keep(out, about, name, table[name])  # after each row: what is interrupted is not lost

    with worker_pool(args.workers) as pool:
        add(
            "real clips",
            [render(scene, args.frames, SIZE, SIZE).frames for scene in scenes],
            ROWS["attention, overlap 12"][0],
        )
        if args.device == "cuda":
            sample_video(pipe, texts[0], 0, *ROWS[args.rows[0]], args)  # kernels are chosen, memory is laid out
        for name in args.rows:
            videos, seconds, peaks = zip(
                *(sample_video(pipe, text, i, *ROWS[name], args) for i, text in enumerate(texts))
            )
            add(
                name,
                videos,
                ROWS[name][0],
                seconds=float(np.mean(seconds)),
                peak_mib=max(peaks) if args.device == "cuda" else None,
            )


if __name__ == "__main__":
    main()
