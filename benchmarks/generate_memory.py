"""What a video of SDXL needs: the full-size model in random weights, through `tav generate`, decoding included, the
allocator capped; estimate and measurement side by side.

python benchmarks/generate_memory.py [--limit 18.5] [--only ROW ...] [--out benchmarks/results/generate_memory.json]
python benchmarks/generate_memory.py --toy       the same with a model of a few thousand weights, on the CPU, in a
minute or two
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from sdxl_config import UNET
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tav_nb.evaluation.records import write_record
from tav_nb.models.adapter_file import save_adapter
from tav_nb.models.base import EMBEDDED
from tav_nb.models.temporal_unet import add_temporal
from tav_nb.models.vae import decode_slice
from tav_nb.sampling.memory import predict
from tav_nb.sampling.memory_estimate import load_configs, unet_kwargs_on_meta
from tav_nb.utils.memory_trace import GPU_FUNCTIONS, FunctionOverride

# stabilityai/stable-diffusion-xl-base-1.0: vae/config.json, text_encoder/config.json, text_encoder_2/config.json
VAE = dict(
    sample_size=1024,
    in_channels=3,
    out_channels=3,
    latent_channels=4,
    block_out_channels=[128, 256, 512, 512],
    layers_per_block=2,
    norm_num_groups=32,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    scaling_factor=0.13025,
    force_upcast=True,
)
TEXT = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    projection_dim=768,
    hidden_act="quick_gelu",
)
TEXT_2 = dict(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    projection_dim=1280,
    hidden_act="gelu",
)
WORDS = dict(vocab_size=49408, max_position_embeddings=77)
TOY_UNET = dict(
    UNET,
    sample_size=8,
    block_out_channels=[16, 16, 16],
    layers_per_block=1,
    transformer_layers_per_block=1,
    cross_attention_dim=32,
    attention_head_dim=[2, 2, 2],
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=6 * 8 + 16,
    norm_num_groups=8,
)
TOY_VAE = dict(VAE, sample_size=64, block_out_channels=[8, 8, 8, 8], layers_per_block=1, norm_num_groups=8)
TOY_TEXT = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, projection_dim=16)

# name: (frames, side in pixels, options)
ROWS = {
    "24 x 1024": (24, 1024, []),
    "24 x 768": (24, 768, []),
    "72 x 768": (72, 768, []),
    "72 x 1024": (72, 1024, []),
    "24 x 1024, 8 at once": (24, 1024, ["--frames-at-once", "8"]),
    "24 x 768, 8 at once": (24, 768, ["--frames-at-once", "8"]),
    "24 x 1024, low": (24, 1024, ["--memory", "low"]),
    "72 x 1024, low": (72, 1024, ["--memory", "low"]),
    "24 x 1024, low, float8": (24, 1024, ["--memory", "low", "--base-storage", "float8"]),
}
TOY_ROWS = "24 x 1024", "72 x 768", "24 x 1024, low"
# `tav generate` unchanged, with its parts measured: seconds and peak of each, the allocator's own figures
WATCHED = """
import json, sys, time, torch
from dataclasses import asdict
import tav_nb.cli.main, tav_nb.sampling.memory_estimate as fitting, tav_nb.sampling.generate as inference
cuda, found = torch.cuda.is_available(), dict(denoising=[], decoding=[], reserved=0.)
def watched(function, kind):
    def run(*args, **kwargs):
        if cuda: torch.cuda.synchronize()
        start, result = time.perf_counter(), function(*args, **kwargs)
        if cuda: torch.cuda.synchronize()
        found[kind].append((time.perf_counter() - start, torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.))
        if cuda: found['reserved'] = max(found['reserved'], torch.cuda.max_memory_reserved() / 2**30)
        if cuda: torch.cuda.reset_peak_memory_stats()
        return result
    return run
choose_memory = fitting.choose_memory
def chosen(*args, **kwargs):
    memory, peaks = choose_memory(*args, **kwargs)
    names = "weights", "denoising", "decoding"
    found.update(fitted=asdict(memory), estimate={name: getattr(peaks, name) / 2**30 for name in names})
    return memory, peaks
fitting.choose_memory = chosen
inference.denoise_step = watched(inference.denoise_step, "denoising")
inference.decode_frames = watched(inference.decode_frames, "decoding")
code = tav_nb.cli.main.main(sys.argv[2:])
open(sys.argv[1], "w").write(json.dumps(found))
raise SystemExit(code)
"""


def make_model(folder, toy, device):
    """SDXL in diffusers' layout: random half-precision weights, an adapter in 32 bits for 24 frames, the tokenizers and
    scheduler of the embedded model
    """
    folder.mkdir()
    for part in EMBEDDED.iterdir():
        if part.name not in ("unet", "vae", "text_encoder", "text_encoder_2"):
            os.symlink(part, folder / part.name)
    ends = {
        name: json.loads((EMBEDDED / name / "config.json").read_text()) for name in ("text_encoder", "text_encoder_2")
    }
    text = {
        name: CLIPTextConfig(
            **(TOY_TEXT if toy else about),
            **WORDS,
            **{key: ends[name][key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
            dtype="float32",
        )
        for name, about in dict(text_encoder=TEXT, text_encoder_2=TEXT_2).items()
    }
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if toy else torch.float16)
    with torch.device(device):
        unet = UNet2DConditionModel(**(TOY_UNET if toy else UNET))
        parts = dict(
            vae=AutoencoderKL(**(TOY_VAE if toy else VAE)),
            text_encoder=CLIPTextModel(text["text_encoder"]),
            text_encoder_2=CLIPTextModelWithProjection(text["text_encoder_2"]),
        )
    for name, part in dict(parts, unet=unet).items():
        part.save_pretrained(folder / name, max_shard_size="20GB")
    torch.set_default_dtype(torch.float32)
    add_temporal(unet, 24)
    save_adapter(unet, folder, torch.float32, noise="mixed", noise_strength=1.0)
    return folder


def run_row(model, home, frames, side, options, args):
    "One video through the command; its estimate and what was measured"
    words = [
        "generate",
        "a girl with pink hair walks to the left",
        "-o",
        str(home / "video"),
        "--model",
        str(model),
        "--num-frames",
        str(frames),
        "--height",
        str(side),
        "--width",
        str(side),
        "--steps",
        str(args.steps),
        "--memory-limit",
        str(args.limit),
        "--device",
        "cpu" if args.toy else "cuda",
        *options,
        *(["--context", args.context] if args.context and frames > 24 else []),
    ]
    notes, start = home / "watched.json", time.perf_counter()
    notes.unlink(missing_ok=True)
    run = subprocess.run([sys.executable, "-c", WATCHED, str(notes), *words], capture_output=True, text=True)
    wall = time.perf_counter() - start
    measured = json.loads(notes.read_text()) if notes.exists() else {}
    if run.returncode or not measured.get("decoding"):
        return dict(failed=" ".join(run.stderr.split())[-600:])
    estimate, steps, (decode_s, decode_gib) = measured["estimate"], measured["denoising"], measured["decoding"][0]
    step_s, denoise_gib = min(seconds for seconds, _ in steps[1:]), max(gib for _, gib in steps)
    row = dict(
        fitted=measured["fitted"],
        estimated_gib={name: round(gib, 2) for name, gib in estimate.items()},
        peak_denoising_gib=round(denoise_gib, 2),
        peak_decoding_gib=round(decode_gib, 2),
        peak_reserved_gib=round(measured["reserved"], 2),
        step_s=round(step_s, 3),
        step_ms_a_frame=round(1e3 * step_s / frames, 2),
        decode_s=round(decode_s, 2),
        decode_ms_a_frame=round(1e3 * decode_s / frames, 1),
        video_of_20_steps_s=round(20 * step_s + decode_s, 1),
        wall_s=round(wall, 1),
    )
    if not args.toy:
        row["estimate_over_measured"] = dict(
            denoising=round(estimate["denoising"] / denoise_gib, 3),
            decoding=round(estimate["decoding"] / decode_gib, 3),
            total=round(max(estimate["denoising"], estimate["decoding"]) / max(denoise_gib, decode_gib), 3),
        )
    return row


@cache
def work_of(model, side, dtype, clip=24):
    """Floating point operations of a step (both sides of the guidance) and of decoding, a frame, and bytes of the
    UNet's weights
    """
    configs = load_configs(model)
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel.from_config(configs["unet"]), AutoencoderKL.from_config(configs["vae"])
    add_temporal(torch.nn.Module.to(unet, dtype), 24)
    with torch.no_grad(), FunctionOverride(GPU_FUNCTIONS):
        with FlopCounterMode(display=False) as step:
            predict(
                unet,
                torch.empty(clip, 4, side // 8, side // 8, dtype=dtype, device="meta"),
                torch.empty((), device="meta"),
                unet_kwargs_on_meta(unet, 2 * clip, clip),
            )
        with FlopCounterMode(display=False) as decode:
            decode_slice(vae, torch.empty(1, 4, side // 8, side // 8, device="meta"))
    return step.get_total_flops() / clip, decode.get_total_flops(), sum(x.nbytes for x in unet.parameters())


def rates(size=8192):
    """Of this GPU: operations a second of a large half-precision product and of one in tf32, bytes a second of a large
    copy
    """

    def seconds(work, times=20):
        for _ in range(3):
            work()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            work()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3 / times

    a, b, c = (
        torch.randn(size, size, dtype=torch.float16, device="cuda"),
        torch.randn(size, size, device="cuda"),
        torch.empty(2**30, dtype=torch.uint8, device="cuda"),
    )
    half = 2 * size**3 / seconds(lambda: a @ a)
    torch.set_float32_matmul_precision("high")
    tf32 = 2 * size**3 / seconds(lambda: b @ b)
    torch.set_float32_matmul_precision("highest")
    return half, tf32, 2 * 2**30 / seconds(lambda: c.clone())


def add_floors(rows, model, args):
    "Beside each time the least that its arithmetic, or reading the weights once for each call of the UNet, would take"
    half, tf32, copy = rates()
    for name, row in rows.items():
        if "failed" in row:
            continue
        frames, side, _ = ROWS[name]
        step, decode, weights = work_of(model, side, torch.float16)
        calls = 1 if row["fitted"]["guidance_at_once"] else 2
        floor_s = max(frames * step / half, calls * weights / copy)
        row |= dict(
            step_tflop_a_frame=round(step / 1e12, 2),
            step_floor_s=round(floor_s, 3),
            step_times_the_floor=round(row["step_s"] / floor_s, 2),
            decode_floor_s=round(frames * decode / tf32, 3),
            decode_times_the_floor=round(row["decode_s"] * tf32 / (frames * decode), 2),
        )
    return dict(half_flops_a_second=half, tf32_flops_a_second=tf32, copied_bytes_a_second=copy)


def flatness(rows):
    "Time per frame of 72 frames over that of 24"

    def ratio(a, b, key):
        return round(rows[a][key] / rows[b][key], 3) if all(key in rows.get(row, {}) for row in (a, b)) else None

    pairs = {"768": ("72 x 768", "24 x 768"), "1024": ("72 x 1024", "24 x 1024")}
    return {
        f"{side} px": dict(step=ratio(*pair, "step_ms_a_frame"), decode=ratio(*pair, "decode_ms_a_frame"))
        for side, pair in pairs.items()
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/generate_memory.json"))
    parser.add_argument("--limit", type=float, default=18.5, help="GiB that the allocator may give out")
    parser.add_argument("--steps", type=int, default=3, help="denoising steps of each video")
    parser.add_argument(
        "--context", default="attention", help="--context of videos longer than the adapter; empty for none"
    )
    parser.add_argument("--only", nargs="*", help="rows")
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    rows = {}
    result = dict(
        command="python " + " ".join(sys.argv).split(" --out")[0],
        **{name: version(name) for name in ("torch", "diffusers", "transformers")},
        device="cpu" if args.toy else torch.cuda.get_device_name(),
        limit_gib=args.limit,
        steps=args.steps,
        rows=rows,
    )

    def write():
        result["time_per_frame_72_over_24"] = flatness(rows)
        write_record(args.out, (), **result)

    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        model = make_model(home / "model", args.toy, "cpu" if args.toy else "cuda")
        if not args.toy:
            torch.cuda.empty_cache()
        for name, (frames, side, options) in ROWS.items():
            if name not in (args.only or (TOY_ROWS if args.toy else ROWS)):
                continue
            rows[name] = run_row(model, home, frames, side // 16 if args.toy else side, options, args)
            print(name, rows[name], flush=True)
            write()
        if not args.toy:
            result |= add_floors(rows, model, args)
    write()


if __name__ == "__main__":
    main()
