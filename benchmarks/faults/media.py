"""Crafted and mutated media: nothing in a file brings a command to a traceback, a hang, or more memory than a stated
bound

Some 40 files that are hostile in one way each go through `prepare --dry-run`, `score`, `info` and `generate`
(`--extend` and `--video` in turn), and `--count` videos with flipped bytes through one of these each. Everything is
drawn here, from `--seed`. A crafted file that no command may take for a video counts as "silent" where one did.
With `--quick` a few crafted files go through one command each.
"""

import os
import struct
import sys
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import bounds
import numpy as np
from PIL import Image

SECONDS, GIB = 60, 3.0
COMMANDS = "prepare", "score", "info", "generate"


# --- files -----------------------------------------------------------------------------------------------------------


def drawn(count=8, height=64, width=96):
    "A square that moves, uint8 [F, H, W, 3]"
    frames = np.full((count, height, width, 3), 90, np.uint8)
    for i, frame in enumerate(frames):
        frame[height // 4 : height // 2, 8 + 6 * i : 30 + 6 * i] = 220, 60, 40
    return frames


def video(path, frames, codec="libx264", pix_fmt="yuv420p", times=None, copies=1, colours=(), metadata=(), **options):
    "A video with any encoder; `times` are whole tenths of a second"
    with av.open(str(path), "w", options=options) as container:
        container.metadata.update(metadata)
        for _ in range(copies):
            stream = container.add_stream(codec, rate=10)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = pix_fmt
            for name, value in colours:
                setattr(stream.codec_context, name, value)
        for stream in container.streams.video:
            packets = []
            for i, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
                frame.pts, frame.time_base = i, Fraction(1, 10)
                for name, value in colours:
                    setattr(frame, name, value)
                packets += stream.encode(frame)
            for i, packet in enumerate(packets + stream.encode(None)):
                if times:
                    packet.dts, packet.pts = i - 1, times[i]
                container.mux(packet)
    return path


def patched(path, old, new, at=0):
    "The same file with some bytes changed"
    data = path.read_bytes()
    start = data.index(old) + at
    path.write_bytes(data[:start] + new + data[start + len(new) :])
    return path


def shown_by(path, a, b, c, d):
    "With a display matrix"
    return patched(
        path, b"tkhd", struct.pack(">9i", *(round(x * 65536) for x in (a, b, 0, c, d, 0, 0, 0)), 1 << 30), 44
    )


def stretched(path, wide, high):
    "With a sample aspect ratio"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for i, pixels in enumerate(drawn()):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return patched(path, b"pasp" + struct.pack(">II", 4, 3), struct.pack(">II", wide, high), 4)


def gif(path, width, height, count):
    "A GIF whose frames change one pixel of a large screen"
    image = b"\x2c" + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    control = b"\x21\xf9\x04" + struct.pack("<BHB", 0, 5, 0) + b"\x00"
    path.write_bytes(
        b"GIF89a"
        + struct.pack("<2H3B", width, height, 0x80, 0, 0)
        + bytes((90, 90, 90, 220, 60, 40))
        + (control + image) * count
        + b";"
    )
    return path


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(path, width, height, more=b"", lines=None):
    "A grey PNG of one bit a pixel, with more chunks"
    line = b"\0" + bytes(-(-width // 8))
    body = zlib.compressobj(9)
    data = b"".join(body.compress(line * 64) for _ in range(-(-(lines or height) // 64))) + body.flush()
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0))
        + more
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )
    return path


def sound(path, cover=False):
    "A file of sound, with an image of its cover or without"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libmp3lame" if cover else "aac", rate=44100)
        if cover:
            cover_stream = container.add_stream("mjpeg", rate=1)
            cover_stream.height, cover_stream.width, cover_stream.pix_fmt = 64, 96, "yuvj420p"
            cover_stream.disposition = av.stream.Disposition.attached_pic
        for i in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.float32), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = 44100, 1152 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if cover:
            frame = av.VideoFrame.from_ndarray(drawn(1)[0], format="rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = 0, Fraction(1, 1)
            for packet in cover_stream.encode(frame) + cover_stream.encode(None):
                container.mux(packet)
    return path


def folder(path, *numbers, size=(96, 64)):
    "A folder of PNGs"
    path.mkdir()
    for number in numbers:
        Image.new("RGB", size, (number % 256, 9, 9)).save(path / f"{number}.png")
    return path


def text(path, words):
    path.write_bytes(words if isinstance(words, bytes) else words.encode())
    return path


def pipe(path):
    os.mkfifo(path)
    return path


def animated_webp(path, side):
    frames = [Image.new("RGB", (side, side), (i, 0, 0)) for i in range(2)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, lossless=True, method=0)
    return path


def large_webp(path, side):
    "A WebP whose header states a larger size than its frames"
    return patched(animated_webp(path, 64), b"VP8X", (side - 1).to_bytes(3, "little") * 2, 12)


def joined(path, *parts):
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def crafted(root):
    "`{name: (path, may a command take it for a video?)}`"
    small, large = drawn(), drawn(8, 128, 64)
    made = {}

    def add(kind, path, fine=False):
        made[kind] = path, fine

    name = (root / f"{i:02}" for i in range(1000))

    def file(suffix):
        return next(name).with_suffix(suffix)

    add("GIF of 13000 x 13000", gif(file(".gif"), 13_000, 13_000, 1))
    add("GIF of 13000 x 13000, 1000 frames", gif(file(".gif"), 13_000, 13_000, 1000))
    add("GIF of 5000 x 5000, 2000 frames", gif(file(".gif"), 5000, 5000, 2000))
    add("GIF of 1 x 1, 100000 frames", gif(file(".gif"), 1, 1, 100_000))
    add(
        "GIF cut off", text(file(".gif"), gif(file(".gif"), 96, 64, 9).read_bytes()[:90]), True
    )  # what comes out of it is whole
    add("PNG of 13000 x 13000", png(file(".png"), 13_000, 13_000))
    add("PNG of 60000 x 60000", png(file(".png"), 60_000, 60_000, lines=64))
    add("PNG of 1 x 1000000", png(file(".png"), 1, 1_000_000))
    add(
        "PNG with a text of 200 MB",
        png(file(".png"), 96, 64, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 * 10**8), 1))),
    )
    add(
        "APNG of 10^9 frames",
        png(
            file(".apng"),
            96,
            64,
            chunk(b"acTL", struct.pack(">2I", 10**9, 0))
            + chunk(b"fcTL", struct.pack(">5I2H2B", 0, 96, 64, 0, 0, 1, 10, 0, 0)),
        ),
    )
    add("WebP of 12000 x 12000", large_webp(file(".webp"), 12_000))
    add("WebP cut off", text(file(".webp"), animated_webp(file(".webp"), 64).read_bytes()[:60]))
    add("empty file", text(file(".mp4"), b""))
    add("random bytes", text(file(".mp4"), np.random.default_rng(1).bytes(100_000)))
    add("text", text(file(".webm"), "no video " * 1000))
    add(
        "HLS playlist",
        text(
            file(".mp4"), f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{video(file('.ts'), small)}\n#EXT-X-ENDLIST\n"
        ),
    )
    add("concat list", text(file(".mp4"), f"ffconcat version 1.0\nfile {video(root / 'listed.mp4', small).name}\n"))
    add("folder called .mp4", folder(file(".mp4")))
    add("folder of numbers to 10^9", folder(file(".frames"), 1, 2, 10**9), True)
    add("pipe", pipe(file(".mp4")))
    add("pixels of 1:20000", stretched(file(".mp4"), 1, 20_000))
    add("pixels of 20000:1", stretched(file(".mp4"), 20_000, 1))
    add("pixels of (2^32-1):1", stretched(file(".mp4"), 2**32 - 1, 1), True)  # FFmpeg takes that for unknown
    add("pixels of 0:0", stretched(file(".mp4"), 0, 0), True)
    add("sheared", shown_by(video(file(".mp4"), small), 1, 0.5, 0, 1))
    add("matrix of zeros", shown_by(video(file(".mp4"), small), 0, 0, 0, 0), True)
    add("unknown codec", patched(patched(video(file(".mp4"), small), b"avc1", b"zzzz"), b"avc1", b"zzzz"))
    add("gap of 10^9 in the time stamps", video(file(".mkv"), small, "mjpeg", "yuvj420p", [0, 1, 2, 3, 4, 5, 6, 10**9]))
    add("time stamps all alike", video(file(".mkv"), small, "mjpeg", "yuvj420p", [9] * 8))
    add("time stamps below 0", video(file(".avi"), small, "mjpeg", "yuvj420p", [-1, *range(7)]), True)
    add("sound alone", sound(file(".mp4")))
    add("sound with a cover", sound(file(".mp4"), cover=True))
    add("40 streams", video(file(".mkv"), small, "mjpeg", "yuvj420p", copies=40), True)
    add("size changes on the way", joined(file(".ts"), video(file(".ts"), small), video(file(".ts"), large)))
    add("frames of 0 x 0", patched(video(file(".mp4"), small, "mjpeg", "yuvj420p"), b"\xff\xc0", b"\0\0\0\0", 5))
    add(
        "frames of 65500 x 65500",
        patched(video(file(".mov"), small, "mjpeg", "yuvj420p"), b"\xff\xc0", struct.pack(">2H", 65_500, 65_500), 5),
    )
    add(
        "Y4M of 100000 x 100000", text(file(".y4m"), b"YUV4MPEG2 W100000 H100000 F10:1 C420jpeg\nFRAME\n" + bytes(1000))
    )
    add("frames of 1 x 64", gif(file(".gif"), 1, 64, 8), True)
    add("frames of 64 x 1", gif(file(".gif"), 64, 1, 8), True)
    add("10^6 frames a second", patched(video(file(".mp4"), small), b"mdhd", struct.pack(">I", 2**31 - 1), 16), True)
    add("comment of 30 MB", video(file(".mkv"), small, metadata={"comment": "[" * 30_000_000}.items()), True)
    add("logarithmic colours", video(file(".mkv"), small, "ffv1", "yuv444p", colours=[("color_trc", 9)]))
    add("cut off", text(file(".mp4"), video(file(".mp4"), small).read_bytes()[:-400]))
    return made


# --- runs ------------------------------------------------------------------------------------------------------------


def command(kind, path, root, number):
    "The words of a command that reads a file"
    if kind == "prepare":
        source, cache = path, root / f"cache{number}"
        return *bounds.TAV, "prepare", source, cache, "--caption", "a square", "--dry-run", "--min-frames", "2"
    if kind == "generate":
        way = "--extend" if number % 2 else "--video"
        size = () if number % 2 else ("--height", "64", "--width", "96")
        return (
            *bounds.TAV,
            "generate",
            "a square",
            way,
            path,
            "--num-frames",
            "2",
            "--steps",
            "1",
            *size,
            "-o",
            root / f"{number}.mp4",
        )
    return *bounds.TAV, kind, path, *(["--convert"] if kind == "score" else [])


def run(job):
    kind, command_kind, path, fine, root, number, seconds = job
    row = bounds.run_bounded(
        command(command_kind, path, root, number), seconds, GIB, cwd=root, env={"OMP_NUM_THREADS": "1"}
    )
    if row["outcome"] == "done" and not fine and command_kind != "info":
        row["outcome"] = "silent"
    return dict(kind=kind, command=command_kind, **row)


def mutated(root, count, seed):
    "`count` videos of five formats with some bytes changed"
    random = np.random.default_rng(seed)
    plain = [
        video(root / "m.mp4", drawn()),
        video(root / "m.webm", drawn(), "libvpx-vp9"),
        video(root / "m.mkv", drawn(), "mjpeg", "yuvj420p"),
        gif(root / "m.gif", 96, 64, 8),
        animated_webp(root / "m.webp", 64),
    ]
    for i in range(count):
        source = plain[i % len(plain)]
        data = bytearray(source.read_bytes())
        front = random.random() < 0.5  # headers are short, and most of what can go wrong stands there
        for index in random.integers(0, min(len(data), 600) if front else len(data), random.integers(1, 30)):
            data[index] = random.integers(256)
        yield text(root / f"mutated{i}{source.suffix}", bytes(data))


def main():
    about = bounds.options(__doc__, "media", count=60, workers=2, seconds=SECONDS, commands=",".join(COMMANDS))
    chosen = about.commands.split(",")
    with tempfile.TemporaryDirectory() as folder_:
        root = Path(folder_)
        files = list(crafted(root).items())
        if about.quick:
            files = files[:: len(files) // len(chosen)][: len(chosen)]
        jobs = [
            (kind, command_kind, path, fine, root, i, about.seconds)
            for i, (kind, (path, fine)) in enumerate(files)
            for command_kind in ([chosen[i]] if about.quick else chosen)
        ]
        jobs += [
            (f"mutated {path.suffix}", chosen[i // 5 % len(chosen)], path, True, root, 1000 + i, about.seconds)
            for i, path in enumerate(mutated(root, about.count, about.seed))
        ]
        with ThreadPoolExecutor(about.workers) as pool:
            rows = list(pool.map(run, jobs))
    commands = {
        command_kind: bounds.table([row | {"kind": command_kind} for row in rows if row["command"] == command_kind])[
            command_kind
        ]
        for command_kind in chosen
    }
    return bounds.record(
        about.out,
        rows,
        ("av", "pillow", "numpy", "torch"),
        seed=about.seed,
        seconds_allowed=about.seconds,
        gib_allowed=GIB,
        commands=commands,
    )


if __name__ == "__main__":
    sys.exit(not main())
