"""From which noise on is a film lost? Real clips of walkers get the noise of one of the twenty steps and are sampled from there: at first the noise hides nothing, at last all but everything. And films from nothing but noise.

    python benchmarks/start.py [--clips 10] [--out benchmarks/results/tiny_start.json]       ten minutes on two cores
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch

from tav_nb.adapter import EMBEDDED_ADAPTER, load_adapter
from tav_nb.models import EMBEDDED
from tav_nb.scheduler import SDXLAnime_BestHQScheduler
from tav_nb.tiny import FRAMES, GUIDANCE, SIZE, decode, embed, encode, load, sealed, start_noise
from tav_nb.toon import caption, read, render


@torch.no_grad()
def film(pipe, number, scene, noise, first):
    "A film of a sealed scene from step `first` on, whose start shows the real clip through the noise; None is from noise alone"
    scheduler = SDXLAnime_BestHQScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(20)
    tokens, pooled = embed(pipe, [caption(scene, 10**8 + number, complete=True)])
    both = lambda x: torch.cat([torch.zeros_like(x), x]).repeat_interleave(FRAMES, 0)
    cond = dict(encoder_hidden_states=both(tokens), added_cond_kwargs=dict(text_embeds=both(pooled), time_ids=torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]]).expand(2 * FRAMES, 6)), num_frames=FRAMES)
    z = noise
    if first is not None:
        alpha = scheduler.alphas_cumprod[scheduler.timesteps[first]]
        z = alpha.sqrt() * encode(pipe.vae, torch.from_numpy(render(scene, FRAMES, SIZE, SIZE).frames)) + (1 - alpha).sqrt() * noise
        if first: scheduler.set_begin_index(first)
    for t in scheduler.timesteps[first or 0:]:
        empty, full = pipe.unet(torch.cat([z, z]), t, **cond).sample.chunk(2)
        z = scheduler.step(empty + GUIDANCE * (full - empty), t, z).prev_sample
    return read(decode(pipe.vae, z).numpy())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--clips', type=int, default=10)
    parser.add_argument('--out', type=Path, default=Path('benchmarks/results/tiny_start.json'))
    args, pipe = parser.parse_args(), load(EMBEDDED)
    meta = load_adapter(pipe.unet, EMBEDDED_ADAPTER)
    scenes = [(i, scene) for i, scene in enumerate(sealed(512)) if scene.speed and scene.hold == 1][:args.clips]
    noise, rows = start_noise(scenes[-1][0] + 1, meta['noise'], meta['noise_strength']), []
    sigmas = SDXLAnime_BestHQScheduler.from_config(pipe.scheduler.config)
    sigmas.set_timesteps(20)
    for first in (None, 0, 2, 4, 6, 8, 10, 12, 14, 16, 19):
        readings = [film(pipe, i, scene, noise[i], first) for i, scene in scenes]
        rows.append(dict(step=first, sigma=None if first is None else round(sigmas.sigmas[first].item(), 3), jitter=float(np.nanmean([r.jitter for r in readings])), drift=float(np.mean([r.drift for r in readings])),
                         direction=float(np.mean([r.speed * scene.speed > 0 and abs(r.speed) > .01 for r, (_, scene) in zip(readings, scenes)]))))
        print(rows[-1], flush=True)
    args.out.write_text(json.dumps(dict(command='python benchmarks/start.py', clips=len(scenes), rows=rows), indent=1) + '\n')


if __name__ == '__main__': main()
