"""How a configuration is read: YAML without surprises, overrides, environment variables."""

from pathlib import Path
from typing import Any

import pytest

from kinray.config import Config, load_config
from kinray.config.loading import read_yaml, write_yaml
from kinray.errors import ConfigError

TEXT = """
base: models/base
founders: [models/math, {model: models/chat, name: chat}]
tasks:
  - arc_easy
  - {name: gsm8k, limit: 50}
search: {k: 4}
"""


def load(folder: Path, text: str | bytes = TEXT, *overrides: str) -> Config:
    file = folder / "search.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(file, overrides)


def test_file_is_read(tmp_path: Path) -> None:
    config = load(tmp_path)

    assert [founder.name for founder in config.founders] == ["math", "chat"]
    assert config.search.k == 4


@pytest.mark.parametrize(
    ("text", "number"), [("1e-3", 1e-3), ("2.5E+1", 25.0), ("1_0e1", 100.0), (".5", 0.5), ("1", 1.0), ("1.e-2", 0.01)]
)
def test_numbers_are_read_as_people_write_them(tmp_path: Path, text: str, number: float) -> None:
    config = load(tmp_path, f"{TEXT}merge: {{methods: {{ties: {{weight: {text}}}}}}}")

    assert config.merge.methods == {"ties": {"weight": number}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: a\nbase: b", "search.yaml, line 2, column 1: key 'base' is there twice"),
        ("search:\n  k: 3\n  k: 4", "line 3, column 3: key 'k' is there twice"),
        ("a: &x [1]\nb: *x", r"line 2, column 4: aliases \(\*name\) are not supported"),
        ("base: !!python/object/apply:os.system [ls]", r"line 1, column 7: tags \(!!python.object.apply:os.system\) are not"),
        ("base: !secret x", r"tags \(!secret\) are not supported"),
        ("<<: {base: a}", "could not determine a constructor"),
        ("1: a", "line 1, column 1: key 1 is not a word"),
        ("true: a", "key True is not a word"),
        ("null: a", "key None is not a word"),
        ("? [a]\n: b", r"key \['a'\] is not a word"),
        ("base: [a", "line 1, column 9: expected ',' or ']'"),
        ("base: a\n---\nbase: b", "line 2, column 1: but found another document"),
        ("base: \x07", "is not readable as YAML"),
        ("[" * 3000, "is not readable as YAML"),
        ("- a", "must hold a mapping of settings, not list"),
        ("", "must hold a mapping of settings, not NoneType"),
        (TEXT + "seed: .nan", "line 8, column 7: .nan is no finite number"),
        (TEXT + "merge: {methods: {slerp: {t: .inf}}}", "line 8, column 30: .inf is no finite number"),
        (TEXT + "seed: " + "9" * 5000, "line 8, column 7: 9{80} is no finite number"),
        (b"base: \xff", r"search.yaml is not text in UTF-8 \(byte 6\)"),
        (b"#" * ((1 << 20) + 1), "is too large: a configuration has at most 1048576 bytes"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_file_that_cannot_be_used(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot read the configuration .*gone.yaml: No such file"):
        load_config(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match=r"Cannot read the configuration .*: Is a directory"):
        load_config(tmp_path)


def test_problems_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"search.yaml: unknown key 'sed'. Did you mean 'seed'"):
        load(tmp_path, TEXT + "sed: 1")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("seed=3", lambda config: config.seed == 3),
        ("search.k=5", lambda config: config.search.k == 5),
        (" search.k =5", lambda config: config.search.k == 5),
        ("evaluation.holdout=0.25", lambda config: config.evaluation.holdout == 0.25),
        ("tasks.1.limit=10", lambda config: config.tasks[1].limit == 10),
        ("tasks.0=winogrande", lambda config: config.tasks[0].name == "winogrande"),
        ("tasks=[piqa]", lambda config: [task.name for task in config.tasks] == ["piqa"]),
        ("merge.methods.slerp.t={low: 0.2, high: 1e-0}", lambda config: config.merge.methods["slerp"]["t"].high == 1),
        ("base=a=b", lambda config: config.base == "a=b"),
        ("search.max_children=", lambda config: config.search.max_children is None),
    ],
)
def test_override_takes_the_place_of_what_the_file_says(tmp_path: Path, override: str, value: Any) -> None:
    assert value(load(tmp_path, TEXT, override))


def test_later_overrides_win(tmp_path: Path) -> None:
    assert load(tmp_path, TEXT, "search.k=5", "search.k=6", "search.kinship=cs").search.k == 6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set 'seed' is not of the form key=value, such as search.k=4"),
        ("=3", "is not of the form key=value"),
        ("search..k=3", "is not of the form key=value"),
        ("", "is not of the form key=value"),
        ("base.x=3", "--set base.x: 'base' is a value, it has no keys of its own"),
        ("tasks.2=x", "--set tasks.2: '2' is no place in a list of 2; they are counted from 0"),
        ("tasks.-1=x", "'-1' is no place in a list of 2"),
        ("tasks.x.limit=3", "'x' is no place in a list of 2"),
        ("seed=[1", "--set seed, line 1, column 3: expected ',' or ']'"),
        ("search.kk=3", "unknown key 'search.kk'. Did you mean 'k'"),
        ("search.k=x", "'search.k' is 'x'"),
    ],
)
def test_override_that_cannot_be_used(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, TEXT, override)


def test_paths_may_name_environment_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS", "/data/models")
    text = """
    base: $MODELS/base
    founders: ["${MODELS}/math", {adapter: $MODELS/chat}]
    tasks: [a]
    task_paths: [$MODELS/tasks]
    evaluation: {score_cache: $MODELS/scores}
    output: ~/runs
    """

    config = load(tmp_path, text)

    assert config.base == "/data/models/base"
    assert config.founders[0].model == "/data/models/math"
    assert (config.founders[1].adapter, config.founders[1].name) == ("/data/models/chat", "chat")
    assert config.task_paths == ["/data/models/tasks"]
    assert config.evaluation.score_cache == "/data/models/scores"
    assert config.output == str(Path.home() / "runs")


@pytest.mark.parametrize("form", ["$NOT_SET_HERE", "${NOT_SET_HERE}"])
@pytest.mark.parametrize("key", ["base", "founders.0", "founders.1.model", "evaluation.score_cache", "output"])
def test_unset_environment_variable_is_named(tmp_path: Path, form: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}.* is .*, but the environment variable NOT_SET_HERE is not set"):
        load(tmp_path, TEXT, f"{key}={form}/x")


def test_an_override_reaches_into_an_entry_that_is_a_bare_string(tmp_path: Path) -> None:
    config = load(tmp_path, TEXT, "tasks.0.limit=30", "founders.0.revision=main")

    assert (config.tasks[0].name, config.tasks[0].limit) == ("arc_easy", 30)
    assert (config.founders[0].model, config.founders[0].revision) == ("models/math", "main")


@pytest.mark.parametrize("text", ["2020-13-45", "1:30", "1:1:1.5"])
def test_dates_and_sixties_are_words(text: str) -> None:
    assert read_yaml(f"a: {text}", "here") == {"a": text}


@pytest.mark.parametrize("word", ["12e4567", "1:30", "2020-01-01", "1e5", "null", "yes", "007", "a: b", "# no comment"])
def test_words_that_look_like_something_else_are_written_so_that_they_are_read_back(word: str) -> None:
    assert read_yaml(write_yaml({"base_revision": word}), "here") == {"base_revision": word}
