"""What every test stands on: no network, one thread, a fixed seed, and a stated reason for every skip."""

import gc
import os

# Read by huggingface_hub, datasets and tokenizers when they are imported: set before anything below imports them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("HFDISTILL_SHARED", REPOSITORY.parent / "shared"))
NO_SHARED_DATA = f"needs the shared data folder; {SHARED} is absent, point HFDISTILL_SHARED at it"

# Models of a few thousand parameters lose more to starting threads than they gain from them.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say what it lacks."""
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none")
    no_data = pytest.mark.skipif(not SHARED.is_dir(), reason=NO_SHARED_DATA)
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(no_gpu)
        if item.get_closest_marker("data"):
            item.add_marker(no_data)


@pytest.fixture(autouse=True, scope="module")
def _frozen_garbage() -> None:
    """Keep collections of garbage, which every training run makes, from looking through all tests and libraries."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the shared data folder: beside the repository, or where HFDISTILL_SHARED says."""
    if not SHARED.is_dir():
        pytest.skip(NO_SHARED_DATA)
    return SHARED


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Start every test from one seed, so that it does not depend on which tests ran before."""
    torch.manual_seed(0)
