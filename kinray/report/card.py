"""The model card of an exported model: where it comes from and what it scored."""

from collections.abc import Mapping, Sequence
from html import escape

import yaml

from kinray.core.kinship import METRICS, kinship_matrix
from kinray.core.recipe import Merge, topological
from kinray.core.scores import Difference
from kinray.core.statistics import Statistics
from kinray.report.leaderboard import Leaderboard
from kinray.report.recipe_yaml import founders_of
from kinray.report.wording import conclusions, describe, failures, front_rows, kinship_value, plus_minus, score_of
from kinray.search.policy import TopK
from kinray.search.population import Child


def model_card(
    board: Leaderboard,
    policy: TopK,
    gains: Mapping[str, Difference],
    statistics: Statistics,
    names: Sequence[str],
    places: Mapping[str, str],
    recipe: str,
) -> str:
    """Write the card of the best model.

    Args:
        board: the final comparison.
        policy: the search, for the lineage.
        gains: merge gains by child.
        statistics: of the founders, for their kinship.
        names: of the founders, in the order of the statistics.
        places: path or hub id of base and founders by digest.
        recipe: recipe.yaml.
    """
    best = policy.population[board.best]
    base = places[statistics.models[0]]
    used = [base, *(places[founder.digest] for founder in founders_of(best.recipe))]
    parts = [part.partition("@")[0] for place in used for part in place.split("+") if not part.startswith("/")]
    hub = list(dict.fromkeys(parts))
    front = {"library_name": "transformers", "tags": ["merge", "kinray"]} | ({"base_model": hub} if hub else {})
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {best.name}\n\nFound by kinray, a search over merges of fine-tuned language models that is guided by model "
        f"kinship. Base: `{base}`.",
        _scores(board),
        "\n".join(conclusions(board)),
        _front(board),
        _lineage(best, policy, gains),
        _kinship(statistics, names),
        f"## Recipe\n\n```yaml\n{recipe}```",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _scores(board: Leaderboard) -> str:
    """Write the scores on the items that count by task, and the means on all splits."""
    tasks = list(next((judged.tasks for entry in board.entries if (judged := board.judged(entry))), {}))
    held = any(entry.holdout for entry in board.entries)
    head = ["model", "", *(f"{task} ({'held out' if held else 'search'})" for task in tasks)]
    rows = []
    for entry in board.entries:
        judged = board.judged(entry)
        cells = [score_of(judged.tasks[task] if judged else None) for task in tasks]
        means = [score_of(scored) for scored in ([entry.holdout, entry.search] if held else [entry.search])]
        rows.append([entry.name, entry.kind, *cells, *means])
    failed = "".join(f"\n\n{entry.name} could not be scored: {escape(error, quote=False)}" for entry, error in failures(board))
    return "## Scores\n\n" + _table([*head, *(["held-out mean"] if held else []), "search mean"], rows) + failed


def _front(board: Leaderboard) -> str:
    if not board.front:
        return ""
    head, *rows = front_rows(board.front)
    return "## Pareto front on the search's items\n\n" + _table(head, rows)


def _lineage(best: Child, policy: TopK, gains: Mapping[str, Difference]) -> str:
    if not isinstance(best.recipe, Merge):
        return "## Lineage\n\nThe best model is a founder: no child beat it."
    wanted = {node.digest for node in topological([best.recipe])}
    rows = []
    for child in policy.population.children:
        if child.recipe.digest in wanted and child.parents:
            gain = gains.get(child.name)
            rows.append(
                [
                    child.name,
                    " × ".join(child.parents) + (" (exploration)" if child.operator == "exploration" else ""),
                    describe(child),
                    "" if child.kinship is None else kinship_value("pcc", child.kinship),
                    f"{policy.population.score(child.name):.3f}",
                    "" if gain is None else plus_minus(gain.mean, gain.stderr, "+"),
                ]
            )
    return "## Lineage\n\n" + _table(["child", "parents", "merge", "kinship", "search score", "gain"], rows)


def _kinship(statistics: Statistics, names: Sequence[str]) -> str:
    rows = []
    matrices = {metric: kinship_matrix(metric, statistics) for metric in METRICS}
    for i, a in enumerate(names):
        for j, b in enumerate(names[:i]):
            rows.append([f"{b} × {a}", *(kinship_value(metric, matrices[metric][i, j]) for metric in METRICS)])
    return "## Kinship of the founders\n\n" + _table(["pair", *METRICS], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
