"""Damaged folders of models, LoRAs, words and ControlNets: each is refused in one line, or makes the frames that the
undamaged one makes.

    python benchmarks/faults/weights.py [--count 80] [--seed 0] [--workers 2]

Each case copies the tiny SDXL, damages one file of it or beside it, and runs `tav generate` with two frames of 64 x 64
pixels and two steps, within 60 s and 3 GiB. "silent" means that a video was made whose frames are others, although the
damage can be noticed: a tensor with NaN, a tensor that is missing, a file that is cut off, a pickle. A value in a JSON
file that is another valid value makes another valid model; there only the end of the command counts.
"""

import json
import os
import pickle
import random
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import torch
from bounds import TAV, options, record, run_bounded
from safetensors.torch import load_file, save_file

import tav_nb
from tav_nb.models.temporal_unet import temporal_blocks
from tav_nb.utils.video_loading import read_video

MODEL = Path(tav_nb.__file__).parent / "weights" / "tiny-sdxl"
ADAPTER = MODEL.parent / "tiny-adapter" / "temporal_adapter.safetensors"
SECONDS, GIB = 60.0, 3.0


def make_lora(path: Path):
    "A LoRA of rank 2 for the queries of every cross-attention, in diffusers' names"
    unet = diffusers.UNet2DConditionModel.from_pretrained(MODEL / "unet")
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, block in temporal_blocks(unet).items():
        width = block.attn2.to_q.in_features
        tensors[f"unet.{name}.attn2.to_q.lora_A.weight"] = torch.randn(2, width, generator=generator) * 0.1
        tensors[f"unet.{name}.attn2.to_q.lora_B.weight"] = torch.randn(width, 2, generator=generator) * 0.1
    save_file(tensors, path)
    return unet


def make_inputs(folder: Path):
    "A LoRA, a new word and a ControlNet with its video, none of them damaged"
    unet = make_lora(folder / "lora.safetensors")
    widths = [
        json.loads((MODEL / part / "config.json").read_text())["hidden_size"]
        for part in ("text_encoder", "text_encoder_2")
    ]
    save_file(
        {name: torch.full((1, width), 0.1) for name, width in zip(("clip_l", "clip_g"), widths, strict=True)},
        folder / "word.safetensors",
    )
    diffusers.ControlNetModel.from_unet(unet).save_pretrained(folder / "control")


def damage_json(rng, data):
    "One way in which a JSON file is damaged, and its name"
    content = json.loads(data)
    names = [name for name in content if not name.startswith("_")]
    name = rng.choice(names)
    ways = {
        "cut off": lambda: data[: rng.randrange(len(data) - 2)],
        "empty": lambda: b"",
        "not UTF-8": lambda: b"\xff\xfe" + data,
        "nested": lambda: b"[" * 100_000,
        "a list": lambda: json.dumps([content]).encode(),
        "another type": lambda: json.dumps(
            content | {name: rng.choice([None, "text", [1, [2]], {"a": 1}, -1])}
        ).encode(),
        "a huge number": lambda: json.dumps(content | {name: 10**12}).encode(),
        "a key missing": lambda: json.dumps({key: value for key, value in content.items() if key != name}).encode(),
    }
    way = rng.choice(list(ways))
    return way, ways[way](), way in ("cut off", "empty", "not UTF-8", "nested", "a list")


def damage_tensors(rng, path):
    "The same for a safetensors file"
    data, tensors = path.read_bytes(), load_file(path)
    name = rng.choice(sorted(tensors))
    header = int.from_bytes(data[:8], "little")
    index = rng.randrange(8, 8 + header)
    away = {key: value for key, value in tensors.items() if key != name}
    ways = {
        "cut off": lambda: data[: rng.randrange(len(data))],
        "empty": lambda: b"",
        "a pickle": lambda: pickle.dumps({"a": 1}),
        "a header that is longer than the file": lambda: (2**60).to_bytes(8, "little") + data[8:],
        "a byte of the header": lambda: data[:index] + bytes([data[index] ^ 0x20]) + data[index + 1 :],
        "a tensor with NaN": lambda: saved(tensors | {name: torch.full_like(tensors[name], float("nan"))}),
        "a tensor missing": lambda: saved(away),
        "a tensor of another shape": lambda: saved(tensors | {name: tensors[name].flatten()[:1].clone()}),
    }
    way = rng.choice(list(ways))
    return way, ways[way](), way != "a byte of the header"


def saved(tensors):
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, f"{folder}/x.safetensors", metadata={"format": "pt"})
        return Path(folder, "x.safetensors").read_bytes()


def command(what, folder, inputs, out):
    "The command that uses the damaged model or file in `folder`"
    model = folder if what == "model" else MODEL
    words = [
        *TAV,
        "generate",
        "a girl with red hair walks to the left",
        "--model",
        model,
        "--adapter",
        ADAPTER,
        "--num-frames",
        "2",
        "--steps",
        "2",
        "--seed",
        "1",
    ]
    words += ["--height", "64", "--width", "64", "--guidance-scale", "1", "-o", out]
    words += {
        "model": [],
        "lora": ["--lora", folder / "lora.safetensors"],
        "word": ["--textual-inversion", folder / "word.safetensors"],
    }.get(what, [])
    return words + (
        ["--controlnet", folder / "control", "--control", inputs / "clip"]
        if what == "control"
        else ["--temporal-guidance", "0"]
    )


def link_or_copy(source, target):
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copy(source, target)


def copy(what, inputs, folder):
    "A copy of the undamaged model or file in a folder of its own, in which files can be replaced"
    if what == "model":
        shutil.copytree(MODEL, folder, copy_function=link_or_copy)
    elif what == "control":
        shutil.copytree(inputs / "control", folder / "control")
    else:
        folder.mkdir()
        shutil.copy(inputs / f"{what}.safetensors", folder)


def trial(job):
    number, what, folder, inputs, kind, noticeable, expected = job
    out = folder.with_name(f"out{number}")
    row = run_bounded(
        command(what, folder, inputs, out),
        SECONDS,
        GIB,
        cwd=inputs,
        env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    if row["outcome"] == "done" and noticeable and not (read_video(out)[0] == expected[what]).all():
        row["outcome"] = "silent"
    if row["outcome"] == "refused" and out.exists():
        row["outcome"] = "lost"
    shutil.rmtree(folder)
    return dict(kind=kind, number=number, **row)


def main():
    args = options(__doc__, "weights", count=80, workers=2)
    rng, jobs, expected = random.Random(args.seed), [], {}
    with tempfile.TemporaryDirectory() as home:
        inputs = Path(home) / "inputs"
        inputs.mkdir()
        make_inputs(inputs)
        for what in ("model", "lora", "word", "control"):
            copy(what, inputs, Path(home) / what)
            out = inputs / ("clip" if what == "model" else f"good-{what}")
            row = run_bounded(command(what, Path(home) / what, inputs, out), 5 * SECONDS, GIB, cwd=inputs)
            assert row["outcome"] == "done", (what, row)
            expected[what] = read_video(out)[0]
        for number in range(args.count):
            what = rng.choice(("model", "model", "model", "lora", "word", "control"))
            folder = Path(home) / f"case{number}"
            copy(what, inputs, folder)
            file = rng.choice(sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")))
            way, data, noticeable = (
                damage_json(rng, file.read_bytes()) if file.suffix == ".json" else damage_tensors(rng, file)
            )
            file.unlink()  # it may be a link to what ships
            file.write_bytes(data)
            jobs.append((number, what, folder, inputs, f"{what}, {file.suffix[1:]}: {way}", noticeable, expected))
        with ThreadPoolExecutor(args.workers) as pool:
            rows = list(pool.map(trial, jobs))
    return record(args.out, rows, seed=args.seed, seconds_allowed=SECONDS, gib_allowed=GIB)


if __name__ == "__main__":
    sys.exit(not main())
