"""Memory is bounded by blocks, not by tensors or models."""

import threading
from pathlib import Path

import torch

from kinray.engine.gram import gram_pass
from kinray.kinship.family import open_family
from tests.helpers import ARCHITECTURE, make_model

MEGABYTE = 1 << 20


def anonymous() -> int:
    """Read this process's anonymous memory in bytes; mapped files do not count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def test_pass_over_large_tensors_takes_little_memory(tmp_path: Path) -> None:
    config = {"architectures": [ARCHITECTURE], "vocab_size": 10}
    shape = (4096, 4096)  # 64 MiB in float32
    for seed in range(3):
        weights = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
        make_model(tmp_path / str(seed), {"large.weight": weights}, config)
        del weights
    models = open_family(tmp_path / "0", [tmp_path / "1", tmp_path / "2"]).models
    before, peak, stop = anonymous(), [0], threading.Event()

    def sample() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        gram_pass(models, models.names)
    finally:
        stop.set()
        watcher.join()

    assert peak[0] - before < 32 * MEGABYTE
