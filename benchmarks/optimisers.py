"""Which optimiser, and does the second loss help? Short trainings of the cartoon world on one core of a CPU, from the
same start on the same clips: an adapter on the embedded base, and a UNet from nothing.

    python benchmarks/optimisers.py [--only ROW ...] [--steps 600] [--out benchmarks/results/optimisers.json]       some
    minutes a row

Held-out figures: at five noise levels, the weighted mean square of the error, and of what it does between neighbouring
frames.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from tav_nb.evaluation.records import write_record
from tav_nb.models.base import EMBEDDED
from tav_nb.models.temporal_unet import add_temporal, train_only_temporal
from tav_nb.sampling.noise import correlated_noise
from tav_nb.toy.rendering import render
from tav_nb.toy.scenes import random_scene
from tav_nb.toy.tiny_model import load_tiny, make_scheduler, make_unet
from tav_nb.toy.train_unet import alphas_cumprod, default_generator
from tav_nb.toy.training_data import embed_tokens, images_to_latents, read_captions
from tav_nb.toy.training_loop import FitSettings, fit_parameters, split_for_muon
from tav_nb.training.losses import (
    LossSettings,
    adapter_loss,
    clip_errors,
    draw_timesteps,
    noisy_and_target,
    predict_clips,
    timestep_density,
    timestep_weights,
)

CLIPS, UNSEEN, FRAMES, AT, IDS = 1500, 64, 8, (200, 400, 600, 800, 950), torch.tensor([64.0, 64, 0, 0, 64, 64])
ROWS = {  # name: (what is trained, rate of Muon or None for Adam alone, rate of Adam, weight of the second loss)
    "adapter, Adam 1e-3": ("adapter", None, 1e-3, 0.0),
    "adapter, Adam 2e-3": ("adapter", None, 2e-3, 0.0),
    "adapter, Adam 4e-3": ("adapter", None, 4e-3, 0.0),
    "adapter, Adam 8e-3": ("adapter", None, 8e-3, 0.0),
    "adapter, Muon 6e-3": ("adapter", 6e-3, 1e-2, 0.0),
    "adapter, Muon 6e-3, neighbours 1": ("adapter", 6e-3, 1e-2, 1.0),
    "adapter, Muon 6e-3, neighbours 3": ("adapter", 6e-3, 1e-2, 3.0),
    "UNet, Adam 1e-3": ("unet", None, 1e-3, 0.0),
    "UNet, Adam 2e-3": ("unet", None, 2e-3, 0.0),
    "UNet, Adam 4e-3": ("unet", None, 4e-3, 0.0),
    "UNet, Muon 4e-3": ("unet", 4e-3, 2e-3, 0.0),
}


def clips_of(pipe):
    "Latents `[N, 8, 4, 8, 8]` and embeds of training scenes, all 64 pixels wide"
    latents = torch.cat(
        [
            images_to_latents(pipe.vae, torch.from_numpy(render(random_scene(seed, "train"), FRAMES, 64, 64).frames))[
                None
            ]
            for seed in range(CLIPS + UNSEEN)
        ]
    )
    tokens, pooled = embed_tokens(pipe, [read_captions(1, "train", seed) for seed in range(CLIPS + UNSEEN)])
    return dict(latents=latents, prompt_embeds=tokens[:, 0].float(), pooled=pooled[:, 0].float(), time_ids=IDS)


def loss_weights():
    return timestep_weights(alphas_cumprod("cpu"), "v_prediction", "min-snr-x0")


def some(clips, i):
    return {name: value if name == "time_ids" else value[i] for name, value in clips.items()}


@torch.no_grad()
def held_out(unet, clips):
    "`{t: [error, of frame differences]}` on the clips that were not seen, with fixed noise"
    unseen, losses, a, weights = some(clips, slice(CLIPS, None)), {}, alphas_cumprod("cpu"), loss_weights()
    for t in AT:
        noise = correlated_noise(unseen["latents"].shape, "progressive", 1.0, torch.Generator().manual_seed(t))
        times = torch.full((UNSEEN,), t)
        noisy, target = noisy_and_target(unseen["latents"], noise, a, times, "v_prediction")
        error = predict_clips(unet, noisy, times, unseen) - target
        plain, both = clip_errors(error).mean(), clip_errors(error, 1.0).mean()
        losses[t] = [round(x.item() * weights[t].item(), 5) for x in (plain, both - plain)]
    return losses


def run(row, clips, steps):
    kind, muon, adam, temporal_difference_weight = ROWS[row]
    torch.manual_seed(0)
    unet = load_tiny(EMBEDDED).unet if kind == "adapter" else make_unet()
    if kind == "adapter":
        add_temporal(unet, max_frames=FRAMES), train_only_temporal(unet)
    generator, scheduler, weights = default_generator("cpu"), make_scheduler(), loss_weights()
    density = timestep_density(alphas_cumprod("cpu"), "high-noise")
    settings = LossSettings(
        "progressive", 1.0, caption_dropout=0.0, temporal_difference_weight=temporal_difference_weight
    )

    def loss_of():
        if kind == "adapter":
            return adapter_loss(
                unet,
                scheduler,
                some(clips, torch.randint(CLIPS, (4,))),
                generator,
                settings,
                density,
                weights,
            )
        batch = some(clips, torch.randint(CLIPS, (32,)))
        batch["latents"] = batch["latents"][torch.arange(32), torch.randint(FRAMES, (32,))][:, None]
        return single(unet, batch, generator, weights)

    matrices, rest = split_for_muon((name, p) for name, p in unet.named_parameters() if p.requires_grad)
    start = time.time()
    log = fit_parameters(
        row,
        (
            [dict(params=rest, weight_decay=0.0)]
            if muon
            else [
                dict(params=rest, lr=10 * adam if kind == "adapter" else adam, weight_decay=0.0),
                dict(params=matrices),
            ]
        ),
        loss_of,
        FitSettings(adam, 0, steps, ema_decay=0.99, matrix_lr=muon or 0.0, log_every=50),
        matrices if muon else (),
    )
    if kind == "unet":
        add_temporal(unet, max_frames=FRAMES)  # silent: it only lets frames come as clips
    return dict(held_out=held_out(unet, clips), losses=[loss for _, _, loss in log], seconds=round(time.time() - start))


def single(unet, batch, generator, weights):
    "The loss of single frames"
    times = draw_timesteps(len(batch["latents"]), torch.ones(1000), generator)
    noisy, target = noisy_and_target(
        batch["latents"], torch.randn(batch["latents"].shape), alphas_cumprod("cpu"), times, "v_prediction"
    )
    cond = dict(text_embeds=batch["pooled"], time_ids=IDS.expand(len(times), -1))
    out = unet(noisy[:, 0], times, encoder_hidden_states=batch["prompt_embeds"], added_cond_kwargs=cond).sample
    return ((out - target[:, 0]).square().mean((1, 2, 3)) * weights[times]).mean()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/optimisers.json"))
    parser.add_argument("--only", nargs="*", default=list(ROWS))
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    torch.set_num_threads(1)
    clips = clips_of(load_tiny(EMBEDDED))
    result = (
        json.loads(args.out.read_text())
        if args.out.exists()
        else dict(
            command="python benchmarks/optimisers.py",
            device="one core, x86_64",
            torch=torch.__version__.split("+")[0],
            steps=args.steps,
            rows={},
        )
    )
    for row in args.only:
        result["rows"][row] = run(row, clips, args.steps)
        print(row, result["rows"][row], flush=True)
        write_record(args.out, ("text", "vae", "unet"), **result)


if __name__ == "__main__":
    main()
