"""One update of all matrices of an adapter for SDXL, by `tav_nb.training.muon.Muon` and by `torch.optim.Muon`:
milliseconds, memory of temporary tensors, and how far the weights differ after ten updates.

    python benchmarks/muon.py [--updates 10] [--out benchmarks/results/muon.json]       random weights and gradients of
    the temporal block, 70 layers of 640 and 1280 channels; below a minute on a GPU, which needs 12 GiB
    python benchmarks/muon.py --toy [--out FILE]        a UNet of a few thousand weights, on the CPU

`torch.optim.Muon` takes parameters of two dimensions and treats each as one matrix: queries, keys and values, and both
halves of GEGLU's projection, become separate parameters, which are views of the adapter's own weights. Not offloaded.

Floor: the products of Newton and Schulz alone, at the rate of a large product of the same type. Five times, a matrix x
of r rows and c columns, r <= c, becomes a x + (b g + c g g) x with g = x x^T: 2 r r c + 2 r r r + 2 r r c operations.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from sdxl_config import UNET
from torch.utils.flop_counter import FlopCounterMode
from train_memory import BLOCK, TOY, matrix_rate

from tav_nb.evaluation.records import environment, write_record
from tav_nb.models.temporal_unet import add_temporal
from tav_nb.training.losses import parameter_groups
from tav_nb.training.muon import Muon
from tav_nb.utils.memory_trace import StorageCounter

SETTINGS = dict(lr=1e-3, weight_decay=1e-4, momentum=0.95)


def matrix_shapes(config):
    "`[(shape, parts)]` of all weights of the adapter that Muon updates: each weight is `parts` matrices"
    with torch.device("meta"):
        unet = add_temporal(UNet2DConditionModel(**config), **BLOCK)
    groups = parameter_groups(unet, 1.0, 0.0, muon=True)
    return [(p.shape, group["parts"]) for group in groups if group["parts"] for p in group["params"]]


def random_weights(shapes, device):
    "`[(weight, parts)]`, always the same, with gradients of zeros"
    generator = torch.Generator(device).manual_seed(0)
    weights = [(torch.empty(shape, device=device).normal_(std=0.02, generator=generator), n) for shape, n in shapes]
    for p, _ in weights:
        p.grad = torch.zeros_like(p)
    return weights


def ours(weights):
    parts = sorted({n for _, n in weights}, reverse=True)
    groups = [dict(params=[p.requires_grad_() for p, n in weights if n == one], parts=one) for one in parts]
    return Muon(groups, **SETTINGS)


def library(weights):
    "`torch.optim.Muon` on views of the weights, and gradients that are views of theirs"
    matrices = []
    for p, n in weights:
        for matrix, gradient in zip(p.detach().chunk(n), p.grad.chunk(n)):
            matrices.append(torch.nn.Parameter(matrix))
            matrices[-1].grad = gradient
    return torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **SETTINGS)


def draw_gradients(weights, generator):
    "Random gradients whose columns differ in size by a factor of 100, so that singular values differ as in a training"
    for p, _ in weights:
        p.grad.normal_(generator=generator).mul_(torch.logspace(0, -2, p.shape[1], device=p.device))


def flops(shapes):
    "Floating point operations of the products of Newton and Schulz"
    total = 0
    for shape, n in shapes:
        rows, columns = sorted((shape[0] // n, shape[1]))
        total += n * 5 * (4 * rows * rows * columns + 2 * rows**3)
    return total


def tensors_of(optimizer):
    "Parameters, gradients and state"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [t for p in parameters for t in (p, p.grad, *optimizer.state[p].values())]


def temporary_bytes(optimizer):
    "The most that an update allocates beside parameters, gradients and state, which are there before"
    if optimizer.param_groups[0]["params"][0].is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        optimizer.step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with StorageCounter() as counter:
        for tensor in tensors_of(optimizer):
            counter.sizes[tensor.untyped_storage()._cdata] = 0
        optimizer.step()
    return counter.peak


def median_milliseconds(optimizer, calls):
    "Of one update, after two others"
    times, cuda = [], optimizer.param_groups[0]["params"][0].is_cuda
    for i in range(2 + calls):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        optimizer.step()
        if cuda:
            torch.cuda.synchronize()
        times += [1e3 * (time.perf_counter() - start)] * (i > 1)
    return sorted(times)[len(times) // 2]


def measure(make, shapes, device, calls, floor_ms):
    "A row of the record"
    weights = random_weights(shapes, device)
    draw_gradients(weights, torch.Generator(device).manual_seed(1))
    optimizer = make(weights)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()  # the state is there from now on
    milliseconds = median_milliseconds(optimizer, calls)
    return dict(
        milliseconds=round(milliseconds, 2),
        times_the_floor=round(milliseconds / floor_ms, 2),
        temporary_mib=round(temporary_bytes(optimizer) / 2**20, 2),
        state_mib=round(sum(t.nbytes for state in optimizer.state.values() for t in state.values()) / 2**20, 2),
        tensors_of_state=sum(len(state) for state in optimizer.state.values()),
        flops_counted=counter.get_total_flops(),
    )


@torch.no_grad()
def difference(shapes, device, updates):
    "How far both have moved apart, as a share of what the library's has moved, after one update and after `updates`"
    pairs = [random_weights(shapes, device) for _ in range(2)]
    start, shares = [p.detach().clone() for p, _ in pairs[0]], {}
    for (a, _), (b, _) in zip(*pairs):
        b.grad = a.grad
    optimizers, generator = (ours(pairs[0]), library(pairs[1])), torch.Generator(device).manual_seed(2)
    for update in range(1, updates + 1):
        draw_gradients(pairs[0], generator)
        for optimizer in optimizers:
            optimizer.step()
        if update not in (1, updates):
            continue
        apart, moved = [], []
        for (a, n), (b, _), old in zip(*pairs, start):
            apart += [matrix.norm() for matrix in (a - b).chunk(n)]
            moved += [matrix.norm() for matrix in (b - old).chunk(n)]
        apart, moved = torch.stack(apart), torch.stack(moved)
        shares[f"after {update}"] = dict(
            all=round((apart.norm() / moved.norm()).item(), 6), largest=round((apart / moved).max().item(), 6)
        )
    return shares


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=None, help="with --toy the default is to write nothing")
    parser.add_argument("--calls", type=int, default=5, help="updates that are timed")
    parser.add_argument("--updates", type=int, default=10, help="updates after which weights are compared")
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() and not args.toy else "cpu"
    config = dict(TOY, mid_block_type="UNetMidBlock2DCrossAttn") if args.toy else UNET
    dtypes = {"ours": torch.bfloat16 if device == "cuda" else torch.float32, "torch.optim.Muon": torch.bfloat16}
    shapes, rows = matrix_shapes(config), {}
    for name, make in (("ours", ours), ("torch.optim.Muon", library)):
        rate = matrix_rate(256 if device == "cpu" else 8192, dtypes[name], device)
        floor_ms = 1e3 * flops(shapes) / rate
        rows[name] = measure(make, shapes, device, args.calls, floor_ms)
        rows[name] |= dict(products_in=str(dtypes[name]), matrix_flops_a_second=rate, floor_ms=round(floor_ms, 3))
        print(name, rows[name], flush=True)
    result = dict(
        command=" ".join(["python", *sys.argv]),
        **environment(device),
        block=BLOCK,
        parameters=sum(shape.numel() for shape, _ in shapes),
        weights=len(shapes),
        matrices=sum(n for _, n in shapes),
        flops=flops(shapes),
        rows=rows,
        difference=difference(shapes, device, args.updates),
    )
    print({name: value for name, value in result.items() if name != "rows"})
    if args.out or not args.toy:
        write_record(args.out or Path("benchmarks/results/muon.json"), (), **result)


if __name__ == "__main__":
    main()
