"""Attention over a few frames: `models.attention_kernel` beside PyTorch's own, on the sizes of SDXL's temporal layers,
and the bytes that have to be moved.

python benchmarks/attention.py [--out benchmarks/results/attention.json]       needs a GPU
"""

import argparse
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from tav_nb.evaluation.records import write_record
from tav_nb.models.attention_kernel import short_attention

LAYERS = {
    "24 x 24 places, 20 heads": (24 * 24 * 20, 60),
    "48 x 48 places, 10 heads": (48 * 48 * 10, 10),
}  # at 768 px: conversations of a clip, layers


def library(q, k, v):
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def milliseconds(work, repeats=30):
    for _ in range(5):
        work()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return round(median(times), 4)


def copy_rate(size=2**30):
    "Bytes a second of a large copy, read and written"
    a, b = torch.empty(2, size, dtype=torch.uint8, device="cuda")
    return 2 * size / (milliseconds(lambda: b.copy_(a)) / 1e3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/attention.json"))
    args, rate, rows = parser.parse_args(), copy_rate(), []
    for clips, frames in ((2, 8), (1, 16), (1, 24)):
        for name, (n, layers) in LAYERS.items():
            q, k, v = (
                torch.randn(clips, frames, n, 64, device="cuda", dtype=torch.float16, requires_grad=True)
                for _ in range(3)
            )
            above = torch.randn_like(q)
            row = dict(
                clips=clips,
                frames=frames,
                layer=name,
                layers=layers,
                floor_forward_ms=round(4 * q.nbytes / rate * 1e3, 4),
                floor_backward_ms=round(7 * q.nbytes / rate * 1e3, 4),
            )
            for kind, function in (("kernel", short_attention), ("library", library)):
                out = function(q, k, v)
                row |= {
                    f"{kind}_forward_ms": milliseconds(partial(function, q.detach(), k.detach(), v.detach())),
                    f"{kind}_backward_ms": milliseconds(
                        partial(torch.autograd.grad, out, (q, k, v), above, retain_graph=True)
                    ),
                }
            exact = library(
                q.detach()[:, :, :256].double(), k.detach()[:, :, :256].double(), v.detach()[:, :, :256].double()
            )
            row |= {
                f"{kind}_error": (
                    (
                        (function(q.detach(), k.detach(), v.detach())[:, :, :256].double() - exact).norm()
                        / exact.norm()
                    ).item()
                )
                for kind, function in (("kernel", short_attention), ("library", library))
            }
            rows.append(row)
            print(row, flush=True)
            del q, k, v, above, out
    write_record(
        args.out,
        (),
        command="python benchmarks/attention.py",
        device=torch.cuda.get_device_name(),
        torch=torch.__version__,
        copy_bytes_a_second=rate,
        rows=rows,
    )


if __name__ == "__main__":
    main()
