"""Attention in overlapping windows: `models.windowed_attention_kernel` beside one window after the other, on the
sizes of SDXL's temporal layers, and the bytes that have to be moved.

python benchmarks/sliding.py [--out benchmarks/results/sliding.json]       needs a GPU
"""

import argparse
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from attention import copy_rate, milliseconds

import tav_nb.models.temporal_attention
from tav_nb.evaluation.records import write_record
from tav_nb.models.temporal_attention import TemporalSelfAttention
from tav_nb.models.windows import Context, plan_windows

LAYERS = {
    "32 x 32 places, 20 heads": (32 * 32, 1280, 60),
    "64 x 64 places, 10 heads": (64 * 64, 640, 10),
}  # at 1024 px: places, channels, layers


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sliding.json"))
    args, rate, rows = parser.parse_args(), copy_rate(), []
    for frames in (48, 72):
        windows = plan_windows(frames, Context(), 24).on("cuda")
        for name, (s, c, layers) in LAYERS.items():
            torch.manual_seed(0)
            layer = TemporalSelfAttention(c, c // 64).to("cuda", torch.float16).requires_grad_(False)
            qkv = tuple(torch.randn(1, frames, s, c, device="cuda", dtype=torch.float16) for _ in range(3))
            row = dict(
                frames=frames,
                windows=len(windows.starts),
                layer=name,
                layers=layers,
                floor_ms=round(4 * qkv[0].nbytes / rate * 1e3, 4),
            )

            def attend(qkv, layer):
                layer.to_qkv.__class__ = (
                    FixedProjection  # the projections are the same in both, so they are no part of it
                )
                FixedProjection.qkv = qkv
                return layer.attend_windows(windows, qkv[0])

            with patch.object(tav_nb.models.temporal_attention, "can_fuse_windows", lambda *_: False):
                exact = attend(tuple(x[:, :, :64].double() for x in qkv), layer.double())
            layer.half()
            for kind, can in (("kernel", True), ("one by one", False)):
                with patch.object(tav_nb.models.temporal_attention, "can_fuse_windows", lambda *_: can):
                    output = attend(qkv, layer)
                    row[f"{kind}_ms"] = milliseconds(partial(attend, qkv, layer))
                row[f"{kind}_error"] = ((output[:, :, :64].double() - exact).norm() / exact.norm()).item()
            rows.append(row)
            print(row, flush=True)
            del qkv, layer, output, exact
    write_record(
        args.out,
        (),
        command="python benchmarks/sliding.py",
        device=torch.cuda.get_device_name(),
        torch=torch.__version__,
        copy_bytes_a_second=rate,
        rows=rows,
    )


class FixedProjection(tav_nb.models.temporal_attention.Linear):
    "A projection whose answer is there already, but for the positions"

    def forward(self, x, parts=1, gate=None, positions=None):
        return self.qkv, F.linear(positions, self.weight).chunk(parts, dim=-1)


if __name__ == "__main__":
    main()
