"""How far to go away from which answer, and until when: the embedded model's score on sealed scenes with other guidance
than its own.

python benchmarks/guidance.py [--scenes 512] [--device cuda] [--out benchmarks/results/guidance.json]       half a
minute a row on an H100 python benchmarks/guidance.py --toy        two scenes, two rows, on the CPU; writes nothing
"""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from tav_nb.evaluation.records import environment, write_record
from tav_nb.models.adapter_file import EMBEDDED_ADAPTER, load_adapter
from tav_nb.models.base import EMBEDDED
from tav_nb.sampling.guidance import Guidance
from tav_nb.toy.tiny_model import load_tiny
from tav_nb.toy.tiny_sdxl import ScoreSettings, format_score, score_table

# (least noise that is guided, temporal guidance): none, each of both on its own, the one that ships, then more and less
# of both
PLAN = [
    Guidance(2.5, *both)
    for both in (
        (0.0, 0.0),
        (0.5, 0.0),
        (0.0, 1.5),
        (0.5, 1.5),
        (0.5, 0.5),
        (0.5, 2.5),
        (1.0, 1.5),
        (0.5, 1.0),
        (0.5, 4.0),
        (2.0, 1.5),
        (0.25, 1.5),
    )
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=512)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=14, help="processes that read videos")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/guidance.json"))
    args = parser.parse_args()
    if args.toy:
        args.scenes, args.device, args.workers = 2, "cpu", 1
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    start, pipe, rows = time.time(), load_tiny(EMBEDDED, args.device), []
    load_adapter(pipe.unet, EMBEDDED_ADAPTER)
    for guidance in PLAN[:2] if args.toy else PLAN:
        score = score_table(
            pipe,
            ScoreSettings(args.scenes, steps=2 if args.toy else 20, guidance=guidance),
            ["adapter on"],
            workers=args.workers,
            log=None,
        )["adapter on"]
        rows.append(
            dict(
                guidance=asdict(guidance),
                score={name: value for name, value in score.items() if not isinstance(value, dict)},
            )
        )
        print(guidance, format_score(score), flush=True)
        if not args.toy:
            write_record(
                args.out,
                command="python " + " ".join(sys.argv).split(" --out")[0],
                scenes=args.scenes,
                seconds=round(time.time() - start, 1),
                **environment(args.device),
                rows=rows,
            )


if __name__ == "__main__":
    main()
