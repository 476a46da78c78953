"""``kinray methods`` says what the declarations say."""

import pytest

from kinray.__main__ import main
from kinray.core.methods import METHODS


def test_every_method_is_listed_with_parameters_and_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0

    blocks = dict(block.split(":", 1) for block in capsys.readouterr().out.strip().split("\n\n"))
    assert set(blocks) == set(METHODS)
    for name, text in blocks.items():
        assert METHODS[name].source in text
        assert all(f"  {parameter.name} = " in text for parameter in METHODS[name].parameters)


def test_one_method_is_described_with_defaults_and_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "nearswap", "model_stock"]) == 0

    out = capsys.readouterr().out
    assert "nearswap: 2 models, the first as the base" in out
    assert "t = 0.0001" in out and "(0 or more)" in out
    assert "model_stock: 2 or more models and their base" in out


def test_unknown_method_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "slurp"]) == 2

    assert "Did you mean 'slerp'" in capsys.readouterr().err
