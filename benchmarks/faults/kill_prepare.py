"""Kills `tav prepare` at random moments, and functions that replace a folder at each of their steps; what is there
afterwards has to be complete.

`tav prepare` is killed until it has come through, then begins anew in an empty folder, until so many kills are done.
After each kill every visible clip has to be complete, and in the end every byte, `report.html` included, that of the
undisturbed run. A folder of frames is replaced by `write_video`, a checkpoint by `save_checkpoint`; they kill
themselves at a call of the operating system, once with an exchange of names and once with two renamings.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
from bounds import options, record
from cache import folder_bytes, make_videos

from tav_nb.cli.main import main as tav
from tav_nb.data.cache import read_clip
from tav_nb.models.base import load_pipeline
from tav_nb.training.checkpoint import find_checkpoint, save_checkpoint
from tav_nb.utils import atomic_io as files
from tav_nb.utils.video_loading import read_video
from tav_nb.utils.video_writer import write_video


def in_a_child(work, kill_after=None):
    "Do `work()` in a copy of this process; True if it was killed, after some seconds if so wanted"
    child = os.fork()
    if not child:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        try:
            work()
        finally:
            os._exit(0)
    end = time.monotonic() + (kill_after or 1e9)
    while kill_after and time.monotonic() < end:
        ended_pid, status = os.waitpid(child, os.WNOHANG)
        if ended_pid:
            return os.WIFSIGNALED(status)
        time.sleep(0.002)
    if kill_after:
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def dies_at(step, work):
    "Do `work()`, and die before its call number `step` of the operating system"
    left = iter(range(step))

    def count(frame, event, function):
        if event == "c_call" and function.__module__ in ("posix", "fcntl", "_io") and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    work()


def kill_prepare(home, kills, seed):
    rows, moments = [], random.Random(seed)
    make_videos(home / "videos", 4)

    def work():
        return tav(["prepare", str(home / "videos"), str(home / "cache"), "--resolution", "64", "--workers", "1"])

    start = time.monotonic()
    in_a_child(work)
    duration, good = time.monotonic() - start, folder_bytes(home / "cache")
    assert "report.html" in good and "manifest.parquet" in good
    shutil.rmtree(home / "cache")
    ends = []
    while len(rows) < kills:
        start = time.monotonic()
        killed = in_a_child(work, moments.uniform(0, duration))
        clips = list((home / "cache").glob("clips/[!.]*"))
        torn = [path.name for path in clips if not read_clip(path)]
        if killed:
            rows.append(
                dict(
                    kind="tav prepare, after a kill",
                    outcome="torn" if torn else "done",
                    clips=len(clips),
                    seconds=round(time.monotonic() - start, 2),
                )
            )
        if not killed or len(rows) == kills:
            if killed:
                in_a_child(work)
            files = folder_bytes(home / "cache")
            wrong = [name for name in sorted(good.keys() | files.keys()) if good.get(name) != files.get(name)]
            ends.append(
                dict(kind="tav prepare, in the end", outcome="lost" if wrong else "done", message=f"differ: {wrong}")
            )
            shutil.rmtree(home / "cache")
    return rows + ends


def frames_work(home):
    path = home / "frames"
    old, new = (np.full((3, 16, 16, 3), value, np.uint8) for value in (50, 200))
    write_video(old, path)

    def state():
        value = int(read_video(path)[0].flat[0])
        return {50: "old", 200: "new"}.get(value, value) if len(list(path.glob("*.png"))) == 3 else "torn"

    return (lambda: write_video(new, path)), state, path


def checkpoint_work(home):
    def write(text):
        return lambda folder: [(folder / name).write_text(text) for name in ("a", "b")]

    path = save_checkpoint(home, 7, write("old"), {"is": "old"})

    def state():
        checkpoint, state = find_checkpoint(home)
        return state["is"] if {(checkpoint / name).read_text() for name in ("a", "b")} == {state["is"]} else "torn"

    return (lambda: save_checkpoint(home, 7, write("new"), {"is": "new"})), state, path


def kill_folder(make, kind, kills):
    "Kill at steps that are spread evenly over replacing a folder"
    rows, last = [], 1
    while True:  # how many steps there are
        with tempfile.TemporaryDirectory() as home:
            work, state, _ = make(Path(home))
            if not in_a_child(lambda: dies_at(last, work)):
                break
            last = last * 2
    low, high = last // 2, last
    while high - low > 1:
        with tempfile.TemporaryDirectory() as home:
            work, state, _ = make(Path(home))
            middle = (low + high) // 2
            low, high = (middle, high) if in_a_child(lambda: dies_at(middle, work)) else (low, middle)
    for step in np.linspace(0, low, kills).round().astype(int):
        with tempfile.TemporaryDirectory() as home:
            work, state, path = make(Path(home))
            assert in_a_child(lambda: dies_at(int(step), work))
            there = path.exists()
            now = state()
            files.remove_stale(path.parent)
            left = [name for name in os.listdir(path.parent) if name != path.name]
            good = now in ("old", "new") and not left and state() == now
            rows.append(
                dict(
                    kind=kind,
                    outcome="done" if good else "lost",
                    step=int(step),
                    of=int(low),
                    is_now=now,
                    visible=there,
                    left=left,
                )
            )
    return rows


def main():
    args = options(__doc__, "kill_prepare", count=30, folders=30)
    os.environ["HF_HUB_OFFLINE"] = "1"
    load_pipeline()  # so that the copies of this process need not import anything
    with tempfile.TemporaryDirectory() as home:
        rows = kill_prepare(Path(home), args.count, args.seed)

    def renames(one, other):
        return False

    for make, name in ((frames_work, "folder of frames"), (checkpoint_work, "checkpoint")):
        for way, how in ((files.exchange, "exchange"), (renames, "two renamings")):
            with patch("tav_nb.utils.atomic_io.exchange", way), patch("os.fsync"):
                rows += kill_folder(make, f"{name}, {how}", args.folders // 4 + 1)
    ends = {
        kind: {
            end: sum(row["kind"] == kind and row["is_now"] == end for row in rows if "is_now" in row)
            for end in ("old", "new")
        }
        for kind in {row["kind"] for row in rows if "is_now" in row}
    }
    print(json.dumps(ends))
    return record(args.out, rows, seed=args.seed, folders=ends)


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
