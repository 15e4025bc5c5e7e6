"""Runs with and without the teacher's cache, by as many processes as torchrun starts; not a test itself.

    torchrun --nproc_per_node 2 cached_processes.py FOLDER

Process r writes FOLDER/r.json: how far the cached runs are from the live one, and how often its teacher was asked.
"""

import json
import sys
from pathlib import Path

import torch
from cached_runs import apart, asked, cached_run

from hfdistill import fill_cache


def main(folder: Path) -> None:
    """A live run; one that fills a cache and one that reads it; a cache that is filled ahead and read."""
    live = cached_run(folder / "live", "pkd")
    if live.args.world_size != 2:
        raise RuntimeError(f"{live.args.world_size} processes, expected 2")
    live.train()
    filling = cached_run(folder / "filling", "pkd", folder / "lazy")
    filling.train()
    filled = fill_cache(cached_run(folder / "filled", "pkd", folder / "ahead"))
    ahead = cached_run(folder / "run", "pkd", folder / "ahead")
    ahead.train()
    told = {
        "filling": {"apart": apart(filling, live), "asked": asked(filling)},
        "filled": filled.rows,
        "ahead": {"apart": apart(ahead, live), "asked": asked(ahead)},
    }
    (folder / f"{live.args.process_index}.json").write_text(json.dumps(told), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
