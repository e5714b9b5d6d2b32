"""Runs a command within bounds of time and memory and returns its outcome; records a table of all cases. The scripts
beside this file use it.

An injection survives if the command did what it should ("done", exit code 0) or refused in one line ("refused", exit
code 2, no traceback). Everything else is a fault: "traceback", "hang" (killed after `seconds`), "memory" (killed above
`gib`), "crash" (ended by a signal), "wordy" (refused in more than one line), "code" (another exit code), and what a
script finds out by itself, such as "silent" (accepted what is damaged) or "lost" (something that was made before is
gone).
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import psutil

from tav_nb.evaluation.records import PARTS, weights_hash

RESULTS = Path(__file__).parents[1] / "results"
TAV = (sys.executable, "-c", "import sys; from tav_nb.cli.main import main; sys.exit(main())")
PROGRESS = ("needs ", "warning: ", "note: ")  # lines of `tav: ...` that are printed beside an error and are none


def tree_memory(process):
    "Bytes that a process and its children hold"
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_info().rss
        except psutil.Error:
            pass
    return total


def kill_tree(process):
    for one in (*process.children(recursive=True), process):
        try:
            one.kill()
        except psutil.Error:
            pass


def run_bounded(command, seconds=60, gib=3.0, cwd=None, env=None):
    "`dict(outcome, code, seconds, gib, stderr)` of a command, which is killed above `seconds` or `gib`"
    start, peak, outcome = time.monotonic(), 0, None
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        process = psutil.Process(child.pid)
        while child.poll() is None:
            try:
                peak = max(peak, tree_memory(process))
            except psutil.Error:
                break
            if peak > gib * 2**30 or time.monotonic() - start > seconds:
                outcome = "memory" if peak > gib * 2**30 else "hang"
                kill_tree(process)
            time.sleep(0.05)
        code = child.wait()
        err.seek(0)
        stderr = err.read().decode("utf-8", "replace")
    return dict(
        outcome=outcome or judge(code, stderr),
        code=code,
        seconds=round(time.monotonic() - start, 1),
        gib=round(peak / 2**30, 2),
        stderr=stderr[-2000:],
    )


def judge(code, stderr):
    "How a command that ended by itself ended"
    if "Traceback (most recent call last)" in stderr:
        return "traceback"
    if code < 0:
        return "crash"
    if code == 0:
        return "done"
    if code != 2:
        return "code"
    errors = [line for line in stderr.splitlines() if line.startswith("tav: error: ")]
    rest = [line for line in stderr.splitlines() if line.strip() and not line.startswith("tav: ")]
    return "refused" if len(errors) == 1 and not rest else "wordy"


def table(rows):
    "`{kind: {tried, survived, outcomes}}` of rows with a `kind` and an `outcome`"
    kinds = {}
    for row in rows:
        kinds.setdefault(row["kind"], []).append(row["outcome"])
    return {
        kind: dict(
            tried=len(ends),
            survived=sum(end in ("done", "refused") for end in ends),
            outcomes=dict(sorted(Counter(ends).items())),
        )
        for kind, ends in sorted(kinds.items())
    }


def record(path, rows, packages=("torch", "diffusers", "transformers", "av", "numpy"), **about):
    """Write a table, every fault and the slowest and largest survivors to a JSON file; print the table; returns True if
    nothing failed
    """
    faults = [row for row in rows if row["outcome"] not in ("done", "refused")]
    result = {
        "command": "python " + " ".join([os.path.relpath(sys.argv[0]), *sys.argv[1:]]).split(" --out")[0],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "weights": {part: weights_hash(part) for part in PARTS},
        **about,
        "tried": len(rows),
        "survived": len(rows) - len(faults),
        "slowest_seconds": max((row["seconds"] for row in rows if "seconds" in row), default=None),
        "largest_gib": max((row["gib"] for row in rows if "gib" in row), default=None),
        "kinds": table(rows),
        "faults": faults,
    }
    Path(path).write_text(json.dumps(result, indent=1) + "\n")
    for kind, line in result["kinds"].items():
        print(f"{kind:40} {line['survived']:4} of {line['tried']:4}  {line['outcomes']}")
    for row in faults:
        print(json.dumps(row)[:600])
    return not faults


COUNTS = "count", "commands", "folders", "kills", "kills_of_two"  # options for the number of cases
QUICK = 3


def options(about: str, name: str, **defaults) -> argparse.Namespace:
    "The options that every script here has: `--seed`, `--out`, `--quick`, and those with a default of their own"
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(RESULTS / f"faults_{name}.json"))
    parser.add_argument("--quick", action="store_true", help=f"at most {QUICK} cases, to try whether the script runs")
    for option, default in defaults.items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=type(default), default=default)
    args = parser.parse_args()
    for option in COUNTS if args.quick else ():
        if isinstance(getattr(args, option, None), int):
            setattr(args, option, min(QUICK, getattr(args, option)))
    return args


def kill_after(command, seconds, cwd=None, env=None, how=signal.SIGKILL):
    "Start a command, end it after so many seconds with all its children, and wait; True if it was still at work"
    child = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )
    try:
        child.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, how)
        child.wait()
        return True
