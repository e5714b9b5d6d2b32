"""Offloaded in every way a pipeline makes the same video: the embedded SDXL with its adapter, through `generate` and
through a stock pipeline, beside the same without offloading.

    python benchmarks/offload_gpu.py [--frames 24 30 72] [--out benchmarks/results/offload.json]
    python benchmarks/offload_gpu.py --toy          # small and on the CPU; writes nothing

For each way of offloading and each number of frames: the largest difference of a pixel (of 255, `generate`) and of a
latent (the stock pipeline) from the video without offloading, and the peak of the GPU's memory. More frames than the
adapter's 24 go through windows. A row whose call raised an error contains it.
"""

import argparse
import tempfile
import time
from pathlib import Path

import accelerate
import diffusers
import numpy as np
import torch

from tav_nb.evaluation.records import write_record
from tav_nb.sampling.generate import generate, load_video_pipeline

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
PROMPT = "a girl with pink hair walks to the left"


def grouped(pipe, device, **how):
    "Each part of a pipeline offloaded in groups"
    for name in PARTS:
        part, on_cpu = getattr(pipe, name), torch.device("cpu")
        if hasattr(part, "enable_group_offload"):
            part.enable_group_offload(torch.device(device), on_cpu, **how)
        else:
            diffusers.hooks.apply_group_offloading(part, torch.device(device), on_cpu, **how)


def by_hand(offload):
    """One of `accelerate`'s functions on each part: what the pipelines' own methods do, and what also works where the
    device is the CPU
    """

    def run(pipe, device):
        for name in PARTS:
            offload(getattr(pipe, name), device)

    return run


def ways(folder, cuda):
    "`{name: function of (pipeline, device)}`"
    leaf_level, blocks = dict(offload_type="leaf_level"), dict(offload_type="block_level", num_blocks_per_group=1)
    methods = {
        "none": lambda pipe, device: pipe.to(device),
        "cpu_offload": by_hand(accelerate.cpu_offload),
        "disk_offload": lambda pipe, device: accelerate.disk_offload(
            pipe.to(device).unet, f"{folder}/accelerate", device
        ),
        "group, blocks": lambda pipe, device: grouped(pipe, device, **blocks),
        "group, leaves": lambda pipe, device: grouped(pipe, device, **leaf_level),
        "group, leaves on disk": lambda pipe, device: grouped(
            pipe, device, **leaf_level, offload_to_disk_path=f"{folder}/leaves"
        ),
    }
    if cuda:
        methods["model"] = lambda pipe, device: pipe.enable_model_cpu_offload(device=device)
        methods["sequential"] = lambda pipe, device: pipe.enable_sequential_cpu_offload(device=device)
        methods["group, leaves, stream"] = lambda pipe, device: grouped(pipe, device, **leaf_level, use_stream=True)
    else:
        methods["model"] = by_hand(lambda part, device: accelerate.cpu_offload_with_hook(part, device))
    return methods


def both(pipe, frames, side, steps):
    "A video through `generate`, uint8 `[F, H, W, 3]`, and the latents of a stock pipeline, `f c h w`"
    ours = generate(PROMPT, pipe, num_frames=frames, height=side, width=side, steps=steps, seed=1)
    stock = dict(
        num_images_per_prompt=frames,
        cross_attention_kwargs={"num_frames": frames},
        generator=torch.Generator().manual_seed(2),
    )
    theirs = pipe(
        PROMPT, height=side, width=side, num_inference_steps=steps, guidance_scale=3.0, output_type="latent", **stock
    ).images
    return ours, theirs.float().cpu()


def measure(name, offload, frames, args, dtype, expected):
    "A row, and what was made"
    pipe = load_video_pipeline(device="cpu", dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    cuda, start = args.device == "cuda", time.time()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    row = dict(offload=name, frames=frames)
    try:
        offload(pipe, args.device)
        made = both(pipe, frames, args.size, args.steps)
    except Exception as error:  # a row of the table, and the next one
        return row | dict(error=" ".join(f"{type(error).__name__}: {error}".split())[:300]), None
    if expected is not None:
        row["largest_pixel_difference"] = int(np.abs(made[0].astype(int) - expected[0].astype(int)).max())
        row["largest_latent_difference"] = (made[1] - expected[1]).abs().max().item()
    row |= dict(finite=bool(made[1].isfinite().all()), seconds=round(time.time() - start, 1))
    return row | (dict(peak_mib=round(torch.cuda.max_memory_allocated() / 2**20, 1)) if cuda else {}), made


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[24, 30, 72])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, help="of the base; float16 on a GPU and float32 on the CPU")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "offload.json")
    args = parser.parse_args()
    if args.toy:
        args.frames, args.size, args.steps, args.device = [8, 26], 64, 1, "cpu"
    dtype = getattr(torch, args.dtype or ("float16" if args.device == "cuda" else "float32"))
    rows = []
    for frames in args.frames:
        expected = None
        with tempfile.TemporaryDirectory() as folder:
            for name, offload in ways(folder, args.device == "cuda").items():
                row, made = measure(name, offload, frames, args, dtype, expected)
                expected = made if name == "none" else expected
                rows.append(row)
                print(row, flush=True)
    right = all(
        row.get("finite")
        and row.get("largest_pixel_difference", 0) == 0
        and row.get("largest_latent_difference", 0) <= 1e-4
        for row in rows
    )
    print("all equal" if right else "NOT all equal")
    if not args.toy:
        machine = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
        about = dict(
            command="python benchmarks/offload_gpu.py",
            device=machine,
            dtype=str(dtype),
            size=args.size,
            steps=args.steps,
        )
        about |= dict(
            torch=torch.__version__, diffusers=diffusers.__version__, accelerate=accelerate.__version__, all_equal=right
        )
        write_record(args.out, (), **about, rows=rows)
    raise SystemExit(not right)


if __name__ == "__main__":
    main()
