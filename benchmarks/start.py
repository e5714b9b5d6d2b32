"""At which noise level does a sampled video stop following its start? Real clips of walkers get the noise of one of the
twenty steps and are sampled from there. Then videos are sampled from pure noise, and the same videos get the noise of
the first step and are sampled again, once and twice.

python benchmarks/start.py [--clips 10] [--out benchmarks/results/tiny_start.json]       a quarter of an hour on two
cores
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from tav_nb.evaluation.records import write_record
from tav_nb.models.adapter_file import EMBEDDED_ADAPTER, load_adapter
from tav_nb.models.base import EMBEDDED
from tav_nb.models.scheduler import SDXLAnime_BestHQScheduler
from tav_nb.sampling.generate import denoise_step
from tav_nb.sampling.noise import correlated_noise
from tav_nb.toy.captions import caption
from tav_nb.toy.reader import read_scene
from tav_nb.toy.rendering import render
from tav_nb.toy.tiny_model import FRAMES, SIZE, load_tiny
from tav_nb.toy.tiny_sdxl import GUIDANCE, scenes_for_tests, start_noise
from tav_nb.toy.training_data import embed_captions, images_to_latents, latents_to_images

STEPS = 20


class VideoSampler:
    "Samples videos of test scenes from step `first` on, starting from latents with noise added"

    def __init__(self, pipe):
        self.pipe = pipe

    def scheduler(self):
        scheduler = SDXLAnime_BestHQScheduler.from_config(self.pipe.scheduler.config)
        scheduler.set_timesteps(STEPS)
        return scheduler

    @torch.no_grad()
    def sample(self, number, scene, noise, latents=None, first=0):
        "Latents of the video; from pure noise without `latents`"
        scheduler = self.scheduler()
        tokens, pooled = embed_captions(self.pipe, [caption(scene, 10**8 + number, complete=True)])

        def both(x):
            return torch.cat([torch.zeros_like(x), x]).repeat_interleave(FRAMES, 0)

        ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]]).expand(2 * FRAMES, 6)
        cond = dict(
            encoder_hidden_states=both(tokens),
            added_cond_kwargs=dict(text_embeds=both(pooled), time_ids=ids),
            num_frames=FRAMES,
        )
        z = noise
        if latents is not None:
            alpha = 1 / (1 + scheduler.sigmas[first] ** 2)
            z = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        if first:
            scheduler.set_begin_index(first)
        self.pipe.scheduler = scheduler
        for t in scheduler.timesteps[first:]:
            z = denoise_step(self.pipe, z, t, GUIDANCE, cond)
        return z


def row(pipe, scenes, videos, **what):
    "Jitter, drift and direction that the reader measures in videos of some scenes"
    readings = [read_scene(latents_to_images(pipe.vae, z).numpy()) for z in videos]
    right = [r.speed * scene.speed > 0 and abs(r.speed) > 0.01 for r, (_, scene) in zip(readings, scenes)]
    figures = what | dict(
        jitter=float(np.nanmean([r.jitter for r in readings])),
        drift=float(np.mean([r.drift for r in readings])),
        direction=float(np.mean(right)),
    )
    print(figures, flush=True)
    return figures


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tiny_start.json"))
    args, pipe = parser.parse_args(), load_tiny(EMBEDDED)
    meta, sampler = load_adapter(pipe.unet, EMBEDDED_ADAPTER), VideoSampler(pipe)
    scenes = [(i, scene) for i, scene in enumerate(scenes_for_tests(512)) if scene.speed and scene.hold == 1][
        : args.clips
    ]
    noise, sigmas = start_noise(scenes[-1][0] + 1, meta["noise"], meta["noise_strength"]), sampler.scheduler().sigmas

    clips = [
        images_to_latents(pipe.vae, torch.from_numpy(render(scene, FRAMES, SIZE, SIZE).frames)) for _, scene in scenes
    ]
    real = [
        row(
            pipe,
            scenes,
            [sampler.sample(i, scene, noise[i], z, first) for (i, scene), z in zip(scenes, clips)],
            step=first,
            sigma=round(sigmas[first].item(), 3),
        )
        for first in (0, 2, 4, 6, 8, 10, 12, 14, 16, 19)
    ]
    own = [sampler.sample(i, scene, noise[i]) for i, scene in scenes]
    again = [row(pipe, scenes, own, times=0)]
    for times in (1, 2):
        other = [
            correlated_noise(
                z[None].shape, meta["noise"], meta["noise_strength"], torch.Generator().manual_seed(1000 * times + i)
            )[0]
            for (i, _), z in zip(scenes, own)
        ]
        own = [sampler.sample(i, scene, n, z) for (i, scene), n, z in zip(scenes, other, own)]
        again.append(row(pipe, scenes, own, times=times))
    write_record(args.out, command="python benchmarks/start.py", clips=len(scenes), steps=STEPS, real=real, again=again)


if __name__ == "__main__":
    main()
