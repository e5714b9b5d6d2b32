"""Forged settings inside a video: `tav info`, `--extend` and `tav score` end in one line, use no name of a file or a
model from them, and print no control codes.

python benchmarks/faults/metadata.py               # 300 trials over four formats and three commands, or as many as 5
minutes allow
"""

import json
import os
import random
import shutil
import sys
import tempfile
import time
import unicodedata
from pathlib import Path

from bounds import options, record
from options import Worker

SMALL = ["--num-frames", "1", "--steps", "1", "--guidance-scale", "1", "--temporal-guidance", "0", "-o", "out.webp"]
GOOD = dict(
    prompt="a girl walks",
    negative_prompt=None,
    seed=3,
    num_frames=2,
    fps=8.0,
    steps=2,
    height=16,
    width=16,
    guidance_scale=1.0,
    guidance_min_sigma=0.0,
    temporal_guidance=0.0,
    noise="mixed",
    noise_strength=1.0,
    motion=1.0,
    images=False,
    context=None,
    model="the tiny SDXL of tav_nb",
    config=None,
    adapter="beside the model",
    lora=[],
    textual_inversion=[],
)
NAMES = dict(
    model="somebody/else",
    config="somebody/else",
    adapter="somebody/else",
    lora=[["/no/such.safetensors", 1.0]],
    textual_inversion=["/no/such.safetensors"],
    video="/no/such.mp4",
    mask="/no/such.png",
    controlnet="somebody/else",
    control="/no/such.mp4",
    ip_adapter="/no/such",
    ip_image="/no/such.png",
    ip_encoder="/no/such",
    first_frame="/no/such.png",
    last_frame="/no/such.png",
    extend="/no/such.mp4",
    output="/no/such/out.mp4",
    device="cuda",
    dtype="float16",
    memory_limit=0.01,
    command="train",
    before=[1],
)
VALUES = (
    None,
    True,
    False,
    -1,
    0,
    10**12,
    10**30,
    1e308,
    -0.0,
    1.5,
    "",
    "many",
    "a" * 10**6,
    [],
    [1],
    {},
    {"a": 1},
    [[[[]]]],
    "\ud800",
    "\x1b[2J\x07",
    "‮gnp.exe",
    "\x9b31m",
    "nan",
    [["x", "y"]],
    [["x", 1, 2]],
    {"kind": "none", "loop": True},
    {"length": -5},
    {"kind": "attention"},
)
TEXTS = (
    "[" * 100_000,
    '{"a":' * 5_000 + "1" + "}" * 5_000,
    "{" * 100,
    '{"prompt": NaN}',
    '{"steps": Infinity}',
    '{"steps": ' + "9" * 5_000 + "}",
    '{"a": 1, "a": 2}',
    "null",
    "7",
    '"text"',
    "",
    "\x00",
    "{}",
    '{"prompt": "\\ud800"}',
    '{"fps": 0, "metadata": {}}',
    '{"fps": -1, "metadata": {}}',
    '{"fps": "8", "metadata": {}}',
    '{"fps": 1e-320, "metadata": {}}',
    '{"fps": 1e308, "metadata": {"prompt": "a girl"}}',
    "{" + ",".join(f'"k{i}": {i}' for i in range(200_000)) + "}",
    "\x1b[2J",
    '{"\\u001b[2J": "\\u009b2J\\u202e"}',
)


def draw(rng):
    "A kind and the text of the settings"
    kind = rng.choice(("one value", "one value", "names", "text", "several values", "raw bytes"))
    if kind == "names":
        return kind, json.dumps({**GOOD, **NAMES})
    if kind == "text":
        return kind, rng.choice(TEXTS)
    if kind == "raw bytes":
        text = bytearray(json.dumps(GOOD).encode())
        for _ in range(rng.randrange(1, 6)):
            text[rng.randrange(len(text))] = rng.randrange(1, 128)
        return kind, text.decode("ascii")
    settings = dict(GOOD)
    for _ in range(1 if kind == "one value" else 4):
        settings[rng.choice([*GOOD, *NAMES])] = rng.choice(VALUES)
    return kind, json.dumps(settings)


def write(folder, form, text):
    "A video of two frames whose settings are that text; its path"
    import av
    import numpy as np
    from PIL import Image

    path, frames = folder / f"video{form}", np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), np.uint8)
    images = [Image.fromarray(frame) for frame in frames]
    shutil.rmtree(path, ignore_errors=True)
    if form == ".mp4":
        with av.open(str(path), "w") as container:
            container.metadata["comment"] = text.replace("\0", "")
            stream = container.add_stream("libx264", rate=8)
            stream.width = stream.height = 16
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
    elif form == ".webp":
        exif = Image.Exif()
        exif[0x010E] = text.encode("ascii", "backslashreplace").decode()
        images[0].save(
            path,
            save_all=True,
            append_images=images[1:],
            duration=125,
            lossless=True,
            exif=exif.tobytes()[: 2**16 - 100] if len(text) > 60_000 else exif,
        )
    elif form == ".gif":
        images[0].save(
            path,
            save_all=True,
            append_images=images[1:],
            duration=120,
            comment=text.encode("utf-8", "backslashreplace"),
        )
    else:
        path.mkdir()
        for i, image in enumerate(images):
            image.save(path / f"frame_{i:04d}.png")
        (path / "metadata.json").write_text(
            text if text.startswith('{"fps"') else f'{{"fps": 8.0, "metadata": {text}}}',
            encoding="utf-8",
            errors="backslashreplace",
        )
    return path


def judged(kind, command, ended):
    "The outcome, with two faults more: what a terminal obeys was printed, or a name was taken from the file"
    if ended["outcome"] not in ("done", "refused"):
        return ended["outcome"]
    if any(
        unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n"
        for c in ended["stderr"] + ended["stdout"]
    ):
        return "terminal"
    if kind == "names" and command == "extend" and (ended["outcome"] != "done" or "note: " not in ended["stderr"]):
        return "chosen"
    return ended["outcome"]


def main():
    args = options(__doc__, "metadata", count=300, seconds=60.0, gib=3.0, minutes=5.0)
    rng, rows, end = random.Random(args.seed), [], time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(Path(folder), args.seconds, args.gib)
        try:
            for _ in range(args.count):
                if time.monotonic() > end:
                    break
                form, command, (kind, text) = (
                    rng.choice((".mp4", ".webp", ".gif", "")),
                    rng.choice(("info", "extend", "extend", "score")),
                    draw(rng),
                )
                path = write(Path(folder), form, text)
                words = {
                    "info": ["info", path.name],
                    "score": ["score", path.name],
                    "extend": ["generate", "--extend", path.name, *SMALL],
                }[command]
                ended = worker(words)
                ended["outcome"] = judged(kind, command, ended)
                rows.append(
                    dict(
                        kind=f"{command}: {kind}",
                        format=form or "PNGs",
                        text=text[:200],
                        message=ended.pop("stderr")[-400:],
                        **{name: value for name, value in ended.items() if name != "stdout"},
                    )
                )
                (Path(folder) / "out.webp").unlink(missing_ok=True)
        finally:
            worker.stop()
    return 0 if record(args.out, rows, seed=args.seed) else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
