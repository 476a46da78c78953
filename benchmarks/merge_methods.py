"""Compare the deterministic merge methods with mergekit's on the same random float32 tensors.

    python benchmarks/merge_methods.py MERGEKIT_PYTHON [--rows 256] [--columns 384] [--write tests/core/fixtures/mergekit.json]

MERGEKIT_PYTHON is the interpreter of an environment with mergekit 0.1.4, best with the same torch. Prints for each case the
share of equal float32 weights, the largest difference in float32 units in the last place, and the share within one bfloat16
unit once both are cast. ``--write`` keeps these numbers and, for tensors of 10 × 16, inputs and mergekit's
outputs as the fixture of tests/core/test_against_mergekit.py.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

DELTAS = "deltas as long as a tenth of the weights"
SMALL_DELTAS = "deltas of a short fine-tune, 1e-5"
WIDE = "unrelated models"

CASES: list[dict[str, Any]] = [
    {"method": "linear", "inputs": WIDE, "parents": 3, "params": {"weight": [0.2, 0.5, 0.6]}},
    {"method": "linear", "inputs": DELTAS, "parents": 2, "params": {"weight": [0.2, 0.5], "normalize": False}},
    {"method": "slerp", "inputs": WIDE, "parents": 2, "base": "first", "params": {"t": 0.3}},
    {"method": "slerp", "inputs": SMALL_DELTAS, "parents": 2, "base": "first", "params": {"t": 0.3}},
    {"method": "nuslerp", "inputs": WIDE, "parents": 2, "params": {"weight": [0.3, 0.9]}},
    {"method": "nuslerp", "inputs": DELTAS, "parents": 2, "base": "base", "params": {"weight": [0.3, 0.9]}},
    {"method": "nuslerp", "inputs": WIDE, "parents": 2, "params": {"weight": [0.3, 0.9], "nuslerp_flatten": False}},
    {
        "method": "nuslerp",
        "inputs": WIDE,
        "parents": 2,
        "params": {"weight": [0.3, 0.9], "nuslerp_flatten": False, "nuslerp_row_wise": True},
    },
    {"method": "multislerp", "inputs": WIDE, "parents": 3, "params": {"weight": [0.3, 0.9, 0.5]}},
    {"method": "multislerp", "inputs": DELTAS, "parents": 3, "base": "base", "params": {"weight": [0.3, 0.9, 0.5]}},
    {"method": "karcher", "inputs": WIDE, "parents": 3, "params": {}},
    {"method": "karcher", "inputs": DELTAS, "parents": 3, "params": {}},
    {"method": "task_arithmetic", "inputs": DELTAS, "parents": 2, "base": "base", "params": {"weight": [0.3, 0.9]}},
    {
        "method": "ties",
        "inputs": DELTAS,
        "parents": 3,
        "base": "base",
        "params": {"weight": [0.3, 0.9, 0.5], "density": [0.3, 0.5, 0.7]},
    },
    {
        "method": "breadcrumbs",
        "inputs": DELTAS,
        "parents": 2,
        "base": "base",
        "params": {"weight": [0.3, 0.9], "density": [0.5, 0.8], "gamma": [0.05, 0.1]},
    },
    {
        "method": "breadcrumbs_ties",
        "inputs": DELTAS,
        "parents": 2,
        "base": "base",
        "params": {"weight": [0.3, 0.9], "density": [0.5, 0.8], "gamma": [0.05, 0.1]},
    },
    {
        "method": "breadcrumbs",
        "inputs": DELTAS,
        "parents": 2,
        "base": "base",
        "params": {"weight": [0.3, 0.9], "density": [0.5, 0.8], "gamma": [0.0, 0.0]},
        "differs": "mergekit returns the base where gamma takes away no element",
    },
    {"method": "sce", "inputs": DELTAS, "parents": 3, "base": "base", "params": {}},
    {"method": "sce", "inputs": DELTAS, "parents": 3, "base": "base", "params": {"select_topk": 0.4}},
    {
        "method": "sce",
        "inputs": SMALL_DELTAS,
        "parents": 3,
        "base": "base",
        "params": {},
        "differs": "mergekit weighs parents equally where mean squares add up to less than 1e-6",
    },
    {"method": "model_stock", "inputs": DELTAS, "parents": 3, "base": "base", "params": {}},
    {"method": "model_stock", "inputs": DELTAS, "parents": 2, "base": "base", "params": {"filter_wise": True}},
    {
        "method": "model_stock",
        "inputs": SMALL_DELTAS,
        "parents": 2,
        "base": "base",
        "params": {"filter_wise": True},
        "differs": "mergekit takes products of norms below 1e-6 for 1e-6",
    },
    {"method": "nearswap", "inputs": DELTAS, "parents": 2, "base": "first", "params": {"t": 0.002}},
    {"method": "arcee_fusion", "inputs": WIDE, "parents": 2, "base": "first", "params": {}},
    {
        "method": "arcee_fusion",
        "inputs": SMALL_DELTAS,
        "parents": 2,
        "base": "first",
        "params": {},
        "differs": "mergekit's float32 loses the divergence of a small change",
    },
    *(
        {"method": method, "inputs": DELTAS, "parents": 3, "base": "base", "params": {"weight": [0.3, 0.9, 0.5]}}
        for method in ("dare_linear", "dare_ties", "della", "della_linear")  # nothing is random at density 1
    ),
    {"method": "passthrough", "inputs": WIDE, "parents": 1, "params": {"scale": [0.7]}},
]
"""``base``: absent, "base" for θ0 or "first" for the first parent. ``differs``: why kinray does not do as mergekit does."""

PER_MODEL = ("weight", "density", "gamma", "scale")


def draw_inputs(rows: int, columns: int) -> dict[str, Any]:
    """Draw a base and three parents of each kind, the parents sharing a part of their deltas."""
    generator = torch.Generator().manual_seed(2403)
    inputs = {}
    for kind, length in ((DELTAS, 2e-3), (SMALL_DELTAS, 1e-5), (WIDE, 2e-2)):
        base, shared, *own = (torch.randn(rows, columns, generator=generator) for _ in range(5))
        scales = (1.0, 1.5, 0.7)
        deltas = [length * scale * (shared + part) for scale, part in zip(scales, own, strict=True)]
        parents = [(0.0 if kind == WIDE else 0.02 * base) + delta for delta in deltas]
        inputs[kind] = {"shape": [rows, columns], "base": flat(0.02 * base), "parents": [flat(parent) for parent in parents]}
    return inputs


def flat(tensor: torch.Tensor) -> list[float]:
    """List float32 numbers with the fewest digits that give them back."""
    return [float(f"{value:.9g}") for value in tensor.reshape(-1).tolist()]


def tensors_of(case: dict[str, Any], inputs: dict[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the base and the parents of a case, float32."""
    given = inputs[case["inputs"]]
    base, *parents = (torch.tensor(numbers).reshape(given["shape"]) for numbers in (given["base"], *given["parents"]))
    return base, parents[: case["parents"]]


# -- kinray


def ours(case: dict[str, Any], inputs: dict[str, Any]) -> torch.Tensor:
    """Merge a case with kinray."""
    from kinray.core.masks import HashedMasks
    from kinray.core.methods import method_named

    base, parents = tensors_of(case, inputs)
    params = {name: tuple(value) if isinstance(value, list) else value for name, value in case["params"].items()}
    origin = base if case.get("base") == "base" else None
    return method_named(case["method"]).merge(origin, parents, params, HashedMasks("0", "w"))


# -- mergekit, in its own interpreter


def answer() -> None:
    """Merge the cases on stdin with mergekit and print its version and outputs as JSON."""
    from importlib.metadata import version

    question = json.load(sys.stdin)
    outputs = [flat(theirs(case, question["inputs"])) for case in question["cases"]]
    print(json.dumps({"mergekit": version("mergekit"), "torch": version("torch"), "outputs": outputs}))


def theirs(case: dict[str, Any], inputs: dict[str, Any]) -> torch.Tensor:
    """Run mergekit's own task for one tensor."""
    from mergekit import merge_methods
    from mergekit.architecture import WeightInfo
    from mergekit.common import ImmutableMap, ModelReference
    from mergekit.io.tasks import GatherTensors

    base, parents = tensors_of(case, inputs)
    models = {ModelReference.parse(f"m{number}"): parent for number, parent in enumerate(parents)}
    names = list(models)
    base_model = {"base": ModelReference.parse("base"), "first": names[0]}.get(case.get("base", ""))
    if case.get("base") == "base":
        models = {base_model: base} | models
    method = merge_methods.get(case["method"])
    given = case["params"]
    own = {d.name: d.default_value for d in method.tensor_parameters()}
    per_model = {
        model: ImmutableMap({name: given[name][i] if name in given else default for name, default in own.items()})
        for i, model in enumerate(names)
    }
    weight = WeightInfo(name="w")
    task = method.make_task(
        output_weight=weight,
        tensors=GatherTensors(weight_info=ImmutableMap(dict.fromkeys(models, weight))),
        base_model=base_model,
        parameters=ImmutableMap({d.name: given.get(d.name, d.default_value) for d in method.parameters()}),
        tensor_parameters=ImmutableMap(per_model),
    )
    return task.execute(tensors=dict(models))


# -- the comparison


def compare(mine: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """Return the share of equal weights, the largest difference in float32 units, and the share within one bfloat16 unit."""
    units = (_ordered(mine, torch.int32) - _ordered(other, torch.int32)).abs()
    halves = (_ordered(mine.bfloat16(), torch.int16) - _ordered(other.bfloat16(), torch.int16)).abs()
    return {
        "equal": float((units == 0).double().mean()),
        "largest_float32_units": int(units.max()),
        "within_one_bfloat16_unit": float((halves <= 1).double().mean()),
    }


def _ordered(tensor: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """Number floats in their order, so that neighbours differ by one."""
    bits = tensor.contiguous().view(kind).long()
    return torch.where(bits < 0, -(bits & torch.iinfo(kind).max), bits)


def ask(python: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """Run the cases with mergekit in its interpreter."""
    done = subprocess.run(  # noqa: S603  the interpreter is the user's choice
        [python, __file__, "--answer"],
        check=False,
        input=json.dumps({"inputs": inputs, "cases": CASES}),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": "", "PYTHONHASHSEED": "0"},
    )
    if done.returncode:
        raise SystemExit(f"mergekit failed:\n{done.stderr[-3000:]}")
    reply: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return reply


def main() -> None:
    """Compare, print a table and, if asked, write the fixture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mergekit_python")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--columns", type=int, default=384)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    inputs = draw_inputs(args.rows, args.columns)
    reply = ask(args.mergekit_python, inputs)
    print(f"mergekit {reply['mergekit']}, torch {reply['torch']}; {args.rows} × {args.columns} float32")
    print(f"{'method':17} {'equal':>7} {'float32 units':>14} {'≤ 1 bfloat16 unit':>18}  inputs, parameters")
    comparisons = []
    for case, output in zip(CASES, reply["outputs"], strict=True):
        mine = ours(case, inputs)
        comparisons.append(compare(mine, torch.tensor(output).reshape(mine.shape)))
        equal, units, within = comparisons[-1].values()
        note = f" DIFFERS ON PURPOSE: {case['differs']}" if "differs" in case else ""
        print(f"{case['method']:17} {equal:7.2%} {units:14.0f} {within:18.3%}  {case['inputs']}, {case['params']}{note}")
    if args.write:
        small = draw_inputs(10, 16)
        outputs = ask(args.mergekit_python, small)["outputs"]
        cases = [
            case | {"output": output, f"on {args.rows} x {args.columns}": comparison}
            for case, output, comparison in zip(CASES, outputs, comparisons, strict=True)
        ]
        record = {"mergekit": reply["mergekit"], "torch": reply["torch"], "inputs": small, "cases": cases}
        args.write.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    answer() if sys.argv[1:] == ["--answer"] else main()
