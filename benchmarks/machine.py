"""On what a benchmark ran, and the options that all of them share."""

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "hfdistill", "textbrewer")
CPU = "a server's processor"


def device(name: str | None = None) -> torch.device:
    """The device asked for; None: a GPU where there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def description(options: argparse.Namespace) -> dict[str, Any]:
    """What is to be said of the machine, so that a figure can be judged.

    Args:
        options: of `add_options`.
    """
    place = device(options.device)
    facts: dict[str, Any] = {
        "cpu": options.cpu,
        "cores": os.cpu_count(),
        "threads": options.threads,
        "clock": options.clock,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": str(place),
        "matmul": torch.get_float32_matmul_precision(),
        "versions": {name: found for name in LIBRARIES if (found := installed(name))},
    }
    if place.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(place)
    return facts


def installed(name: str) -> str | None:
    """A library's version; None where it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def add_options(parser: argparse.ArgumentParser, rounds: int = 5) -> None:
    """Add the options that every benchmark has.

    Args:
        parser: of the benchmark.
        rounds: how many are measured unless told otherwise.
    """
    parser.add_argument("--teacher", default="12x768", help="layers x width [x heads]")
    parser.add_argument("--student", default="4x312", help="layers x width [x heads]")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", help="default: a GPU where there is one")
    parser.add_argument("--matmul", default="highest", help="float32 products: highest, or high (TF32 on a GPU)")
    parser.add_argument("--clock", default="wall", help="seconds of the wall's clock, or of this process: wall, cpu")
    parser.add_argument("--cpu", default=CPU, help="what pages call the processor")
    parser.add_argument("--output", type=Path, help="write the samples here, as JSON")


def settle(options: argparse.Namespace) -> torch.device:
    """Set threads and precision as asked, and say where the run is to be."""
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision(options.matmul)
    return device(options.device)
