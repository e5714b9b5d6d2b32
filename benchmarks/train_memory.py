"""What training SDXL needs: the full-size UNet in random weights, through `tav train`, its allocator capped; estimate
and measurement side by side.

    python benchmarks/train_memory.py [--limit 18.5] [--only ROW ...] [--gpus 0] [--out
    benchmarks/results/train_memory.json] python benchmarks/train_memory.py --toy       the same with a UNet of a few
    thousand weights, on the CPU, in some minutes

The first row comes alone; with --gpus 0 1 ... a training on two of them with `accelerate launch`, and on four, comes
next (--only seed GPUs: nothing else but those), and then a queue for each GPU. In a queue one row computes while the
next one loads; --sequential: one after the other.
"""

import argparse
import fcntl
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow
import torch
from diffusers import UNet2DConditionModel
from pyarrow import parquet
from sdxl_config import UNET
from torch.utils.flop_counter import FlopCounterMode

from tav_nb.data.fingerprints import model_fingerprint
from tav_nb.evaluation.records import write_record
from tav_nb.models.base import EMBEDDED, load_pipeline
from tav_nb.training.config import TrainConfig
from tav_nb.training.config_io import merge_options
from tav_nb.training.memory import estimate_training_memory, training_inputs, unet_on_meta

TOY = dict(
    UNET,
    sample_size=8,
    block_out_channels=[16, 16],
    layers_per_block=1,
    cross_attention_dim=128,
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
    transformer_layers_per_block=1,
    attention_head_dim=[2, 2],
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=6 * 8 + 64,
    norm_num_groups=8,
    mid_block_type=None,
)

BLOCK = dict(attention_ratio=0.5, conv_size=3, ff_ratio=2 / 3)  # the parameters of plain attention
# name: (side in pixels, settings, a variant that is no setting); seed is 2 clips of 8 frames; what compiles for long
# comes early
ROWS = {
    "seed": (768, dict(offload_optimizer=True), ""),
    "8-bit Adam": (768, dict(optimizer="adamw8bit"), ""),
    "seed, compiled": (768, dict(offload_optimizer=True, compile=True), ""),
    "seed, moments on the card": (768, {}, ""),
    "started one by one": (768, dict(offload_optimizer=True, cuda_graphs=False), ""),
    "checkpoints outside": (768, dict(offload_optimizer=True, gradient_checkpointing="offload"), ""),
    "1024 px": (1024, dict(offload_optimizer=True), ""),
    "1 x 24 frames": (768, dict(offload_optimizer=True, batch_size=1, lengths=(24,)), ""),
    "profile": (768, dict(offload_optimizer=True), "profile"),
    "profile, started one by one": (768, dict(offload_optimizer=True, cuda_graphs=False), "profile"),
    "Muon": (768, dict(optimizer="muon", offload_optimizer=True), ""),
    "Muon, block": (768, dict(optimizer="muon", offload_optimizer=True, **BLOCK), ""),
    "Muon, block, checkpoints outside": (
        768,
        dict(optimizer="muon", offload_optimizer=True, gradient_checkpointing="offload", **BLOCK),
        "",
    ),
    "Muon, block, float8": (768, dict(optimizer="muon", offload_optimizer=True, base_storage="float8", **BLOCK), ""),
    "Muon, block, float8, checkpoints outside": (
        768,
        dict(
            optimizer="muon",
            offload_optimizer=True,
            gradient_checkpointing="offload",
            base_storage="float8",
            **BLOCK,
        ),
        "",
    ),
    "Muon, block, 1024 px": (1024, dict(optimizer="muon", offload_optimizer=True, **BLOCK), ""),
    "bfloat16": (768, dict(offload_optimizer=True, dtype="bfloat16"), ""),
    "autocast": (768, dict(cuda_graphs=False), "autocast"),
    "the library's attention": (768, dict(offload_optimizer=True), "library"),
    "the library's gates": (768, dict(offload_optimizer=True), "gates"),
    "all inputs kept": (768, dict(offload_optimizer=True), "inputs"),
    "cuDNN chooses": (768, dict(offload_optimizer=True), "benchmark"),
    "channels last": (768, dict(offload_optimizer=True), "channels"),
    "residual blocks kept, 1 x 8": (768, dict(offload_optimizer=True, batch_size=1), "resnets"),
    "all recomputed, 1 x 8": (768, dict(offload_optimizer=True, batch_size=1), ""),
    "adapter of half the width": (768, dict(offload_optimizer=True, attention_ratio=0.5), ""),
}
ESTIMATED = {
    "without checkpointing": (768, dict(gradient_checkpointing="none")),
    "1024 px, moments on the card": (1024, {}),
}  # do not fit: `tav train` refuses them


def vary(variant, gpu):
    "In the process of a row: wait for the GPU before anything is put on it, and change what is no setting"
    import tav_nb.models.attention_kernel
    import tav_nb.models.temporal_unet
    import tav_nb.training.gradient_checkpointing as gradient_checkpointing
    import tav_nb.training.memory as memory
    import tav_nb.training.setup as setup
    import tav_nb.training.step as train_step
    import tav_nb.training.trainer as trainer

    build, step, update = trainer.build_train_state, train_step.micro_step, trainer.update_step

    def in_turn(*args):
        if os.environ.get("WORLD_SIZE", "1") == "1":
            fcntl.flock(vary.lock, fcntl.LOCK_EX)  # until this process ends
        return build(*args)

    vary.lock = open(f"{tempfile.gettempdir()}/train_memory_{gpu}.lock", "w")
    trainer.build_train_state = in_turn
    if variant == "autocast":  # what accelerate would do with mixed_precision='fp16'

        def micro_step(*args):
            with torch.autocast(
                args[0].device.type, torch.float16 if args[0].device.type == "cuda" else torch.bfloat16
            ):
                return step(*args)

        train_step.micro_step = micro_step
    if variant == "resnets":  # only transformers are computed twice
        switch = gradient_checkpointing.set_gradient_checkpointing

        def some(unet, kind, *mode):
            switch(unet, kind, *mode)
            for module in unet.modules():
                if hasattr(module, "gradient_checkpointing") and type(module).__name__ != "Transformer2DModel":
                    module.gradient_checkpointing = False

        setup.set_gradient_checkpointing = memory.set_gradient_checkpointing = some
    if variant == "library":
        tav_nb.models.attention_kernel.triton = None  # as before chapter 'An attention kernel for short sequences'
    if variant == "gates":
        setup.fuse_geglu = memory.fuse_geglu = lambda unet: unet  # as before chapter 'GEGLU in one kernel'
    if variant == "inputs":  # every block and every convolution keeps its own input
        gradient_checkpointing.replace_convolutions = lambda unet: None
        gradient_checkpointing.will_checkpoint = lambda module: False
    if variant == "benchmark":
        torch.backends.cudnn.benchmark = True
    if variant == "channels":
        setup.set_gradient_checkpointing = lambda unet, kind: gradient_checkpointing.set_gradient_checkpointing(
            unet.to(memory_format=torch.channels_last), kind
        )
    trainer.update_step = lambda train_state, *args: watched(
        (
            profiled
            if variant == "profile" and train_state.step == train_state.config.steps - 1
            else (lambda update, *args: update(*args))
        ),
        update,
        train_state,
        *args,
    )


def watched(how, update, train_state, *args):
    """An update, and in a file beside that of the profile what the allocator held at most at the end of one, and what
    was taken of the card in all, in GiB
    """
    out = how(update, train_state, *args)
    if train_state.device.type == "cuda" and train_state.rank == 0:
        free, total = torch.cuda.mem_get_info()
        watched.most = [
            max(old, new)
            for old, new in zip(getattr(watched, "most", (0, 0)), (torch.cuda.memory_reserved(), total - free))
        ]
        write_row(
            Path(os.environ["PROFILE"]).with_suffix(".reserved"),
            dict(zip(("reserved_gib", "card_gib"), (round(size / 2**30, 2) for size in watched.most))),
        )
    return out


def write_row(path, row):
    path.with_suffix(".part").write_text(json.dumps(row))
    path.with_suffix(".part").replace(path)


def profiled(update, train_state, *args):
    "An update, and in profile.json the share of its time in which the GPU had nothing to do"
    from torch.profiler import ProfilerActivity, profile

    sync = torch.cuda.synchronize if train_state.device.type == "cuda" else lambda: None
    sync()
    with profile(
        activities=[ProfilerActivity.CUDA if train_state.device.type == "cuda" else ProfilerActivity.CPU]
    ) as profiler:
        out = update(train_state, *args)
        sync()
    kernels = [
        event
        for event in profiler.events()
        if train_state.device.type == "cpu" or event.device_type == torch.autograd.DeviceType.CUDA
    ]
    spans = sorted((event.time_range.start, event.time_range.end) for event in kernels)
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy, until = busy + max(0, end - max(start, until)), max(until, end)
    names = {}
    for event in kernels:
        names[event.name[:110]] = names.get(event.name[:110], 0) + event.time_range.elapsed_us() / 1e3
    write_row(
        Path(os.environ["PROFILE"]),
        dict(
            idle_share=1 - busy / (until - spans[0][0]),
            span_ms=(until - spans[0][0]) / 1e3,
            busy_ms_an_update=round(busy / 1e3, 1),
            pieces=len(spans),
            milliseconds={name: round(ms, 1) for name, ms in sorted(names.items(), key=lambda item: -item[1])[:24]},
        ),
    )
    return out


def make_model(folder, config, device):
    "A model in diffusers' layout: this UNet in random half-precision weights, the encoders of the embedded one"
    folder.mkdir()
    for part in EMBEDDED.iterdir():
        if part.name != "unet":
            os.symlink(part, folder / part.name)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    with torch.device(device):
        unet = UNet2DConditionModel(**config)
    torch.set_default_dtype(torch.float32)
    unet.save_pretrained(folder / "unet", max_shard_size="20GB")
    return folder


def make_cache(folder, side, config, made_with):
    "Four clips of noise"
    (folder / "clips").mkdir(parents=True)
    pooled, rng, rows = (
        config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"],
        np.random.default_rng(0),
        [],
    )

    def text():
        return dict(
            text_embeds=rng.standard_normal((77, config["cross_attention_dim"])).astype(np.float16),
            pooled_embeds=rng.standard_normal(pooled).astype(np.float16),
        )

    sizes = dict(
        original_size=np.int32([side, side]), crop_top_left=np.int32([0, 0]), target_size=np.int32([side, side])
    )
    for i in range(4):
        np.savez(
            folder / f"clips/noise{i}-0000000-24.npz",
            latents=rng.standard_normal((24, 4, side // 8, side // 8)).astype(np.float16),
            **text(),
            **sizes,
            frame_times=np.arange(24) / 12,
            hold_mask=np.zeros(24, bool),
            fps=np.float32(12),
        )
        rows.append(
            dict(
                clip=f"noise{i}-0000000-24",
                kept=True,
                frames=24,
                height=side,
                width=side,
                cache_key=str(i),
                caption="noise",
            )
        )
    np.savez(folder / "_empty.npz", **text())
    (folder / "cache.json").write_text(json.dumps(dict(model=made_with, options=dict(resolution=side))))
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "manifest.parquet")
    return folder


def settings(model, changes, args):
    "The seed's settings, a few updates long"
    usual = dict(
        model=str(model),
        lengths=(8,),
        batch_size=2,
        accumulation=args.accumulation,
        steps=args.steps,
        dtype="float32" if args.toy else "float16",
        held_out=0,
        eval_every=0,
        preview_every=0,
        log_every=1,
        workers=0 if args.toy else 2,
        ema_every=10,
        memory_limit=0.0 if args.toy else args.limit,
    )
    return merge_options(TrainConfig(), usual | changes)


def run_row(config, cache, out, args, variant="", gpus=(0,)):
    "One run of the command, ended after the last update, before its checkpoint; its estimate and what was measured"
    words = []
    for name in TrainConfig.__dataclass_fields__:
        value = getattr(config, name)
        if value != getattr(TrainConfig(), name):
            words += [
                f"--{name.replace('_', '-')}",
                (
                    ",".join(map(str, value))
                    if isinstance(value, tuple)
                    else str(value).lower()
                    if isinstance(value, bool)
                    else str(value)
                ),
            ]
    words = ["train", str(cache), str(out), *words, "--device", "cpu" if args.toy else "cuda"]
    main = Path(out.parent, f"main-{out.name}.py")
    main.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parent)!r})\nif __name__ == '__main__':\n   "
        f" import tav_nb.cli.main, train_memory; train_memory.vary({variant!r}, {gpus[0]}); raise"
        f" SystemExit(tav_nb.cli.main.main({words!r}))\n"
    )
    command = (
        [sys.executable, str(main)]
        if len(gpus) == 1
        else [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            str(len(gpus)),
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            str(main),
        ]
    )
    profile = out.parent / f"{out.name}.json"
    environment = (
        os.environ
        | dict(PROFILE=str(profile))
        | (
            {}
            if args.toy
            else dict(CUDA_VISIBLE_DEVICES=",".join(map(str, gpus)), PYTORCH_ALLOC_CONF="expandable_segments:True")
        )
    )
    start, log = time.perf_counter(), out / "log.jsonl"
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )

    def lines():
        return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")] if log.exists() else []

    while process.poll() is None and (len(lines()) < config.steps) and time.perf_counter() - start < args.patience:
        time.sleep(0.05)
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        pass
    output, updates = process.communicate()[0], lines()
    if len(updates) < config.steps:
        return dict(failed=" ".join(output.replace(f"{out.parent}/", "").split())[-600:])
    seconds = min(line["seconds"] for line in updates[1:])
    estimate = json.loads((out / "run.json").read_text())["estimated_gib"]
    reserved = out.parent / f"{out.name}.reserved"
    row = dict(
        peak_allocated_gib=round(updates[-1]["gib"], 2),
        milliseconds_a_micro_step=round(1e3 * seconds / config.accumulation, 1),
        seconds_an_update=round(seconds, 3),
        wall_s=round(time.perf_counter() - start, 1),
    )
    if variant not in ("autocast", "profile"):
        row |= dict(
            estimated_gib=round(estimate, 2), estimate_over_measured=round(estimate / updates[-1]["gib"], 3)
        )  # the estimate does not include autocast
    if reserved.exists():
        row |= json.loads(reserved.read_text())
    if "cannot be recorded" in output:
        row["not_recorded"] = output.split("cannot be recorded")[1].splitlines()[0][:200]
    if variant == "profile":
        row = json.loads(profile.read_text())
    return row


def flops(config, frames, side):
    "Floating point operations of one micro-step: forward, the forward again, backward"
    from tav_nb.models.temporal_unet import train_only_temporal
    from tav_nb.utils.memory_trace import GPU_FUNCTIONS, FunctionOverride

    unet = unet_on_meta(config.model, config, torch.float16, dict(max_frames=24, positions="sinusoidal", zero="proj"))
    train_only_temporal(unet)
    args, kwargs = training_inputs(unet, config.batch_size, frames, side, side)
    with FunctionOverride(GPU_FUNCTIONS), FlopCounterMode(display=False) as counter:
        unet(*args, **kwargs).sample.float().square().mean().backward()
    return counter.get_total_flops()


def matrix_rate(size=8192, dtype=torch.float16, device="cuda"):
    "Floating point operations a second of a large product"
    a = torch.randn(size, size, dtype=dtype, device=device)
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(5):
        a @ a
    sync()
    start = time.perf_counter()
    for _ in range(30):
        a @ a
    sync()
    return 30 * 2 * size**3 / (time.perf_counter() - start)


def in_queues(names, caches, model, home, args, write):
    "Rows from one list, on all GPUs"
    todo = queue.Queue()
    for name in names:
        todo.put(name)

    def work(gpu):
        while True:
            try:
                name = todo.get_nowait()
            except queue.Empty:
                return
            side, changes, variant = ROWS[name]
            if changes.get("optimizer") == "adamw8bit" and not find_spec("torchao"):
                row = dict(failed="torchao is not installed")
            elif args.toy and (changes.keys() & {"compile", "dtype"} or changes.get("optimizer") == "adamw8bit"):
                continue
            else:
                row = run_row(
                    settings(model, changes, args),
                    caches[side],
                    home / f"run-{''.join(filter(str.isalnum, name))}",
                    args,
                    variant,
                    (gpu,),
                )
            write(name, row)

    workers = [
        threading.Thread(target=work, args=(gpu,))
        for gpu in args.gpus
        for _ in range(1 if args.toy or args.sequential else 2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/train_memory.json"))
    parser.add_argument("--limit", type=float, default=18.5, help="GiB that the allocator may give out")
    parser.add_argument("--steps", type=int, default=4, help="updates; the first compiles and records")
    parser.add_argument("--accumulation", type=int, default=8, help="micro-steps an update, the seed's 8")
    parser.add_argument(
        "--patience", type=float, default=400, help="seconds for one row, waiting for its turn included"
    )
    parser.add_argument("--only", nargs="*", help="rows")
    parser.add_argument("--gpus", type=int, nargs="*", default=[0], help="which (default: 0)")
    parser.add_argument(
        "--sequential",
        action="store_true",
        help="rows one after the other on the first GPU: nothing loads while something computes",
    )
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    unet, scale, rows, start = TOY if args.toy else UNET, 12 if args.toy else 1, {}, time.time()
    result = dict(
        command="python " + " ".join(sys.argv).split(" --out")[0],
        torch=torch.__version__,
        limit_gib=args.limit,
        rows=rows,
    )

    def write(name=None, row=None):
        if name:
            rows[name] = row
            print(f"[{time.time() - start:.0f}]", name, row, flush=True)
        write_record(args.out, (), **result)

    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        if not args.toy:
            result |= dict(device=torch.cuda.get_device_name(), matrix_flops_a_second=matrix_rate())
        model = make_model(home / "model", unet, "cpu" if args.toy else "cuda")
        made_with = model_fingerprint(load_pipeline(EMBEDDED, unet=None))
        caches = {
            side: make_cache(home / f"cache{side}", side // scale // 8 * 8, unet, made_with) for side in (768, 1024)
        }
        if not args.toy:
            torch.cuda.empty_cache()
        print(f"[{time.time() - start:.0f}] model and caches are there", flush=True)
        counting = threading.Thread(
            target=lambda: result.update(flops_a_micro_step=flops(settings(model, {}, args), 8, 768))
        )
        if not args.toy:
            counting.start()
        names = [name for name in ROWS if not args.only or name in args.only]
        in_queues(names[:1], caches, model, home, args, write)
        for count, name in ((2, "two GPUs"), (4, "four GPUs")) if not args.only or "GPUs" in args.only else ():
            if len(args.gpus) < count:
                continue
            row = run_row(
                replace(settings(model, dict(offload_optimizer=True), args), accumulation=args.accumulation // count),
                caches[768],
                home / f"run-{count}",
                args,
                "",
                args.gpus[:count],
            )
            if "seconds_an_update" in row and "seconds_an_update" in rows.get("seed", {}):
                row |= dict(times_as_fast=round(rows["seed"]["seconds_an_update"] / row["seconds_an_update"], 3))
            write(name, row)
        in_queues(names[1:], caches, model, home, args, write)
        for name, (side, changes) in ESTIMATED.items() if not args.only else ():
            write(
                name,
                dict(
                    estimated_gib=round(
                        estimate_training_memory(
                            settings(model, changes, args), 8, side // scale // 8 * 8, side // scale // 8 * 8
                        ).total
                        / 2**30,
                        2,
                    )
                ),
            )
        for name, usual in (("profile", "seed"), ("profile, started one by one", "started one by one")):
            if "busy_ms_an_update" in rows.get(name, {}) and "seconds_an_update" in rows.get(usual, {}):
                rows[name]["idle_share_unwatched"] = round(
                    1 - rows[name]["busy_ms_an_update"] / 1e3 / rows[usual]["seconds_an_update"], 4
                )
        if not args.toy:
            counting.join()
            result |= dict(floor_ms=round(1e3 * result["flops_a_micro_step"] / result["matrix_flops_a_second"], 1))
        if "floor_ms" in result and "milliseconds_a_micro_step" in rows.get("seed", {}):
            result["times_the_floor"] = round(rows["seed"]["milliseconds_a_micro_step"] / result["floor_ms"], 2)
    write()


if __name__ == "__main__":
    main()
