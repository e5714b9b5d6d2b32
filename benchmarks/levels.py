"""At which noise level does the adapter help? Clips of test scenes get noise of eight levels, and one UNet call
predicts the clip, with the adapter and without. Clips with a still camera and clips that pan are evaluated separately,
and so is the ground, which a still camera shows sixteen times and a panning one never twice at the same position.

python benchmarks/levels.py [--clips 24] [--out benchmarks/results/tiny_levels.json]       two minutes on two cores
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from tav_nb.evaluation.records import write_record
from tav_nb.models.adapter_file import EMBEDDED_ADAPTER, load_adapter
from tav_nb.models.base import EMBEDDED
from tav_nb.sampling.noise import correlated_noise
from tav_nb.toy.captions import caption
from tav_nb.toy.rendering import LABELS, render
from tav_nb.toy.tiny_model import FRAMES, SIZE, load_tiny
from tav_nb.toy.tiny_sdxl import scenes_for_tests
from tav_nb.toy.train_unet import alphas_cumprod
from tav_nb.toy.training_data import embed_captions, images_to_latents

SIGMAS = (0.3, 0.6, 1, 2, 4, 8, 16, 32)


def clip_of(pipe, number, scene):
    "Latents, conditioning, and a mask [1, 1, h, w] of the latents that show only ground in all frames"
    clip = render(scene, FRAMES, SIZE, SIZE, truth=True)
    tokens, pooled = embed_captions(pipe, [caption(scene, 10**8 + number, complete=True)])
    ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]]).expand(FRAMES, 6)
    conditioning = dict(
        encoder_hidden_states=tokens.expand(FRAMES, -1, -1),
        added_cond_kwargs=dict(text_embeds=pooled.expand(FRAMES, -1), time_ids=ids),
    )
    ground = (
        F.avg_pool2d(torch.from_numpy(clip.labels == LABELS.index("ground")).float()[:, None], 8).amin(0, keepdim=True)
        > 0.99
    )
    return images_to_latents(pipe.vae, torch.from_numpy(clip.frames)), conditioning, ground


def errors(pipe, z, conditioning, ground, sigma, noise, on):
    "Mean squared error of the clean latents that the UNet predicts: everywhere, and in the ground"
    a = alphas_cumprod("cpu")
    t = int(((1 - a) / a).sqrt().sub(sigma).abs().argmin())
    x = a[t].sqrt() * z + (1 - a[t]).sqrt() * noise
    v = pipe.unet(x, t, **conditioning, **(dict(num_frames=FRAMES) if on else {})).sample
    off = a[t].sqrt() * x - (1 - a[t]).sqrt() * v - z
    return off.square().mean().item(), off[ground.expand_as(off)].square().mean().item()


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tiny_levels.json"))
    args, pipe = parser.parse_args(), load_tiny(EMBEDDED)
    meta, scenes, rows = load_adapter(pipe.unet, EMBEDDED_ADAPTER), list(enumerate(scenes_for_tests(512))), []
    for camera in ("still", "pan"):
        chosen = [(i, s) for i, s in scenes if bool(s.pan) == (camera == "pan")][: args.clips]
        clips = [clip_of(pipe, i, s) for i, s in chosen]
        for sigma in SIGMAS:
            for on in (True, False):
                noises = [
                    correlated_noise(
                        z[None].shape, meta["noise"], meta["noise_strength"], torch.Generator().manual_seed(i)
                    )[0]
                    for (i, _), (z, *_) in zip(chosen, clips)
                ]
                measured = torch.tensor([errors(pipe, *clip, sigma, noise, on) for clip, noise in zip(clips, noises)])
                rows.append(
                    dict(
                        camera=camera,
                        sigma=sigma,
                        adapter=on,
                        error=measured[:, 0].mean().item(),
                        ground=measured[:, 1].nanmean().item(),
                    )
                )
                print(rows[-1], flush=True)
    write_record(
        args.out,
        command="python benchmarks/levels.py",
        clips=args.clips,
        device="cpu",
        torch=torch.__version__,
        rows=rows,
    )


if __name__ == "__main__":
    main()
