"""The preset `toy` as a person runs it: a cache of the cartoon world, `tav train` as a command for each seed and number
of updates, and the score of what it saved on scenes that are in no training.

python benchmarks/toon_train.py [--updates 300 600] [--seeds 0 1 2] [--cache CACHE] [OPTION=VALUE ...]
python benchmarks/toon_train.py --toy     two updates on the CPU

A CACHE that is not there yet is drawn and stays; without it the clips are drawn into a temporary folder. OPTION=VALUE
are further settings of `tav train`, such as temporal_difference_weight=8. Choose them on the scenes of `--scenes
validation`, report on those of `--scenes test`.
"""

import argparse
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
from ablation import score
from toy_scores import SCENES

from tav_nb.evaluation.records import environment, write_record
from tav_nb.models.adapter_file import load_adapter
from tav_nb.models.base import load_pipeline
from tav_nb.training.config_io import load_run_config

# settings of `tav train` with which a benchmark on the CPU takes seconds
TOY = dict(batch_size=1, lengths="4", length_shares="", workers=0, dtype="float32", held_out=1, preview_frames=4)


def run_command(module, *words, log, **options):
    "Run `python -m module words --options`; returns its seconds"
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    start = time.perf_counter()
    with open(log, "w") as file:
        code = subprocess.run([sys.executable, "-m", module, *map(str, words), *given], stdout=file, stderr=file)
    if code.returncode:
        raise RuntimeError(Path(log).read_text()[-600:])
    return time.perf_counter() - start


def draw_cache(folder, toy, clips, workers, size=128, pans=None):
    "A cache that is not there yet; returns the seconds that it took"
    if (Path(folder) / "manifest.parquet").exists():
        return 0.0
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    options = dict(clips=clips, num_frames=16, size=size, captions=3, device="cuda", workers=workers)
    options |= {} if pans is None else dict(pans=pans)
    if toy:
        options |= dict(clips=3, num_frames=4, device="cpu", workers=1)
    seconds = run_command("tav_nb.toy.live", folder, log=f"{folder}.log", **options)
    print(f"{folder}: {options['clips']} clips of {size} px in {seconds:.0f} s", flush=True)
    return seconds


@dataclass(frozen=True)
class Job:
    "A training, of one run or of several, each of which goes on with the adapter of the one before; and its score"

    row: str
    seed: int
    home: str  # folder for the runs
    runs: list  # (folder of the cache, settings of `tav train`)
    config: str  # file or preset
    videos: int
    scenes: str  # of `SCENES`
    readers: int
    sheets: str | None
    toy: bool


def logged(run):
    with open(Path(run) / "log.jsonl") as file:
        return [json.loads(line) for line in file]


def train_and_score(job):
    "Run the commands of a job, one after another, and score the last adapter; in a process of its own"
    torch.set_num_threads(1)
    device, adapter, record = "cpu" if job.toy else "cuda", None, dict(runs=[])
    try:
        for number, (cache, options) in enumerate(job.runs):
            run = Path(job.home) / re.sub(r"[^\w-]+", "_", f"{job.row}-{job.seed}-{number}")
            options = options | (dict(adapter=adapter) if adapter else {}) | dict(seed=job.seed, device=device)
            seconds = run_command("tav_nb", "train", cache, run, log=f"{run}.log", config=job.config, **options)
            lines, adapter = [line for line in logged(run) if line["kind"] == "train"], run
            update = statistics.median(line["seconds"] for line in lines)
            record["runs"].append(
                dict(
                    updates=lines[-1]["step"],
                    ms=round(1e3 * update, 2),
                    wall_seconds=round(seconds, 1),
                    losses=[(line["step"], round(line["loss"], 4)) for line in lines][:: max(1, len(lines) // 10)],
                    held_out=[
                        (line["step"], round(line["loss"], 4)) for line in logged(run) if line["kind"] == "held_out"
                    ],
                )
            )
        record["training_seconds"] = round(sum(run["updates"] * run["ms"] for run in record["runs"]) / 1e3, 1)
        pipe = load_pipeline(device=device, dtype=torch.float32)
        load_adapter(pipe.unet, adapter)
        config = load_run_config(adapter)[1]
        sheet = job.sheets and Path(job.sheets) / f"{run.name}.png"
        record["score"] = score(pipe, config, job.videos, SCENES[job.scenes], job.readers, 2 if job.toy else 20, sheet)
    except Exception as error:
        record["error"] = f"{type(error).__name__}: {error}"
    print(job.row, job.seed, json.dumps(record), flush=True)
    return job.row, job.seed, record


def run_jobs(jobs, parallel, save):
    "All jobs, `parallel` at a time; `save` is called with all records after each"
    records, context = {}, multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parallel, mp_context=context, max_tasks_per_child=1) as pool:
        for done in as_completed([pool.submit(train_and_score, job) for job in jobs]):
            row, seed, record = done.result()
            records.setdefault(row, {})[str(seed)] = record
            save(records)
    return records


def add_common_options(parser, out):
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/results/{out}"))
    parser.add_argument("--config", default="toy", help="preset or file of settings (toy)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--clips", type=int, default=3000)
    parser.add_argument("--videos", type=int, default=128)
    parser.add_argument("--scenes", choices=SCENES, default="validation")
    parser.add_argument("--parallel", type=int, default=3, help="trainings side by side; they share the GPU")
    parser.add_argument("--readers", type=int, default=4, help="processes that read the videos of one training")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw the clips")
    parser.add_argument("--sheets", help="folder for images of some frames of each training")
    parser.add_argument("--toy", action="store_true")


def parse_common_options(parser):
    args = parser.parse_args()
    if args.toy:
        args.videos, args.parallel, args.readers, args.workers, args.seeds = 2, 1, 1, 1, args.seeds[:1]
    if args.sheets:
        Path(args.sheets).mkdir(parents=True, exist_ok=True)
    return args


def main():
    parser = argparse.ArgumentParser()
    add_common_options(parser, "toon_train.json")
    parser.add_argument("--updates", type=int, nargs="*", default=[300, 600])
    parser.add_argument("--cache", help="folder of the clips; drawn if it is not there")
    parser.add_argument("--pans", type=float, help="share of clips in which the camera moves (a third)")
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE")
    args = parse_common_options(parser)
    options = dict(option.split("=", 1) for option in args.options) | (TOY if args.toy else {})
    with tempfile.TemporaryDirectory() as home:
        cache = args.cache or f"{home}/cache"
        seconds = draw_cache(cache, args.toy, args.clips, args.workers, pans=args.pans)

        def job(updates, seed):
            settings = options | dict(steps=2 if args.toy else updates, preview_every=0)
            settings |= dict(eval_every=settings["steps"], checkpoint_every=settings["steps"])
            about = args.config, args.videos, args.scenes, args.readers, args.sheets, args.toy
            return Job(f"{updates} updates", seed, home, [(cache, settings)], *about)

        jobs = [job(updates, seed) for updates in args.updates for seed in args.seeds]

        def save(records):
            about = {name: getattr(args, name) for name in ("config", "clips", "pans", "videos", "scenes", "parallel")}
            about |= dict(options=options, cache_seconds=round(seconds, 1))
            device = "cpu" if args.toy else "cuda"
            write_record(
                args.out,
                ("text", "vae", "unet"),
                command=" ".join(sys.argv),
                **about,
                **environment(device),
                rows=records,
            )

        run_jobs(jobs, args.parallel, save)


if __name__ == "__main__":
    main()
