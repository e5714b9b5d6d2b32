"""Effect of each choice: adapters on the same frozen base, from the same clips, with the same number of updates.

python benchmarks/ablation.py [--rows NAME ...] [--updates 1200] [--seeds 0] [--parallel 6]
python benchmarks/ablation.py --toy     two updates of each row on the CPU

Choose on the scenes of `--scenes validation`, report on those of `--scenes test`: no scene is in both, and none of
either is trained on.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from toy_scores import SCENES, draw_scenes, mean_scores, sample_frames, save_sheet

from tav_nb.models.base import load_pipeline
from tav_nb.models.temporal_unet import add_temporal, train_only_temporal
from tav_nb.toy.reader import read_scene
from tav_nb.toy.scenes import random_scene
from tav_nb.toy.tiny_sdxl import environment, start_noise, write_result
from tav_nb.toy.training_data import (
    drop_conditioning,
    embed_captions,
    embed_tokens,
    images_to_latents,
    random_ids,
    read_captions,
    render_frames,
    worker_pool,
)
from tav_nb.training.batch_losses import clip_generator, make_noisy_batch, per_clip_loss, timestep_tables
from tav_nb.training.config_io import read_config
from tav_nb.training.cuda_graphs import CudaGraphRunner
from tav_nb.training.ema import ExponentialMovingAverage
from tav_nb.training.losses import lr_factor, parameter_groups
from tav_nb.training.muon import Muon
from tav_nb.training.step import flat_gradient_buffer

FRAMES, BATCH = 16, 16
# what a row that names nothing else has: neither the block nor the rates of the preset
PLAIN = dict(conv_size=0, ff_ratio=0.0, start="random", other_lr=None)
MUON = dict(optimizer="muon", lr=6e-3, other_lr=1e-2)
FULL = dict(conv_size=3, ff_ratio=1.0, start="spatial")
NARROW = dict(FULL, attention_ratio=0.5, ff_ratio=2 / 3)  # the parameters of plain attention
ROWS = {
    "attention, AdamW 1e-3": dict(optimizer="adamw", lr=1e-3),
    "attention": MUON,
    "attention, spatial start": dict(MUON, start="spatial"),
    "attention, convolution": dict(MUON, start="spatial", conv_size=3),
    "attention, feed-forward 1": dict(MUON, start="spatial", ff_ratio=1.0),
    "full": dict(MUON, **FULL),
    "full, feed-forward 4": dict(MUON, **dict(FULL, ff_ratio=4.0)),
    "full, random start": dict(MUON, **dict(FULL, start="random")),
    "full, convolution 5": dict(MUON, **dict(FULL, conv_size=5)),
    "full, independent": dict(MUON, **FULL, noise="independent"),
    "full, strength 0.25": dict(MUON, **FULL, noise_strength=0.25),
    "full, strength 0.5": dict(MUON, **FULL, noise_strength=0.5),
    "full, temporal difference 0": dict(MUON, **FULL, temporal_difference_weight=0.0),
    "full, temporal difference 8": dict(MUON, **FULL, temporal_difference_weight=8.0),
    "full, temporal difference 16": dict(MUON, **FULL, temporal_difference_weight=16.0),
    "full, even timesteps": dict(MUON, **FULL, timesteps="even"),
    "full, lr 3e-3": dict(MUON, **FULL) | dict(lr=3e-3),
    "full, lr 1.2e-2": dict(MUON, **FULL) | dict(lr=1.2e-2),
    "full, others 3e-3": dict(MUON, **FULL) | dict(other_lr=3e-3),
    "full, others 3e-2": dict(MUON, **FULL) | dict(other_lr=3e-2),
    "narrow": dict(MUON, **NARROW),
    "AnimateDiff's modules": dict(MUON, peer="animatediff"),
    "design document": dict(
        optimizer="adamw",
        lr=1e-4,
        positions="learned",
        zero="gate",
        noise="independent",
        timesteps="even",
        weighting="min-snr",
        temporal_difference_weight=0.0,
        num_heads=0,
    ),
}
STRUCTURE = ("max_frames", "positions", "num_heads", "zero", "attention_ratio", "conv_size", "ff_ratio", "start")


class MotionUNet(nn.Module):
    "AnimateDiff's motion modules (diffusers' `MotionAdapter`) in the same base, called as a UNet with an adapter is"

    def __init__(self, stock):
        super().__init__()
        from diffusers import MotionAdapter, UNetMotionModel

        config = stock.config
        adapter = MotionAdapter(
            block_out_channels=config.block_out_channels,
            motion_layers_per_block=config.layers_per_block,
            motion_mid_block_layers_per_block=1,
            motion_num_attention_heads=8,
            motion_norm_num_groups=config.norm_num_groups,
            motion_max_seq_length=32,
            use_motion_mid_block=True,
        )
        for name, module in adapter.named_modules():
            if name.endswith("proj_out"):
                nn.init.zeros_(module.weight), nn.init.zeros_(module.bias)
        self.stock, self.config = stock, config
        self.motion = UNetMotionModel.from_unet2d(stock, adapter).requires_grad_(False)
        for name, p in self.motion.named_parameters():
            p.requires_grad = "motion_modules" in name

    device = property(lambda self: self.stock.device)
    dtype = property(lambda self: self.stock.conv_in.weight.dtype)

    def groups(self, lr, other_lr):
        named = [(name, p) for name, p in self.motion.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if p.ndim == 2 and "norm" not in name]
        matrix_ids = set(map(id, matrices))
        others = [p for _, p in named if id(p) not in matrix_ids]
        return [dict(params=matrices, lr=lr, parts=1), dict(params=others, lr=other_lr, parts=0)]

    def forward(self, x, t, encoder_hidden_states, added_cond_kwargs, num_frames=None):
        if num_frames is None:
            return self.stock(x, t, encoder_hidden_states, added_cond_kwargs=added_cond_kwargs)
        added = {name: value[::num_frames] for name, value in added_cond_kwargs.items()}
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            output = self.motion(
                x.unflatten(0, (-1, num_frames)).transpose(1, 2),  # b c f h w
                t[::num_frames] if t.ndim else t,
                encoder_hidden_states,
                added_cond_kwargs=added,
            )
        output.sample = output.sample.transpose(1, 2).flatten(0, 1)
        return output


def make_data(path, clips, workers, device):
    "Latents and captions of training clips, as safetensors"
    pipe = load_pipeline().to(device)
    latents = torch.empty(clips, FRAMES, 4, 16, 16, dtype=torch.half)
    with worker_pool(workers) as pool:
        scenes = (random_scene(seed, "train") for seed in range(clips))
        drawn = iter(pool.imap(partial(render_frames, FRAMES), scenes, chunksize=8))
        for first in range(0, clips, 64):
            frames = torch.from_numpy(np.concatenate([next(drawn) for _ in range(min(64, clips - first))]))
            encoded = images_to_latents(pipe.vae, frames).half().cpu().unflatten(0, (-1, FRAMES))
            latents[first : first + len(encoded)] = encoded
        read = pool.map(partial(read_captions, 3, "train"), range(clips), chunksize=32)
    with torch.no_grad():
        tokens, pooled = embed_tokens(pipe, read)
        empty = [e[0].float() for e in embed_captions(pipe, [""])]
    save_file(
        dict(latents=latents, tokens=tokens.cpu(), pooled=pooled.cpu(), empty0=empty[0].cpu(), empty1=empty[1].cpu()),
        path,
    )


def count(unet, parameters, device):
    "Parameters of the adapter, and operations of one call for a clip with it and without"
    from torch.utils.flop_counter import FlopCounterMode

    x, t = torch.zeros(FRAMES, 4, 16, 16), torch.tensor(500)
    context, pooled, ids = torch.zeros(FRAMES, 77, 128), torch.zeros(FRAMES, 64), torch.zeros(FRAMES, 6)
    flops = []
    for frames in (FRAMES, None):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call = dict(num_frames=frames) if frames else {}
            unet(x, t, context, added_cond_kwargs=dict(text_embeds=pooled, time_ids=ids), **call)
        flops.append(counter.get_total_flops())
    return dict(parameters=sum(p.numel() for p in parameters), gflops=flops[0] / 1e9, gflops_base=flops[1] / 1e9)


def build(row, seed, device):
    "`(pipe, config, parameters, optimizer, counts)` of a row"
    settings = PLAIN | ROWS[row]
    peer = settings.pop("peer", None)
    config = replace(read_config("toy"), max_frames=24, seed=seed, **settings)
    pipe = load_pipeline()
    torch.manual_seed(seed)
    if peer:
        pipe.unet = MotionUNet(pipe.unet)
        groups = pipe.unet.groups(config.lr, config.other_lr)
        parameters = [p for group in groups for p in group["params"]]
    else:
        structure = {name: getattr(config, name) for name in STRUCTURE}
        add_temporal(pipe.unet, **structure | dict(num_heads=config.num_heads or None))
        train_only_temporal(pipe.unet)
        groups = parameter_groups(pipe.unet, config.lr, 0.0, config.other_lr, config.optimizer == "muon")
        parameters = [p for group in groups for p in group["params"]]
    counts = count(pipe.unet, parameters, device)
    pipe.vae.to(device), pipe.text_encoder.to(device), pipe.text_encoder_2.to(device)
    nn.Module.to(pipe.unet, device)
    trained = set(map(id, parameters))
    for p in pipe.unet.parameters():
        if id(p) not in trained:
            p.requires_grad_(False)
            p.data = p.data.bfloat16() if p.is_cuda else p.data
    if config.optimizer == "muon":
        optimizer = Muon(groups, betas=(0.9, 0.999))
    else:
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), fused=True)
    return pipe, config, parameters, optimizer, counts


def train(row, seed, updates, data, device, measure=False):
    "Train a row; returns `(pipe, config, record)`"
    pipe, config, parameters, optimizer, record = build(row, seed, device)
    scheduler = pipe.scheduler
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(device)
    weights, density = timestep_tables(scheduler, config, device)
    gradients, average = flat_gradient_buffer(parameters), ExponentialMovingAverage(parameters, 0.995, device=None)
    rates, losses = [group["lr"] for group in optimizer.param_groups], []
    empty = data["empty0"], data["empty1"]

    def forward_backward(noisy, target, timesteps, embeds, pooled, ids):
        clips = dict(prompt_embeds=embeds, pooled=pooled, time_ids=ids)
        losses = per_clip_loss(pipe.unet, noisy, target, timesteps, clips, config, weights)
        losses.mean().backward()
        return losses.detach()

    step_fn, total = CudaGraphRunner(forward_backward), torch.zeros((), device=device)
    start, clock = time.perf_counter(), None
    for step in range(updates):
        if step == min(20, updates - 1):
            if device == "cuda":
                torch.cuda.synchronize()
            clock = (step, time.perf_counter())
        generator = clip_generator(seed, 10**9 + step, device)
        i = torch.randint(len(data["latents"]), (BATCH,), generator=generator, device=device)
        way = torch.randint(data["tokens"].shape[1], (BATCH,), generator=generator, device=device)
        torch.manual_seed(10**6 * (seed + 1) + step)
        embeds, pooled = drop_conditioning(
            data["tokens"][i, way].float(), data["pooled"][i, way].float(), empty, device
        )
        numbers = range(step * BATCH, (step + 1) * BATCH)
        noisy = make_noisy_batch(scheduler, data["latents"][i], numbers, config, density)
        total += step_fn(*noisy, embeds, pooled, random_ids(BATCH, device)).mean()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * lr_factor(step / updates, 0.05)
        optimizer.step()
        gradients.zero_()
        average.update()
        if (step + 1) % max(1, updates // 6) == 0:
            losses.append((step + 1, round(total.item() / max(1, updates // 6), 5)))
            total.zero_()
    if device == "cuda":
        torch.cuda.synchronize()
    now = time.perf_counter()
    record |= dict(
        losses=losses, seconds=round(now - start, 1), ms=round(1e3 * (now - clock[1]) / (updates - clock[0]), 2)
    )
    if not measure:
        average.copy_to_parameters()
    pipe.unet.eval()
    return pipe, config, record


def score(pipe, config, n, scenes_from, workers, steps=20, keep=None):
    "What the reader of the cartoon world finds in videos of `n` scenes"
    scenes, captions = draw_scenes(n, scenes_from)
    noise = start_noise(n, config.noise, config.noise_strength, FRAMES, seed=scenes_from // 10**8)
    frames = sample_frames(pipe, captions, noise, steps)
    if keep:
        save_sheet(frames, keep)
    with worker_pool(workers) as pool:
        readings = pool.map(read_scene, list(frames), chunksize=4)
    return mean_scores(scenes, readings)


def run_row(job):
    "One row and seed, in a process of its own"
    row, seed, args, path = job
    device = "cpu" if args.toy else "cuda"
    torch.set_num_threads(1)
    data = {name: value.to(device) for name, value in load_file(path).items()}
    try:
        pipe, config, record = train(row, seed, args.updates, data, device)
        keep = args.sheets and Path(args.sheets) / f"{row.replace(' ', '_').replace(',', '')}-{seed}.png"
        record["score"] = score(
            pipe, config, args.videos, SCENES[args.scenes], args.readers, 2 if args.toy else 20, keep
        )
    except Exception as error:
        record = dict(error=f"{type(error).__name__}: {error}")
    print(row, seed, json.dumps(record), flush=True)
    return row, seed, record


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ablation.json"))
    parser.add_argument("--rows", nargs="*", default=list(ROWS))
    parser.add_argument("--updates", type=int, default=1200)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--clips", type=int, default=3000)
    parser.add_argument("--videos", type=int, default=128)
    parser.add_argument("--scenes", choices=SCENES, default="validation")
    parser.add_argument("--parallel", type=int, default=6, help="trainings side by side")
    parser.add_argument("--readers", type=int, default=4, help="processes that read the videos of one training")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw the clips")
    parser.add_argument("--sheets", help="folder for images of some frames of each row")
    parser.add_argument("--time", action="store_true", help="only time 100 updates of each row, one row after another")
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    device = "cpu" if args.toy else "cuda"
    if args.toy:
        args.updates, args.clips, args.videos, args.parallel, args.readers, args.workers = 2, 4, 2, 1, 1, 1
    if args.sheets:
        Path(args.sheets).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "data.safetensors"
        start = time.perf_counter()
        make_data(path, args.clips, args.workers, device)
        print(f"{args.clips} clips in {time.perf_counter() - start:.0f} s", flush=True)
        if args.time:
            data = {name: value.to(device) for name, value in load_file(path).items()}
            results = {row: train(row, 0, 2 if args.toy else 100, data, device, measure=True)[2] for row in args.rows}
            print(json.dumps(results, indent=1))
        else:
            results, jobs = {}, [(row, seed, args, path) for seed in args.seeds for row in args.rows]
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(args.parallel, mp_context=context, max_tasks_per_child=1) as pool:
                for done in as_completed([pool.submit(run_row, job) for job in jobs]):
                    row, seed, record = done.result()
                    results.setdefault(row, {})[str(seed)] = record
                    write(args, device, results)
        write(args, device, results)


def write(args, device, rows):
    settings = {name: getattr(args, name) for name in ("updates", "clips", "videos", "scenes", "parallel")}
    write_result(args.out, command=" ".join(sys.argv), **settings, **environment(device), rows=rows)


if __name__ == "__main__":
    main()
