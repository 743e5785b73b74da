"""On what networks run, and in which precision: a GPU where there is one, bfloat16 where that is computed natively,
unless a person says otherwise.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate.utils import parse_flag_from_env

from leanmask.errors import ConfigError

Precision = Literal["fp32", "bf16"]

# Instructions that multiply bf16 numbers. AVX-NE-CONVERT (oneDNN's AVX2_VNNI_2) only converts them.
BF16_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "arm_bf16"})
# oneDNN's names for less than that, to which ONEDNN_MAX_CPU_ISA may hold it. torch asks oneDNN whether it takes bf16
# at all, which it answers with yes from AVX512_CORE on, where it emulates it.
ISA_WITHOUT_BF16 = frozenset({"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"})
FIRST_CUDA_WITH_BF16 = (8, 0)
PROBE_ROUNDS = 3


@dataclass(frozen=True)
class Capability:
    """What a device can compute, as far as it decides the precision.

    kind: torch's type of device. name: the maker's. level: instructions that torch's own kernels use ("AVX2"), or the
    compute capability ("CUDA 8.0"). instructions: those of a CPU out of `BF16_INSTRUCTIONS` that oneDNN uses.
    native_bf16: bf16 is computed as such, not emulated. takes_bf16: it is computed at all.
    """

    kind: str
    name: str
    level: str
    instructions: frozenset[str] = frozenset()
    native_bf16: bool = False
    takes_bf16: bool = True

    def __str__(self) -> str:
        return " ".join([part for part in (self.level, *sorted(self.instructions)) if part])


def use_cpu() -> bool:
    """Whether training is on the CPU: no accelerator is there, or ACCELERATE_USE_CPU is set, or several processes meet
    one that cannot be shared (Apple's). Accelerate must be told: by itself it joins CPU processes under torchrun not.
    """
    if parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available():
        return True
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and torch.accelerator.current_accelerator() == torch.device("mps")


def default_device() -> torch.device:
    """Where a network is loaded when nobody says: on a GPU when there is one, unless ACCELERATE_USE_CPU is set."""
    return torch.device("cuda" if torch.cuda.is_available() and not use_cpu() else "cpu")


def training_device() -> torch.device:
    """The kind of device that trainings of this process run on, without an index."""
    accelerator = None if use_cpu() else torch.accelerator.current_accelerator()
    return torch.device("cpu") if accelerator is None else torch.device(accelerator.type)


def capability(device: torch.device) -> Capability:
    """What a device of this machine can compute. Everything that depends on the machine's kind asks here."""
    if device.type == "cpu":
        return _of_cpu()
    if device.type == "cuda":
        return _of_cuda(device)
    if device.type == "mps":
        takes = torch.backends.mps.is_macos_or_newer(14, 0)  # torch refuses bf16 on older ones
        return Capability("mps", "Apple GPU", "MPS", native_bf16=takes, takes_bf16=takes)
    if device.type == "xpu":
        takes = torch.xpu.is_bf16_supported()
        native = torch.xpu.is_bf16_supported(including_emulation=False)
        return Capability("xpu", torch.xpu.get_device_name(device), "XPU", native_bf16=native, takes_bf16=takes)
    return Capability(device.type, device.type, device.type.upper(), native_bf16=False)  # unknown: fp32 is always right


def _of_cpu() -> Capability:
    known = torch.cpu.get_capabilities()
    name = str(known.get("cpu_name") or platform.processor() or platform.machine())
    found = _cpu_bf16(known)
    return Capability("cpu", name, torch.backends.cpu.get_cpu_capability(), found, native_bf16=bool(found))


def _cpu_bf16(known: Any) -> frozenset[str]:
    """bf16 instructions that oneDNN uses: it computes the convolutions and matrix products, so its answer counts, and
    not what ATEN_CPU_CAPABILITY says of torch's own kernels.
    """
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return frozenset()
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return frozenset()
    if known.get("architecture") in ("aarch64", "arm64"):
        return frozenset({"arm_bf16"})  # there the answer above is the processor's own
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    if limit.upper() in ISA_WITHOUT_BF16:
        return frozenset()
    found = {flag for flag in ("avx512_bf16", "amx_bf16") if known.get(flag)}
    if "AMX" not in limit.upper() and limit.upper() not in ("ALL", "DEFAULT"):
        found.discard("amx_bf16")
    return frozenset(found)


def _of_cuda(device: torch.device) -> Capability:
    name = torch.cuda.get_device_name(device)
    if torch.version.hip:
        return Capability("cuda", name, "ROCm", native_bf16=torch.cuda.is_bf16_supported(including_emulation=False))
    compute = torch.cuda.get_device_capability(device)
    native = compute >= FIRST_CUDA_WITH_BF16
    takes = native or torch.cuda.is_bf16_supported()
    return Capability("cuda", name, f"CUDA {compute[0]}.{compute[1]}", native_bf16=native, takes_bf16=takes)


def bf16_pays(here: Capability, depthwise: bool) -> bool:
    """Whether bf16 is the quicker precision. depthwise: of a network most of whose convolutions see one channel each.

    These are bound by memory and conversions, not by products: on a processor with AVX512-BF16 and no AMX a training
    step of Mask R-CNN lite0 takes about 1.2 times as long in bf16 as in fp32 (`benchmarks/cpu_choices.py`).
    """
    return here.native_bf16 and not (depthwise and here.kind == "cpu" and "amx_bf16" not in here.instructions)


def settle_precision(asked: str, device: torch.device, depthwise: bool = False) -> tuple[Precision, str | None]:
    """The precision of a training on a device, and a sentence where what was asked for is slow there.

    asked: "auto", "fp32" or "bf16". depthwise: as for `bf16_pays`. Raises ConfigError for a precision that the device
    does not compute.
    """
    here = capability(device)
    if asked == "auto":
        return ("bf16" if bf16_pays(here, depthwise) else "fp32"), None
    if asked == "fp32":
        return "fp32", None
    if not here.takes_bf16:
        raise ConfigError(
            f"train.precision is bf16, which {here.name} ({here}) does not compute; take fp32, or auto, which chooses"
        )
    if here.native_bf16:
        return "bf16", None
    return "bf16", (
        f"train.precision is bf16, which {here.name} ({here}) emulates: a small convolution took "
        f"{emulation_cost(device):.1f} times as long as in fp32; train.precision=auto or fp32 is faster here"
    )


def inference_precision(trained: str, device: torch.device, depthwise: bool = False) -> Precision:
    """The precision in which a trained network is used: bf16 where it was trained so and that pays here, so that what a
    GPU has trained does not crawl on a laptop. depthwise: as for `bf16_pays`.
    """
    return "bf16" if trained == "bf16" and bf16_pays(capability(device), depthwise) else "fp32"


def channels_last(precision: str, device: torch.device, depthwise: bool = False) -> bool:
    """Whether images and maps are kept with channels last in memory: where it is measured to be faster. depthwise: as
    for `bf16_pays`.

    `benchmarks/cpu_choices.py` measures it: with AVX512 a step in fp32 takes 0.77 to 0.94 of the time with channels
    last (Mask R-CNN lite0) and 0.74 (ResNet-50).
    So it pays on CPUs, but for full convolutions in fp32 with AVX2. On GPUs it is for the tensor cores, which bf16 uses
    (NVIDIA's guide to convolutional layers); fp32 there keeps torch's usual order.
    """
    if device.type != "cpu" or precision == "bf16":
        return precision == "bf16"
    return depthwise or capability(device).level != "AVX2"


def emulation_cost(device: torch.device) -> float:
    """How many times as long as in fp32 a small convolution, forward and backward, takes in bf16 here."""
    convolution = torch.nn.Conv2d(64, 64, 3, padding=1).to(device)
    images = torch.ones(1, 64, 32, 32, device=device)
    seconds = dict.fromkeys((False, True), float("inf"))
    for _ in range(PROBE_ROUNDS):
        for lower in seconds:
            started = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=lower):
                convolution(images).float().sum().backward()
            assert convolution.weight.grad is not None
            float(convolution.weight.grad.sum())  # waits for an accelerator
            seconds[lower] = min(seconds[lower], time.perf_counter() - started)
    return seconds[True] / seconds[False]


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine(precision: str | None = None) -> dict[str, Any]:
    """What a measurement was made on, for its row: cores, threads, the capability and name of the processor (or GPU,
    where this process trains on one), and torch. precision: in which it was made, None = what `auto` is here.
    """
    device = training_device()
    here = capability(device)
    return {
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "capability": str(here),
        "precision": precision or settle_precision("auto", device)[0],
        "processor": here.name,
        "torch": torch.__version__,
    }
