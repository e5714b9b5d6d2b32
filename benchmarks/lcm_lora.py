"""An LCM LoRA for few steps (arXiv 2311.05556), distilled on images of the embedded base without its adapter: what does
it do to videos of base and adapter?

python benchmarks/lcm_lora.py [--out benchmarks/results/lcm_lora.json] [--sheets FOLDER]   three minutes on a GPU
python benchmarks/lcm_lora.py --toy     two updates, two scenes, on the CPU

Rows: without the LoRA by DPM++ 2M Karras, as `tav generate` does; with it by DPM++ 2M Karras; with it by the LCM
scheduler, whose noise within the steps is correlated as `generate` has it, or independent as in diffusers.
"""

import argparse
import os
import sys
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import LCMScheduler
from few_steps import video_quality
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from toy_scores import SCENES, draw_scenes, mean_scores, sample_frames, save_sheet

from tav_nb.evaluation.records import environment, write_record
from tav_nb.models.adapter_file import EMBEDDED_ADAPTER, load_adapter
from tav_nb.models.base import EMBEDDED
from tav_nb.models.messages import quiet
from tav_nb.models.scheduler import SDXLAnime_BestHQScheduler
from tav_nb.sampling.generate import resolve_noise
from tav_nb.sampling.guidance import Guidance
from tav_nb.sampling.lora import load_loras
from tav_nb.sampling.step_noise import DrawnNoise
from tav_nb.toy.reader import read_scene
from tav_nb.toy.scenes import random_scene
from tav_nb.toy.tiny_model import FRAMES, SIZE, load_tiny
from tav_nb.toy.tiny_sdxl import GUIDANCE, start_noise
from tav_nb.toy.training_data import embed_tokens, images_to_latents, read_captions, render_frames, worker_pool

LAYERS = (
    r".*(attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2)|proj_in|proj_out"
    r"|conv1|conv2|conv_shortcut|time_emb_proj|samplers\.0\.conv)"
)  # as LCM-LoRA has them
DDIM_STEPS, TIMESTEP_SCALING, SIGMA_DATA = 50, 10.0, 0.5  # as in LCM and in diffusers' LCMScheduler


def make_images(pipe, clips, pool, device):
    "Latents [N, F, 4, 16, 16] and embeddings of captions of training clips"
    scenes = [random_scene(seed, "train") for seed in range(clips)]
    drawn, latents = iter(pool.imap(partial(render_frames, FRAMES), scenes, chunksize=8)), []
    for _ in range(clips):
        latents.append(images_to_latents(pipe.vae, torch.from_numpy(next(drawn))).cpu())
    tokens = pool.map(partial(read_captions, 3, "train"), range(clips), chunksize=16)
    with torch.no_grad():
        embeds, pooled = embed_tokens(pipe, tokens)
    return torch.stack(latents).to(device), embeds.float(), pooled.float()


class Consistency:
    "The consistency function of LCM, and one DDIM step of the guided teacher"

    def __init__(self, scheduler, device):
        self.a = scheduler.alphas_cumprod.to(device)
        self.times = torch.arange(1, DDIM_STEPS + 1, device=device) * (len(self.a) // DDIM_STEPS) - 1
        self.before = torch.cat([self.times.new_zeros(1), self.times[:-1]])

    def clean(self, v, x, t):
        a = self.a[t].view(-1, 1, 1, 1)
        return a.sqrt() * x - (1 - a).sqrt() * v

    def noise(self, v, x, t):
        a = self.a[t].view(-1, 1, 1, 1)
        return a.sqrt() * v + (1 - a).sqrt() * x

    def add_noise(self, clean, noise, t):
        a = self.a[t].view(-1, 1, 1, 1)
        return a.sqrt() * clean + (1 - a).sqrt() * noise

    def function(self, v, x, t):
        scaled = (t * TIMESTEP_SCALING).view(-1, 1, 1, 1).float()
        skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        return skip * x + scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5 * self.clean(v, x, t)


def distill(pipe, teacher, images, args):
    "Train a LoRA in the UNet of `pipe`; returns its tensors and a record"
    device = args.device
    latents, embeds, pooled = images
    unet, consistency = pipe.unet.requires_grad_(False), Consistency(pipe.scheduler, device)
    unet.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=LAYERS))
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.0)
    size = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], device=device).expand(args.batch, 6)

    def call(model, x, t, text, pool):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return model(x, t, text, added_cond_kwargs=dict(text_embeds=pool, time_ids=size)).sample.float()

    losses, step, start = [], 0, time.perf_counter()
    while (used := (time.perf_counter() - start) / args.seconds) < 1 and step < args.updates:
        which = torch.randint(len(latents), (args.batch,), device=device)
        frame = torch.randint(latents.shape[1], (args.batch,), device=device)
        way = torch.randint(embeds.shape[1], (args.batch,), device=device)
        text, pool = embeds[which, way], pooled[which, way]
        index = torch.randint(DDIM_STEPS, (args.batch,), device=device)
        t, t_before = consistency.times[index], consistency.before[index]
        clean = latents[which, frame]
        x = consistency.add_noise(clean, torch.randn_like(clean), t)
        with torch.no_grad():
            conditional = call(teacher, x, t, text, pool)
            unconditional = call(teacher, x, t, torch.zeros_like(text), torch.zeros_like(pool))
            v = unconditional + args.scale * (conditional - unconditional)
            x_before = consistency.add_noise(consistency.clean(v, x, t), consistency.noise(v, x, t), t_before)
            target = consistency.function(call(unet, x_before, t_before, text, pool), x_before, t_before)
        found = consistency.function(call(unet, x, t, text, pool), x, t)
        loss = (((found - target) ** 2 + 1e-6).sqrt() - 1e-3).mean()  # Huber's, as in LCM
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 50) * (1 - used)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            losses.append((step, round(loss.item(), 4)))
            print("step", *losses[-1], flush=True)
        step += 1
    record = dict(updates=step, seconds=round(time.perf_counter() - start, 1), losses=losses)
    tensors = {f"unet.{key}": value.cpu() for key, value in get_peft_model_state_dict(unet).items()}
    return tensors, record | dict(parameters=sum(p.numel() for p in parameters))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="of the training")
    parser.add_argument("--updates", type=int, default=10**6, help="of the training at most")
    parser.add_argument("--batch", type=int, default=256, help="images")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--scale", type=float, default=GUIDANCE.scale, help="of the teacher's guidance")
    parser.add_argument("--clips", type=int, default=1000, help="of which images are taken")
    parser.add_argument("--videos", type=int, default=256, help="scenes of the report")
    parser.add_argument("--steps", type=int, nargs="+", default=(4, 8))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="that draw and read")
    parser.add_argument("--sheets", type=Path, help="folder for images of some frames of each row")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/lcm_lora.json"))
    args = parser.parse_args()
    if args.toy:
        args.updates, args.batch, args.clips, args.videos, args.steps = 2, 2, 2, 2, (2,)
        args.device, args.workers, args.seconds = "cpu", 1, 600
    if args.sheets:
        args.sheets.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    pipe, teacher = load_tiny(EMBEDDED, args.device), load_tiny(EMBEDDED, args.device).unet
    with worker_pool(args.workers) as pool, tempfile.TemporaryDirectory() as folder:
        images = make_images(pipe, args.clips, pool, args.device)
        tensors, training = distill(pipe, teacher, images, args)
        save_file(tensors, path := Path(folder, "lcm.safetensors"))
        pipe = load_tiny(EMBEDDED, args.device)
        load_adapter(pipe.unet, EMBEDDED_ADAPTER)
        rows = score_rows(pipe, path, pool, args)
    write_record(
        args.out,
        command="python " + " ".join(sys.argv).split(" --out")[0].split(" --sheets")[0],
        **{name: getattr(args, name) for name in ("batch", "rank", "lr", "scale", "clips", "videos")},
        **environment(args.device),
        training=training,
        rows=rows,
    )


def score_rows(pipe, path, pool, args):
    "What is found in videos with the LoRA of a file and without"
    first, one_call = SCENES["test"], Guidance(1.0)
    scenes, captions = draw_scenes(args.videos, first)
    kind, strength = resolve_noise(pipe)
    noise = start_noise(args.videos, kind, strength, seed=first // 10**8)
    with quiet():
        lcm = LCMScheduler.from_config(pipe.scheduler.config)
    ours, rows = SDXLAnime_BestHQScheduler.from_config(pipe.scheduler.config), []
    plan = [
        ("no LoRA, DPM++ 2M Karras, no guidance", 0.0, ours, one_call, None),
        ("no LoRA, DPM++ 2M Karras, guidance by the prompt", 0.0, ours, Guidance(GUIDANCE.scale, 0.5), None),
        ("LoRA, DPM++ 2M Karras", 1.0, ours, one_call, None),
        ("LoRA, LCM, independent noise", 1.0, lcm, one_call, ("independent", None)),
        ("LoRA, LCM, the adapter's noise", 1.0, lcm, one_call, (kind, strength)),
    ]
    for steps in args.steps:
        for name, weight, scheduler, guidance, step_noise in plan:
            load_loras(pipe, [(path, weight)] if weight else [])
            draws = 0

            def draw(shape, step_noise=step_noise):
                nonlocal draws
                draws += 1
                return start_noise(shape[0] // FRAMES, *step_noise, seed=1000 + draws).flatten(0, 1)

            with DrawnNoise(draw) if step_noise else nullcontext():
                frames = sample_frames(pipe, captions, noise, steps, guidance, scheduler)
            readings = pool.map(read_scene, list(frames), chunksize=4)
            qualities = [video_quality(*pair) for pair in zip(scenes, readings)]
            rows.append(
                dict(
                    name=name,
                    steps=steps,
                    quality=round(float(np.mean(qualities)), 4),
                    error=round(float(np.std(qualities) / len(qualities) ** 0.5), 4),
                    score=mean_scores(scenes, readings),
                )
            )
            print(steps, name, rows[-1]["quality"], flush=True)
            if args.sheets:
                save_sheet(frames, args.sheets / f"{steps}-{name.replace(', ', '-').replace(' ', '_')}.png")
    load_loras(pipe, [])
    return rows


if __name__ == "__main__":
    main()
