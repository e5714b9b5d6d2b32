"""Damages adapter files in seeded ways and loads them: each is refused in one line, or what is loaded is what was
saved.

    python benchmarks/faults/adapter_files.py [--count 150] [--seed 0]

In one process, with a small UNet of random weights. The outcome "silent" means that other values than the saved ones
were loaded.
"""

import json
import pickle
import random
import struct
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from bounds import options, record
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from tav_nb.models.adapter_file import METADATA_TYPES, AdapterError, load_adapter, save_adapter
from tav_nb.models.temporal_unet import add_temporal, remove_temporal, temporal_modules, temporal_state_dict

UNET = dict(
    sample_size=8,
    block_out_channels=(32, 64),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    attention_head_dim=(2, 4),
    norm_num_groups=8,
    cross_attention_dim=64,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=6 * 8 + 32,
)
ABOUT = dict(
    noise="mixed",
    noise_strength=1.0,
    prediction_type="epsilon",
    resolution=[64, 64],
    fps=8,
    num_frames=8,
    author="nobody",
)


def make(rng):
    "A UNet whose adapter has random weights"
    torch.manual_seed(rng.randrange(2**31))
    unet = add_temporal(UNet2DConditionModel(**UNET).eval())
    for layer in temporal_modules(unet).values():
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return unet


def split(content):
    "Header as JSON, and what follows it"
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header, rest):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + rest


def flipped(content, rng, path):
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def flipped_header(content, rng, path):
    content = bytearray(content)
    (length,) = struct.unpack("<Q", content[:8])
    content[rng.randrange(8 + length)] ^= 1 << rng.randrange(8)
    return bytes(content)


def truncated(content, rng, path):
    return content[: rng.randrange(len(content))]


def lengthened(content, rng, path):
    return content + bytes(rng.randrange(1, 1000))


def edited_structure(content, rng, path):
    header, rest = split(content)
    key = rng.choice([key for key in header if key != "__metadata__"])
    entry, what = header[key], rng.choice(("dtype", "shape", "offsets", "gone", "twice", "renamed"))
    if what == "dtype":
        entry["dtype"] = rng.choice(("I32", "U32", "F16", "BF16", "F64", "F8_E4M3", "nonsense", 7))
    elif what == "shape":
        entry["shape"] = rng.choice(([1], [2**40, 2**40], [-1], list(reversed(entry["shape"])), "wide", []))
    elif what == "offsets":
        entry["data_offsets"] = rng.choice(
            ([0, 2**60], [5, 1], [0, 0], [-8, 8], [entry["data_offsets"][0] + 4, entry["data_offsets"][1] + 4])
        )
    elif what == "gone":
        del header[key]
    elif what == "twice":
        header[f"{key}.more"] = entry
    else:
        header[key.replace("temporal_attn", "temporal\x1b[2J")] = header.pop(key)
    return join(header, rest)


def edited_metadata(content, rng, path):
    header, rest = split(content)
    name = rng.choice(sorted(METADATA_TYPES))
    header["__metadata__"][name] = rng.choice(
        (
            "1",
            "0",
            "-1",
            "1e12",
            str(10**12),
            "1" * 5000,
            "null",
            "true",
            '"x"',
            "[]",
            "{}",
            "NaN",
            "-Infinity",
            "[1, 2]",
            '"\\ud800"',
            "",
            "{",
            '"gate"',
            '"learned"',
            "2",
            "12",
        )
    )
    return join(header, rest)


def other_metadata(content, rng, path):
    header, rest = split(content)
    header["__metadata__"] = rng.choice(
        (None, [], {}, "text", {"format": 7}, {"format": "pt"}, {"format": json.dumps("tav_nb temporal adapter")})
    )
    return join(header, rest)


def nested(content, rng, path):
    header, rest = split(content)
    deep = rng.choice(("[" * 10**5, "[" * 500 + "]" * 500, '{"a":' * 3000 + "1" + "}" * 3000))
    if rng.random() < 0.5:
        header["__metadata__"][rng.choice([*sorted(METADATA_TYPES), "foreign"])] = deep
        return join(header, rest)
    return join(b'{"__metadata__":' + deep.encode() + b"}", rest)


def poisoned(content, rng, path):
    path.write_bytes(content)
    tensors, about = load_file(path), split(content)[0]["__metadata__"]
    tensor = tensors[rng.choice(sorted(tensors))].view(-1)
    tensor[rng.randrange(len(tensor))] = rng.choice((float("nan"), float("inf"), -float("inf"), 1e30, 7.0))
    save_file(tensors, path, metadata=about)
    return path.read_bytes()


def reshaped(content, rng, path):
    path.write_bytes(content)
    tensors, about = load_file(path), split(content)[0]["__metadata__"]
    key = rng.choice(sorted(tensors))
    tensors[key] = rng.choice(
        (
            tensors[key][:1].clone(),
            tensors[key][None].clone(),
            tensors[key].double(),
            tensors[key].int(),
            torch.zeros(0),
        )
    )
    save_file(tensors, path, metadata=about)
    return path.read_bytes()


def pickled(content, rng, path):
    value = rng.choice(({"temporal_attn": 1}, [1] * 1000, "text"))
    if rng.random() < 0.5:
        return pickle.dumps(value, protocol=rng.randrange(5))
    torch.save({"temporal_attn": torch.zeros(3)}, path)
    return path.read_bytes()


def foreign(content, rng, path):
    "Another program's strings, and no damage: this has to load"
    header, rest = split(content)
    header["__metadata__"] |= {
        f"modelspec.{rng.randrange(99)}": rng.choice(("A title", "{", "1", "[" * 10**4, "\x1b[2J", "NaN", ""))
        for _ in range(rng.randrange(1, 5))
    }
    return join(header, rest)


DAMAGES = dict(
    (function.__name__.replace("_", " "), function)
    for function in (
        flipped,
        flipped_header,
        truncated,
        lengthened,
        edited_structure,
        edited_metadata,
        other_metadata,
        nested,
        poisoned,
        reshaped,
        pickled,
        foreign,
    )
)


def judge(unet, path, tensors, about, kind):
    "Outcome of loading a file: `dict(outcome=..., seconds=..., message=...)`"
    start = time.monotonic()
    try:
        metadata = load_adapter(unet, path)
        same = {name: value for name, value in metadata.items() if name in about} == about
        state = temporal_state_dict(unet)
        same = (
            same
            and state.keys() == tensors.keys()
            and all(torch.equal(state[key].double(), value.double()) for key, value in tensors.items())
        )
        outcome, message = ("done" if same else "silent"), ""
    except AdapterError as error:
        message = str(error)
        outcome = (
            "wordy"
            if "\n" in message or "\x1b" in message or len(message) > 1000
            else "silent"
            if temporal_modules(unet)
            else "refused"
        )
        outcome = "over-careful" if kind == "foreign" else outcome
    except Exception as error:  # what the table is about
        outcome, message = "traceback", f"{type(error).__name__}: {error}"
    remove_temporal(unet)
    seconds = round(time.monotonic() - start, 2)
    return dict(outcome="hang" if seconds > 60 else outcome, seconds=seconds, message=message[-300:])


def main():
    args = options(__doc__, "adapter_files", count=150)
    rng, rows = random.Random(args.seed), []
    warnings.simplefilter("error")  # a warning would be more than one line
    with tempfile.TemporaryDirectory() as folder:
        saved = make(rng)
        path = save_adapter(saved, Path(folder) / "whole.safetensors", **ABOUT)
        content, tensors = path.read_bytes(), temporal_state_dict(saved)
        unet = remove_temporal(saved)
        about = load_adapter(unet, path)
        remove_temporal(unet)
        for number in range(args.count):
            kind = list(DAMAGES)[number % len(DAMAGES)]
            file = Path(folder) / f"{number}.safetensors"
            file.write_bytes(DAMAGES[kind](content, rng, file))
            rows.append(dict(kind=kind, number=number, **judge(unet, file, tensors, about, kind)))
            file.unlink()
    sys.exit(not record(args.out, rows, packages=("torch", "safetensors", "msgspec")))


if __name__ == "__main__":
    main()
