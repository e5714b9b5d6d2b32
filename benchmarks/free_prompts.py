"""How well does the embedded model follow free prompts? Forty sentences by a person who had read only the README
(`free_prompts.json`, with the intended scene) go through `generate` unchanged, and the videos are read back.

    python benchmarks/free_prompts.py [--out benchmarks/results/free_prompts.json]       three minutes on two cores

Scored once for a model: after tuning on these sentences, new ones are needed.
"""

import argparse
import json
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

from tav_nb.evaluation.records import write_record
from tav_nb.sampling.generate import generate, load_video_pipeline
from tav_nb.toy.reader import CHECKS, read_scene, wilson_interval
from tav_nb.toy.scenes import Scene

PROMPTS = json.loads(Path(__file__).with_suffix(".json").read_text())


def scene(meant):
    "The intended scene; of the speed only its sign counts"
    way = meant["action"].split()[-1]
    return replace(
        Scene(),
        **{name: meant[name] for name in ("hair", "style", "outfit", "background", "action")},
        camera=meant["camera"] or "still",
        speed={"left": -1.0, "right": 1.0}.get(way, 0.0),
    )


def score_prompt(number):
    torch.set_num_threads(1)
    reading = read_scene(generate(PROMPTS[number]["prompt"], load_video_pipeline(), seed=number))
    intended = scene(PROMPTS[number])
    return {
        name: right
        for name, check in CHECKS.items()
        if (name != "camera" or PROMPTS[number]["camera"]) and (right := check(intended, reading)) is not None
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/free_prompts.json"))
    args = parser.parse_args()
    with get_context("spawn").Pool(args.workers) as pool:
        results = pool.map(score_prompt, range(len(PROMPTS)), chunksize=1)
    table = {
        name: (*wilson_interval(sum(right := [bool(f[name]) for f in results if name in f]), len(right)), len(right))
        for name in CHECKS
    }
    for name, (share, low, high, count) in table.items():
        print(f"{name:12} {share:.2f}   {low:.2f} to {high:.2f}, of {count}")
    write_record(
        args.out,
        command="python benchmarks/free_prompts.py",
        table=table,
        videos=[{k: bool(v) for k, v in f.items()} for f in results],
    )


if __name__ == "__main__":
    main()
