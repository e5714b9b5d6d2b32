"""Wrong values of every option of every command: each ends in one line, or is harmless.

The values are drawn for each option by what it takes: numbers beyond all ends, texts that are no number, near misses of
choices, files of the wrong kind. Most trials share one process, which is killed and replaced if a trial takes longer
than `--seconds` or more than `--gib`. Nothing long is begun: videos have two frames of 16 pixels and one step,
`prepare` and `train` run with `--dry-run`.

    python benchmarks/faults/options.py                # 924 trials of all commands, or as many as 10 minutes allow
    python benchmarks/faults/options.py --count 100 --command generate
"""

import contextlib
import io
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import psutil
from bounds import judge, kill_tree, options, record, tree_memory

HUGE = ("1000000000000", "1" + "0" * 30, "9" * 5000, "-1000000000000", "1e308", "1e999")
NUMBERS = (
    *HUGE,
    "",
    " ",
    "-1",
    "-0",
    "nan",
    "-nan",
    "inf",
    "-inf",
    "many",
    "1.5",
    "0x10",
    "1_0",
    "٣",
    "½",
    "1,5",
    "1e-300",
    "1e-5",
    "\x1b[2J",
    "--",
    "8 8",
    "1;2",
    "None",
    "[]",
    "8" * 400,
)
LISTS = (
    *NUMBERS,
    ",",
    "1,",
    ",1",
    "0,0,1",
    "0,0,1,nan",
    "0,0,0,0",
    "-1,0,1,1",
    "0,0,1e30,1",
    "1,2,3,4,5",
    ",".join("1" * 1000),
)
TEXTS = (
    "",
    " ",
    "\udcff\udcfe",
    "\x1b]0;title\x07",
    "‮gnp.exe",
    "a" * 100_000,
    "0: ",
    "8: a girl 0: a boy",
    "99999999999999999999: a girl",
    "0: 1 0: 2",
    "-3: 5",
    "\n\n",
    "%s%n{}",
    "'\"`$(true)`\"'",
    "0: " * 500,
)
CHOICES = (
    "",
    " ",
    "AUTO",
    "mixd",
    "none,none",
    "0",
    "\x1b[2J",
    "x" * 5000,
    "cpu0",
    "cuda:99",
    "--",
    "true false",
    "фuто",
)
ODD_PATHS = (
    "",
    " ",
    ".",
    "/",
    "~",
    "no/such/thing",
    "no.such",
    "a" * 300,
    "a/" * 3000,
    "\x1b[2J.mp4",
    "\udcff.mp4",
    "owner/..",
    "../../..",
    "//",
    "-",
    "http://127.0.0.1:1/a.mp4",
    "file:///etc/passwd",
    "concat:a|b",
    "CON",
    "/dev/null",
    "/dev/zero",
    "/proc/self/mem",
    "x:y:z",
    "x.safetensors:nan",
)
OUTPUTS = {"output", "json", "csv", "html", "page", "out"}
PLAIN = {"prompt", "negative_prompt", "seeds", "caption", "licence", "preview_prompt"}


def make_files(folder):
    "Files of every kind, one each, and what the commands need: their names by kind"
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from tav_nb.models.adapter_file import EMBEDDED_ADAPTER
    from tav_nb.toy.rendering import render
    from tav_nb.toy.scenes import random_scene
    from tav_nb.toy.tiny_captioner import save_tiny_captioner
    from tav_nb.utils.video_writer import write_video

    frames = render(random_scene(3), 8, 32, 32).frames
    write_video(frames, folder / "video.webp", 8, {"prompt": "a girl walks"})
    write_video(frames, folder / "video.mp4", 8, {"prompt": "a girl walks"})
    write_video(frames, folder / "pngs", 8)
    (folder / "videos").mkdir()
    shutil.copy(folder / "video.mp4", folder / "videos/video.mp4")
    (folder / "videos/video.txt").write_text("a girl walks")
    Image.fromarray(frames[0]).save(folder / "image.png")
    (folder / "text.txt").write_text("a girl walks")
    (folder / "text.mp4").write_text("a girl walks")
    (folder / "text.safetensors").write_text("a girl walks")
    (folder / "empty").touch()
    (folder / "empty.mp4").touch()
    (folder / "empty.safetensors").touch()
    (folder / "folder").mkdir()
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "cut.mp4").write_bytes((folder / "video.mp4").read_bytes()[:-700])
    (folder / "header.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    (folder / "nested.safetensors").write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000)
    save_file({"a": torch.zeros(2)}, folder / "other.safetensors")
    save_file({"emb_params": torch.zeros(1, 768)}, folder / "sd1.safetensors")
    shutil.copy(EMBEDDED_ADAPTER, folder / "adapter.safetensors")
    (folder / "table.csv").write_text("file,caption\nfilm.mp4,a girl\n")
    (folder / "bad.toml").write_text("steps = [[[")
    (folder / "model").mkdir()
    (folder / "model/model_index.json").write_text("[" * 100_000)
    (folder / "list").mkdir()
    (folder / "list/model_index.json").write_text("[1]")
    (folder / "films").mkdir()
    shutil.copy(folder / "video.mp4", folder / "films/video.mp4")  # without a caption
    save_tiny_captioner(folder / "captioner")
    os.mkfifo(folder / "pipe.mp4")
    os.symlink("loop", folder / "loop")
    return sorted(path.name for path in folder.iterdir() if path.name != "cache")


def make_cache(folder):
    from tav_nb.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()):
        if main(
            [
                "prepare",
                str(folder / "videos"),
                str(folder / "cache"),
                "--min-frames",
                "4",
                "--max-frames",
                "8",
                "--resolution",
                "64",
                "--min-motion",
                "0",
                "--max-still",
                "1",
            ]
        ):
            sys.exit("the cache of the trials could not be made")
        if main(["train", str(folder / "cache"), str(folder / "trained"), "--steps", "1", *BASE["train"][3:]]):
            sys.exit("the training of the trials could not be made")


BASE = {
    "generate": [
        "a girl walks",
        "--num-frames",
        "2",
        "--steps",
        "1",
        "--height",
        "16",
        "--width",
        "16",
        "--guidance-scale",
        "1",
        "--temporal-guidance",
        "0",
        "-o",
        "out.webp",
    ],
    "prepare": ["videos", "dry", "--dry-run", "--min-frames", "4", "--max-frames", "8"],
    "score": ["video.webp"],
    "train": [
        "cache",
        "run",
        "--dry-run",
        "--lengths",
        "4",
        "--batch-size",
        "1",
        "--held-out",
        "0",
        "--device",
        "cpu",
        "--workers",
        "0",
    ],
    "caption": ["films", "--model", "captioner", "--max-tokens", "4", "--frames", "2", "--device", "cpu"],
    "push": ["trained", "owner/name", "--dry-run", "pushed"],
    "info": ["video.webp"],
}
BESIDE = {
    "mask": ["--video", "video.webp"],
    "strength": ["--video", "video.webp"],
    "control": ["--controlnet", "folder"],
    "controlnet": ["--control", "video.webp"],
    "control_scale": ["--control", "video.webp", "--controlnet", "folder"],
    "ip_image": ["--ip-adapter", "other.safetensors"],
    "ip_adapter": ["--ip-image", "image.png"],
    "ip_encoder": ["--ip-adapter", "other.safetensors", "--ip-image", "image.png"],
    "ip_scale": ["--ip-adapter", "other.safetensors", "--ip-image", "image.png"],
    "config": ["--model", "other.safetensors"],
}


def trials(count, seed, files, only=""):
    "`count` commands, `(kind, words)`: every option with values of its kind, in an order that the seed decides"
    from tav_nb.cli.main import make_parser

    rng, commands = random.Random(seed), []
    for command, parser in make_parser().commands.choices.items():
        for action in parser._actions:
            if action.dest == "help" or only and command != only:
                continue
            inside = [
                path for path in ODD_PATHS if not path.startswith(("/", ".."))
            ]  # nothing outside the folder is written
            paths = (*(inside if action.dest in OUTPUTS else ODD_PATHS), *files)
            if action.choices:
                pool = CHOICES
            elif action.dest in PLAIN:
                pool = TEXTS
            elif (
                action.metavar
                and any(
                    word in action.metavar
                    for word in ("FILE", "FOLDER", "VIDEO", "BASE", "NAME", "TABLE", "CACHE", "OUT", "SOURCE")
                )
                or action.dest in ("model", "adapter")
            ):
                pool = paths
            elif action.nargs == 0:
                pool = ("",)
            else:
                pool = LISTS if "," in (action.metavar or "") else NUMBERS
            for value in pool:
                option = action.option_strings[-1] if action.option_strings else None
                if action.nargs == 0:
                    words = [*BASE[command], f"{option}=1"]
                elif option:
                    words = [
                        *BASE[command],
                        *(BESIDE.get(action.dest, []) if command == "generate" else []),
                        f"{option}={value}",
                    ]
                else:
                    words = [*BASE[command]]
                    index = [one.dest for one in parser._actions if not one.option_strings].index(action.dest)
                    words[index] = value
                commands.append((f"{command} {option or action.metavar}", [command, *words]))
    rng.shuffle(commands)
    return commands[:count]


def work():
    "The other process: a line of JSON comes in for each trial, one goes out"
    from tav_nb.cli.main import main

    out = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        words, start = json.loads(line), time.monotonic()
        stdout, stderr = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                code = main(words)
        except BaseException:
            code, _ = 1, stderr.write(traceback.format_exc())
        print(
            json.dumps(
                dict(
                    code=code,
                    stdout=stdout.getvalue()[-3000:],
                    stderr=stderr.getvalue()[-3000:],
                    seconds=round(time.monotonic() - start, 2),
                )
            ),
            file=out,
            flush=True,
        )


class Worker:
    "The process in which trials run, and another one after each that had to be killed"

    def __init__(self, folder, seconds, gib):
        self.folder, self.seconds, self.gib, self.child = folder, seconds, gib, None

    def start(self):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [
                    str(Path(__file__).parents[2]),
                    str(Path(__file__).parent),
                    *filter(None, [os.environ.get("PYTHONPATH")]),
                ]
            ),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HOME": str(self.folder / "hub"),
        }
        self.child = subprocess.Popen(
            [sys.executable, __file__, "--work"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=self.folder,
            env=environment,
            start_new_session=True,
        )

    def __call__(self, words):
        "How a command ended: `dict(outcome, code, seconds, gib, stderr)`"
        if self.child is None or self.child.poll() is not None:
            self.start()
        self.child.stdin.write(json.dumps(words) + "\n")
        self.child.stdin.flush()
        start, peak, process = time.monotonic(), 0, psutil.Process(self.child.pid)
        while not select.select([self.child.stdout], [], [], 0.1)[0]:
            with contextlib.suppress(psutil.Error):
                peak = max(peak, tree_memory(process))
            if peak > self.gib * 2**30 or time.monotonic() - start > self.seconds:
                self.stop()
                return dict(
                    outcome="memory" if peak > self.gib * 2**30 else "hang",
                    code=None,
                    seconds=round(time.monotonic() - start, 1),
                    gib=round(peak / 2**30, 2),
                    stdout="",
                    stderr="",
                )
        line = self.child.stdout.readline()
        if not line:
            self.stop()
            return dict(
                outcome="crash",
                code=self.child.returncode,
                seconds=round(time.monotonic() - start, 1),
                gib=round(peak / 2**30, 2),
                stdout="",
                stderr="",
            )
        ended = json.loads(line)
        return dict(outcome=judge(ended["code"], ended["stderr"]), gib=round(peak / 2**30, 2), **ended)

    def stop(self):
        if self.child is not None:
            with contextlib.suppress(psutil.Error):
                kill_tree(psutil.Process(self.child.pid))
            self.child.wait()


def main():
    if "--work" in sys.argv:
        return work()
    args = options(__doc__, "options", count=924, seconds=60.0, gib=3.0, minutes=10.0, command="")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        files = make_files(folder)
        make_cache(folder)
        worker, rows, names, end = (
            Worker(folder, args.seconds, args.gib),
            [],
            None,
            time.monotonic() + 60 * args.minutes,
        )
        try:
            for kind, words in trials(args.count, args.seed, files, args.command):
                if time.monotonic() > end:
                    break
                names = names or {path: path.stat().st_size for path in folder.iterdir() if path.is_file()}
                ended = worker(words)
                outputs = words[-1].partition("=")[2], "out.webp"  # what a command was to write may be replaced
                if lost := [
                    path.name
                    for path, size in names.items()
                    if path.name not in outputs and (not path.is_file() or path.stat().st_size != size)
                ]:
                    ended["outcome"], ended["stderr"] = "lost", f"{lost}"
                names = {path: path.stat().st_size for path in folder.iterdir() if path.is_file()}
                rows.append(
                    dict(
                        kind=kind,
                        words=[word[:80] for word in words],
                        **{name: value for name, value in ended.items() if name not in ("stderr", "stdout")},
                        message=ended["stderr"][-400:],
                    )
                )
        finally:
            worker.stop()
    return 0 if record(args.out, rows, seed=args.seed) else 1


if __name__ == "__main__":
    sys.exit(main())
