"""Time scoring against stock lm-eval: ``python benchmarks/evaluate.py BASE CHILD --task-path DIR``; see README.md."""

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"
TASKS = ["kin_arc_easy", "kin_winogrande", "kin_truthfulqa_mc1:5:first_n", "kin_truthfulqa_mc1:5", "kin_arc_easy:5"]


def main() -> None:
    """Score each task with both, in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("child", type=Path, help="folder of a fine-tune, which is scored")
    parser.add_argument("--task-path", type=Path, required=True, help="folder with lm-eval task files")
    parser.add_argument("--tasks", nargs="+", default=TASKS, metavar="NAME[:SHOTS[:SAMPLER]]", help="default: %(default)s")
    parser.add_argument("--limit", type=int, default=24, help="items of each task")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is timed; the best one counts")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    print(f"{arguments.dtype}, {arguments.threads} threads, {arguments.limit} items of each task, best of {arguments.rounds}")
    print(f"load {os.getloadavg()[0]:.1f} at the start\n")
    head = f"{'':<30}{'stock seconds':>15}{'fixed':>7}{'kinray':>9}{'fixed':>7}{'ratio':>8}{'no fixed':>10}"
    print(f"{head}{'max |Δ ll|':>12}{'same acc':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for task in arguments.tasks:
            _row(task, _write_task(task, arguments.task_path, Path(folder)), arguments, Path(folder))
    print(f"\nload {os.getloadavg()[0]:.1f} at the end")


def _write_task(task: str, source: Path, folder: Path) -> str:
    """Write a variant of a task with few-shot examples and return its name."""
    given = task.split(":")
    name, shots, sampler = [*given, *(task, "0", "default")[len(given) :]]
    own = task.replace(":", "_")
    text = f"include: {(source / f'{name}.yaml').resolve()}\ntask: bench_{own}\nnum_fewshot: {shots}\n"
    (folder / f"{own}.yaml").write_text(f"{text}fewshot_config: {{sampler: {sampler}}}\n")
    return f"bench_{own}"


def _row(title: str, name: str, arguments: argparse.Namespace, folder: Path) -> None:
    ours, stock = _kinray(name, arguments, folder), _stock(name, arguments, folder)
    for _ in range(arguments.rounds):
        for side in (stock, ours):
            side.time()
    difference = max(abs(one[0] - other[0]) for one, other in zip(ours.answers(), stock.answers(), strict=True))
    right = [sum(side.right()) for side in (ours, stock)]
    same = "yes" if ours.right() == stock.right() else f"{right[0]:.0f}/{right[1]:.0f}"
    ratio, without = stock.total / ours.total, (stock.total - stock.fixed) / (ours.total - ours.fixed)
    seconds = f"{stock.total:>15.2f}{stock.fixed:>7.2f}{ours.total:>9.2f}{ours.fixed:>7.3f}{ratio:>8.2f}{without:>10.2f}"
    print(f"{title:<30}{seconds}{difference:>12.5f}{same:>10}", flush=True)


@dataclass
class Side:
    """One way to score.

    Args:
        run: scores once.
        answers: log-likelihoods and whether they are greedy, of the last run.
        right: of each item of the last run, whether its answer was right.
        model: owner and name of the method that runs the model.
        total: seconds of the best run.
        fixed: those of them outside of the model.
    """

    run: Callable[[], None]
    answers: Callable[[], list[tuple[float, bool]]]
    right: Callable[[], list[float]]
    model: tuple[Any, str]
    total: float = float("inf")
    fixed: float = 0.0

    def time(self) -> None:
        """Score once more, and keep the time if it is the best so far."""
        with _asking(self.model) as asked:
            started = time.perf_counter()
            self.run()
            seconds = time.perf_counter() - started
        if seconds < self.total:
            self.total, self.fixed = seconds, seconds - sum(asked)


@contextmanager
def _asking(place: tuple[Any, str]) -> Iterator[list[float]]:
    """Note the seconds that calls of a method take while the block runs."""
    owner, name = place
    method, seconds = getattr(owner, name), []

    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        answer = method(*arguments, **options)
        seconds.append(time.perf_counter() - started)
        return answer

    setattr(owner, name, timed)
    try:
        yield seconds
    finally:
        setattr(owner, name, method)


def _kinray(name: str, arguments: argparse.Namespace, folder: Path) -> Side:
    """Score the child as an evaluator does, with its weights merged before: merging has a benchmark of its own."""
    from kinray.checkpoints.identity import model_digest
    from kinray.checkpoints.models import ModelSpec
    from kinray.config import parse_config
    from kinray.core.recipe import Founder
    from kinray.core.scores import Scored
    from kinray.evaluation.packed import Packed
    from kinray.evaluation.scorer import Scorer

    paths = {"base": arguments.base, "child": arguments.child}
    specs = [ModelSpec(Founder(model_digest(path, None, title), title), path) for title, path in paths.items()]
    config = parse_config(
        {
            "base": str(arguments.base),
            "founders": ["a", "b"],
            "tasks": [{"name": name, "limit": arguments.limit}],
            "task_paths": _paths(arguments, folder),
            "merge": {"dtype": arguments.dtype},
            "evaluation": {"holdout": 0, "device": "cpu"},
        }
    )
    scorer = Scorer(specs, None, config, "cpu")
    scorer.prepare("search")
    results: list[Any] = []

    def run() -> None:
        result = scorer.score(specs[1].founder)
        assert isinstance(result, Scored), result
        results.append(result)

    scorer.score(specs[1].founder)
    scorer.backend.resident.load = lambda _: {"merge": 0.0, "copy": 0.0}
    (pack,) = scorer._prepared["search"].packs
    instances = sorted(pack.instances[0], key=lambda instance: (instance.doc_id, instance.idx))
    return Side(
        run,
        lambda: [instance.resps[0] for instance in instances],
        lambda: list(results[-1].tasks[name].values),
        (Packed, "answer"),
    )


def _stock(name: str, arguments: argparse.Namespace, folder: Path) -> Side:
    """Score the child with ``simple_evaluate`` and a model that is loaded already; its tasks are indexed before, too."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm = HFLM(pretrained=str(arguments.child), dtype=arguments.dtype, batch_size=16, device="cpu")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    samples: list[list[dict[str, Any]]] = []
    items = _items(name, _paths(arguments, folder), arguments.limit)

    def run() -> None:
        result = evaluator.simple_evaluate(
            lm, tasks=[name], task_manager=manager, samples={name: items}, fewshot_random_seed=0, bootstrap_iters=0
        )
        samples.append(sorted(result["samples"][name], key=lambda sample: int(sample["doc_id"])))

    return Side(
        run,
        lambda: [answer[0] for sample in samples[-1] for answer in sample["resps"]],
        lambda: [sample["acc"] for sample in samples[-1]],
        (lm, "_loglikelihood_tokens"),
    )


def _paths(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Return the folders of the variants and of the tasks that they include."""
    return [str(folder), str(arguments.task_path.resolve())]


def _items(name: str, paths: Sequence[str], limit: int) -> Sequence[int]:
    """Return the items that kinray draws."""
    from kinray.config import EvaluationConfig, TaskSpec
    from kinray.evaluation.task_loading import load_tasks

    spec = TaskSpec(name=name, limit=limit)
    return load_tasks([spec], paths, EvaluationConfig(holdout=0), 0).leaves[0].items["search"]


if __name__ == "__main__":
    main()
