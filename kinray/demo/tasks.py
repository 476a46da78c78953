"""Writes the demo's skills as lm-eval multiple-choice tasks."""

import json
from pathlib import Path

from kinray.demo.settings import DemoSettings
from kinray.demo.skills import SKILLS, held_out_items

_YAML = """\
# {about}
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def task_name(skill: str) -> str:
    """Names the lm-eval task of a skill."""
    return f"demo_{skill}"


def write_tasks(folder: Path, final: Path, settings: DemoSettings) -> None:
    """Writes a YAML and a JSONL file per skill into `folder`; the YAML names the data where it will lie, in `final`."""
    folder.mkdir()
    for lesson in settings.lessons:
        skill = SKILLS[lesson.skill]
        task = task_name(skill.name)
        items = held_out_items(skill, settings.test_items, str(settings.seed))
        lines = [json.dumps({"prompt": item.prompt, "choices": item.choices, "answer": item.answer}) + "\n" for item in items]
        (folder / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
        # A JSON string is a YAML string, whatever characters the path has.
        text = _YAML.format(about=skill.about, task=task, data=json.dumps(str(final / f"{task}.jsonl")))
        (folder / f"{task}.yaml").write_text(text, encoding="utf-8")
