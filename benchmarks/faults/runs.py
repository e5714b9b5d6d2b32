"""Damage to what `tav train` has written: run.json, config.toml, log.jsonl, state.json and the tensors of checkpoints.
`--resume` refuses in one line, or ends as if there had been no damage.

    python benchmarks/faults/runs.py              # 120 damages, about 2 minutes on two quiet cores
    python benchmarks/faults/runs.py --count 12

A damage is bytes that flip, go or come; JSON with a key that is gone, is of another type, is wild or nested deeply;
tensors that are gone, have another shape or are not finite, under a checksum that is right. A run that resumes from the
previous checkpoint, and prints that it does, counts as done.
"""

import json
import random
import shutil
import tempfile
import time
from pathlib import Path

import torch
from bounds import options, record
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_run import begin, content, tav, words

from tav_nb.training.checkpoint import file_checksum, list_checkpoints, with_checksum

WILD = (
    None,
    True,
    -1,
    0,
    1e308,
    10**30,
    "",
    "x" * 1000,
    [],
    {},
    [1],
    {"a": 1},
    "../../etc/passwd",
    "\ud800",
    "somebody/model",
)


def damage_bytes(path, rng):
    data, how = bytearray(path.read_bytes()), rng.choice(("flip", "cut", "empty", "insert", "zeros", "text"))
    index = rng.randrange(len(data))
    if how == "flip":
        data[index] ^= 1 << rng.randrange(8)
    if how == "cut":
        del data[index:]
    if how == "empty":
        data = b""
    if how == "insert":
        data[index:index] = bytes(rng.randrange(256) for _ in range(9))
    if how == "zeros":
        data[index : index + 64] = bytes(len(data[index : index + 64]))
    if how == "text":
        data = b"[" * 100_000
    path.write_bytes(data)
    return f"bytes: {how}"


def key_paths(value, path=()):
    "Every place in a JSON value, as keys"
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path_inside for key, one in inner for path_inside in [(*path, key)] + key_paths(one, (*path, key))]


def damage_value(value, rng):
    "A JSON value with one place changed"
    key_path = rng.choice(key_paths(value))
    *outer, last = key_path
    inner = value
    for key in outer:
        inner = inner[key]
    how = rng.choice(("gone", "wild", "wild", "wild", "deep"))
    if how == "gone":
        del inner[last]
    elif how == "wild":
        inner[last] = rng.choice(WILD)
    else:
        inner[last] = json.loads("[" * 500 + "]" * 500)
    return how


def damage_json(path, rng):
    value = json.loads(path.read_text())
    how = damage_value(value, rng)
    path.write_text(json.dumps(value))
    return f"value: {how}"


def damage_line(path, rng):
    lines = path.read_text().splitlines()
    number = rng.randrange(len(lines))
    value = json.loads(lines[number])
    how = damage_value(value, rng)
    lines[number] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n")
    return f"value: {how}"


def with_new_checksum(folder, change=lambda state: None):
    "A checkpoint whose checksums are those of what it holds now"
    state = json.loads((folder / "state.json").read_text())["state"]
    change(state)
    files = {file.name: file_checksum(file) for file in sorted(folder.iterdir()) if file.name != "state.json"}
    (folder / "state.json").write_text(json.dumps(with_checksum(state, files)))


def damage_state(folder, rng):
    how = []
    with_new_checksum(folder, lambda state: how.append(damage_value(state, rng)))
    return f"sealed value: {how[0]}"


def damage_tensor(folder, rng):
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    with safe_open(path, "pt") as file:
        about = file.metadata()
    tensors, how = load_file(path), rng.choice(("gone", "shape", "nan", "inf", "more", "header"))
    name = rng.choice(sorted(tensors))
    if how == "gone":
        del tensors[name]
    if how == "shape":
        tensors[name] = torch.zeros(3, 5, 7)
    if how in ("nan", "inf"):
        tensors[name] = tensors[name].clone().float()
        tensors[name].view(-1)[0] = float(how)
    if how == "more":
        tensors["another.weight"] = torch.zeros(3)
    save_file(tensors, path, {} if how == "header" else about)
    with_new_checksum(folder)
    return f"sealed tensor: {how}"


def damage(run, rng):
    """Damages one thing in a run; returns its kind, and whether the end may differ, for a line of the log that is
    damaged is gone
    """
    newest = list_checkpoints(run)[0]
    kinds = {
        "run.json, bytes": lambda: damage_bytes(run / "run.json", rng),
        "run.json, values": lambda: damage_json(run / "run.json", rng),
        "config.toml": lambda: damage_bytes(run / "config.toml", rng),
        "log.jsonl, bytes": lambda: damage_bytes(run / "log.jsonl", rng),
        "log.jsonl, values": lambda: damage_line(run / "log.jsonl", rng),
        "state.json, bytes": lambda: damage_bytes(newest / "state.json", rng),
        "state.json, values": lambda: damage_json(newest / "state.json", rng),
        "state.json, sealed": lambda: damage_state(newest, rng),
        "tensors, bytes": lambda: damage_bytes(rng.choice(sorted(newest.glob("*.safetensors"))), rng),
        "tensors, sealed": lambda: damage_tensor(newest, rng),
    }
    kind = rng.choice(sorted(kinds))
    return kind, kinds[kind]()


def judge(run, expected, code, err, kind):
    """Outcome of a run that is resumed after damage. Lines of the log have no checksum: every valid line is accepted,
    and nothing depends on it
    """
    if code not in (0, 2):
        return "code"
    if code == 2:
        return "refused" if err.count("\n") == 1 and err.startswith("tav: error: ") and len(err) < 2000 else "wordy"
    result = content(run)
    lines = [line for line in result["log"] if line in expected["log"]]
    same = all(result[name] == expected[name] for name in ("tensors", "adapter", "metadata", "state")) and (
        kind.startswith("log.jsonl") or len(lines) == len(result["log"])
    )
    return "done" if same else "silent"


def main():
    args = options(__doc__, "runs", count=120)
    rows = []
    with tempfile.TemporaryDirectory() as home:
        base, cache = begin(home)
        steps = "--checkpoint-every", 2, "--eval-every", 0, "--preview-every", 0, "--workers", 0
        assert tav(words(base, cache, f"{home}/half", *steps, "--steps", 8, "--schedule", "constant"))[0] == 0
        shutil.copytree(f"{home}/half", f"{home}/entire")
        more = ["--resume", "--device", "cpu", "--steps", "10"]
        assert tav(["train", cache, f"{home}/entire", *more])[0] == 0
        expected = content(f"{home}/entire")
        for number in range(args.count):
            rng, run, before = random.Random(args.seed * 1_000_003 + number), Path(home, "damaged"), time.monotonic()
            shutil.copytree(f"{home}/half", run)
            kind, how = damage(run, rng)
            kept = {path: path.read_bytes() for path in sorted(run.rglob("*.safetensors"))}
            row = dict(kind=kind, how=how, number=number)
            try:
                code, err = tav(["train", cache, str(run), *more])
                row |= dict(outcome=judge(run, expected, code, err, kind), message=err[:300])
                if code == 2 and any(not path.exists() or path.read_bytes() != data for path, data in kept.items()):
                    row["outcome"] = "lost"
            except Exception as error:  # what `tav` would end with
                row |= dict(outcome="traceback", message=f"{type(error).__name__}: {str(error)[:300]}")
            rows.append(row | dict(seconds=round(time.monotonic() - before, 2)))
            shutil.rmtree(run)
    return record(args.out, rows)


if __name__ == "__main__":
    raise SystemExit(not main())
