"""A base and a cache that are so small that a whole training takes a second; the scripts about trainings use it.

`serve(work)` imports PyTorch once and forks for every process that is to be killed: what is killed is a process like
any other, but it need not be loaded anew.
"""

import contextlib
import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow
import torch
from diffusers import UNet2DConditionModel
from pyarrow import parquet
from safetensors.torch import load_file

import tav_nb.training.setup as setup
from tav_nb.cli.main import main
from tav_nb.data.fingerprints import model_fingerprint
from tav_nb.models.adapter_file import read_adapter_metadata
from tav_nb.models.base import EMBEDDED, load_pipeline
from tav_nb.training.checkpoint import find_checkpoint

UNET = dict(
    sample_size=8,
    in_channels=4,
    out_channels=4,
    block_out_channels=[16, 16],
    layers_per_block=1,
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
    transformer_layers_per_block=1,
    attention_head_dim=[2, 2],
    cross_attention_dim=128,
    use_linear_projection=True,
    norm_num_groups=8,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=6 * 8 + 64,
    mid_block_type=None,
)
PARTS = {}


def quick_pipeline(model, *args, **kwargs):
    "`load_pipeline`, which loads text encoders and VAE only once"
    if not PARTS:
        PARTS.update(
            {
                name: part
                for name, part in load_pipeline(model, "cpu").components.items()
                if name not in ("unet", "scheduler") and part is not None
            }
        )
    return load_pipeline(model, *args, **kwargs, **PARTS)


def make_base(folder):
    "A folder with the tiny SDXL's encoders and VAE, and a UNet of three transformer blocks with random weights"
    Path(folder).mkdir()
    for part in EMBEDDED.iterdir():
        if part.name != "unet":
            os.symlink(part, f"{folder}/{part.name}")
    torch.manual_seed(0)
    UNet2DConditionModel(**UNET).save_pretrained(f"{folder}/unet")
    return folder


def make_cache(folder, model, count=10):
    "A cache of clips of noise"
    (Path(folder) / "clips").mkdir(parents=True)
    rows, rng = [], np.random.default_rng(0)
    for i in range(count):
        frames, name = (8, 6)[i % 2], f"clip{i}-0000000-{(8, 6)[i % 2]}"
        np.savez(
            f"{folder}/clips/{name}.npz",
            latents=rng.standard_normal((frames, 4, 8, 8)).astype(np.float16),
            text_embeds=rng.standard_normal((77, 128)).astype(np.float16),
            pooled_embeds=rng.standard_normal(64).astype(np.float16),
            original_size=np.int32([64, 64]),
            crop_top_left=np.int32([0, 0]),
            target_size=np.int32([64, 64]),
            frame_times=np.arange(frames) / 8,
            hold_mask=np.arange(frames) < 0,
            fps=np.float32(8),
        )
        rows.append(
            dict(
                clip=name, kept=True, frames=frames, height=64, width=64, cache_key=str(i), caption=f"a girl walks {i}"
            )
        )
    np.savez(
        f"{folder}/_empty.npz", text_embeds=np.zeros((77, 128), np.float16), pooled_embeds=np.zeros(64, np.float16)
    )
    parquet.write_table(pyarrow.Table.from_pylist(rows), f"{folder}/manifest.parquet")
    about = dict(model=model_fingerprint(load_pipeline(model)), model_name="micro", options=dict(resolution=64))
    Path(folder, "cache.json").write_text(json.dumps(about))
    return folder


def begin(folder):
    """The base and the cache in a folder; from now on `tav train` in this process and its children loads the encoders
    only once
    """
    torch.set_num_threads(1)
    base = make_base(f"{folder}/base")
    cache = make_cache(f"{folder}/cache", base)
    setup.load_pipeline = quick_pipeline
    quick_pipeline(base, "cpu", torch.float32)
    return base, cache


def words(base, cache, out, *more):
    "The command that trains on them"
    usual = dict(
        model=base,
        lengths="4,6,8",
        max_frames=8,
        batch_size=1,
        accumulation=2,
        lr=1e-3,
        warmup_steps=2,
        ema_decay=0.9,
        gradient_checkpointing="none",
        log_every=1,
        held_out=2,
        device="cpu",
    )
    return [
        "train",
        cache,
        out,
        *[str(word) for name, value in usual.items() for word in (f"--{name.replace('_', '-')}", value)],
        *map(str, more),
    ]


def tav(argv):
    "`(code, stderr)` of a command in this process"
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except SystemExit as end:
            code = end.code
    return code, err.getvalue()


def start(argv, rank=None, port=0, world=2):
    """The process id of a child that carries out a command, alone or as one of several; it ends with the command's exit
    code
    """
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        if rank is not None:
            os.environ |= dict(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(world),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
        code, err = tav(argv)
        if "Traceback" in err:
            code = 71
    finally:
        os._exit(code)


def wait(pid, seconds):
    "The exit code of a child, negative for a signal; None if it is still at work after so many seconds"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (status := os.waitpid(pid, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(status[1])
        time.sleep(0.002)
    return None


def content(run):
    """Everything that a run has made, but for the seconds and memory that it took: tensors, state, metadata, lines of
    the log, previews
    """
    path, state = find_checkpoint(run, lambda line: None)
    tensors = {
        f"{file.name}|{name}": tensor.numpy().tobytes()
        for file in sorted(path.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    lines = [
        {key: value for key, value in json.loads(line).items() if key not in ("seconds", "gib")}
        for line in Path(run, "log.jsonl").read_text().splitlines()
    ]
    previews = {file.name: file.read_bytes() for file in sorted(Path(run).glob("previews/*"))}
    adapter = {
        name: tensor.numpy().tobytes() for name, tensor in load_file(Path(run, "temporal_adapter.safetensors")).items()
    }
    return dict(
        tensors=tensors, state=state, log=lines, previews=previews, adapter=adapter, metadata=read_adapter_metadata(run)
    )
