"""Effect of the shipped adapter: consistency of videos with the adapter on, off, and with the seed's noise, compared
with real clips, also at matched motion.

    python benchmarks/consistency.py [--scenes 64] [--pool 512] [--device cuda] [--out
    benchmarks/results/consistency.json] python benchmarks/consistency.py --scenes 4 --pool 24 --steps 4 --device cpu
    --out /tmp/consistency.json        # a small one

Every row samples the same test scenes (never in training) with the embedded model, and measures each video with
`evaluation.metrics`. Means have 95 % intervals from 2000 bootstrap samples of scenes. A video that moves less is more
consistent for that alone; so each is also compared with a real clip, of a pool of other scenes, whose motion is
nearest: at matched motion a ratio of 1 is as good as real. Videos without a clip within 15 % of their motion are left
out there, and their share is reported.
"""

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tav_nb.evaluation.metrics import measure_video
from tav_nb.evaluation.records import environment, write_record
from tav_nb.sampling.generate import load_video_pipeline, resolve_noise
from tav_nb.toy.captions import caption
from tav_nb.toy.scenes import random_scene
from tav_nb.toy.tiny_model import FRAMES
from tav_nb.toy.tiny_sdxl import GUIDANCE, sample_latents, scenes_for_tests, start_noise
from tav_nb.toy.training_data import images_to_latents, latents_to_images, render_frames, worker_pool

METRICS = (
    "warping_error",
    "residual",
    "visible",
    "motion",
    "flickering",
    "smoothness",
    "drift",
    "held",
    "step_ratio",
    "drawings_warping_error",
    "drawings_motion",
    "dynamic_degree",
)
COMPARED = "warping_error", "residual", "flickering", "drift", "step_ratio"
ROWS = {  # name: (noise, adapter on?); None is the noise that the adapter was trained with
    "adapter on": (None, True),
    "adapter on, the seed's noise": ("seed", True),
    "adapter off": ("independent", False),
    "adapter off, the same noise": (None, False),
    "adapter off, the seed's noise": ("seed", False),
}


def figures(frames):
    "The figures of one video"
    import cv2

    cv2.setNumThreads(1)
    scores = measure_video(frames, fps=8)
    return {name: scores.video[name] for name in METRICS} | {
        "still": float(scores.flags["still"]),
        "disordered": float(scores.flags["disordered"]),
    }


def measured(videos, workers):
    "Videos [N, F, H, W, 3] -> {metric: [N]}"
    with worker_pool(workers) as pool:
        rows = pool.map(figures, list(videos), chunksize=4)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def bootstrap(statistic, *values, samples=2000, seed=0):
    "A statistic of values [N] and its 95 % interval over resampled scenes; None where it is not defined"
    if not len(values[0]):
        return None
    rng = np.random.default_rng(seed)
    drawn = [statistic(*(v[i] for v in values)) for i in rng.integers(0, len(values[0]), (samples, len(values[0])))]
    out = [float(statistic(*values)), *(float(x) for x in np.nanpercentile(drawn, (2.5, 97.5)))]
    return out if np.isfinite(out).all() else None


def mean(values):
    return np.nan if np.isnan(values).all() else np.nanmean(values)


def ratio(a, b):
    both = ~np.isnan(a) & ~np.isnan(b)
    return a[both].mean() / b[both].mean() if both.any() and b[both].mean() else np.nan


def matched(values, pool, within=0.15):
    "Every video compared with the real clip of the nearest motion: the share that has one, and ratios of the means"
    apart = np.abs(np.log((values["motion"][:, None] + 1e-6) / (pool["motion"] + 1e-6)))  # [video, clip]
    partner, near = apart.argmin(1), apart.min(1) <= within
    out = {"share": float(near.mean()), "pairs": int(near.sum())}
    for name in COMPARED:  # 1 - flickering is what changes
        a, b = (1 - v if name == "flickering" else v for v in (values[name][near], pool[name][partner[near]]))
        out["change" if name == "flickering" else name] = bootstrap(ratio, a, b)
    return out


def row(values_by_metric, pool):
    return {name: bootstrap(mean, values[~np.isnan(values)]) for name, values in values_by_metric.items()} | {
        "matched": matched(values_by_metric, pool)
    }


def brief(name, row):
    def format_interval(x):
        return "unknown" if x is None else f"{x[0]:.4f} ({x[1]:.4f} to {x[2]:.4f})"

    matched = row["matched"]
    return (
        f"{name:32} motion {format_interval(row['motion'])}, warping error {format_interval(row['warping_error'])};"
        f" at matched motion {format_interval(matched['warping_error'])} times that of real clips,"
        f" {matched['share']:.0%} matched"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--pool", type=int, default=512, help="real clips to find partners in (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--chunk", type=int, default=32, help="videos at a time on the device (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/consistency.json"))
    args = parser.parse_args()
    start, scenes = time.time(), scenes_for_tests(args.scenes)
    pipe = load_video_pipeline(device=args.device, dtype=torch.float32)
    captions = [caption(scene, 10**8 + i, complete=True) for i, scene in enumerate(scenes)]
    with worker_pool(args.workers) as p:
        real = np.stack(p.map(partial(render_frames, args.frames), scenes, chunksize=8))
        others = np.stack(
            p.map(
                partial(render_frames, args.frames),
                [random_scene(2 * 10**8 + i) for i in range(args.pool)],
                chunksize=8,
            )
        )
    pool, table = measured(others, args.workers), {}

    def add(name, videos):
        table[name] = row(measured(videos, args.workers), pool)
        print(brief(name, table[name]), flush=True)

    def decode(latents):
        return latents_to_images(pipe.vae, latents.flatten(0, 1)).cpu().numpy().reshape(real.shape)

    add("real clips", real)
    add(
        "VAE round trip",
        decode(images_to_latents(pipe.vae, torch.from_numpy(real).flatten(0, 1)).unflatten(0, real.shape[:2])),
    )
    trained = resolve_noise(pipe)
    for name, (noise, on) in ROWS.items():
        starts = start_noise(args.scenes, *((noise,) if noise else trained), num_frames=args.frames)
        add(
            name,
            decode(sample_latents(pipe, captions, starts, args.frames if on else None, args.steps, chunk=args.chunk)),
        )
    write_record(
        args.out,
        command=f"python {' '.join(sys.argv)}",
        scenes=args.scenes,
        pool=args.pool,
        steps=args.steps,
        guidance=vars(GUIDANCE),
        frames=args.frames,
        noise=trained,
        seconds=round(time.time() - start, 1),
        **environment(args.device),
        intervals="95 %, bootstrap over scenes",
        table=table,
    )


if __name__ == "__main__":
    main()
