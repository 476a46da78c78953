"""lm-eval's tasks draw from the global random states; here they draw the same in every process, and leave them as they were."""

import random
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random states of Python, numpy and torch for the block, and restore them after it."""
    import numpy as np
    import torch

    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
