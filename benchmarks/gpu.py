"""Speed of training, inference and transforms on a GPU, compared with what its hardware could do.

    python -m benchmarks.gpu --output gpu.json     # a GPU; about two minutes
    python -m benchmarks.gpu --quick               # any machine; seconds, small sizes

Needs torch, torchvision and the few libraries that `cxr.models` imports, but neither Ray nor data.
Networks are those of v0 (AlexNet) and v2 (VGG16) with nothing frozen, on random images that are
already on the device. A training step is forward, backward and Adam. "Ours" is channels-last with
bfloat16 autocast if the GPU supports it; "plain" is float32 and channels-first with PyTorch's
defaults, which let cuDNN round convolutions to TF32.

The bound is the rate of a large matrix product in the number format of ours, measured in the same
run, divided by the network's arithmetic: 2 operations per multiply-add; training takes 3 times the
arithmetic of inference. (The first layer needs no gradient of its input, so the bound of training
is at most one percent too low.) Transforms move bytes: their bound is the rate of a device copy
divided by the bytes that must be read and written once. Copies of pixels to the device do not
count.
"""

import argparse
import copy
import dataclasses
import functools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

import numpy as np
import torch
from torch import nn

from cxr.inference import devices
from cxr.models import acquisition, classifier, transforms
from cxr.models.classifier import Classifier
from cxr.recipes import RECIPES, Normalization

NETWORKS: Final = {"alexnet": "v0", "vgg16": "v2"}
"""Networks, and the versions whose heads they have."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements."""

    image_px: int
    batch_sizes: tuple[int, ...]
    matmul_side: int
    copy_mib: int
    transform_batch: int
    """Large enough not to fit the device's cache."""
    warm_up: int
    """Calls before the first timing."""
    repeats: int
    """Timings; the median counts."""
    repeat_s: float
    """Approximate duration of one timing, which repeats the call."""


FULL: Final = Sizes(224, (32, 128, 512), 8192, 1024, 1024, 3, 5, 0.3)
QUICK: Final = Sizes(64, (2,), 512, 16, 16, 1, 1, 0.0)


@dataclass(frozen=True)
class NetworkRow:
    """A network at one batch size; None if it did not fit the device's memory."""

    network: str
    work: str
    batch_size: int
    gflop_per_image: float
    images_per_s: float | None
    bound_images_per_s: float
    of_bound: float | None
    plain_images_per_s: float | None
    ratio_to_plain: float | None


@dataclass(frozen=True)
class TransformRow:
    """A transform of a batch of gray pixels."""

    transform: str
    batch_size: int
    images_per_s: float
    gb_per_s: float
    of_copy: float


def parse() -> tuple[argparse.Namespace, Sizes]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes; taken without a GPU")
    parser.add_argument("--image-px", type=int, help="side of the images")
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="images a step")
    parser.add_argument(
        "--cudnn-benchmark", action="store_true", help="let cuDNN try its algorithms; for both ways"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    job = parser.parse_args()
    sizes = QUICK if job.quick or not torch.cuda.is_available() else FULL
    if job.image_px:
        sizes = dataclasses.replace(sizes, image_px=job.image_px)
    if job.batch_sizes:
        sizes = dataclasses.replace(sizes, batch_sizes=tuple(job.batch_sizes))
    return job, sizes


def seconds_per_call(call: Callable[[], object], device: torch.device, sizes: Sizes) -> float:
    """Median seconds of a call after warm-up, waiting for the device."""
    for _ in range(sizes.warm_up):
        call()
    num_calls = 1
    if sizes.repeat_s:
        num_calls = math.ceil(sizes.repeat_s / _elapsed(call, 1, device))
    return statistics.median(
        _elapsed(call, num_calls, device) / num_calls for _ in range(sizes.repeats)
    )


def _elapsed(call: Callable[[], object], num_calls: int, device: torch.device) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(num_calls):
            call()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(num_calls):
        call()
    end.record()
    torch.cuda.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1000


def compute_format(device: torch.device) -> torch.dtype:
    """The number format that `devices.autocast` gives matrix work."""
    with devices.autocast(device):
        one = torch.ones(1, 1, device=device)
        return (one @ one).dtype


def matmul_flop_per_s(device: torch.device, sizes: Sizes) -> float:
    n = sizes.matmul_side
    a, b = (torch.randn(n, n, device=device, dtype=compute_format(device)) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * n**3 / seconds_per_call(lambda: torch.mm(a, b, out=out), device, sizes)


def copy_bytes_per_s(device: torch.device, sizes: Sizes) -> float:
    """Bytes read plus bytes written, per second."""
    source = torch.zeros(sizes.copy_mib * 2**18, device=device)
    target = torch.empty_like(source)
    num_bytes = 2 * source.numel() * source.element_size()
    return num_bytes / seconds_per_call(lambda: target.copy_(source), device, sizes)


def multiply_adds(model: nn.Module, image_px: int) -> int:
    """Multiply-adds of the convolutions and dense layers for one image."""
    total = 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        total += output.numel() * weight[0].numel()

    probed = copy.deepcopy(model).eval()
    for module in probed.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.inference_mode():
        probed(torch.zeros(1, 3, image_px, image_px))
    return total


def images_per_s(
    model: Classifier,
    batch_size: int,
    device: torch.device,
    sizes: Sizes,
    *,
    learn: bool,
    plain: bool,
) -> float | None:
    """Images per second of training or inference; None if they do not fit the memory."""
    layout = torch.contiguous_format if plain else torch.channels_last
    try:
        network: nn.Module = copy.deepcopy(model).to(device, memory_format=layout).train(learn)  # type: ignore[call-overload]
        if not learn and not plain:
            network = devices.for_inference(network, device)
        shape = (batch_size, 3, sizes.image_px, sizes.image_px)
        images = torch.randn(shape, device=device).contiguous(memory_format=layout)
        labels = torch.arange(batch_size, device=device) % 2
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)

        def infer() -> None:
            with torch.inference_mode(), nullcontext() if plain else devices.autocast(device):
                network(images)

        def step() -> None:
            with nullcontext() if plain else devices.autocast(device, "auto"):
                logits = network(images)
            loss = nn.functional.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return batch_size / seconds_per_call(step if learn else infer, device, sizes)
    except torch.cuda.OutOfMemoryError:
        return None


def measure_networks(
    device: torch.device, sizes: Sizes, flop_per_s: float, ours: str
) -> list[NetworkRow]:
    print(f"{'network':8} {'work':9} {'batch':>5} {'images/s':>10} {'bound':>10} {'of bound':>8}"
          f" {'plain':>10} {'ratio':>6}   ours: {ours}; plain: float32 channels-first")  # fmt: skip
    rows = []
    for network, version in NETWORKS.items():
        recipe = dataclasses.replace(
            RECIPES[version], pretrained=0, frozen=0, image_px=sizes.image_px
        )
        model = classifier.build(recipe)
        flop = 2 * multiply_adds(model, sizes.image_px)
        for work in ("train", "infer"):
            learn = work == "train"
            bound = flop_per_s / (flop * (3 if learn else 1))
            for batch_size in sizes.batch_sizes:
                fast, plain = (
                    images_per_s(model, batch_size, device, sizes, learn=learn, plain=plain)
                    for plain in (False, True)
                )
                row = NetworkRow(
                    network, work, batch_size, flop / 1e9, fast, bound,
                    fast and fast / bound, plain, fast / plain if fast and plain else None,
                )  # fmt: skip
                print(f"{network:8} {work:9} {batch_size:5} {_cell(fast, '10,.1f')}"
                      f" {bound:10,.1f} {_cell(row.of_bound, '8.1%')} {_cell(plain, '10,.1f')}"
                      f" {_cell(row.ratio_to_plain, '6.2f')}", flush=True)  # fmt: skip
                rows.append(row)
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    return rows


def _cell(value: float | None, form: str) -> str:
    width = int(form.split(",")[0].split(".")[0])
    return "no memory".rjust(width)[:width] if value is None else format(value, form)


def measure_transforms(
    device: torch.device, sizes: Sizes, bytes_per_s: float
) -> list[TransformRow]:
    n, px = sizes.transform_batch, sizes.image_px
    gray = torch.randint(0, 256, (n, 1, px, px), dtype=torch.uint8, device=device)

    def normalized(normalization: Normalization) -> Callable[[], torch.Tensor]:
        return lambda: transforms.normalize(gray, normalization).contiguous(
            memory_format=torch.channels_last
        )

    calls: dict[str, tuple[Callable[[], torch.Tensor], int]] = {
        f"normalize {name}": (normalized(name), 3) for name in get_args(Normalization)
    }
    draws = acquisition.draw_uniform(np.arange(n), 0, 0, acquisition.NUM_DRAWS)
    for name, ranges in acquisition.RANGES.items():
        calls[f"augment {name}"] = (functools.partial(acquisition.vary, gray, draws, ranges), 1)
    print(f"{'transform':20} {'batch':>5} {'images/s':>12} {'GB/s':>8} {'of copy':>8}"
          "   uint8 in, float32 out, channels-last where normalized")  # fmt: skip
    rows = []
    for name, (call, channels) in calls.items():
        seconds = seconds_per_call(call, device, sizes)
        rate = n * px * px * (1 + 4 * channels) / seconds
        row = TransformRow(name, n, n / seconds, rate / 1e9, rate / bytes_per_s)
        print(f"{name:20} {n:5} {row.images_per_s:12,.1f} {row.gb_per_s:8,.1f}"
              f" {row.of_copy:8.1%}", flush=True)  # fmt: skip
        rows.append(row)
    return rows


def _as_dicts(rows: Sequence[NetworkRow | TransformRow]) -> list[dict[str, object]]:
    return [dataclasses.asdict(row) for row in rows]


def main() -> None:
    job, sizes = parse()
    torch.backends.cudnn.benchmark = job.cudnn_benchmark
    device = devices.device(torch.cuda.is_available())
    torch.manual_seed(0)
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"CPU, {torch.get_num_threads()} threads"
        print("no GPU found: small sizes on the CPU only show that the script runs.")
    form = str(compute_format(device)).removeprefix("torch.")
    flop_per_s = matmul_flop_per_s(device, sizes)
    bytes_per_s = copy_bytes_per_s(device, sizes)
    print(f"device: {name}; torch {torch.__version__}; images of {sizes.image_px} px")
    print(f"measured bounds: {flop_per_s / 1e12:,.2f} TFLOP/s ({form} product of side"
          f" {sizes.matmul_side}), {bytes_per_s / 1e9:,.1f} GB/s (copy)", flush=True)  # fmt: skip
    networks = measure_networks(device, sizes, flop_per_s, f"{form} channels-last")
    moved = measure_transforms(device, sizes, bytes_per_s)
    if job.output:
        results = {
            "device": name,
            "torch": torch.__version__,
            "format": form,
            "cudnn_benchmark": job.cudnn_benchmark,
            "sizes": dataclasses.asdict(sizes),
            "matmul_tflop_per_s": flop_per_s / 1e12,
            "copy_gb_per_s": bytes_per_s / 1e9,
            "networks": _as_dicts(networks),
            "transforms": _as_dicts(moved),
        }
        job.output.write_text(json.dumps(results, indent=2) + "\n")
        print(f"results: {job.output}")


if __name__ == "__main__":
    main()
