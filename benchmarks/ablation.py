"""Effect of each choice: adapters on the same frozen base, from the same clips, with the same number of updates.

python benchmarks/ablation.py [--rows NAME ...] [--updates 1200] [--seeds 0] [--parallel 4]
python benchmarks/ablation.py --toy     two updates of each row on the CPU

Choose on the scenes of `--scenes validation`, report on those of `--scenes test`: no scene is in both, and none of
either is trained on. With `--base FOLDER` another tiny SDXL, such as the one of `benchmarks/base_like_sdxl.py`.
"""

import argparse
import gc
import itertools
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import astuple
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peers import FirstFrameUNet, MotionUNet, add_after_resnets, keep_every_second, move_behind_blocks, see_neighbours
from safetensors.torch import load_file, save_file
from torch import nn
from toy_scores import SCENES, draw_scenes, mean_scores, sample_frames, save_sheet

from tav_nb.evaluation.records import environment, write_record
from tav_nb.models.adapter_file import load_adapter
from tav_nb.models.base import load_pipeline, tensors_hash
from tav_nb.models.temporal_unet import add_temporal, train_only_temporal
from tav_nb.sampling.guidance import Guidance
from tav_nb.toy.reader import read_scene
from tav_nb.toy.scenes import random_scene
from tav_nb.toy.tiny_sdxl import GUIDANCE, start_noise
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
from tav_nb.training.config import TrainConfig
from tav_nb.training.config_io import FIELD_TYPES, check_option, parse_option
from tav_nb.training.cuda_graphs import CudaGraphRunner
from tav_nb.training.ema import ExponentialMovingAverage
from tav_nb.training.losses import lr_factor, parameter_groups
from tav_nb.training.muon import Muon
from tav_nb.training.step import flat_gradient_buffer

FRAMES, BATCH = 16, 16
# the loss and the noise of a row that names no other
RECIPE = dict(
    optimizer="muon",
    lr=6e-3,
    other_lr=1e-2,
    num_heads=8,
    noise="progressive",
    noise_strength=0.5,
    timesteps="high-noise",
    stratified_timesteps=True,
    weighting="min-snr-x0",
    temporal_difference_weight=2.0,
    temporal_difference_lags=(1, 8),
)
BLOCK = dict(conv_size=3, ff_ratio=1.0, start="spatial")
NARROW = dict(conv_size=3, attention_ratio=0.5, ff_ratio=2 / 3, start="spatial")  # the parameters of plain attention
ADAMW = dict(optimizer="adamw", lr=1e-3, other_lr=None)
# the preset of `tav train` before Muon and the block
FORMER = dict(ADAMW, num_heads=16, noise_strength=1.0, stratified_timesteps=False, temporal_difference_lags=(1,))
# loss of the base alone at a sigma (benchmarks/levels.py), which balances the noise levels
EXPECTED = "0.3:0.113,0.6:0.067,1:0.071,2:0.105,4:0.203,8:0.491,16:0.68,32:0.714"
CHANGES = {  # of one thing in the block
    "random start": dict(start="random"),
    "no convolution": dict(conv_size=0),
    "convolution 5": dict(conv_size=5),
    "no feed-forward": dict(ff_ratio=0.0),
    "feed-forward 2/3": dict(ff_ratio=2 / 3),
    "feed-forward 2": dict(ff_ratio=2.0),
    "feed-forward 4": dict(ff_ratio=4.0),
    "half attention": dict(attention_ratio=0.5),
    "quarter attention": dict(attention_ratio=0.25),
    "2 heads": dict(num_heads=2),
    "4 heads": dict(num_heads=4),
    "16 heads": dict(num_heads=16),
    "AdamW 1e-3": ADAMW,
    "lr 3e-3": dict(lr=3e-3),
    "lr 1.2e-2": dict(lr=1.2e-2),
    "lr 2.4e-2": dict(lr=2.4e-2),
    "lr 1.2e-2, others 2e-2": dict(lr=1.2e-2, other_lr=2e-2),
    "lr 1.2e-2, feed-forward 2": dict(lr=1.2e-2, ff_ratio=2.0),
    "others 3e-3": dict(other_lr=3e-3),
    "others 3e-2": dict(other_lr=3e-2),
    "independent noise": dict(noise="independent"),
    "strength 0.25": dict(noise_strength=0.25),
    "strength 1": dict(noise_strength=1.0),
    "no temporal difference": dict(temporal_difference_weight=0.0),
    "temporal difference 4": dict(temporal_difference_weight=4.0),
    "temporal difference 8": dict(temporal_difference_weight=8.0),
    "lag 1": dict(temporal_difference_lags=(1,)),
    "lags 1, 4": dict(temporal_difference_lags=(1, 4)),
    "lags 1, 2, 4, 8": dict(temporal_difference_lags=(1, 2, 4, 8)),
    "lags 1, 4, 8, 12": dict(temporal_difference_lags=(1, 4, 8, 12)),
    "timesteps not stratified": dict(stratified_timesteps=False),
    "even timesteps": dict(timesteps="even"),
    "balanced noise levels": dict(expected_loss=EXPECTED),
    "behind the blocks": dict(variant="behind"),
    "every second block, feed-forward 3": dict(ff_ratio=3.0, variant="second"),
    "also at full resolution": dict(variant="resnets"),
    "neighbours": dict(variant="neighbours"),
    "neighbours before attention too": dict(variant="neighbours before"),
    "neighbours, feed-forward 4": dict(variant="neighbours", ff_ratio=4.0),
}
ROWS = {
    "design document": dict(
        optimizer="adamw",
        lr=1e-4,
        other_lr=None,
        positions="learned",
        zero="gate",
        noise="independent",
        timesteps="even",
        stratified_timesteps=False,
        weighting="min-snr",
        temporal_difference_weight=0.0,
        num_heads=0,
    ),
    "former preset": FORMER,
    "former preset, Muon": dict(FORMER, optimizer="muon", lr=6e-3, other_lr=1e-2),
    "attention": {},
    "attention, spatial start": dict(start="spatial"),
    "block": BLOCK,
    "block, from the shipped adapter": dict(
        conv_size=3, ff_ratio=1.0, adapter="tiny-adapter", num_heads=16, lr=2e-3, other_lr=2e-3
    ),
    "block, narrow": NARROW,
    "AnimateDiff's modules": dict(peer="animatediff"),
    "AnimateDiff's modules, strength 1, lag 1": dict(
        peer="animatediff", noise_strength=1.0, temporal_difference_lags=(1,)
    ),
    "AnimateDiff's modules, balanced noise levels": dict(peer="animatediff", expected_loss=EXPECTED),
    "AnimateDiff's modules, lr 1.2e-2": dict(peer="animatediff", lr=1.2e-2),
    "Text2Video-Zero's attention": dict(peer="first frame"),
} | {f"block, {name}": BLOCK | change for name, change in CHANGES.items()}
STRUCTURE = ("max_frames", "positions", "num_heads", "zero", "attention_ratio", "conv_size", "ff_ratio", "start")
LAYER = ("max_frames", "positions", "num_heads", "zero", "attention_ratio", "conv_size", "ff_ratio")


def training_seeds(clips, pans=None):
    "Seeds of training scenes: the first ones, or so many of those that in a share `pans` of them the camera moves"
    if pans is None:
        return list(range(clips))
    moving, still = [], []
    for seed in itertools.count():
        (moving if random_scene(seed, "train").pan else still).append(seed)
        if len(moving) >= pans * clips and len(still) >= clips - round(pans * clips):
            return sorted(moving[: round(pans * clips)] + still[: clips - round(pans * clips)])


def make_data(path, seeds, workers, device):
    "Latents and captions of training clips, as safetensors"
    pipe, clips = load_pipeline().to(device), len(seeds)
    latents = torch.empty(clips, FRAMES, 4, 16, 16, dtype=torch.half)
    with worker_pool(workers) as pool:
        scenes = (random_scene(seed, "train") for seed in seeds)
        drawn = iter(pool.imap(partial(render_frames, FRAMES), scenes, chunksize=8))
        for first in range(0, clips, 64):
            frames = torch.from_numpy(np.concatenate([next(drawn) for _ in range(min(64, clips - first))]))
            encoded = images_to_latents(pipe.vae, frames).half().cpu().unflatten(0, (-1, FRAMES))
            latents[first : first + len(encoded)] = encoded
        read = pool.map(partial(read_captions, 3, "train"), seeds, chunksize=32)
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


def build(row, seed, device, base=None, changes=()):
    "`(pipe, config, parameters, optimizer, counts)` of a row"
    settings = RECIPE | dict(changes) | ROWS[row]
    peer, variant = settings.pop("peer", None), settings.pop("variant", None)
    config = TrainConfig(max_frames=24, seed=seed, **settings)
    pipe = load_pipeline(base)
    torch.manual_seed(seed)
    if peer == "first frame":
        pipe.unet, groups = FirstFrameUNet(pipe.unet), []
    elif peer:
        pipe.unet = MotionUNet(pipe.unet)
        groups = pipe.unet.groups(config.lr, config.other_lr)
    else:
        if config.adapter:
            load_adapter(pipe.unet, config.adapter, torch.float32, config.conv_size, config.ff_ratio)
        else:
            add_temporal(pipe.unet, **{name: getattr(config, name) or None for name in STRUCTURE})
        if variant == "behind":
            move_behind_blocks(pipe.unet)
        elif variant == "second":
            keep_every_second(pipe.unet)
        elif variant == "resnets":
            add_after_resnets(pipe.unet, **{name: getattr(config, name) for name in LAYER})
        elif variant and variant.startswith("neighbours"):
            see_neighbours(pipe.unet, before="before" in variant)
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
    for group in groups:
        group["lr"] = torch.tensor(group["lr"], device=device)  # a recorded update reads it
    cuda = device == "cuda"
    if config.optimizer == "muon":
        optimizer = Muon(groups, betas=(0.9, 0.999), capturable=cuda) if groups else None
    else:
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), fused=True, capturable=cuda)
    return pipe, config, parameters, optimizer, counts


def compile_parts(unet):
    "ResNets and transformer blocks, with what is in them, through `torch.compile`"
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1000
    for module in unet.modules():
        if type(module).__name__ in ("ResnetBlock2D", "BasicTransformerBlock"):
            module.compile(dynamic=False)


def train(row, seed, updates, data, device, measure=False, compiled=False, base=None, changes=()):
    "Train a row; returns `(pipe, config, record)`"
    pipe, config, parameters, optimizer, record = build(row, seed, device, base, changes)
    if not parameters:
        return pipe, config, record
    if compiled:
        compile_parts(pipe.unet)
    scheduler = pipe.scheduler
    weights, density = timestep_tables(scheduler, config, device)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(device)
    gradients, average = flat_gradient_buffer(parameters), ExponentialMovingAverage(parameters, 0.995, device=None)
    rates, losses = [group["lr"].item() for group in optimizer.param_groups], []
    empty, strata = (data["empty0"], data["empty1"]), BATCH if config.stratified_timesteps else 1

    def update(noisy, target, timesteps, embeds, pooled, ids):
        clips = dict(prompt_embeds=embeds, pooled=pooled, time_ids=ids)
        losses = per_clip_loss(pipe.unet, noisy, target, timesteps, clips, config, weights)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        gradients.zero_()
        return losses.detach()

    step_fn, total = CudaGraphRunner(update), torch.zeros((), device=device)  # a whole update is one CUDA graph
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
        noisy = make_noisy_batch(scheduler, data["latents"][i], numbers, config, density, strata)
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"].fill_(rate * lr_factor(step / updates, 0.05))
        total += step_fn(*noisy, embeds, pooled, random_ids(BATCH, device)).mean()
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
        record["weights"] = tensors_hash(parameters)
    pipe.unet.eval()
    return pipe, config, record


def score(pipe, config, n, scenes_from, workers, steps=20, keep=None, guidance=GUIDANCE):
    "What the reader of the cartoon world finds in videos of `n` scenes; of those whose camera moves also alone"
    scenes, captions = draw_scenes(n, scenes_from)
    noise = start_noise(n, config.noise, config.noise_strength, FRAMES, seed=scenes_from // 10**8)
    frames = sample_frames(pipe, captions, noise, steps, guidance)
    if keep:
        save_sheet(frames, keep)
    with worker_pool(workers) as pool:
        readings = pool.map(read_scene, list(frames), chunksize=4)
    moving = [(scene, reading) for scene, reading in zip(scenes, readings) if scene.pan]
    return mean_scores(scenes, readings) | dict(moving_camera=mean_scores(*zip(*moving)) if moving else None)


def take_gpu(counter):
    "Each process of the pool computes on the next GPU, in turn"
    if torch.cuda.is_available():
        with counter.get_lock():
            torch.cuda.set_device(counter.value % torch.cuda.device_count())
            counter.value += 1


def run_row(job):
    "One row and seed, in a process of its own"
    row, seed, args, path = job
    device = "cpu" if args.toy else "cuda"
    torch.set_num_threads(1)
    data = {name: value.to(device) for name, value in load_file(path).items()}
    try:
        options = dict(compiled=args.compile, base=args.base, changes=args.set)
        pipe, config, record = train(row, seed, args.updates, data, device, **options)
        name, steps = re.sub(r"[^a-z0-9]+", "-", row.lower()), 2 if args.toy else 20
        if args.weights and (parameters := [p for p in pipe.unet.parameters() if p.requires_grad]):
            args.weights.mkdir(parents=True, exist_ok=True)
            save_file({str(i): p.detach().half() for i, p in enumerate(parameters)}, args.weights / f"{name}-{seed}.st")
        for guidance in args.guidance:
            keep = args.sheets and args.sheets / f"{name}-{seed}-{'_'.join(map(str, guidance))}.png"
            setting = Guidance(*guidance)
            scores = score(pipe, config, args.videos, SCENES[args.scenes], args.readers, steps, keep, setting)
            if guidance is args.guidance[0]:
                record["score"] = scores
            else:
                record.setdefault("other_guidance", {})[",".join(map(str, guidance))] = scores
    except Exception as error:
        record = dict(error=f"{type(error).__name__}: {error}")
    finally:
        pipe = None
        gc.collect(), torch.cuda.empty_cache()
    print(row, seed, json.dumps(record), flush=True)
    return row, seed, record


def setting(text):
    "`(name, value)` of `NAME=VALUE`, a setting of `tav train`"
    name, _, value = text.partition("=")
    if name not in FIELD_TYPES:
        raise argparse.ArgumentTypeError(f"{name}: no setting of a training has this name")
    return name, check_option(name, parse_option(name, value))


def numbers(text):
    return tuple(float(part) for part in text.split(","))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ablation.json"))
    parser.add_argument("--rows", nargs="*", default=list(ROWS))
    parser.add_argument("--set", type=setting, nargs="*", default=[], help="NAME=VALUE instead of the recipe's")
    parser.add_argument("--updates", type=int, default=1200)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--clips", type=int, default=3000)
    parser.add_argument("--pans", type=float, help="share of clips whose camera moves; without it as they are drawn")
    parser.add_argument("--data", type=Path, help="file that keeps the clips for the next call")
    parser.add_argument("--base", help="folder of another tiny SDXL")
    parser.add_argument("--videos", type=int, default=256)
    parser.add_argument("--guidance", type=numbers, nargs="*", default=[astuple(GUIDANCE)], help="scale,sigma,temporal")
    parser.add_argument("--scenes", choices=SCENES, default="validation")
    parser.add_argument("--parallel", type=int, default=4, help="trainings side by side, on all GPUs in turn")
    parser.add_argument("--readers", type=int, default=4, help="processes that read the videos of one training")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw the clips")
    parser.add_argument("--sheets", type=Path, help="folder for images of some frames of each row")
    parser.add_argument("--weights", type=Path, help="folder for the trained weights")
    parser.add_argument("--compile", action="store_true", help="torch.compile; pays from some thousand updates on")
    parser.add_argument("--time", action="store_true", help="only time 100 updates of each row, one row after another")
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    device = "cpu" if args.toy else "cuda"
    if args.toy:
        args.updates, args.clips, args.videos, args.parallel, args.readers, args.workers = 2, 4, 2, 1, 1, 1
    if args.sheets:
        args.sheets.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        path = args.data or Path(home) / "data.safetensors"
        if not path.exists():
            start = time.perf_counter()
            make_data(path, training_seeds(args.clips, args.pans), args.workers, device)
            print(f"{args.clips} clips in {time.perf_counter() - start:.0f} s", flush=True)
        if args.time:
            data, results = {name: value.to(device) for name, value in load_file(path).items()}, {}
            for row in args.rows:
                count = 2 if args.toy else 100
                record = train(row, 0, count, data, device, True, args.compile, args.base, args.set)[2]
                results[row] = dict(time=record)
                print(row, record, flush=True)
        else:
            results, jobs = {}, [(row, seed, args, path) for seed in args.seeds for row in args.rows]
            context = multiprocessing.get_context("spawn")
            gpu = take_gpu, (context.Value("i", 0),)
            with ProcessPoolExecutor(args.parallel, context, *gpu) as pool:
                for done in as_completed([pool.submit(run_row, job) for job in jobs]):
                    row, seed, record = done.result()
                    results.setdefault(row, {})[str(seed)] = record
                    write(args, device, results)
        write(args, device, results)


def write(args, device, rows):
    names = "updates", "clips", "pans", "videos", "scenes", "parallel", "compile", "base"
    settings = {name: getattr(args, name) for name in names}
    values = dict(base_weights=tensors_hash(load_pipeline(args.base).unet.parameters()), recipe=RECIPE | dict(args.set))
    write_record(
        args.out,
        ("text", "vae", "unet"),
        command=" ".join(sys.argv),
        **settings,
        **environment(device),
        **values,
        rows=rows,
    )


if __name__ == "__main__":
    main()
