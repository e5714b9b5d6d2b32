"""Does a training get further in the same time if it begins with smaller or shorter clips, and which schedule and batch
does it want? Each row has about the work of 600 updates of 16 clips of 16 frames in 128 px, times `--scale`.

python benchmarks/curriculum.py [--rows NAME ...] [--scale 0.5 1] [--seeds 0] [--parallel 3] [--caches FOLDER]
python benchmarks/curriculum.py --toy     two updates of each run on the CPU

A curriculum is `tav train` twice, the second time with `--adapter` of the first run. Work is counted as clips times
frames times pixels; the record has the milliseconds of an update as well, so that rows compare by time.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from toon_train import TOY, Job, add_common_options, draw_cache, parse_common_options, run_jobs

from tav_nb.evaluation.records import environment, write_record

UPDATES = 600


@dataclass(frozen=True)
class Part:
    "A share of a row's work"

    share: float = 1.0
    size: int = 128  # pixels a side
    frames: int = 16
    batch: int = 16  # clips
    warmup: float = 0.05  # share of the updates
    options: dict | None = None  # settings of `tav train`

    def updates(self, scale):
        work = self.batch / 16 * self.frames / 16 * (self.size / 128) ** 2  # of an update
        return max(2, round(UPDATES * scale * self.share / work))

    def settings(self, scale):
        steps = self.updates(scale)
        return dict(
            steps=steps,
            warmup_steps=round(self.warmup * steps),
            lengths=self.frames,
            length_shares="",
            batch_size=self.batch,
            max_frames=24,
            preview_every=0,
            eval_every=steps,
            checkpoint_every=steps,
        ) | (self.options or {})


ROWS = {
    "128 px": [Part()],
    "64 px a quarter": [Part(0.25, size=64), Part(0.75)],
    "64 px half": [Part(0.5, size=64), Part(0.5)],
    "96 px a quarter": [Part(0.25, size=96), Part(0.75)],
    "96 px half": [Part(0.5, size=96), Part(0.5)],
    "8 frames a quarter": [Part(0.25, frames=8), Part(0.75)],
    "8 frames half": [Part(0.5, frames=8), Part(0.5)],
    "8 frames half, one schedule": [
        Part(0.5, frames=8, options=dict(schedule="constant")),
        Part(0.5, warmup=0.0),
    ],
    "no warm-up": [Part(warmup=0.0)],
    "warm-up a fifth": [Part(warmup=0.2)],
    "linear": [Part(options=dict(schedule="linear"))],
    "trapezoid": [Part(options=dict(schedule="trapezoid"))],
    "constant": [Part(options=dict(schedule="constant"))],
    "batch 8": [Part(batch=8)],
    "batch 8, lr / 1.4": [Part(batch=8, options=dict(lr=6e-3 / 1.4, other_lr=1e-2 / 1.4))],
    "batch 32": [Part(batch=32)],
    "batch 32, lr x 1.4": [Part(batch=32, options=dict(lr=6e-3 * 1.4, other_lr=1e-2 * 1.4))],
}


def main():
    parser = argparse.ArgumentParser()
    add_common_options(parser, "curriculum.json")
    parser.set_defaults(seeds=[0])
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--scale", type=float, nargs="*", default=[1.0], help="of the work of each row")
    parser.add_argument("--caches", help="folder of the caches; those that are not there are drawn and stay")
    args = parse_common_options(parser)
    with tempfile.TemporaryDirectory() as home:
        folder, seconds = Path(args.caches or home), {}
        for size in sorted({part.size for row in args.rows for part in ROWS[row]}):
            seconds[size] = round(draw_cache(folder / f"{size}px", args.toy, args.clips, args.workers, size=size), 1)

        def job(row, scale, seed):
            runs = []
            for part in ROWS[row]:
                settings = part.settings(scale)
                if args.toy:
                    settings |= dict(TOY, steps=2, eval_every=2, checkpoint_every=2)
                runs.append((folder / f"{part.size}px", settings))
            about = args.config, args.videos, args.scenes, args.readers, args.sheets, args.toy
            return Job(row if scale == 1 else f"{row}, x {scale:g}", seed, home, runs, *about)

        jobs = [job(row, scale, seed) for scale in args.scale for seed in args.seeds for row in args.rows]

        def save(records):
            about = {name: getattr(args, name) for name in ("config", "clips", "videos", "scenes", "parallel")}
            device = "cpu" if args.toy else "cuda"
            about |= dict(updates=UPDATES, cache_seconds=seconds)
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
