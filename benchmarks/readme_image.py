"""Makes the animated image at the top of README.md from the model of the package: `make readme-picture`.

Three sentences, each without and with the temporal adapter, with the same seed. Run it again when the weights change.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tav_nb import generate
from tav_nb.utils.atomic_io import atomic_write
from tav_nb.utils.images import encode_webp

TARGET = Path(__file__).parents[1] / "nbs" / "images" / "first_video.webp"
MAX_BYTES = 100_000
SENTENCES = {  # and the seed of each
    "a girl with long pink hair and a blue dress walks to the left in the snow": 1,
    "a boy with spiky black hair and orange clothes dances at the beach": 3,
    "a girl with twintails of green hair and a red dress walks to the right in the meadow": 2,
}
LABELS = {True: "without the temporal adapter: each frame is an image by itself", False: "with it: a video"}
SIZE, BAR = 160, 18  # pixels of a video in the image, and of the line of text above a row


def label(text: str, width: int) -> np.ndarray:  # uint8 [BAR, width, 3]
    "A line of text on white"
    image = Image.new("RGB", (width, BAR), "white")
    ImageDraw.Draw(image).text((4, 3), text, fill=(60, 60, 60), font=ImageFont.load_default(11))
    return np.asarray(image)


def enlarge(frames: np.ndarray) -> np.ndarray:  # uint8 [F, SIZE, SIZE, 3]
    "Frames in the size of the image"
    return np.stack([np.asarray(Image.fromarray(f).resize((SIZE, SIZE), Image.Resampling.LANCZOS)) for f in frames])


def all_videos(num_frames: int, steps: int) -> np.ndarray:  # uint8 [F, H, W, 3]
    "All videos side by side: a row without the adapter, a row with it"
    rows = []
    for images, text in LABELS.items():
        options = dict(num_frames=num_frames, steps=steps, images=images)
        videos = [enlarge(generate(sentence, seed=seed, **options)) for sentence, seed in SENTENCES.items()]
        row = np.concatenate(videos, axis=2)
        rows += [np.broadcast_to(label(text, row.shape[2]), (num_frames, BAR, row.shape[2], 3)), row]
    return np.concatenate(rows, axis=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-frames", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    frames = all_videos(args.num_frames, args.steps)
    for quality in range(85, 20, -5):
        webp = encode_webp(frames, 8, frames.shape[2], quality)
        if len(webp) <= MAX_BYTES:
            break
    TARGET.parent.mkdir(exist_ok=True)
    atomic_write(TARGET, webp)
    print(f"{TARGET}: {len(webp) / 1000:.0f} kB, quality {quality}")
