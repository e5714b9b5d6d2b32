"""Training curves of the preset `toy` from several seeds; loss, held-out loss, and what the reader of the cartoon
world measures in sampled videos.

python benchmarks/learning.py [--seeds 0 1 2] [--seconds 100] [--clips 2500 | --cache CACHE] [--out
benchmarks/results/learning.json] python -m tav_nb.toy.live CACHE --clips 4000 --num-frames 24 --size 128 --device cuda
--workers 48 for seed in 0 1 2; do CUDA_VISIBLE_DEVICES=$seed python benchmarks/learning.py --cache CACHE --seeds $seed
& done; wait        side by side, into the same file python benchmarks/learning.py --toy       three updates from one
seed, on the CPU
"""

import argparse
import fcntl
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch

import tav_nb.training.trainer
from tav_nb.models.base import load_pipeline
from tav_nb.toy.live import toon_cache
from tav_nb.toy.tiny_sdxl import ScoreSettings, score_table
from tav_nb.training.config_io import read_config
from tav_nb.training.trainer import build_train_state, train


def plain(value):
    "A score as JSON can hold it"
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    return None if value != value else round(float(value), 5)


class Scores:
    """An `on_event` that keeps losses and, at each held-out loss, scores the average; ends the training after
    `seconds`
    """

    def __init__(self, pipe, config, seconds, videos, workers, steps):
        self.pipe, self.config, self.seconds, self.videos, self.workers, self.steps = (
            pipe,
            config,
            seconds,
            videos,
            workers,
            steps,
        )
        self.losses, self.held_out, self.scores, self.start, self.spent, self.unet = [], [], [], None, 0.0, None

    def build(self, *args, **kwargs):
        train_state, pipe = build_train_state(*args, **kwargs)
        self.unet = train_state.unet
        return train_state, pipe

    def __call__(self, event):
        now = time.perf_counter()
        self.start = self.start or now
        if event["kind"] == "train":
            self.losses.append((event["step"], round(event["loss"], 5), round(now - self.start - self.spent, 2)))
        if event["kind"] == "held_out":
            self.held_out.append((event["step"], round(event["loss"], 5)))
            self.pipe.unet = self.unet  # with the average in it, here
            half = torch.autocast("cuda", torch.bfloat16) if self.pipe.device.type == "cuda" else nullcontext()
            with half:
                table = score_table(
                    self.pipe,
                    ScoreSettings(self.videos, self.config.noise, self.config.noise_strength, self.steps),
                    ["adapter on"],
                    workers=self.workers,
                    log=None,
                )
            self.scores.append((event["step"], plain(table["adapter on"])))
            print(event["step"], self.held_out[-1][1], self.scores[-1][1], flush=True)
            self.spent += time.perf_counter() - now
        if now - self.start - self.spent > self.seconds:
            os.kill(os.getpid(), signal.SIGTERM)


def add(path, result):
    "Write the result; seeds that are there already and were trained in the same way stay beside the new ones"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # several processes, a seed each
        file.seek(0)
        text, same = file.read(), ("torch", "device", "preset", "clips", "videos", "seconds")
        old = json.loads(text) if text else {}
        if all(old.get(name) == result[name] for name in same):
            result["runs"] = dict(
                sorted((old["runs"] | {str(seed): run for seed, run in result["runs"].items()}).items())
            )
        file.truncate(0)
        file.write(json.dumps(result) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/learning.json"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=100, help="of training, for each seed")
    parser.add_argument("--clips", type=int, default=2500, help="to draw")
    parser.add_argument("--cache", type=Path, help="of clips that are drawn already")
    parser.add_argument("--videos", type=int, default=64, help="scored each time")
    parser.add_argument("--eval-every", type=int, default=500, help="updates")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw and read")
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    device, workers, config = (
        (
            "cpu",
            1,
            replace(
                read_config("toy"),
                steps=3,
                eval_every=2,
                batch_size=1,
                lengths=(4,),
                length_shares="",
                held_out=1,
                workers=0,
                dtype="float32",
                preview_every=0,
            ),
        )
        if args.toy
        else (
            "cuda",
            args.workers,
            replace(read_config("toy"), eval_every=args.eval_every, preview_every=0, checkpoint_every=10**6),
        )
    )
    if args.toy:
        args.clips, args.videos, args.seeds = 3, 2, [0]
    pipe, runs = load_pipeline(device=device, dtype=torch.float32), {}
    with tempfile.TemporaryDirectory() as home:
        start = time.perf_counter()
        cache = args.cache or toon_cache(f"{home}/cache", range(args.clips), pipe, 4 if args.toy else 24, 128, workers)
        clips = sum(1 for _ in Path(cache, "clips").glob("*.npz"))
        print(f"{clips} clips in {time.perf_counter() - start:.0f} s", flush=True)
        for seed in args.seeds:
            scores = Scores(pipe, config, args.seconds, args.videos, workers, 2 if args.toy else 20)
            with patch.object(tav_nb.training.trainer, "build_train_state", scores.build):
                train_state = train(
                    replace(config, seed=seed), cache, f"{home}/run{seed}", device=device, on_event=scores, bar=False
                )
            runs[seed] = dict(
                updates=train_state.step, losses=scores.losses, held_out=scores.held_out, scores=scores.scores
            )
    result = dict(
        command="python " + " ".join(sys.argv),
        torch=torch.__version__,
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        preset="toy",
        clips=clips,
        videos=args.videos,
        seconds=args.seconds,
        runs=runs,
    )
    add(args.out, result)


if __name__ == "__main__":
    main()
