"""Video files to cached latents with a full-size SDXL VAE (random weights): frames a second, and how long the GPU waits
for frames.

    python benchmarks/encode.py [--out benchmarks/results/encode.json] python benchmarks/encode.py --device cpu --vae
    tiny --resolution 128 --files 2 --seconds 2 --size 192x320 --workers 2 --precision float32 --out /tmp/encode.json

The clips are drawn here, on twos at 24 fps. They go through the code that `tav prepare` uses: shots, decoding threads,
VAE, files. Captions are read by the tiny text encoders inside the package; they take no time worth mentioning.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

import av
import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL

from tav_nb.data import latents as encode
from tav_nb.data.buckets import EncodeOptions
from tav_nb.data.cache import read_clip
from tav_nb.data.prepare import prepare
from tav_nb.data.shots import ShotOptions
from tav_nb.data.sources import open_source
from tav_nb.evaluation.records import write_record
from tav_nb.models.base import load_pipeline
from tav_nb.models.messages import quiet
from tav_nb.utils.video_writer import write_video

# stabilityai/stable-diffusion-xl-base-1.0, vae/config.json
SDXL_VAE = dict(
    block_out_channels=[128, 256, 512, 512],
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    layers_per_block=2,
    latent_channels=4,
    norm_num_groups=32,
    sample_size=1024,
    scaling_factor=0.13025,
    force_upcast=True,
)


def draw(seed, count, height, width):
    "A textured background that pans and a few discs that fly over it; uint8 [F, H, W, 3], every drawing twice"
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 2, width // 8 + 2, 3), dtype=np.uint8)
    world = coarse.repeat(16, 0).repeat(16, 1)
    colours, start, speed = (
        rng.integers(0, 256, (6, 3)),
        rng.uniform(0.1, 0.9, (6, 2)),
        rng.uniform(-0.01, 0.01, (6, 2)),
    )
    y, x = np.mgrid[:height, :width]
    frames = []
    for i in range(0, count, 2):
        frame = world[:height, i * 2 : i * 2 + width].copy()
        for colour, at in zip(colours, (start + i * speed) % 1):
            frame[(y - at[0] * height) ** 2 + (x - at[1] * width) ** 2 < (height / 8) ** 2] = colour
        frames += [frame, frame]
    return np.stack(frames[:count])


def make_files(root, files, seconds, size):
    "A folder of clips with captions; every fourth is new, the others are copies under other names"
    for i in range(files):
        path = root / f"clip{i:02d}.mp4"
        if i < 4:
            write_video(draw(i, round(24 * seconds), *size), path, fps=24)
        else:
            shutil.copy(root / f"clip{i % 4:02d}.mp4", path)
        path.with_suffix(".txt").write_text(f"discs over tiles {i}")
    return open_source(root, licence="CC0")


def with_vae(kind, device, precision):
    "The embedded SDXL on the device, with the chosen VAE"
    pipe = load_pipeline(device="cpu", dtype=torch.float32)
    torch.manual_seed(0)
    if kind == "full":
        pipe.register_modules(vae=AutoencoderKL(**SDXL_VAE).eval().requires_grad_(False))
    pipe.vae.register_to_config(force_upcast=precision == "float32")
    torch.nn.Module.to(pipe.vae, getattr(torch, precision))
    with quiet():
        return pipe.to(device)


class Clock:
    """Stands in for `encode.encode_frames` and notes when it ran; it ends with a copy to the CPU, so its time is the
    time of the GPU
    """

    def __init__(self):
        self.spans, self.encode = [], encode.encode_frames

    def __call__(self, *args, **kwargs):
        start = time.perf_counter()
        latents = self.encode(*args, **kwargs)
        self.spans.append((start, time.perf_counter()))
        return latents


def measure(items, args, precision):
    "One run over all items into a fresh cache, after a short one to warm up"
    pipe = with_vae(args.vae, args.device, precision)
    options = EncodeOptions(resolution=args.resolution)
    with tempfile.TemporaryDirectory(dir=args.tmp) as folder:
        prepare(items[:1], Path(folder) / "warm", pipe, options=options, workers=1)
        if args.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        clock = encode.encode_frames = Clock()
        try:
            summary = prepare(items, Path(folder) / "cache", pipe, options=options, workers=args.workers)
        finally:
            encode.encode_frames = clock.encode
        again = prepare(items, Path(folder) / "cache", pipe, options=options, workers=args.workers)
        sizes = sorted(
            {tuple(read_clip(path)["latents"].shape) for path in (Path(folder) / "cache/clips").glob("*.npz")}
        )
    busy, span = sum(b - a for a, b in clock.spans), clock.spans[-1][1] - clock.spans[0][0]
    return dict(
        clips=summary.kept,
        dropped=dict(summary.reasons),
        frames=summary.frames,
        latents=[list(size) for size in sizes],
        seconds=round(summary.seconds, 2),
        frames_per_second=round(summary.frames / summary.seconds, 1),
        frames_per_second_of_the_vae_alone=round(summary.frames / busy, 1),
        waited_seconds=round(summary.waited, 2),
        waited_share=round(summary.waited / summary.seconds, 4),
        seconds_before_the_first_and_after_the_last_clip=round(summary.seconds - span, 2),
        idle_share_from_first_to_last_clip=round(1 - busy / span, 4),
        second_run_seconds=round(again.seconds, 2),
        second_run_encoded=again.encoded,
        peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2) if args.device != "cpu" else None,
    )


def tf32_difference(args):
    "By how much TF32, PyTorch's default in convolutions, changes the latents, beside what fp16 rounds away"
    pipe, frames = with_vae(args.vae, args.device, "float32"), np.stack([draw(9, 2, 512, 512)[0]] * 4)
    before, latents = torch.backends.cudnn.allow_tf32, []
    for torch.backends.cudnn.allow_tf32 in (True, False):
        latents.append(encode.encode_frames(pipe.vae, frames, np.zeros(4, bool)).astype(np.float32))
    torch.backends.cudnn.allow_tf32 = before
    difference = np.abs(latents[0] - latents[1])
    return dict(
        largest=float(difference.max()),
        mean=float(difference.mean()),
        mean_rounding_of_fp16=float(np.abs(np.spacing(latents[1].astype(np.float16)).astype(np.float32)).mean() / 4),
        std=float(latents[1].std()),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/encode.json"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--vae", choices=("full", "tiny"), default="full")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=("float32", "float16"),
        default=["float32", "float16"],
        help="float16 is for a VAE that is safe in it",
    )
    parser.add_argument("--resolution", type=int, default=768)
    parser.add_argument("--files", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--size", default="720x1280", help="height x width of the files")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--tmp", help="a folder for the cache")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.tmp) as folder:
        items = make_files(Path(folder), args.files, args.seconds, tuple(map(int, args.size.split("x"))))
        runs = {precision: measure(items, args, precision) for precision in args.precision}
    gpu = args.device != "cpu"
    result = dict(
        command=" ".join(["python", *sys.argv]),
        device=torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine(),
        cores=os.cpu_count(),
        python=platform.python_version(),
        torch=torch.__version__,
        diffusers=diffusers.__version__,
        av=av.__version__,
        vae=args.vae,
        resolution=args.resolution,
        files=args.files,
        seconds_of_each=args.seconds,
        size=args.size,
        workers=args.workers,
        clip_fps=ShotOptions().fps,
        frames_at_once=EncodeOptions().at_once,
        tf32_in_convolutions=torch.backends.cudnn.allow_tf32,
        tf32_difference=tf32_difference(args) if gpu else None,
        runs=runs,
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_record(args.out, (), **result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
