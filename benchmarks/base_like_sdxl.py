"""A tiny SDXL whose first level has no attention, as SDXL's own first level: from the one of the package.

python benchmarks/base_like_sdxl.py FOLDER [--seconds 150] [--out benchmarks/results/base_like_sdxl.json]
python benchmarks/base_like_sdxl.py FOLDER --toy     two updates on the CPU

The weights that both have are copied, and the UNet is trained on single frames as the stage `base` does. The folder is
for `benchmarks/ablation.py --base FOLDER`, which then also says something of layers at full latent resolution.
"""

import argparse
import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from tav_nb.evaluation.records import environment, write_record
from tav_nb.models.base import load_pipeline, tensors_hash
from tav_nb.toy.tiny_model import save_tiny
from tav_nb.toy.tiny_sdxl import fast_kernels
from tav_nb.toy.train_unet import BaseSettings, train_base


def without_first_attention(unet):
    "The UNet without transformers on its first level, and the share of its weights that are copied"
    config = dict(unet.config)
    config["down_block_types"] = ["DownBlock2D", *config["down_block_types"][1:]]
    config["up_block_types"] = [*config["up_block_types"][:-1], "UpBlock2D"]
    smaller = UNet2DConditionModel.from_config(config)
    weights = unet.state_dict()
    common = {name: weights[name] for name, p in smaller.state_dict().items() if weights[name].shape == p.shape}
    missing = smaller.load_state_dict(common, strict=False).missing_keys
    assert not missing, missing
    return smaller


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/base_like_sdxl.json"))
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    device, settings = "cuda", BaseSettings(seconds=args.seconds)
    if args.toy:
        device, settings = "cpu", BaseSettings(scenes=8, frames=(0,), batch=2, steps=2)
    pipe = load_pipeline()
    before = sum(p.numel() for p in pipe.unet.parameters())
    pipe.unet = without_first_attention(pipe.unet)
    pipe.unet.requires_grad_(True).train()
    with fast_kernels():
        log = train_base(pipe, settings, device, workers=1 if args.toy else 16)
    save_tiny(pipe, args.folder)
    values = dict(
        command=" ".join(sys.argv),
        **environment(device),
        parameters=sum(p.numel() for p in pipe.unet.parameters()),
        parameters_of_the_package=before,
        unet_weights=tensors_hash(load_pipeline(args.folder).unet.parameters()),
        log=log,
    )
    if not args.toy:
        write_record(args.out, ("text", "vae"), **values)
    print({name: value for name, value in values.items() if name != "log"})


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
