"""How fast the networks run, beside the limit of the machine and beside diffusers' UNet2DModel of equal FLOPs.

python benchmarks/networks.py [--path FILE] [--repetitions N] [--no-compile] prints a table and writes it as JSON: what
a large convolution and a matrix product reach (the limit); images a second and GFLOP/s of a forward pass, of a training
step and of 18 Heun steps; and the peak memory of training and sampling. On a GPU the batches are those of a GPU.
DDPM++ is that of CIFAR-10 (55.7 M parameters), ADM that of ImageNet-64 (296 M).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import edmund
from edmund import data, formulation, networks
from edmund.training import Trainer, TrainingOptions

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BATCH = {"DDPM++": 512, "ADM": 128} if CUDA else {"DDPM++": 16, "ADM": 4}
TRAIN_BATCH, SAMPLE_BATCH, HEUN_BATCH = 16, 64, BATCH["DDPM++"] if CUDA else 8
STEPS = 18
DEFAULT_PATH = Path(__file__).parent / "results" / "networks.json"
DDPMPP_TRAINING = {"label_dim": 0, "augment_dim": 9, "dropout": 0.13}


def ddpmpp(**options: Any) -> nn.Module:
    return networks.SongUNet(3, **options)


def adm() -> nn.Module:
    return networks.ADM(3, resolution=64, label_dim=1000)


class Diffusers(nn.Module):
    """diffusers' UNet2DModel of the FLOPs of DDPM++ or ADM, called as our networks are."""

    def __init__(self, name: str = "DDPM++") -> None:
        super().__init__()
        from diffusers import UNet2DModel

        plain, attended = "{}Block2D", "Attn{}Block2D"
        if name == "DDPM++":
            kinds = [plain, attended, plain]
            options = {"sample_size": 32, "block_out_channels": (256,) * 3, "layers_per_block": 4}
            options["attention_head_dim"] = 256
        else:
            kinds = [plain, attended, attended, attended]
            options = {"sample_size": 64, "block_out_channels": (192, 384, 576, 768), "layers_per_block": 3}
            options |= {"attention_head_dim": 64, "resnet_time_scale_shift": "scale_shift"}
            options |= {"downsample_type": "resnet", "upsample_type": "resnet"}
        self.unet = UNet2DModel(
            down_block_types=tuple(kind.format("Down") for kind in kinds),
            up_block_types=tuple(kind.format("Up") for kind in reversed(kinds)),
            **options,
        )

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.unet(x, c_noise).sample  # type: ignore[no-any-return]


def gflop(network: nn.Module, side: int) -> float:
    """GFLOP of one image, a multiplication and an addition counted as two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, side, side, device=DEVICE), torch.zeros(1, device=DEVICE))
    return counter.get_total_flops() / 1e9


def best_seconds(function: Callable[[], object], repetitions: int) -> float:
    """The shortest of the repetitions, after two that are not counted."""
    times = []
    for _ in range(repetitions + 2):
        start = perf_counter()
        function()
        if CUDA:
            torch.cuda.synchronize()
        times.append(perf_counter() - start)
    return min(times[2:])


@torch.no_grad()
def limits(repetitions: int) -> dict[str, float]:
    """GFLOP/s of a 3 x 3 convolution of 256 channels, in the better memory format, and of a matrix product."""
    found = {}
    size, batch = (8192, 512) if CUDA else (4096, 32)
    for name, dtype in DTYPES.items():
        a = torch.randn(size, size, device=DEVICE, dtype=dtype)
        found[f"matrix product, {name}"] = 2e-9 * size**3 / best_seconds(lambda a=a: a @ a, repetitions)
        times = []
        for memory_format in (torch.contiguous_format, torch.channels_last):
            layer = nn.Conv2d(256, 256, 3, padding=1).to(DEVICE, dtype, memory_format=memory_format)
            x = torch.randn(batch, 256, 32, 32).to(DEVICE, dtype, memory_format=memory_format)
            times.append(best_seconds(lambda layer=layer, x=x: layer(x), repetitions))
        found[f"convolution, {name}"] = 2e-9 * batch * 32 * 32 * 256 * 256 * 9 / min(times)
    return found


@torch.no_grad()
def forward_seconds(network: nn.Module, batch: int, side: int, dtype: torch.dtype, repetitions: int) -> float:
    """Seconds of a forward pass of the batch."""
    x = torch.randn(batch, 3, side, side, device=DEVICE).to(dtype)
    c_noise = torch.zeros(batch, device=DEVICE)
    return best_seconds(lambda: network(x, c_noise), repetitions)


def model_of(network: nn.Module, side: int) -> edmund.Model:
    return edmund.Model(network, formulation.EDM(sigma_data=0.5), shape=(3, side, side)).to(DEVICE)


def forward(name: str, compiled: bool, repetitions: int) -> dict[str, float]:
    """Images a second of each way to run the network of that name."""
    side, make = {"DDPM++": (32, ddpmpp), "ADM": (64, adm)}[name]
    batch, found = BATCH[name], {}
    ways: list[tuple[str, dict[str, Any] | None]] = [
        ("fp32, as it is", None),
        ("fp32", {}),
        ("bf16", {"precision": "bf16"}),
    ]
    if compiled:
        ways += [("fp32, compiled", {"compile": True}), ("bf16, compiled", {"precision": "bf16", "compile": True})]
    for way, options in ways:
        model = model_of(make(), side)
        model.denoiser.eval()
        if options is not None:
            model.optimise(**options)
        found[f"edmund {way}"] = batch / forward_seconds(model.network, batch, side, DTYPES[way[:4]], repetitions)
        say(f"{name}, {way}", found[f"edmund {way}"])
    if has_diffusers():
        theirs = ["fp32", "fp32, channels last", "bf16, channels last"]
        theirs += ["bf16, channels last, compiled"] if compiled else []
        for way in theirs:
            network = Diffusers(name).to(DEVICE, DTYPES[way[:4]]).eval()
            if "channels last" in way:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if "compiled" in way:
                network.compile(dynamic=False, mode="reduce-overhead")
            found[f"diffusers {way}"] = batch / forward_seconds(network, batch, side, DTYPES[way[:4]], repetitions)
            say(f"UNet2DModel, {way}", found[f"diffusers {way}"])
    return found


@torch.no_grad()
def layers_alone(precision: str, repetitions: int, norms: bool = False) -> float:
    """Images a second of DDPM++ if it had convolutions only, each timed by itself on such an input.

    norms: also its group norms, in the faster of the network's precision and float32, each with a SiLU behind it (but
    for attention's): what no order of PyTorch's own kernels can do without.
    """
    model = model_of(ddpmpp(), 32).optimise(precision=precision)
    kinds: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.GroupNorm) if norms else (nn.Conv2d,)
    calls: list[tuple[str, nn.Module, Tensor]] = []
    hooks = [
        layer.register_forward_hook(
            lambda layer, inputs, _, name=name: calls.append((name, layer, torch.empty_like(inputs[0]).normal_()))
        )
        for name, layer in model.network.named_modules()
        if isinstance(layer, kinds)
    ]
    batch = BATCH["DDPM++"]
    x = torch.zeros(batch, 3, 32, 32, device=DEVICE, dtype=DTYPES[precision])
    model.network(x, torch.zeros(batch, device=DEVICE))
    for hook in hooks:
        hook.remove()
    seconds = 0.0
    for name, layer, x in calls:
        own = best_seconds(lambda layer=layer, x=x: layer(x), repetitions)
        if isinstance(layer, nn.GroupNorm):
            exact = copy.deepcopy(layer).float()
            own = min(own, best_seconds(lambda exact=exact, x=x: exact(x.float()).to(x.dtype), repetitions))
            if not name.endswith("norm2"):
                own += best_seconds(lambda x=x: nn.functional.silu(x, inplace=True), repetitions)
        seconds += own
    return batch / seconds


def has_diffusers() -> bool:
    try:
        import diffusers  # noqa: F401
    except ImportError:
        return False
    return True


def training(precision: str) -> float:
    """Images a second of the Trainer on DDPM++: data, augmentation, loss, gradient, Adam and moving average."""
    batch = BATCH["DDPM++"] if CUDA else TRAIN_BATCH
    images = torch.randint(0, 256, (8 * batch, 3, 32, 32), dtype=torch.uint8)
    options = TrainingOptions(
        samples=6 * batch, batch_size=batch, log_interval=batch, augment=0.12, precision=precision,
        checkpoint_interval=6 * batch,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model_of(ddpmpp(**DDPMPP_TRAINING), 32), data.from_arrays(images), folder, options=options, progress=False
        ).run()
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return max(line["samples_per_second"] for line in lines[1:] if "samples_per_second" in line)


def training_of_diffusers(precision: str, repetitions: int) -> float:
    """Images a second of the same step around UNet2DModel, without the augmentation."""
    batch = BATCH["DDPM++"] if CUDA else TRAIN_BATCH
    network = Diffusers().to(DEVICE).train()
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    x, c_noise = torch.randn(batch, 3, 32, 32, device=DEVICE), torch.zeros(batch, device=DEVICE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            out = network(x, c_noise)
        (out.float() - x).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 0.001)

    return batch / best_seconds(step, repetitions)


def heun(precision: str, repetitions: int) -> tuple[float, float]:
    """(images a second of 18 Heun steps, seconds of sampling over those of its 35 network calls)."""
    model = model_of(ddpmpp(), 32).optimise(precision=precision)
    spent, began = [0.0], [0.0]

    def before(*_: Any) -> None:
        if CUDA:
            torch.cuda.synchronize()
        began[0] = perf_counter()

    def after(*_: Any) -> None:
        if CUDA:
            torch.cuda.synchronize()
        spent[0] += perf_counter() - began[0]

    options: dict[str, Any] = {"sampler": "heun", "num_steps": STEPS, "progress": False}
    model.sample(HEUN_BATCH, sampler="heun", num_steps=2, progress=False)
    hooks = model.network.register_forward_pre_hook(before), model.network.register_forward_hook(after)
    ratios, times = [], []
    for _ in range(max(1, repetitions // 3)):
        spent[0], start = 0.0, perf_counter()
        model.sample(HEUN_BATCH, **options)
        times.append(perf_counter() - start)
        ratios.append(times[-1] / spent[0])
    for hook in hooks:
        hook.remove()
    return HEUN_BATCH / min(times), statistics.median(ratios)


@torch.no_grad()
def heun_of_diffusers(precision: str) -> float:
    """Images a second of 18 steps of diffusers' HeunDiscreteScheduler, 35 calls of UNet2DModel."""
    from diffusers import HeunDiscreteScheduler

    network = Diffusers().to(DEVICE, DTYPES[precision]).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    scheduler = HeunDiscreteScheduler()
    scheduler.set_timesteps(STEPS, device=DEVICE)
    x = torch.randn(HEUN_BATCH, 3, 32, 32, device=DEVICE, dtype=DTYPES[precision]) * scheduler.init_noise_sigma
    start = perf_counter()
    for t in scheduler.timesteps:
        x = scheduler.step(network.unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    if CUDA:
        torch.cuda.synchronize()
    return HEUN_BATCH / (perf_counter() - start)


def memory(what: str) -> float:
    """Peak GiB of a fresh process that trains DDPM++ at batch 16, or samples it at batch 64 ("train bf16", ...)."""
    command = [sys.executable, __file__, "--memory-of", what]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def peak_of(what: str) -> float:
    kind, precision = what.split()
    if kind == "train":
        options = TrainingOptions(
            samples=2 * TRAIN_BATCH, batch_size=TRAIN_BATCH, augment=0.12, precision=precision
        )  # fmt: skip
        images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
        with tempfile.TemporaryDirectory() as folder:
            model = model_of(ddpmpp(**DDPMPP_TRAINING), 32)
            Trainer(model, data.from_arrays(images), folder, options=options, progress=False).run()
    else:
        model = model_of(ddpmpp(), 32).optimise(precision=precision)
        model.sample(SAMPLE_BATCH, sampler="heun", num_steps=2, progress=False)
    if CUDA:
        return torch.cuda.max_memory_allocated() / 2**30
    # Not getrusage: what it says of a child begins with the memory of the process that started it.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20  # type: ignore[index]


def say(what: str, value: float) -> None:
    print(f"  {what}: {value:.3g}", file=sys.stderr, flush=True)


def measure(repetitions: int, compiled: bool) -> dict[str, Any]:
    before = limits(2 * repetitions)
    results: dict[str, Any] = {
        "gflop": {"DDPM++": gflop(ddpmpp().to(DEVICE), 32), "ADM": gflop(adm().to(DEVICE), 64)},
        "forward": {name: forward(name, compiled, repetitions) for name in BATCH},
    }
    if has_diffusers():
        results["gflop"] |= {
            f"UNet2DModel for {name}": gflop(Diffusers(name).to(DEVICE), side)
            for name, side in (("DDPM++", 32), ("ADM", 64))
        }
    for precision in DTYPES:
        ways = results["forward"]["DDPM++"]
        ways[f"its convolutions alone, {precision}"] = layers_alone(precision, repetitions)
        ways[f"with norms and activations, {precision}"] = layers_alone(precision, repetitions, norms=True)
    results["training"], results["heun"], results["sampler_over_network"] = {}, {}, {}
    for precision in DTYPES:
        results["training"][f"edmund {precision}"] = training(precision)
        if has_diffusers():
            results["training"][f"diffusers {precision}"] = training_of_diffusers(precision, repetitions)
        found = heun(precision, repetitions)
        results["heun"][f"edmund {precision}"], results["sampler_over_network"][precision] = found
        if has_diffusers():
            results["heun"][f"diffusers {precision}"] = heun_of_diffusers(precision)
        say(f"training and sampling, {precision}", results["training"][f"edmund {precision}"])
    after = limits(2 * repetitions)
    results["limit"] = {name: max(before[name], after[name]) for name in before}
    results["memory_gib"] = {what: memory(what) for what in ("train fp32", "train bf16", "sample fp32", "sample bf16")}
    results["batch"] = BATCH | {"training": BATCH["DDPM++"] if CUDA else TRAIN_BATCH, "heun": HEUN_BATCH}
    results["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if CUDA else None,
        "tf32": CUDA,
    }
    return results


def table(results: dict[str, Any]) -> str:
    limit, flop = results["limit"], results["gflop"]
    rows = [("what", "images/s", "GFLOP/s", "of the limit", "target")]
    rows += [(f"GFLOP of an image: {name}", "", f"{value:.1f}", "", "") for name, value in flop.items()]
    rows += [(f"limit: {name}", "", f"{value:.0f}", "", "") for name, value in limit.items()]
    kind = "matrix product" if CUDA else "convolution"
    targets = {} if CUDA else {"edmund fp32": ">= 85 %", "edmund bf16": ">= 70 %"}
    for network, ways in results["forward"].items():
        for way, rate in ways.items():
            own = flop[f"UNet2DModel for {network}" if way.startswith("diffusers") else network]
            share = rate * own / limit[f"{kind}, {'bf16' if 'bf16' in way else 'fp32'}"]
            target = targets.get(way, "") if network == "DDPM++" else ""
            rows.append((f"forward {network}, {way}", f"{rate:.2f}", f"{rate * own:.0f}", f"{share:.1%}", target))
        rows += [
            (f"  {first} over {second}", f"{ways[first] / ways[second]:.2f}", "", "", target)
            for first, second, target in (
                ("edmund bf16", "edmund fp32", "" if CUDA or network == "ADM" else ">= 1.9"),
                ("edmund bf16, compiled", "edmund fp32, as it is", ">= 2.5" if CUDA else ""),
                ("edmund bf16, compiled", "diffusers bf16, channels last, compiled", ">= 1" if CUDA else ""),
                ("edmund fp32", "diffusers fp32, channels last", ""),
                ("edmund bf16", "diffusers bf16, channels last", ""),
            )
            if first in ways and second in ways
        ]
    for way, rate in results["training"].items():
        own = 3 * flop["UNet2DModel for DDPM++" if way.startswith("diffusers") else "DDPM++"]
        share = rate * own / limit[f"{kind}, {way[-4:]}"]
        rows.append((f"training step, {way}", f"{rate:.2f}", f"{rate * own:.0f}", f"{share:.1%}", ""))
    for way, rate in results["heun"].items():
        own = (2 * STEPS - 1) * flop["UNet2DModel for DDPM++" if way.startswith("diffusers") else "DDPM++"]
        rows.append((f"{STEPS} Heun steps, {way}", f"{rate:.3f}", f"{rate * own:.0f}", "", ""))
    for precision, ratio in results["sampler_over_network"].items():
        rows.append((f"sampling over its network calls, {precision}", f"{ratio:.4f}", "", "", "<= 1.02"))
    for what, value in results["memory_gib"].items():
        batch = TRAIN_BATCH if what.startswith("train") else SAMPLE_BATCH
        rows.append((f"peak memory, {what} at batch {batch}", f"{value:.2f} GiB", "", "", "stated"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, default=DEFAULT_PATH, help="where the JSON goes")
    parser.add_argument("--repetitions", type=int, default=5, help="repetitions of each measurement; the best counts")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (minutes)")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(peak_of(arguments.memory_of))
        return
    # fp32 on a GPU is eager PyTorch with TF32, for ours and theirs alike.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    results = measure(arguments.repetitions, not arguments.no_compile)
    print(table(results))
    arguments.path.parent.mkdir(parents=True, exist_ok=True)
    arguments.path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written to {arguments.path}")


if __name__ == "__main__":
    main()
