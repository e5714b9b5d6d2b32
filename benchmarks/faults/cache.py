"""Damages a prepared cache, file by file, trains from it and prepares it again.

Reading may refuse in one line that names the file, or give the very batches that the undamaged cache gives; whatever
else comes out is "silent". Preparing again has to bring back every byte; if it does not, that is "lost". Runs in this
process, but for the last few, which go through the command.
"""

import io
import json
import os
import shutil
import tempfile
import time
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import torch
from bounds import TAV, options, record, run_bounded

from tav_nb.data.buckets import EncodeOptions
from tav_nb.data.cache_reader import read_manifest
from tav_nb.data.loader import ClipLoader, check_cache_model
from tav_nb.data.prepare import prepare
from tav_nb.data.sources import open_source
from tav_nb.models.base import load_pipeline
from tav_nb.models.messages import quiet
from tav_nb.toy.captions import caption
from tav_nb.toy.rendering import render
from tav_nb.toy.scenes import random_scene
from tav_nb.utils.video_writer import write_video

FILES = "clip", "_empty.npz", "record", "cache.json", "manifest.parquet"


def make_videos(folder, count=3):
    folder.mkdir()
    for seed in range(count):
        scene = replace(random_scene(seed), hold=1)
        write_video(render(scene, 12, 64, 64).frames, folder / f"video{seed}.mp4", fps=12)
        (folder / f"video{seed}.txt").write_text(caption(scene, seed))


def flipped(data, rng):
    data = bytearray(data)
    for index in rng.integers(len(data), size=rng.integers(1, 4)):
        data[index] ^= 1 << rng.integers(8)
    return bytes(data)


def as_npz(arrays):
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def with_arrays(data, change):
    with np.load(io.BytesIO(data)) as stored:
        arrays = {name: stored[name] for name in stored.files}
    change(arrays)
    return as_npz(arrays)


def not_finite(data, rng):
    def change(arrays):
        name = rng.choice([name for name, array in arrays.items() if array.dtype == np.float16])
        arrays[name] = arrays[name].copy()
        arrays[name].flat[rng.integers(arrays[name].size)] = rng.choice([np.nan, np.inf, -np.inf])

    return with_arrays(data, change)


def other_type(data, rng):
    def change(arrays):
        name = rng.choice(list(arrays))
        arrays[name] = [np.zeros((2, 2), np.int64), np.array("text"), np.zeros(0), np.float64(3)][rng.integers(4)]

    return with_arrays(data, change)


def without_array(data, rng):
    return with_arrays(data, lambda arrays: arrays.pop(rng.choice(list(arrays))))


@cache
def make_bomb(size):
    "A few MB that unfold to gigabytes, under the name of an array"
    out, zeros = io.BytesIO(), bytes(2**24)
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("text_embeds.npy", "w", force_zip64=True) as member,
    ):
        header = f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({size // 2 // 256}, 256), }}".ljust(117) + "\n"
        member.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
        for _ in range(size // len(zeros)):
            member.write(zeros)
    return out.getvalue()


def bomb(data, rng):
    return make_bomb(3 * 2**30)


def huge_shape(data, rng):
    "A header that claims more than there is"
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    name = rng.choice(list(members))
    header = (
        f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10 ** int(rng.integers(3, 14))}, 1000), }}".ljust(117)
        + "\n"
    )
    members[name] = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + members[name][128:]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return out.getvalue()


def json_paths(value, path=()):
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from json_paths(inner, (*path, key))


def json_changed(data, rng, change):
    "The JSON text with one place in it changed: `change` gets the container and the key"
    value = json.loads(data)
    paths = [path for path in json_paths(value) if path]
    *outer, last = paths[rng.integers(len(paths))]
    container = value
    for key in outer:
        container = container[key]
    change(container, last)
    return json.dumps(value, ensure_ascii=False).encode()


def json_other_type(data, rng):
    def change(container, key):
        others = [None, 7, -1e300, "text", [], {}, True, [[]], {"a": {}}, "../../x", "\x1b[31m"]
        container[key] = others[rng.integers(len(others))]

    return json_changed(data, rng, change)


def json_without(data, rng):
    return json_changed(data, rng, lambda container, key: container.pop(key))


def json_nested(data, rng):
    depth = int(rng.choice([50, 2000, 200_000]))
    return [b"[" * depth + b"]" * depth, b'{"rows": ' * depth + b"1" + b"}" * depth][rng.integers(2)]


def table_changed(data, rng):
    "The manifest with a column of another type or without one"
    import pyarrow
    from pyarrow import parquet

    table = parquet.read_table(io.BytesIO(data))
    number = int(rng.integers(table.num_columns))
    name = table.column_names[number]
    if rng.integers(2):
        values = [
            [-5] * len(table),
            ["text"] * len(table),
            [None] * len(table),
            [1e300] * len(table),
            [[1]] * len(table),
        ][rng.integers(5)]
        table = table.set_column(number, name, pyarrow.array(values))
    else:
        table = table.drop_columns([name])
    out = io.BytesIO()
    parquet.write_table(table, out)
    return out.getvalue()


GENERAL = dict(
    flipped=flipped,
    truncated=lambda data, rng: data[: rng.integers(len(data))],
    another=lambda data, rng: [
        b"",
        b"text",
        rng.bytes(2000),
        b"PK\x03\x04" + rng.bytes(200),
        b"{}",
        b"[]",
        b"null",
        b"PAR1" + rng.bytes(99) + b"PAR1",
    ][rng.integers(8)],
)
ARRAYS = {
    "not finite": not_finite,
    "other type": other_type,
    "array missing": without_array,
    "bomb": bomb,
    "huge shape": huge_shape,
}
JSON = {"other type": json_other_type, "key missing": json_without, "nested": json_nested}
DAMAGES = {
    "clip": GENERAL | ARRAYS,
    "_empty.npz": GENERAL | ARRAYS,
    "record": GENERAL | JSON,
    "cache.json": GENERAL | JSON,
    "manifest.parquet": GENERAL | {"other column": table_changed},
}


def folder_bytes(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def batches(folder, pipe):
    "All that training reads of a cache"
    loader = ClipLoader(folder, 2, lengths=8, uncond_zero_prob=0.3, uncond_empty_prob=0.3)
    check_cache_model(folder, pipe)
    read_manifest(folder)
    return [loader.batch(step) for step in range(2 * len(loader))]


def reads(folder, pipe, expected):
    "Outcome of reading a damaged cache, and its message"
    try:
        loaded = batches(folder, pipe)
    except ValueError as error:
        return ("refused", "") if "\n" not in str(error) and str(folder) in str(error) else ("wordy", str(error))
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    same = len(loaded) == len(expected) and all(
        torch.equal(a[name], b[name]) for a, b in zip(loaded, expected) for name in b
    )
    return ("done", "") if same else ("silent", "other batches")


def repairs(folder, work, good):
    "How preparing again ends"
    try:
        work(folder)
    except Exception as error:
        return "traceback" if not isinstance(error, ValueError) else "lost", f"{type(error).__name__}: {error}"
    repaired = folder_bytes(folder)
    wrong = [name for name in sorted(good.keys() | repaired.keys()) if good.get(name) != repaired.get(name)]
    return ("lost", f"differ: {wrong}") if wrong else ("done", "")


def main():
    args = options(__doc__, "cache", count=120, commands=4)
    rows, rng, process = [], np.random.default_rng(args.seed), psutil.Process()
    with tempfile.TemporaryDirectory() as home, quiet():
        home = Path(home)
        make_videos(home / "videos")
        pipe, items = load_pipeline(), open_source(home / "videos")

        def work(folder):
            return prepare(items, folder, pipe, options=EncodeOptions(64))

        work(home / "good")
        good, expected = folder_bytes(home / "good"), batches(home / "good", pipe)
        kinds = [(file, damage) for file in FILES for damage in DAMAGES[file]]

        def damaged(number):
            file, damage = kinds[number % len(kinds)]
            names = [
                name
                for name in good
                if name == file or name.startswith(dict(clip="clips/", record="records/").get(file, "-"))
            ]
            name = names[rng.integers(len(names))]
            folder = Path(shutil.copytree(home / "good", home / f"cache{number}"))
            (folder / name).write_bytes(DAMAGES[file][damage](good[name], rng))
            return folder, f"{file}, {damage}"

        for number in range(args.count):
            folder, kind = damaged(number)
            for how, work_of in (
                ("read", lambda folder: reads(folder, pipe, expected)),
                ("prepare", lambda folder: repairs(folder, work, good)),
            ):
                start = time.monotonic()
                outcome, message = work_of(folder)
                rows.append(
                    dict(
                        kind=f"{how}: {kind}",
                        outcome=outcome,
                        number=number,
                        message=message,
                        seconds=round(time.monotonic() - start, 2),
                        gib=round(process.memory_info().rss / 2**30, 2),
                    )
                )
            shutil.rmtree(folder)
        for number in range(args.commands):
            folder, kind = damaged(int(rng.integers(len(kinds))))
            train = [
                *TAV,
                "train",
                folder,
                home / f"run{number}",
                "--steps",
                "1",
                "--lengths",
                "8",
                "--preview-every",
                "0",
            ]
            first = run_bounded(train)
            again = run_bounded([*TAV, "prepare", home / "videos", folder, "--resolution", "64"])
            if again["outcome"] == "done":
                files = folder_bytes(folder)
                again["outcome"] = "done" if all(files.get(name) == data for name, data in good.items()) else "lost"
            rows += [
                dict(kind=f"tav train: {kind}", number=number, **first),
                dict(kind=f"tav prepare: {kind}", number=number, **again),
            ]
            shutil.rmtree(folder)
    return record(args.out, rows, seed=args.seed, bound_gib=3, peak_gib=round(max(row["gib"] for row in rows), 2))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    raise SystemExit(0 if main() else 1)
