"""What the README says of configurations is what the program does."""

import re
from pathlib import Path
from typing import Any

import yaml

from kinray.config import Config, load_config, parse_config
from kinray.core.methods import METHODS
from kinray.merge.document import read_recipe
from kinray.search.space import search_space

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CLUSTERS = {ROOT / "configs" / name for name in ("cluster-local.yaml", "rayjob.yaml")}
MERGING = (ROOT / "docs" / "merging.md").read_text()


def blocks() -> list[Any]:
    return [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)]


def test_the_reference_lists_every_key_with_its_default() -> None:
    defaults = Config.model_construct().model_dump(mode="json")

    assert blocks()[1] == defaults


def test_the_example_is_a_valid_configuration() -> None:
    config = parse_config(blocks()[0])

    assert [founder.name for founder in config.founders] == ["Llama-3.1-8B-Instruct", "math", "law"]
    assert len(search_space(config.merge.methods)) == 2


def test_the_method_table_lists_every_method() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.*?)\|", MERGING, re.MULTILINE)
    listed = {name: text for name, text in rows if name in METHODS}

    assert set(listed) == set(METHODS)
    for name, text in listed.items():
        if "as `ties`" not in text:
            assert {parameter.name for parameter in METHODS[name].parameters} == set(re.findall(r"`(\w+)`", text))


def test_the_readme_names_every_method() -> None:
    (listed,) = re.findall(r"defaults: (linear.*?)\(which", README, re.DOTALL)

    assert set(re.findall(r"\w+", listed)) - {"and"} == set(METHODS)


def test_the_example_recipe_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", MERGING, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(text)

    (document,), _ = read_recipe(tmp_path / "recipe.yaml")

    assert [str(model.model) for model in document.models] == ["/models/chat", "org/math@v2+/adapters/math-lora"]


def test_every_configuration_in_configs_can_be_read(monkeypatch: Any) -> None:
    monkeypatch.setenv("KINRAY_MODELS", "/models")
    monkeypatch.setenv("KINRAY_TASKS", "/tasks")
    names = []
    for path in sorted(set((ROOT / "configs").glob("*.yaml")) - CLUSTERS):
        config = load_config(path)
        search_space(config.merge.methods)
        names.append(path.stem)
    assert names == ["demo", "demo_layers", "mistral7b", "smollm2"]
