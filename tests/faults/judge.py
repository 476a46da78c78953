"""Judges the demo's answers as lm-eval would, writes down which models it sees, and does what is planned for them.

Lies beside the task files of a run, which is where kinray lets users have Python of their own. A model is told by the
log-likelihoods it gives to one question, so no plan depends on who scores it or when.

probe        the question
seen         one line for each time that a model answered it
plan.json    {model: [what to do, how often]}
"""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def judge(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Return the accuracy of one answer, unless something else was planned."""
    likelihoods = [likelihood for likelihood, _ in results]
    _note(doc["prompt"], " ".join(likelihood.hex() for likelihood in likelihoods))
    return {"acc": float(likelihoods.index(max(likelihoods)) == doc["answer"])}


def _note(prompt: str, model: str) -> None:
    with suppress(FileExistsError), (FOLDER / "probe").open("x") as probe:
        probe.write(prompt)
    if prompt != (FOLDER / "probe").read_text():
        return
    with (FOLDER / "seen").open("a") as seen:
        seen.write(f"{model}\n")
    plan = FOLDER / "plan.json"
    what, times = json.loads(plan.read_text()).get(model, ("", 0)) if plan.exists() else ("", 0)
    if (FOLDER / "seen").read_text().splitlines().count(model) <= times:
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(f"Planned: {what}")
