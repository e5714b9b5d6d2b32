"""Kills `tav caption` at random moments; in the end each clip has to have one caption, written once.

The clips are small drawings and the model is a tiny one of random weights. After each kill the caption files have to be
whole lines, and those of before have to be the same files with the same bytes. In the end the captions are those of a
run without kills, a second run writes nothing, and no unfinished file is left.
"""

import os
import random
import shutil
import tempfile
import time
from pathlib import Path

from bounds import options, record
from kill_prepare import in_a_child

from tav_nb.cli.main import main as tav
from tav_nb.data import captioning  # noqa: F401  so that the copies of this process need not import anything
from tav_nb.toy.rendering import render
from tav_nb.toy.scenes import random_scene
from tav_nb.toy.tiny_captioner import save_tiny_captioner
from tav_nb.utils.video_writer import write_video


def state(folder, pattern="*.txt"):
    "What is in the files: number of the file, time of writing, bytes"
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob(pattern)
    }


def kill_caption(home, clips, kills, seed):
    "Rows of a run that is killed so many times, and of its end"
    model, folder, moments, rows = save_tiny_captioner(home / "model"), home / "clips", random.Random(seed), []
    folder.mkdir()
    for n in range(clips):
        write_video(render(random_scene(n), 8, 32, 32).frames, folder / f"{n:03}.webp", 8)
    shutil.copytree(folder, home / "undisturbed")

    def work(where=folder):
        return tav(["caption", str(where), "--model", str(model), "--max-tokens", "12", "--batch-size", "4"])

    start = time.monotonic()
    in_a_child(lambda: work(home / "undisturbed"))
    duration, good = time.monotonic() - start, state(home / "undisturbed")
    assert len(good) == clips
    before = state(folder)
    while len(rows) < kills:
        left = duration * (1 - len(before) / clips)
        start = time.monotonic()
        killed = in_a_child(work, moments.uniform(0, left / (kills - len(rows)) * 1.5))
        after = state(folder)
        wrong = [name for name, was in before.items() if after.get(name) != was]
        wrong += [name for name, (_, _, text) in after.items() if text != good[name][2]]
        if not killed:
            raise SystemExit("it came through before all kills were done; another --seed or more --count")
        rows.append(
            dict(
                kind="tav caption, after a kill",
                outcome="lost" if wrong else "done",
                message=f"differ: {wrong}",
                captions=len(after),
                seconds=round(time.monotonic() - start, 2),
            )
        )
        before = after
    in_a_child(work)
    end, everything = state(folder), state(folder, "[!.]*")
    wrong = [name for name in good if end.get(name, (0, 0, 0))[2] != good[name][2]]
    wrong += [name for name, was in before.items() if end.get(name) != was]
    wrong += [name for name in os.listdir(folder) if name.startswith(".")]
    rows.append(
        dict(kind="tav caption, in the end", outcome="lost" if wrong else "done", captions=len(end), message=wrong)
    )
    in_a_child(work)
    same = state(folder, "[!.]*") == everything
    rows.append(dict(kind="tav caption, a second run writes nothing", outcome="done" if same else "lost"))
    return rows


def main():
    args = options(__doc__, "kill_caption", clips=200, kills=5)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as home:
        rows = kill_caption(Path(home), args.clips, args.kills, args.seed)
    counts = [row["captions"] for row in rows if "captions" in row]
    return record(args.out, rows, seed=args.seed, clips=args.clips, captions_after_each_kill_and_in_the_end=counts)


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
