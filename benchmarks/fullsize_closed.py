"""Full-size SDXL (random weights, fp16, one GPU): a closed adapter changes nothing, an open one does, and taking it out
leaves SDXL.

python benchmarks/fullsize_closed.py [--out benchmarks/results/fullsize_closed.json]
"""

import argparse
import json
import time
from pathlib import Path

import diffusers
import torch
from diffusers import UNet2DConditionModel
from sdxl_config import UNET

from tav_nb.evaluation.records import write_record
from tav_nb.models.temporal_unet import add_temporal, remove_temporal, temporal_modules


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fullsize_closed.json"))
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"):
        unet = UNet2DConditionModel(**UNET).eval().requires_grad_(False)
        frames, size = 8, 96
        x = torch.randn(frames, 4, size, size)
        call = dict(
            encoder_hidden_states=torch.randn(frames, 77, 2048),
            added_cond_kwargs=dict(text_embeds=torch.randn(frames, 1280), time_ids=torch.full((frames, 6), 768.0)),
        )
        t = torch.tensor(500)
        keys = set(unet.state_dict())

        def forward(**kwargs):
            with torch.inference_mode():
                unet(x, t, **call, **kwargs)  # warm up
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            with torch.inference_mode():
                out = unet(x, t, **call, **kwargs).sample
            torch.cuda.synchronize()
            return out, dict(
                milliseconds=round(1e3 * (time.perf_counter() - start), 1),
                peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2),
            )

        stock, cost_stock = forward()
        add_temporal(unet)
        layers = temporal_modules(unet)
        counts = {name: 0 for name in layers}
        hooks = [
            layer.to_qkv.register_forward_hook(lambda *_, name=name: counts.__setitem__(name, counts[name] + 1))
            for name, layer in layers.items()
        ]
        closed, _ = forward(num_frames=frames)
        called = sorted(set(counts.values()))
        without, _ = forward()
        for hook in hooks:
            hook.remove()
        _, cost_adapter = forward(num_frames=frames)
        for layer in layers.values():
            torch.nn.init.normal_(layer.proj.weight, std=0.02)
        opened, _ = forward(num_frames=frames)
        added = {k for k in unet.state_dict() if k not in keys}
        parameters = sum(p.numel() for layer in layers.values() for p in layer.parameters())
        remove_temporal(unet)
        removed, _ = forward()
    result = dict(
        command="python benchmarks/fullsize_closed.py",
        device=torch.cuda.get_device_name(),
        torch=torch.__version__,
        diffusers=diffusers.__version__,
        frames=frames,
        pixels=8 * size,
        finite=bool(stock.isfinite().all()),
        layers=len(layers),
        parameters=parameters,
        every_key_says_temporal_attn=all("temporal_attn" in k for k in added),
        calls_of_each_layer_in_two_forwards=called,
        closed_bit_equal=torch.equal(stock, closed),
        without_num_frames_bit_equal=torch.equal(stock, without),
        open_changes=not torch.equal(stock, opened),
        removed_bit_equal=torch.equal(stock, removed),
        removed_keys_equal=set(unet.state_dict()) == keys,
        stock=cost_stock,
        with_adapter=cost_adapter,
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_record(args.out, (), **result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
