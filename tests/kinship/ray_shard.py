"""A shard that writes down what it does, and takes its time, so that a test can break something meanwhile."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from kinray.cluster.shards import Shard
from kinray.core.statistics import Statistics

LOG = "KINRAY_TEST_SHARD_LOG"


class SlowShard(Shard):
    """Works like any shard; the log has a line for each bundle that was finished."""

    def gram(self, names: Sequence[str]) -> Statistics:
        time.sleep(0.15)
        result = super().gram(names)
        with Path(os.environ[LOG]).open("a") as log:
            log.write(f"{os.getpid()} {','.join(names)}\n")
        return result
