"""Slices that make no model: refused with the number of the slice, before anything is written."""

import re

import pytest

from tests.helpers import random_tensors
from tests.merge.kitchen import OUTPUT, Kitchen, shapes


def two(first: str, second: str) -> str:
    return f"merge_method: passthrough\nslices:\n- sources: [{first}]\n- sources: [{second}]\n"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            two("{model: a, layer_range: [0, 4]}", "{model: b, layer_range: [0, 1]}"),
            r"Slice 0: Model 'a' has 3 layers.*\[0, 4\]",
        ),
        (two("{model: a, layer_range: [0, 1]}", "{model: none, layer_range: [0, 1]}"), "there is no folder none"),
        (two("{model: a, layer_range: [0, 1]}", "{model: big, layer_range: [0, 1]}"), "Slice 1: .*'big' has hidden_size 8"),
        (two("{model: a, layer_range: [0, 1]}", "{model: neox, layer_range: [0, 1]}"), "Slice 1: .*'neox' is a GPTNeoX"),
        (
            two("{model: a, layer_range: [0, 1]}", "{model: words, layer_range: [0, 1]}"),
            r"'lm_head.weight' has shape \(12, 6\) in 'words' but \(10, 6\) in 'a', whose config .*tokenizer_source: base",
        ),
        (
            two("{model: a, layer_range: [0, 1]}", "{model: tied, layer_range: [0, 1]}"),
            "No slice has 'lm_head.weight', which is in 'a', whose config the output has",
        ),
        (
            two("{model: a, layer_range: [0, 1]}, {model: a, layer_range: [1, 2]}", "{model: b, layer_range: [0, 1]}"),
            "Slice 0: It takes 'a' twice. Take it once, or in two slices",
        ),
        (
            two("{model: a, layer_range: [0, 1]}", "{model: b, layer_range: [0, 1]}").replace("passthrough", "ties"),
            "Slice 0: .*'ties' merges changes of a base",
        ),
        (
            "base_model: b\n"
            + two("{model: a, layer_range: [0, 1]}", "{model: b, layer_range: [0, 1]}").replace("passthrough", "ties"),
            "Slice 0: 'b' is not among the sources of the slice",
        ),
        (
            two("{model: a, layer_range: [1, 2], parameters: {scale: [{filter: layers.1., value: 2}]}}", "")
            .replace("\n- sources: []", "")
            .replace("[1, 2], p", "[1, 2], p"),
            "'scale' has the filter 'layers.1.', which fits 'model.layers.1.* of the model or 'model.layers.0.* but not both",
        ),
    ],
)
def test_slices_that_make_no_model_are_refused(
    kitchen: Kitchen, recipe: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kitchen.family("a", "b")
    kitchen.model("big", random_tensors(0, {name: tuple(8 for _ in shape) for name, shape in shapes().items()}), hidden_size=8)
    kitchen.model("neox", architectures=["GPTNeoX"])
    kitchen.model("words", random_tensors(0, shapes(vocabulary=12)), vocab_size=12)
    tied = {name: tensor for name, tensor in random_tensors(0, shapes()).items() if name != OUTPUT}
    kitchen.model("tied", tied, tie_word_embeddings=True)

    assert kitchen.run(recipe) == 2

    errors = capsys.readouterr().err
    assert re.search(message, errors), errors
    assert kitchen.left() == []
