"""Decoding and filtering against the route over PNG files, and the memory that half an hour of video takes.

    python benchmarks/decode.py [--seconds 20] [--minutes 30] [--runs 3] [--out benchmarks/results/decode.json]

Both routes start from the same synthetic 1280x720 H.264 file. One is `scan` and `plan`, and then also `read_windows`
for every clip kept; the other writes every frame as a PNG (with the ffmpeg program if there is one, otherwise with
FFmpeg's PNG encoder through PyAV) and reads the files back in full size; it filters nothing. --minutes 0 leaves the
long video out, --runs 0 the comparison; what a run leaves out stays in the file.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tav_nb.data.clips import plan, read_windows
from tav_nb.data.scan import scan
from tav_nb.data.shots import ShotOptions
from tav_nb.evaluation.records import write_record
from tav_nb.toy.rendering import render
from tav_nb.toy.scenes import random_scene

FPS, SIZE = 24, (1280, 720)


def drawn(path, seconds):
    "Shots of five seconds from the cartoon world, on ones, twos and threes, 1280x720"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "20", "threads": "2"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for shot in range(seconds // 5):
            scene = replace(random_scene(shot), hold=1 + shot % 3)
            for frame in render(scene, num_frames=5 * FPS, height=180, width=320).frames:
                frame_to_encode = av.VideoFrame.from_image(Image.fromarray(frame).resize(SIZE))
                container.mux(stream.encode(frame_to_encode))
        container.mux(stream.encode(None))


def repeated(path, out, times):
    "The same packets again and again: a long video in no time"
    with av.open(str(path)) as source, av.open(str(out), "w") as container:
        stream = source.streams.video[0]
        copy, length = container.add_stream_from_template(stream), stream.duration
        for turn in range(times):
            source.seek(0)
            for packet in source.demux(stream):
                if packet.dts is None:
                    continue
                packet.pts, packet.dts, packet.stream = packet.pts + turn * length, packet.dts + turn * length, copy
                container.mux(packet)


def over_pngs(path, folder):
    "Every frame into a PNG file and back; the number of frames"
    if ffmpeg := shutil.which("ffmpeg"):
        subprocess.run([ffmpeg, "-loglevel", "error", "-i", path, "-vsync", "0", f"{folder}/%06d.png"], check=True)
    else:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for i, frame in enumerate(container.decode(video=0)):
                encoder = av.CodecContext.create("png", "w")
                encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = (
                    frame.width,
                    frame.height,
                    "rgb24",
                    Fraction(1, FPS),
                )
                frame = frame.reformat(format="rgb24")
                Path(folder, f"{i:06d}.png").write_bytes(
                    b"".join(bytes(p) for p in (*encoder.encode(frame), *encoder.encode(None)))
                )
    return sum(np.asarray(Image.open(file)).ndim == 3 for file in sorted(Path(folder).glob("*.png")))


def through(path, clips=False, options=ShotOptions()):
    "`scan` and `plan`, and with `clips` the full-size clips; numbers of frames scanned and of frames in clips"
    scan_result = scan(path, options)
    kept = [window for window in plan(scan_result, options) if window.kept]
    return len(scan_result.times), sum(map(len, read_windows(path, kept, scan_result.info))) if clips else 0


def timed(work, *args):
    start, cpu = time.perf_counter(), os.times()
    result = work(*args)
    wall, now = time.perf_counter() - start, os.times()
    return result, round(wall, 2), round(sum(now[:4]) - sum(cpu[:4]), 2)


def memory(path):
    """Frames, seconds and the largest resident size of a process that scans a file and reads all of its clips, near
    duplicates too
    """
    code = (
        'import sys; sys.path.insert(0, "benchmarks"); from decode import *; '
        f"print(*through({str(path)!r}, True, ShotOptions(duplicate=-1)))"
    )
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    frames, in_clips = map(int, process.stdout.read().split())
    _, status, usage = os.wait4(process.pid, 0)
    return dict(
        frames=frames,
        in_clips=in_clips,
        peak_mib=round(usage.ru_maxrss / 1024),
        wall_s=round(time.perf_counter() - start, 1),
    )


def ratios(path, folder, runs):
    "Both routes, one after the other, `runs` times"
    rows = []
    for _ in range(runs):
        (frames, _), scan_wall, scan_cpu = timed(through, path)
        (_, in_clips), all_wall, all_cpu = timed(through, path, True)
        with tempfile.TemporaryDirectory(dir=folder) as pngs:
            count, png_wall, png_cpu = timed(over_pngs, path, pngs)
        if count != frames:
            raise SystemExit(f"{count} PNGs of {frames} frames")
        rows.append(
            dict(
                scan_wall_s=scan_wall,
                scan_cpu_s=scan_cpu,
                scan_and_clips_wall_s=all_wall,
                scan_and_clips_cpu_s=all_cpu,
                png_wall_s=png_wall,
                png_cpu_s=png_cpu,
                ratio_scan=round(png_wall / scan_wall, 2),
                ratio_scan_and_clips=round(png_wall / all_wall, 2),
                ratio_scan_cpu=round(png_cpu / scan_cpu, 2),
                ratio_scan_and_clips_cpu=round(png_cpu / all_cpu, 2),
            )
        )
    route = (
        "ffmpeg" if shutil.which("ffmpeg") else "FFmpeg's PNG encoder through PyAV (no ffmpeg program on this machine)"
    )
    medians = {
        f"median_{name}": statistics.median(row[name] for row in rows) for name in rows[0] if name.startswith("ratio")
    }
    return dict(
        video=f"{SIZE[0]}x{SIZE[1]} H.264, {frames} frames, {in_clips} of them in clips kept",
        png_route=route,
        runs=rows,
        **medians,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/decode.json"))
    args = parser.parse_args()
    result = json.loads(args.out.read_text()) if args.out.exists() else {}
    about = dict(
        command=" ".join(["python", *sys.argv]),
        device=f"{os.cpu_count()} cores, {platform.machine()}",
        python=platform.python_version(),
        **{name: version(name) for name in ("av", "numpy", "opencv-python-headless")},
    )
    with tempfile.TemporaryDirectory() as folder:
        path, long = Path(folder, "short.mp4"), Path(folder, "long.mp4")
        drawn(path, args.seconds)
        if args.runs:
            result["speed"] = dict(about, **ratios(path, folder, args.runs))
        if args.minutes:
            repeated(path, long, args.minutes * 60 // args.seconds)
            result["memory"] = dict(about, minutes=args.minutes, **memory(long))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_record(args.out, (), **result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
