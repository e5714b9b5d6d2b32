"""What directing does to videos of the embedded model: known first and last frames, extended videos, and the strength
of the motion.

    python benchmarks/directing.py [--scenes 24] [--frames 16] [--steps 20] [--device auto] [--processes 1] [--toy]
    [--out benchmarks/results/directing.json]

Scenes of the cartoon world with a still camera, most of them walks and runs. Their first frame, or first and last, are
known, once in the seed's noise and once in the inverted noise of these frames (`invert`); complete videos are extended
by half their length, in the noise of their own seed, of another, and in inverted noise; and videos are made at six
strengths of motion. `tear` is the
change in grey levels from a known frame to the next, over the median change on both sides of it; a frozen video has
`moves` 0, the real one 1. `--toy` is one scene of six small frames.
"""

import argparse
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from importlib.metadata import version
from multiprocessing import get_context
from unittest.mock import patch

import numpy as np
import torch

from tav_nb.evaluation.flow import dis_flow
from tav_nb.evaluation.records import write_record
from tav_nb.sampling import generate as inference
from tav_nb.sampling.conditioning import KnownFrames, encode_known_image, join_videos, prepare_known_frames
from tav_nb.sampling.generate import decode_frames, generate, load_video_pipeline
from tav_nb.sampling.guidance import resolve_guidance
from tav_nb.sampling.request import Keyframes
from tav_nb.toy.captions import caption
from tav_nb.toy.reader import CHECKS, read_scene
from tav_nb.toy.rendering import render
from tav_nb.toy.scenes import random_scene
from tav_nb.utils.frame_changes import motion


def drawn(pipe, images, context_frames, latents, *rest):
    "`prepare_known_frames` with all known frames in the noise that was drawn"
    if not images:
        return prepare_known_frames(pipe, images, context_frames, latents, *rest)
    clean = torch.stack([encode_known_image(pipe, image) for image in images.values()])
    return (
        KnownFrames([*images], clean, latents[[*images]] / pipe.scheduler.init_noise_sigma, pipe.scheduler),
        latents,
    )


def inverted(pipe, images, context_frames, *rest):
    "`prepare_known_frames` with all known frames in inverted noise"
    return prepare_known_frames(pipe, images, 0, *rest)


def scenes(count):
    "Scenes whose motion can be seen: a still camera, no holds, no standing"
    candidates = (random_scene(seed) for seed in range(10_000))
    return [
        scene
        for scene, _ in zip(
            (s for s in candidates if s.camera == "still" and s.hold == 1 and s.action != "stand"), range(count)
        )
    ]


def changes(video):
    return np.abs(np.diff(video.astype(int), axis=0)).mean((1, 2, 3))


def tear(video, at):
    "Change from frame `at` to the next over the usual one of the others"
    change = changes(video)
    return float(change[at] / max(np.median(np.delete(change, at)), 1e-3))


def moves(video, real):
    "Motion by optical flow, over that of the real video"
    flows = [np.mean([motion(dis_flow(a, b)) for a, b in zip(one, one[1:])]) for one in (video, real)]
    return float(flows[0] / max(flows[1], 1e-6))


def psnr(a, b):
    return float(10 * np.log10(255**2 / max(((a.astype(float) - b) ** 2).mean(), 1e-6)))


def read_figures(video, scene):
    "What the reader measures in the video, compared with the prompt's scene"
    seen = read_scene(video)
    right = CHECKS["direction"](scene, seen)
    return dict(
        identity=[getattr(scene, name) == getattr(seen, name) for name in ("hair", "outfit", "background")].count(True)
        / 3,
        jitter=seen.jitter,
        drift=seen.drift,
        speed=seen.speed,
        **({} if right is None else dict(direction=float(right), speed_share=seen.speed / scene.speed)),
    )


def generate_between(pipe, scene, real, both, how, settings):
    "The figures of a video whose first frame is known, or first and last"
    images = {0: real[0], **({len(real) - 1: real[-1]} if both else {})}
    with patch.object(inference, "prepare_known_frames", how):
        video = generate(keyframes=Keyframes(real[0], real[-1] if both else None), num_frames=len(real), **settings)
    seen = {frame: decode_frames(pipe, encode_known_image(pipe, image)[None])[0] for frame, image in images.items()}
    inner = video[1:-1] if both else video[1:]
    return video, dict(
        tear=max(tear(video, at) for at in ([0, -1] if both else [0])),
        ends=min(psnr(video[frame], image) for frame, image in seen.items()),
        real=psnr(inner, real[1:-1] if both else real[1:]),
        moves=moves(inner, real),
        **read_figures(inner, scene),
    )


def extend(scene, real, before, seed, how, settings):
    "The figures of the second part of a video, half as long as the first"
    keyframes = Keyframes(before=before, overlap=min(8, len(before)))
    with patch.object(inference, "prepare_known_frames", how):
        new = generate(keyframes=keyframes, num_frames=len(real) // 2, **settings | dict(seed=seed))
    return new, dict(
        tear=tear(join_videos(keyframes, new), len(before) - 1),
        goes_on=float(np.median(changes(new)) / np.median(changes(before))),
        **read_figures(new, scene),
    )


def measure(args, number, scene):
    "The rows of one scene"
    torch.set_num_threads(args.threads)
    rows, pipe, real = [], load(args.device), render(scene, args.frames, args.side, args.side).frames
    settings = dict(
        prompt=caption(scene, 0, complete=True),
        pipe=pipe,
        height=args.side,
        width=args.side,
        steps=args.steps,
        seed=number,
    )

    def row(name, video, figures):
        rows.append(dict(what=name, scene=number, action=scene.action, **figures))

    for ends in ("first", "both"):
        for name, how in dict(drawn=drawn, inverted=prepare_known_frames).items():
            row(f"{ends} {name}", *generate_between(pipe, scene, real, ends == "both", how, settings))
    for strength in args.motions:
        video = generate(keyframes=Keyframes(motion=strength), num_frames=args.frames, **settings)
        row(f"motion {strength:g}", video, dict(moves=moves(video, real), **read_figures(video, scene)))
        if strength == 1:
            before = video
    for name, seed, how in (
        ("own seed", number, prepare_known_frames),
        ("another seed", number + 1000, prepare_known_frames),
        ("inverted", number, inverted),
    ):
        row(f"on {name}", *extend(scene, real, before, seed, how, settings))
    print(f"scene {number + 1} of {args.scenes}", file=sys.stderr, flush=True)
    return rows


@cache
def load(device):
    return load_video_pipeline(device=device, dtype=torch.float32)


def summary(rows):
    "Mean of each figure for each way, over the scenes that have it"
    ways = dict.fromkeys(row["what"] for row in rows)

    def figures(way):
        return {
            name: [
                row[name]
                for row in rows
                if row["what"] == way and isinstance(row.get(name), (int, float)) and row[name] == row[name]
            ]
            for name in dict.fromkeys(n for row in rows for n in row)
            if name != "scene"
        }

    return {
        way: {name: round(float(np.mean(values)), 4) for name, values in figures(way).items() if values} for way in ways
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--scenes", type=int, default=24)
    add("--frames", type=int, default=16)
    add("--side", type=int, default=128)
    add("--steps", type=int, default=20)
    add("--motions", type=float, nargs="+", default=[0, 0.5, 0.75, 1, 1.25, 1.5])
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--processes", type=int, default=1, help="that make videos side by side")
    add("--toy", action="store_true")
    add("--out", default="benchmarks/results/directing.json")
    args = parser.parse_args()
    if args.toy:
        args.scenes, args.frames, args.side, args.steps, args.motions = 1, 6, 64, 3, [0.5, 1]
    start, args.threads = time.perf_counter(), max(1, torch.get_num_threads() // args.processes)
    with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
        rows = sum(pool.map(partial(measure, args), range(args.scenes), scenes(args.scenes)), [])
    about = dict(
        command="python " + " ".join(sys.argv),
        device=torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor() or "CPU",
        seconds=round(time.perf_counter() - start, 1),
        versions={name: version(name) for name in ("torch", "diffusers", "transformers")},
        guidance=vars(resolve_guidance(load(args.device).unet)),
        settings={
            name: value for name, value in vars(args).items() if name not in ("out", "toy", "processes", "threads")
        },
    )
    means = summary(rows)
    for way, figures in means.items():
        print(f"{way:16}", *(f"{name} {value:.3f}" for name, value in figures.items()))
    write_record(args.out, about=about, means=means)


if __name__ == "__main__":
    main()
