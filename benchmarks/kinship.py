"""Time the kinship pass: ``python benchmarks/kinship.py [--models DIR]``; see benchmarks/README.md."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

REPEATS = 5
HOME = Path(tempfile.gettempdir()) / "kinray-benchmark"


def main() -> None:
    """Run every measurement in a process of its own and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=HOME, help="where the models are made")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="passes of each kind; the best one counts")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        print(json.dumps(work(json.loads(arguments.work))))
        return
    from models import make_models

    threads = len(os.sched_getaffinity(0))
    large = make_models(arguments.models, "0.35B", 5)
    tiny = make_models(arguments.models, "tiny", 32)
    print(f"{threads} cores, load {os.getloadavg()[0]:.1f} at the start, best of {arguments.repeats}, warm page cache\n")
    _large_table(large, arguments.repeats)
    _growth_table(tiny, arguments.repeats)
    print(f"\nload {os.getloadavg()[0]:.1f} at the end")


def _large_table(paths: Sequence[Path], repeats: int) -> None:
    print("A base and 5 models of 0.35 B parameters, bfloat16: all 10 pairs, all 3 metrics")
    print(f"{'':<42}{'seconds':>9}{'GB/s':>7}{'of floor':>10}{'anonymous MB':>14}")
    task = {"what": "pass", "paths": [str(path) for path in paths], "repeats": repeats}
    seconds = 0.0
    for policy in (None, "PASSIVE"):
        result = _run(task, policy)
        print("OMP_WAIT_POLICY=PASSIVE" if policy else f"default settings, {result['parameters'] / 1e6:.0f} M parameters")
        _row("  floor: read and convert, files just mapped", result, "floor", "floor")
        _row("  kinray, files just mapped", result, "seconds", "floor", f"{result['anonymous']:14.0f}")
        _row("  floor, pages mapped before", result, "floor_mapped", "floor_mapped")
        _row("  kinray, pages mapped before", result, "mapped", "floor_mapped")
        seconds = seconds or result["seconds"]
    paper = _run({"what": "paper", "paths": task["paths"], "repeats": 1}, None)
    pairs = len(list(combinations(paths[1:], 2)))
    print(f"{'the paper’s way, one pair, 3 metrics':<42}{paper['seconds']:9.2f}{'':>17}{paper['anonymous']:14.0f}")
    whole = paper["seconds"] * pairs
    print(f"its {pairs} pairs would take {whole:.0f} s, {whole / seconds:.0f} times kinray's pass\n")


def _row(title: str, result: dict[str, Any], time_of: str, floor: str, memory: str = "") -> None:
    seconds = result[time_of]
    speed, share = result["nbytes"] / seconds / 1e9, f"{100 * result[floor] / seconds:.0f} %"
    print(f"{title:<42}{seconds:9.2f}{speed:7.2f}{share:>10}{memory}")


def _growth_table(paths: Sequence[Path], repeats: int) -> None:
    print("Growth: a base and N models of 0.013 B parameters")
    print(f"{'N':>4}{'seconds':>10}{'GB/s':>7}{'of floor':>10}{'ms per model':>14}{'anonymous MB':>14}")
    for count in (2, 4, 8, 16, 32):
        result = _run({"what": "pass", "paths": [str(path) for path in paths[: count + 1]], "repeats": repeats}, None)
        speed, share = result["nbytes"] / result["seconds"] / 1e9, f"{100 * result['floor'] / result['seconds']:.0f} %"
        each = 1e3 * result["seconds"] / (count + 1)
        print(f"{count:>4}{result['seconds']:10.3f}{speed:7.2f}{share:>10}{each:14.1f}{result['anonymous']:14.0f}")


def _run(task: dict[str, Any], policy: str | None) -> dict[str, Any]:
    """Run one measurement in a fresh process."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    if policy:
        environment["OMP_WAIT_POLICY"] = policy
    command = [sys.executable, __file__, "--work", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# -- in the measuring process


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Do one measurement."""
    return {"pass": _time_pass, "paper": _time_paper}[task["what"]](task["paths"], task["repeats"])


def _time_pass(paths: Sequence[str], repeats: int) -> dict[str, Any]:
    """Time floor and pass in turn, so that both see the same load, with files mapped anew each time and mapped before."""
    import torch

    from kinray.core.kinship import METRICS, kinship_matrix
    from kinray.engine.gram import gram_pass
    from kinray.kinship.family import open_family

    def fresh() -> Any:
        from kinray.checkpoints import folder

        folder._FILES.__dict__.clear()  # forget the mappings
        return open_family(paths[0], list(paths[1:])).models

    def kinship(models: Any) -> None:
        statistics = gram_pass(models, models.names)
        for metric in METRICS:
            kinship_matrix(metric, statistics)

    models = fresh()
    threads = torch.get_num_threads()
    times: dict[str, list[float]] = {"floor": [], "seconds": [], "floor_mapped": [], "mapped": []}
    _floor(models, threads)
    with _peak_anonymous() as peak:
        kinship(models)
    for _ in range(repeats):
        for name, do in (("floor", lambda m: _floor(m, threads)), ("seconds", kinship)):
            models = fresh()
            for key in (name, "floor_mapped" if name == "floor" else "mapped"):
                start = time.perf_counter()
                do(models)
                times[key].append(time.perf_counter() - start)
    best = {name: min(values) for name, values in times.items()}
    return {**best, "nbytes": models.nbytes(), "parameters": models.parameters, "anonymous": peak.megabytes}


def _floor(models: Any, threads: int) -> None:
    """Read every byte of every model and convert it to float32, nothing more."""
    import torch

    size = 1 << 19
    buffers = threading.local()

    def convert(piece: torch.Tensor) -> None:
        if not hasattr(buffers, "row"):
            buffers.row = torch.empty(size)
        for part in torch.split(piece, size):
            buffers.row[: part.numel()].copy_(part)

    tensors = (source.load(name).reshape(-1) for name in models.names for source in models.sources.values())
    before = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(convert, (piece for tensor in tensors for piece in torch.split(tensor, 16 * size))))
    torch.set_num_threads(before)


def _time_paper(paths: Sequence[str], repeats: int) -> dict[str, Any]:
    """Time one pair the plain way: load three models whole, concatenate the deltas, compute each metric on them."""
    import torch
    from safetensors.torch import load_file

    def load(path: str) -> dict[str, torch.Tensor]:
        return {name: tensor.float() for name, tensor in load_file(Path(path) / "model.safetensors").items()}

    def metric(name: str) -> float:
        base, left, right = (load(path) for path in paths[:3])
        x = torch.cat([(left[key] - base[key]).reshape(-1) for key in base])
        y = torch.cat([(right[key] - base[key]).reshape(-1) for key in base])
        del base, left, right
        if name == "pcc":
            return float(torch.corrcoef(torch.stack([x, y]))[0, 1])
        if name == "cs":
            return float((torch.dot(x, y) ** 2 / (torch.dot(x, x) * torch.dot(y, y))).sqrt())
        return float(torch.dist(x, y))

    seconds = []
    with _peak_anonymous() as peak:
        for _ in range(repeats):
            start = time.perf_counter()
            for name in ("pcc", "cs", "ed"):
                metric(name)
            seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "anonymous": peak.megabytes}


class _peak_anonymous:  # noqa: N801
    """Sample RssAnon while the block runs; ``megabytes`` is its peak above the start."""

    megabytes = 0.0

    def __enter__(self) -> "_peak_anonymous":
        self._start, self._stop = _anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.005):
            self.megabytes = max(self.megabytes, (_anonymous() - self._start) / 1e6)


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    return 0


if __name__ == "__main__":
    main()
