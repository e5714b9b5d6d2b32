"""What training SDXL needs: the full-size UNet in random weights, through `tav train`, its allocator capped; estimate and measurement side by side.

    python benchmarks/train_memory.py [--limit 18.5] [--only ROW ...] [--out benchmarks/results/train_memory.json]
    python benchmarks/train_memory.py --toy       the same with a UNet of a few thousand weights, on the CPU, in a minute
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow
import torch
from diffusers import UNet2DConditionModel
from pyarrow import parquet
from torch.utils.flop_counter import FlopCounterMode

from tav_nb.config import TrainConfig, merge
from tav_nb.encode import fingerprint
from tav_nb.memory import inputs, measure, unet_on_meta
from tav_nb.models import EMBEDDED, load_pipeline

# stabilityai/stable-diffusion-xl-base-1.0, unet/config.json
SDXL = dict(sample_size=128, in_channels=4, out_channels=4, block_out_channels=[320, 640, 1280], layers_per_block=2, cross_attention_dim=2048,
            down_block_types=['DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'], up_block_types=['CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'],
            transformer_layers_per_block=[1, 2, 10], attention_head_dim=[5, 10, 20], use_linear_projection=True, addition_embed_type='text_time',
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816)
TOY = dict(SDXL, sample_size=8, block_out_channels=[16, 16], layers_per_block=1, cross_attention_dim=128, down_block_types=['DownBlock2D', 'CrossAttnDownBlock2D'],
           up_block_types=['CrossAttnUpBlock2D', 'UpBlock2D'], transformer_layers_per_block=1, attention_head_dim=[2, 2], addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 64, norm_num_groups=8, mid_block_type=None)

# name: (side in pixels, settings); seed is 2 clips of 8 frames
ROWS = {
    'seed': (768, {}),
    'offload': (768, dict(checkpointing='offload')),
    '8-bit Adam': (768, dict(adam8bit=True)),
    'compiled': (768, dict(compile=True)),
    '1 x 24 frames': (768, dict(batch_size=1, lengths=(24,))),
    '1024 px, offload': (1024, dict(checkpointing='offload')),
    '1024 px, 1 x 8': (1024, dict(batch_size=1)),
    'bfloat16': (768, dict(dtype='bfloat16')),
}
ESTIMATED = {'without checkpointing': (768, dict(checkpointing='none')), '1024 px': (1024, {})}  # do not fit: `tav train` refuses them


def make_model(folder, config, device):
    "A model in diffusers' layout: this UNet in random half-precision weights, the encoders of the embedded one"
    folder.mkdir()
    for part in EMBEDDED.iterdir():
        if part.name != 'unet': os.symlink(part, folder / part.name)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    with torch.device(device): unet = UNet2DConditionModel(**config)
    torch.set_default_dtype(torch.float32)
    unet.save_pretrained(folder / 'unet', max_shard_size='20GB')
    return folder


def make_cache(folder, side, config, made_with):
    "Four clips of noise"
    (folder / 'clips').mkdir(parents=True)
    pooled, rng, rows = config['projection_class_embeddings_input_dim'] - 6 * config['addition_time_embed_dim'], np.random.default_rng(0), []
    text = lambda: dict(text_embeds=rng.standard_normal((77, config['cross_attention_dim'])).astype(np.float16), pooled_embeds=rng.standard_normal(pooled).astype(np.float16))
    sizes = dict(original_size=np.int32([side, side]), crop_top_left=np.int32([0, 0]), target_size=np.int32([side, side]))
    for i in range(4):
        np.savez(folder / f'clips/noise{i}-0000000-24.npz', latents=rng.standard_normal((24, 4, side // 8, side // 8)).astype(np.float16), **text(), **sizes, frame_times=np.arange(24) / 12, hold_mask=np.zeros(24, bool), fps=np.float32(12))
        rows.append(dict(clip=f'noise{i}-0000000-24', kept=True, frames=24, height=side, width=side, cache_key=str(i), caption='noise'))
    np.savez(folder / '_empty.npz', **text())
    (folder / 'cache.json').write_text(json.dumps(dict(model=made_with, options=dict(resolution=side))))
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / 'manifest.parquet')
    return folder


def settings(model, changes, args):
    "The seed's settings, a few updates long"
    usual = dict(model=str(model), lengths=(8,), batch_size=2, accumulation=args.accumulation, steps=args.steps, dtype='float32' if args.toy else 'float16', held_out=0, eval_every=0, preview_every=0, log_every=1,
                 workers=0 if args.toy else 2, memory_limit=0.0 if args.toy else args.limit)
    return merge(TrainConfig(), usual | changes)


def run_row(config, cache, out, args):
    "One run of the command, ended after the last update, before its checkpoint; what it said and what it needed"
    words = []
    for name in TrainConfig.__dataclass_fields__:
        value = getattr(config, name)
        if value != getattr(TrainConfig(), name): words += [f"--{name.replace('_', '-')}", ','.join(map(str, value)) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)]
    command = [sys.executable, '-c', 'from tav_nb.cli import main; raise SystemExit(main())', 'train', str(cache), str(out), *words, '--device', 'cpu' if args.toy else 'cuda']
    start, log = time.perf_counter(), out / 'log.jsonl'
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = lambda: [json.loads(line) for line in log.read_text().splitlines() if line.endswith('}')] if log.exists() else []
    while process.poll() is None and (len(lines()) < config.steps) and time.perf_counter() - start < args.patience: time.sleep(0.1)
    process.kill()
    said, found = process.communicate()[0], lines()
    if len(found) < config.steps: return dict(failed=' '.join(said.split())[-600:])
    seconds = min(line['seconds'] for line in found[1:])
    estimate = json.loads((out / 'run.json').read_text())['estimated_gib']
    return dict(estimated_gib=round(estimate, 2), peak_allocated_gib=round(found[-1]['gib'], 2), estimate_over_measured=round(estimate / found[-1]['gib'], 3),
                milliseconds_a_micro_step=round(1e3 * seconds / config.accumulation, 1), wall_s=round(time.perf_counter() - start, 1))


def flops(config, frames, side):
    "Floating point operations of one micro-step: forward, the forward again, backward"
    from unittest.mock import patch
    import torch.nn.functional as F
    from tav_nb.memory import flash
    from tav_nb.unet import train_only_temporal
    unet = unet_on_meta(config.model, config, torch.float16, dict(max_frames=24, positions='sinusoidal', zero='proj'))
    train_only_temporal(unet)
    args, kwargs = inputs(unet, config.batch_size, frames, side, side)
    with patch.object(F, 'scaled_dot_product_attention', flash), FlopCounterMode(display=False) as counter: unet(*args, **kwargs).sample.float().square().mean().backward()
    return counter.get_total_flops()


def matrix_rate(size=8192):
    "Floating point operations a second of a large half-precision product"
    a = torch.randn(size, size, dtype=torch.float16, device='cuda')
    for _ in range(5): a @ a
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(30): a @ a
    end.record()
    torch.cuda.synchronize()
    return 30 * 2 * size**3 / (start.elapsed_time(end) / 1e3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--out', type=Path, default=Path('benchmarks/results/train_memory.json'))
    parser.add_argument('--limit', type=float, default=18.5, help='GiB that the allocator may give out')
    parser.add_argument('--steps', type=int, default=3)
    parser.add_argument('--accumulation', type=int, default=4)
    parser.add_argument('--patience', type=float, default=120, help='seconds for one row')
    parser.add_argument('--only', nargs='*', help='rows')
    parser.add_argument('--toy', action='store_true')
    args = parser.parse_args()
    unet, scale, rows = TOY if args.toy else SDXL, 12 if args.toy else 1, {}
    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        model = make_model(home / 'model', unet, 'cpu' if args.toy else 'cuda')
        made_with = fingerprint(load_pipeline(EMBEDDED, unet=None))
        caches = {side: make_cache(home / f'cache{side}', side // scale // 8 * 8, unet, made_with) for side in (768, 1024)}
        if not args.toy: torch.cuda.empty_cache()
        for i, (name, (side, changes)) in enumerate(ROWS.items()):
            if args.only and name not in args.only: continue
            if changes.get('adam8bit') and not find_spec('torchao'): rows[name] = dict(failed='torchao is not installed')
            elif args.toy and (changes.get('compile') or changes.get('dtype')): continue
            else: rows[name] = run_row(settings(model, changes, args), caches[side], home / f'run{i}', args)
            print(name, rows[name], flush=True)
        for name, (side, changes) in ESTIMATED.items():
            rows[name] = dict(estimated_gib=round(measure(settings(model, changes, args), 8, side // scale // 8 * 8, side // scale // 8 * 8).total / 2**30, 2))
            print(name, rows[name], flush=True)
        result = dict(command='python ' + ' '.join(sys.argv), torch=torch.__version__, limit_gib=args.limit, rows=rows)
        if not args.toy:
            work, rate = flops(settings(model, {}, args), 8, 768), matrix_rate()
            result |= dict(device=torch.cuda.get_device_name(), flops_a_micro_step=work, matrix_flops_a_second=rate, floor_ms=round(1e3 * work / rate, 1))
            if 'milliseconds_a_micro_step' in rows.get('seed', {}): result['times_the_floor'] = round(rows['seed']['milliseconds_a_micro_step'] / result['floor_ms'], 2)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__': main()
