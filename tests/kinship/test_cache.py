"""Statistics kept on disk: answered at once, grown by a row, never stale."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from kinray.engine import gram
from kinray.files import cache_folder
from kinray.kinship.family import open_family
from kinray.kinship.measure import statistics_of
from kinray.records.statistics_cache import SCHEMA
from tests.helpers import ARCHITECTURE, make_model, random_tensors

CONFIG = {"architectures": [ARCHITECTURE], "vocab_size": 10}
Passes = list[int]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    """Note how many models each pass over weights read."""
    seen: Passes = []
    real = gram.gram_pass

    def counted(models, *rest, **named):  # type: ignore[no-untyped-def]
        seen.append(len(models.digests))
        return real(models, *rest, **named)

    monkeypatch.setattr(gram, "gram_pass", counted)
    return seen


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, seed: int) -> Path:
        return make_model(tmp_path / name, random_tensors(seed), CONFIG)

    return make


def test_second_call_reads_no_weights(place: Callable[..., Path], passes: Passes) -> None:
    base, a, b = place("base", 0), place("a", 1), place("b", 2)

    first = statistics_of(open_family(base, [a, b]))
    second = statistics_of(open_family(base, [a, b]))

    assert passes == [3]
    for one, other in ((first.gram_TMM, second.gram_TMM), (first.sums_TM, second.sums_TM), (first.squares, second.squares)):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(first.count_T, second.count_T)


def test_part_of_a_table_and_another_order_are_known(place: Callable[..., Path], passes: Passes) -> None:
    base, *models = (place(name, seed) for seed, name in enumerate(["base", "a", "b", "c"]))
    whole = statistics_of(open_family(base, models))

    part = statistics_of(open_family(base, [models[2], models[0]]))

    assert passes == [4]
    np.testing.assert_array_equal(part.gram_TMM, whole.gram_TMM[:, [0, 3, 1]][:, :, [0, 3, 1]])


def test_new_model_adds_a_row_with_one_pass(place: Callable[..., Path], passes: Passes) -> None:
    base, a, b, c = (place(name, seed) for seed, name in enumerate(["base", "a", "b", "c"]))
    statistics_of(open_family(base, [a, b]))

    statistics_of(open_family(base, [a, b, c]))
    statistics_of(open_family(base, [c, a]))

    assert passes == [3, 4]
    (folder,) = (cache_folder() / "statistics").iterdir()
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("how", ["new contents", "same size and times", "other folder"])
def test_changed_weights_are_read_again(place: Callable[..., Path], passes: Passes, how: str) -> None:
    base, a = place("base", 0), place("a", 1)
    before = statistics_of(open_family(base, [a]))
    file = a / "model.safetensors"
    stat = file.stat()
    if how == "other folder":
        a = place("b", 5)
    else:
        time.sleep(0.02)  # longer than the clock of the file system
        other = (place("other", 5) / "model.safetensors").read_bytes()
        file.write_bytes(other)
        if how == "same size and times":
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    after = statistics_of(open_family(base, [a]))

    assert passes == [2, 2]
    assert not np.array_equal(before.gram_TMM[:, 1, 1], after.gram_TMM[:, 1, 1])


def test_weights_that_change_during_the_pass_are_not_kept(place: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    base, a = place("base", 0), place("a", 1)
    family = open_family(base, [a])
    real = gram.gram_pass

    def meddled(*given, **named):  # type: ignore[no-untyped-def]
        result = real(*given, **named)
        (a / "model.safetensors").touch()
        return result

    monkeypatch.setattr(gram, "gram_pass", meddled)

    statistics_of(family)

    assert not (cache_folder() / "statistics").exists()


def test_damaged_cache_only_costs_time(place: Callable[..., Path], passes: Passes) -> None:
    base, a = place("base", 0), place("a", 1)
    expected = statistics_of(open_family(base, [a]))
    for file in (cache_folder() / "statistics").rglob("*.parquet"):
        file.write_bytes(b"PAR1 or not")

    got = statistics_of(open_family(base, [a]))

    assert passes == [2, 2]
    np.testing.assert_array_equal(got.gram_TMM, expected.gram_TMM)


def test_other_common_vocabulary_is_another_table(tmp_path: Path, passes: Passes) -> None:
    rows = {"base": 10, "a": 10, "small": 7}
    base, a, small = (
        make_model(
            tmp_path / name,
            random_tensors(seed, {"embed.weight": (size, 6), "mlp.weight": (5, 6)}),
            CONFIG | {"vocab_size": size},
        )
        for seed, (name, size) in enumerate(rows.items())
    )
    statistics_of(open_family(base, [a]))

    both = statistics_of(open_family(base, [a, small]))

    assert passes == [2, 3]
    assert both.count_T.tolist() == [42, 30]
    assert statistics_of(open_family(base, [a])).count_T.tolist() == [60, 30]


def test_format_of_the_cache_is_pinned(place: Callable[..., Path]) -> None:
    statistics_of(open_family(place("base", 0), [place("a", 1)]))

    (file, _) = (cache_folder() / "statistics").rglob("*.parquet")
    assert pq.read_schema(file).equals(SCHEMA)
    assert [f"{field.name}: {field.type}" for field in SCHEMA] == [
        "tensor: string",
        "other: string",
        "count: int64",
        "sum: double",
        "dot: double",
        "square: double",
    ]


def test_a_family_with_its_own_base_among_the_models_leaves_the_cache_alone(place: Callable[..., Path], passes: Passes) -> None:
    base, a, b = place("base", 0), place("a", 1), place("b", 2)
    first = statistics_of(open_family(base, [a, b]))

    statistics_of(open_family(base, [base, a, b]))
    statistics_of(open_family(base, [base, a, b]))
    again = statistics_of(open_family(base, [a, b]))

    assert passes == [3, 4, 4]
    np.testing.assert_array_equal(first.gram_TMM, again.gram_TMM)
