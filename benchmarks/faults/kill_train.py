"""Kills of `tav train` at any moment, with one process and with two, each followed by `--resume`: the end has to be
that of a run that was not killed.

    python benchmarks/faults/kill_train.py                                # 30 kills of one process, 8 of one or both of
    two; about 5 minutes on two quiet cores python benchmarks/faults/kill_train.py --kills 3 --kills-of-two 2

A run of 30 updates with a checkpoint every 4, held-out losses and previews is killed with SIGKILL after a random time,
goes on, is killed again, until it ends. Then its tensors, state, log and previews are compared with those of a run that
was not killed. Of two processes, one or both are killed; one that is left has to end by itself, with exit code 2,
within a minute.
"""

import os
import random
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path

from bounds import options, record
from small_run import begin, content, start, wait, words

STEPS = (
    "--steps",
    30,
    "--checkpoint-every",
    4,
    "--eval-every",
    5,
    "--preview-every",
    10,
    "--preview-frames",
    4,
    "--preview-steps",
    2,
    "--workers",
    1,
)
PATIENCE = 60  # seconds in which a process that is left alone has to end


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def end(pid):
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def attempt(command, world, rng, limit):
    """`(killed, outcome)` of one start, killed after a random time of at most `limit` seconds; the outcome is empty if
    nothing was wrong
    """
    port = free_port()
    pids = [start(command, rank if world > 1 else None, port, world) for rank in range(world)]
    first = wait(pids[0], rng.uniform(0, limit))
    if first is not None:
        others = [wait(pid, PATIENCE) for pid in pids[1:]]
        for pid in pids:
            end(pid)
        codes = [first, *others]
        return False, "" if codes == [0] * world else f"code {codes}"
    victims = set(rng.choice([[pid] for pid in pids] + [pids] * (world > 1)))
    for pid in victims:
        end(pid)
    problem = ""
    for pid in pids:
        code = wait(pid, PATIENCE)
        if code is None:
            problem = "hang"
        elif pid not in victims and code not in (0, 2):
            problem = f"code {code}"
        end(pid)
    return True, problem


def chain(home, base, cache, expected, world, rng, limit, kills):
    "Rows of the kills of one run, and of its end"
    out, rows = f"{home}/killed", []
    kind = f"{world} process{'es' * (world > 1)}"
    while True:
        begun = Path(out, "run.json").exists()
        command = words(base, cache, out, *STEPS) if not begun else ["train", cache, out, "--resume", "--device", "cpu"]
        began = time.monotonic()
        killed, problem = attempt(command, world, rng, limit if len(rows) < kills else 10 * PATIENCE)
        if killed:
            rows.append(
                dict(
                    kind=f"kill of {kind}, {'begun' if begun else 'at the beginning'}",
                    outcome=problem or "done",
                    seconds=round(time.monotonic() - began, 2),
                )
            )
        elif problem:
            rows.append(dict(kind=f"end of {kind}", outcome=problem))
            break
        else:
            result = content(out)
            wrong = [name for name in expected if result[name] != expected[name]]
            left = [path.name for path in Path(out).rglob(".*") if path.name != ".lock"]
            rows.append(
                dict(
                    kind=f"end of {kind}, after kills",
                    outcome="lost" if wrong else "done",
                    differs=wrong,
                    left=left,
                    kills=len(rows),
                )
            )
            break
        if problem:
            break
    shutil.rmtree(out, ignore_errors=True)
    return rows


def main():
    args = options(__doc__, "kill_train", kills=30, kills_of_two=8)
    rows, rng = [], random.Random(args.seed)
    with tempfile.TemporaryDirectory() as home:
        base, cache = begin(home)
        for world, kills in ((1, args.kills), (2, args.kills_of_two)):
            began, port = time.monotonic(), free_port()
            pids = [
                start(words(base, cache, f"{home}/entire{world}", *STEPS), rank if world > 1 else None, port, world)
                for rank in range(world)
            ]
            codes = [wait(pid, 10 * PATIENCE) for pid in pids]
            assert codes == [0] * world, f"a run that is not killed ends with {codes}"
            limit, expected, done = time.monotonic() - began, content(f"{home}/entire{world}"), 0
            while done < kills:
                chain_rows = chain(home, base, cache, expected, world, rng, limit, min(6, kills - done))
                rows += chain_rows
                done += sum(row["kind"].startswith("kill") for row in chain_rows)
                if any(row["outcome"] != "done" for row in chain_rows) and done == 0:
                    break
    return record(
        args.out,
        rows,
        kills={
            f"{world} processes": sum(row["kind"].startswith(f"kill of {world}") for row in rows) for world in (1, 2)
        },
    )


if __name__ == "__main__":
    raise SystemExit(not main())
