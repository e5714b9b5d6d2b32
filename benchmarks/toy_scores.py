"Videos of scenes of the cartoon world that are in no training, and what its reader finds in them."

from pathlib import Path

import numpy as np
import torch

from tav_nb.sampling.guidance import Guidance
from tav_nb.toy.captions import caption
from tav_nb.toy.reader import score_readings
from tav_nb.toy.scenes import random_scene
from tav_nb.toy.tiny_sdxl import GUIDANCE, sample_latents
from tav_nb.toy.training_data import latents_to_images

SCENES = dict(validation=3 * 10**8, test=6 * 10**8)  # where the seeds begin


def draw_scenes(n, first):
    "Scenes of the seeds from `first` on, every second one with a held-out combination, and their captions"
    scenes = [random_scene(first + i, ("held out", "train")[i % 2]) for i in range(n)]
    return scenes, [caption(scene, first + i, complete=True) for i, scene in enumerate(scenes)]


@torch.no_grad()
def sample_frames(pipe, captions, noise, steps=20, guidance: Guidance = GUIDANCE, scheduler=None):
    "Videos for captions, uint8 [N, F, H, W, 3]; on a GPU 64 at once and in bfloat16"
    device, num_frames = pipe.unet.device.type, noise.shape[1]
    chunk = 64 if device == "cuda" else 1
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        latents = sample_latents(pipe, captions, noise, num_frames, steps, guidance, chunk, scheduler)
    frames = latents_to_images(pipe.vae, latents.float().flatten(0, 1), 2 * chunk).cpu().numpy()
    return frames.reshape(len(noise), num_frames, *frames.shape[1:])


def mean_scores(scenes, readings):
    "The shares and means of `score_readings`, without intervals, and standard errors of means; None is not a number"
    scores = score_readings(scenes, readings)
    values = {name: value[0] if isinstance(value, tuple) else value for name, value in scores.items()}
    smooth = [r.jitter for scene, r in zip(scenes, readings) if scene.hold == 1 and scene.action != "dance"]
    errors = dict(jitter=standard_error(smooth), drift=standard_error([r.drift for r in readings]))
    values |= {f"{name}_standard_error": value for name, value in errors.items()}
    return {name: None if value != value else round(value, 4) for name, value in values.items()}


def standard_error(values):
    "Of the mean of those values that are numbers"
    finite = np.array(values)[np.isfinite(values)]
    return float(finite.std(ddof=1) / len(finite) ** 0.5) if len(finite) > 1 else float("nan")


def save_sheet(frames, path: Path | str) -> None:
    "An image of six videos, six frames of each"
    from PIL import Image

    some = frames[1:12:2, ::3]
    Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in some])).save(path)
