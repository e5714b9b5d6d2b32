"""What information do the temporal layers receive from a base? A linear probe on their inputs, averaged over the frame,
predicts how the camera moves and how long drawings are held.

    python benchmarks/probe_accuracy.py [--model FOLDER] [--name ROW] [--out results/tiny_probe_accuracy.json]

Two minutes on a core.

The base runs without an adapter on 1,000 single frames under noise of sigma 8; a logistic regression is fitted on 700
of them and evaluated on 300. The camera is evaluated only in scenes without walking, because the caption of a walking
character would reveal it. Rows of other bases in the file stay.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from tav_nb.evaluation.records import write_record
from tav_nb.models.base import EMBEDDED
from tav_nb.toy.captions import caption
from tav_nb.toy.rendering import render
from tav_nb.toy.scenes import random_scene
from tav_nb.toy.tiny_model import SIZE, load_tiny
from tav_nb.toy.train_unet import ProbedUNet, alphas_cumprod
from tav_nb.toy.training_data import ATTRIBUTES, attribute_targets, embed_captions, images_to_latents


def probe_accuracy(x, y, train_fraction=0.7):
    "Accuracy of a logistic regression, fitted on the first samples, on the others; and that of the most frequent class"
    x, y, m = (x - x.mean(0)) / (x.std(0) + 1e-6), y - y.min(), int(train_fraction * len(y))
    weight, bias = (
        torch.zeros(x.shape[1], int(y.max()) + 1, requires_grad=True),
        torch.zeros(int(y.max()) + 1, requires_grad=True),
    )
    steps = torch.optim.LBFGS([weight, bias], max_iter=100)

    def loss():
        steps.zero_grad()
        value = F.cross_entropy(x[:m] @ weight + bias, y[:m]) + 0.01 * weight.square().sum()
        value.backward()
        return value

    steps.step(loss)
    return ((x[m:] @ weight + bias).argmax(1) == y[m:]).float().mean().item(), (
        y[m:].bincount().max() / len(y[m:])
    ).item()


@torch.no_grad()
def layer_inputs(pipe, scenes, sigma=8, batch=50):
    "Inputs of the temporal layers, `{block: [scenes, channels]}`"
    probed, a = ProbedUNet(pipe.unet), alphas_cumprod("cpu")
    t = int((((1 - a) / a).sqrt() - sigma).abs().argmin())
    parts = []
    for some in torch.arange(len(scenes)).split(batch):
        embeds, pooled = embed_captions(pipe, [caption(scenes[i], int(i), complete=True) for i in some])
        z = images_to_latents(
            pipe.vae, torch.from_numpy(np.concatenate([render(scenes[i], 1, SIZE, SIZE).frames for i in some]))
        )
        noisy = a[t].sqrt() * z + (1 - a[t]).sqrt() * torch.randn(
            z.shape, generator=torch.Generator().manual_seed(int(some[0]))
        )
        parts.append(
            probed(
                noisy,
                torch.full((len(some),), t),
                embeds,
                pooled,
                torch.tensor([SIZE, SIZE, 0, 0, SIZE, SIZE]).float().expand(len(some), 6),
            )[1]
        )
    return dict(zip(probed.names, map(torch.cat, zip(*parts))))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="folder of a base (default: the one that ships)")
    parser.add_argument("--name", default="the base that ships", help="of the row")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tiny_probe_accuracy.json"))
    args = parser.parse_args()
    scenes = [random_scene(10**7 + i, "train") for i in range(args.scenes)]
    targets, names = attribute_targets(scenes), list(ATTRIBUTES)
    stays = torch.tensor([s.action in ("jump", "wave", "stand", "dance") for s in scenes])
    row = {}
    for block, x in layer_inputs(load_tiny(args.model), scenes).items():
        camera, hold = (
            probe_accuracy(x[stays], targets[stays][:, names.index("camera")]),
            probe_accuracy(x, targets[:, names.index("hold")]),
        )
        row[block] = dict(camera=round(camera[0], 3), hold=round(hold[0], 3))
        print(f"{block:70} camera {camera[0]:.3f} hold {hold[0]:.3f}", flush=True)
    record = (
        json.loads(args.out.read_text())
        if args.out.exists()
        else dict(
            command="python benchmarks/probe_accuracy.py",
            device="cpu",
            torch=torch.__version__.split("+")[0],
            scenes=args.scenes,
            sigma=8,
            chance=dict(camera=round(camera[1], 3), hold=round(hold[1], 3)),
            rows={},
        )
    )
    record["rows"][args.name] = row
    write_record(args.out, ("text", "vae", "unet"), **record)


if __name__ == "__main__":
    main()
