"""Time whole ``kinray merge`` commands: ``python benchmarks/merge.py [--mergekit MERGEKIT_YAML]``; see benchmarks/README.md.

MERGEKIT_YAML is the command of that name in an environment with mergekit 0.1.4. Without it kinray is compared with a plain
reference that reads, computes and writes whole tensors in float32, for the methods that have one line of arithmetic.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

HOME = Path(tempfile.gettempdir()) / "kinray-benchmark"
RECIPES = {
    "linear": "models: [{model: A, parameters: {weight: 0.4}}, {model: B, parameters: {weight: 0.6}}]",
    "task_arithmetic": "models: [{model: A}, {model: B}]\nbase_model: BASE\nparameters: {weight: 0.5}",
    "slerp": "models: [{model: A}, {model: B}]\nbase_model: A\nparameters: {t: 0.4}",
    "ties": "models: [{model: A}, {model: B}]\nbase_model: BASE\nparameters: {weight: 0.5, density: 0.5}",
    "dare_ties": "models: [{model: A}, {model: B}]\nbase_model: BASE\nparameters: {weight: 0.5, density: 0.5}",
    "della": "models: [{model: A}, {model: B}]\nbase_model: BASE\nparameters: {weight: 0.5, density: 0.5, epsilon: 0.1}",
    "breadcrumbs": "models: [{model: A}, {model: B}]\nbase_model: BASE\nparameters: {weight: 0.5, density: 0.5, gamma: 0.01}",
    "sce": "models: [{model: A}, {model: B}]\nbase_model: BASE\nparameters: {select_topk: 0.5}",
    "model_stock": "models: [{model: A}, {model: B}]\nbase_model: BASE",
    "nuslerp": "models: [{model: A, parameters: {weight: 0.4}}, {model: B, parameters: {weight: 0.6}}]",
    "multislerp": "models: [{model: A, parameters: {weight: 0.4}}, {model: B, parameters: {weight: 0.6}}]",
    "karcher": "models: [{model: A}, {model: B}]",
    "nearswap": "models: [{model: A}, {model: B}]\nbase_model: A\nparameters: {t: 0.001}",
    "arcee_fusion": "models: [{model: A}, {model: B}]\nbase_model: A",
    "ram": "models: [{model: A}, {model: B}]\nbase_model: BASE",
}
FASTER = {"linear": 3, "task_arithmetic": 3, "slerp": 3, "ties": 8, "dare_ties": 4, "della": 8}
"""How many times faster than mergekit a method must be."""

REFERENCE = """
import sys, torch
from safetensors.torch import load_file, save_file
a, b, base = (load_file(f"{path}/model.safetensors") for path in sys.argv[2:5])
made = {}
for name in a:
    x, y, z = a[name].float(), b[name].float(), base[name].float()
    made[name] = (0.4 * x + 0.6 * y if sys.argv[1] == "linear" else z + 0.4 * (x - z) + 0.6 * (y - z)).bfloat16()
save_file(made, f"{sys.argv[5]}/model.safetensors")
"""
"""The plain way: whole files read, each tensor computed in float32, all of the result kept until it is written."""

FLOOR = """
import sys
buffer = bytearray(8 << 20)
*inputs, output = sys.argv[1:]
with open(output, "wb") as out:
    for place, path in enumerate(inputs):
        with open(path, "rb") as stream:
            while read := stream.readinto(buffer):
                if place == 0:
                    out.write(memoryview(buffer)[:read])
"""
"""Read every byte of the inputs and write as many as one of them has, nothing more."""


def main() -> None:
    """Run all commands and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", type=Path, help="mergekit-yaml of another environment")
    parser.add_argument("--models", type=Path, default=HOME, help="where the models are made")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kinray command; the best one counts")
    parser.add_argument("methods", nargs="*", default=list(RECIPES), help="only these methods")
    arguments = parser.parse_args()
    from models import make_models

    base, one, two = make_models(arguments.models, "0.35B", 2)
    with tempfile.TemporaryDirectory(dir=arguments.models) as folder:
        _table(arguments, [one, two, base], Path(folder))


def _table(arguments: argparse.Namespace, paths: list[Path], folder: Path) -> None:
    weights = [str(path / "model.safetensors") for path in paths]
    size = os.path.getsize(weights[0])
    libraries = [sys.executable, "-c", "import gc; gc.disable(); import torch, numpy; gc.freeze()"]  # as kinray does it
    torch_s, torch_mb = min(_run(libraries)[0] for _ in range(3)), _run(libraries, watched=True)[1]
    start_s, _ = min(_run([sys.executable, "-m", "kinray.merge", "--help"]) for _ in range(3))
    largest, load = 4 * 49152 * 1024, os.getloadavg()[0]
    print(f"2 models and a base of 0.35 B parameters, bfloat16, {len(os.sched_getaffinity(0))} cores, load {load:.1f}")
    print(f"import torch {torch_s:.2f} s, {torch_mb:.0f} MB; kinray merge --help {start_s:.2f} s")
    other = "mergekit" if arguments.mergekit else "plain"
    times = f"{'seconds':>8}{'no torch':>9}{'floor':>7}{'of floor':>9}"
    print(f"{'method':<16}{times}{'anonymous MB':>13}{'of bound':>9}{other:>10}{'times':>7}")
    for method in arguments.methods:
        recipe = folder / f"{method}.yaml"
        text = RECIPES[method].replace("BASE", str(paths[2])).replace("model: A", f"model: {paths[0]}")
        text = text.replace("model: B", f"model: {paths[1]}")
        recipe.write_text(f"merge_method: {method}\ndtype: bfloat16\n{text}\n")
        inputs = weights if "BASE" in RECIPES[method] else weights[:2]
        # Floor and command take turns, so that both see the same load.
        floors, runs = [], []
        for _ in range(arguments.repeats):
            floors.append(_run([sys.executable, "-c", FLOOR, *inputs, str(folder / "copy")])[0])
            command = [sys.executable, "-m", "kinray.merge", str(recipe), str(folder / "out"), "--overwrite"]
            shutil.rmtree(folder / "out", ignore_errors=True)
            runs.append(_run(command)[0])
        seconds, memory = min(runs), _run(command, watched=True)[1]
        rest = _other(arguments.mergekit, method, recipe, paths, folder)
        share = f"{100 * min(floors) / seconds:.0f} %"
        taken = f"{seconds:8.2f}{seconds - torch_s:9.2f}{min(floors):7.2f}{share:>9}"
        bound = f"{100 * (memory - torch_mb) * 1e6 / (5 * largest):.0f} %"
        times = f"{rest:10.1f}{rest / seconds:7.1f}" if rest else f"{'':>17}"
        goal = f"  goal {FASTER[method]}" if arguments.mergekit and method in FASTER else ""
        print(f"{method:<16}{taken}{memory - torch_mb:13.0f}{bound:>9}{times}{goal}", flush=True)
    print(f"{size / 1e9:.2f} GB a model; load {os.getloadavg()[0]:.1f} at the end")


def _other(mergekit: Path | None, method: str, recipe: Path, paths: list[Path], folder: Path) -> float:
    """Time mergekit, else the plain reference for the methods that it knows; 0 for others."""
    if mergekit is not None:
        shutil.rmtree(folder / "theirs", ignore_errors=True)
        return _run([str(mergekit), str(recipe), str(folder / "theirs"), "--no-copy-tokenizer", "--quiet"], check=False)[0]
    if method not in ("linear", "task_arithmetic"):
        return 0.0
    return min(_run([sys.executable, "-c", REFERENCE, method, *map(str, paths), str(folder)])[0] for _ in range(2))


def _run(command: list[str], *, check: bool = True, watched: bool = False) -> tuple[float, float]:
    """Run a command; return its seconds and, if it is watched, which slows it, its peak of anonymous memory in MB."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # noqa: S603
    while watched and process.poll() is None:
        peak = max(peak, _anonymous(process.pid))
        time.sleep(0.02)
    process.wait()
    seconds = time.perf_counter() - started
    if process.returncode and check:
        raise SystemExit(process.stderr.read() if process.stderr else "")
    return (seconds, peak / 1e6) if not process.returncode else (0.0, 0.0)


def _anonymous(pid: int) -> int:
    """Return the bytes of anonymous memory of a process and its workers; what they share counts once."""
    total = 0
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *children):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss_Anon"):
                    total += int(line.split()[1]) << 10
    except OSError:
        pass
    return total


if __name__ == "__main__":
    main()
