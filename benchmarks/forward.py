"""One UNet call at SDXL's size (random weights, fp16): stock, with temporal layers of several kinds, AnimateDiff-SDXL.

python benchmarks/forward.py [--clips 2 --frames 8 --pixels 768] [--out benchmarks/results/forward.json]
python benchmarks/forward.py --toy     a UNet of a few thousand weights, on the CPU
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peers import motion_model
from sdxl_config import UNET
from torch.utils.flop_counter import FlopCounterMode
from train_memory import TOY

from tav_nb.evaluation.records import environment, write_record
from tav_nb.models.geglu_kernel import fuse_geglu
from tav_nb.models.temporal_unet import add_temporal, remove_temporal, temporal_modules

BLOCK = dict(attention_ratio=0.5, conv_size=3, ff_ratio=2 / 3)
ADAPTERS = {
    "attention": {},
    "attention of half the width": dict(attention_ratio=0.5),
    "attention of half the width, convolution": dict(attention_ratio=0.5, conv_size=3),
    "block: half the width, convolution, feed-forward 2/3": BLOCK,
    "block: half the width, convolution, feed-forward 1/3": BLOCK | dict(ff_ratio=1 / 3),
    "block: a quarter of the width, convolution, feed-forward 2/3": BLOCK | dict(attention_ratio=0.25),
    "block: a quarter of the width, convolution, feed-forward 5/6": BLOCK | dict(attention_ratio=0.25, ff_ratio=5 / 6),
}


def inputs(config, clips, frames, pixels, device, dtype):
    n, side = clips * frames, pixels // 8
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]

    def random(*shape):
        return torch.randn(*shape, device=device, dtype=dtype)

    added = dict(text_embeds=random(n, pooled), time_ids=torch.zeros(n, 6, device=device))
    return (
        random(n, 4, side, side),
        torch.tensor(500, device=device),
        random(n, 77, config["cross_attention_dim"]),
    ), added


@torch.no_grad()
def measure(call, device, calls):
    """Milliseconds of one of `calls` calls, launched one after another without waiting: the median of five such rows;
    and the most memory in GiB
    """
    cuda, times = device == "cuda", []
    for i in range(6):
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        for _ in range(calls if i else 2):
            call()
        if cuda:
            torch.cuda.synchronize()
        if i:
            times.append(1e3 * (time.perf_counter() - start) / calls)
    peak = round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None
    return dict(
        milliseconds=round(sorted(times)[2], 2), range=[round(min(times), 2), round(max(times), 2)], peak_gib=peak
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/forward.json"))
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--pixels", type=int, default=768)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    device, dtype, config = (
        ("cpu", torch.float32, dict(TOY, mid_block_type="UNetMidBlock2DCrossAttn"))
        if args.toy
        else ("cuda", torch.float16, UNET)
    )
    if args.toy:
        args.pixels, args.calls = 64, 1
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(**config).to(dtype).eval()
    call, added = inputs(config, args.clips, args.frames, args.pixels, device, dtype)
    rows = {}

    def add(name, unet, layers=(), **kwargs):
        def run():
            return unet(*call, added_cond_kwargs=added, **kwargs)

        parameters = sum(p.numel() for layer in layers for p in layer.parameters())
        rows[name] = measure(run, device, args.calls) | dict(parameters=parameters)
        print(name, rows[name], flush=True)

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(*call, added_cond_kwargs=added)
    add("stock", unet)
    for fused in (False, True):
        if fused:
            fuse_geglu(unet)
            add("stock, fused GEGLU", unet)
        for name, settings in ADAPTERS.items():
            if not fused and settings not in ({}, BLOCK):
                continue
            with torch.device(device):
                add_temporal(unet, **settings)
            layers = list(temporal_modules(unet).values())
            for layer in layers:
                layer.to(dtype)
                for parameter in layer.parameters():
                    torch.nn.init.normal_(parameter, std=0.02)
            add(f"{name}, fused GEGLU" if fused else name, unet, layers, num_frames=args.frames)
            remove_temporal(unet)
    torch.manual_seed(0)
    with torch.device(device):
        stock = UNet2DConditionModel(**config).to(dtype).eval()
    del unet
    motion = motion_model(stock, use_mid_block=False).to(device, dtype).eval()
    del stock
    sample = call[0].unflatten(0, (args.clips, args.frames)).transpose(1, 2).contiguous()
    added = {name: value[:: args.frames] for name, value in added.items()}
    modules = [module for name, module in motion.named_modules() if name.endswith("motion_modules")]
    call = (sample, *call[1:])
    add("AnimateDiff-SDXL", motion, modules)
    stock_ms = rows["stock"]["milliseconds"]
    for row in rows.values():
        row["times_stock"] = round(row["milliseconds"] / stock_ms, 3)
    settings = {name: getattr(args, name) for name in ("clips", "frames", "pixels", "calls")}
    flops = counter.get_total_flops()
    write_record(
        args.out, (), command=" ".join(sys.argv), **settings, **environment(device), flops_of_stock=flops, rows=rows
    )


if __name__ == "__main__":
    main()
