"""The laws of all merge methods. A new method is held to them by being registered."""

import hashlib
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from kinray.core.masks import HashedMasks
from kinray.core.methods import METHODS, Method, Params, method_named
from kinray.core.parameters import ParamValue, Varied
from kinray.errors import RecipeError

MASKS = HashedMasks("d" * 64, "mlp.weight")

shapes = st.sampled_from([(1,), (), (7,), (3, 5), (2, 3, 4)])
values = st.floats(-4, 4, width=32).map(lambda x: float(np.float32(round(x, 3))))

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def tensors(count: int) -> st.SearchStrategy[list[Tensor]]:
    """Draw float32 tensors of one shape."""
    return shapes.flatmap(
        lambda shape: st.lists(
            hnp.arrays(np.float32, shape, elements=values).map(torch.from_numpy), min_size=count, max_size=count
        )
    )


def count(method: Method) -> int:
    """Give two parents to a method, or one if it takes no more."""
    return min(2, method.max_parents)


def balanced(method: Method, parents: int) -> dict[str, float]:
    """Give weights that add up to one, for methods that have weights."""
    return {"weight": 1 / parents} if any(p.name == "weight" for p in method.parameters) else {}


def draw_params(data: st.DataObject, method: Method, parents: int) -> Params:
    """Draw any allowed value of every parameter."""

    def one(low: float, high: float) -> st.SearchStrategy[float]:
        return st.floats(max(low, -2.0), min(high, 2.0), allow_subnormal=False)

    drawn: dict[str, bool | float | tuple[float, ...]] = {}
    for p in method.parameters:
        if isinstance(p.default, bool):
            drawn[p.name] = data.draw(st.booleans())
        elif p.name == "weight":
            drawn[p.name] = tuple(data.draw(st.floats(0.1, 2)) for _ in range(parents))
        elif p.per_model:
            drawn[p.name] = tuple(data.draw(one(p.low, p.high)) for _ in range(parents))
        else:
            drawn[p.name] = data.draw(one(p.low, p.high))
    if method.name in ("della", "della_linear"):  # density ± epsilon must lie inside (0, 1)
        drawn["density"] = tuple(data.draw(st.floats(0.3, 0.7)) for _ in range(parents))
        drawn["epsilon"] = tuple(data.draw(st.floats(0, 0.25)) for _ in range(parents))
    return drawn


@every_method
@given(tensors(3), st.data())
def test_child_has_the_shape_in_float32_and_is_new(method: Method, drawn: list[Tensor], data: st.DataObject) -> None:
    base, *parents = drawn[: 1 + count(method)]

    child = method.merge(base, parents, draw_params(data, method, count(method)), MASKS)

    assert child.shape == base.shape
    assert child.dtype == torch.float32
    assert torch.isfinite(child).all()
    assert not {child.data_ptr()} & {tensor.data_ptr() for tensor in drawn}


@every_method
@given(tensors(3), st.data())
def test_inputs_are_not_written_into(method: Method, drawn: list[Tensor], data: st.DataObject) -> None:
    before = [tensor.clone() for tensor in drawn]

    method.merge(drawn[0], drawn[1 : 1 + count(method)], draw_params(data, method, count(method)), MASKS)

    assert all(torch.equal(tensor, copy) for tensor, copy in zip(drawn, before, strict=True))


@every_method
@given(tensors(2))
def test_equal_parents_are_their_child(method: Method, drawn: list[Tensor]) -> None:
    base, parent = drawn

    child = method.merge(base, [parent, parent.clone()][: count(method)], balanced(method, 2), MASKS)

    torch.testing.assert_close(child, parent, rtol=1e-6, atol=1e-6)


@every_method
@given(tensors(2))
def test_one_parent_is_its_child(method: Method, drawn: list[Tensor]) -> None:
    base, parent = drawn
    if method.min_parents > 1:
        pytest.skip(f"{method.name} takes {method.min_parents} models")

    child = method.merge(base, [parent], {}, MASKS)

    torch.testing.assert_close(child, parent, rtol=1e-6, atol=1e-6)


@every_method
@given(tensors(3), st.data())
def test_same_child_has_the_same_bits(method: Method, drawn: list[Tensor], data: st.DataObject) -> None:
    params = draw_params(data, method, count(method))
    drawn = drawn[: 1 + count(method)]

    first = method.merge(drawn[0], drawn[1:], params, HashedMasks("d", "t"))
    again = method.merge(drawn[0].clone(), [t.clone() for t in drawn[1:]], params, HashedMasks("d", "t"))

    assert torch.equal(first, again)


@every_method
@given(tensors(3), st.data())
def test_memory_layout_does_not_matter(method: Method, drawn: list[Tensor], data: st.DataObject) -> None:
    params = draw_params(data, method, count(method))
    drawn = drawn[: 1 + count(method)]
    if drawn[0].dim() < 2:
        return
    turned = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in drawn]

    expected = method.merge(drawn[0], drawn[1:], params, MASKS)

    torch.testing.assert_close(method.merge(turned[0], turned[1:], params, MASKS), expected, rtol=1e-6, atol=1e-6)


@every_method
@given(tensors(3), st.data())
def test_one_knot_gives_the_bits_of_the_plain_value(method: Method, drawn: list[Tensor], data: st.DataObject) -> None:
    def varied(value: ParamValue) -> ParamValue:
        return tuple(map(varied, value)) if isinstance(value, tuple) else Varied((("mlp", (value,)),))  # type: ignore[misc, arg-type]

    base, *parents = drawn[: 1 + count(method)]
    plain = draw_params(data, method, count(method))
    params = {name: varied(value) for name, value in plain.items()}

    (there,) = method.per_tensor(params, len(parents), {"mlp.weight": 0.3})

    assert there == method.resolve(plain, len(parents))
    assert torch.equal(method.merge(base, parents, there, MASKS), method.merge(base, parents, plain, MASKS))
    assert method.per_tensor(params, len(parents), {"norm.weight": 0.3}) == [method.resolve({}, len(parents))]


@every_method
def test_knots_out_of_range_are_refused(method: Method) -> None:
    for parameter in method.parameters:
        wrong = [1.0] if isinstance(parameter.default, bool) else [True]
        wrong += [limit for limit in (parameter.low - 0.01, parameter.high + 0.01) if np.isfinite(limit)]
        for knot in wrong:
            with pytest.raises(RecipeError, match=f"Parameter '{parameter.name}' of '{method.name}' is"):
                method.resolve({parameter.name: Varied((("", (knot,)),))}, count(method))


def test_values_that_vary_together_are_checked_where_they_meet() -> None:
    density, epsilon = Varied((("", (0.3, 0.7)),)), Varied((("", (0.1, 0.25)),))
    depths = {f"layers.{layer}.w": layer / 4 for layer in range(5)}

    assert len(METHODS["della"].per_tensor({"density": density, "epsilon": epsilon}, 2, depths)) == 5
    with pytest.raises(RecipeError, match=r"from density − epsilon = -0\.05"):
        METHODS["della"].per_tensor({"density": density, "epsilon": 0.35}, 2, depths)


PROGRAM = """
import hashlib, torch
from kinray.core.masks import HashedMasks
from kinray.core.methods import METHODS
torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
base, *parents = (torch.randn(50, 30, generator=g) for _ in range(3))
for name, method in METHODS.items():
    params = {"density": 0.3} if any(p.name == "density" for p in method.parameters) else {}
    child = method.merge(base, parents[: method.max_parents], params, HashedMasks("d" * 64, "mlp.weight"))
    print(name, hashlib.sha256(child.numpy().tobytes()).hexdigest())
"""


def test_another_process_gives_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    base, *parents = (torch.randn(50, 30, generator=generator) for _ in range(3))

    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)

    there = dict(line.split() for line in done.stdout.splitlines())
    assert there == {name: _hash_of(method, base, parents) for name, method in METHODS.items()}


def _hash_of(method: Method, base: Tensor, parents: Sequence[Tensor]) -> str:
    params = {"density": 0.3} if any(p.name == "density" for p in method.parameters) else {}
    child = method.merge(base, parents[: method.max_parents], params, MASKS)
    return hashlib.sha256(child.numpy().tobytes()).hexdigest()


@every_method
def test_defaults_are_allowed_values(method: Method) -> None:
    resolved = method.resolve({}, count(method))

    assert set(resolved) == {parameter.name for parameter in method.parameters}
    for parameter in method.parameters:
        parameter.check(method.name, parameter.default)
        assert parameter.text


@every_method
def test_values_out_of_range_are_refused(method: Method) -> None:
    for parameter in method.parameters:
        wrong = [float("nan"), float("inf"), 10**400, "x", None]
        wrong += [1.0] if isinstance(parameter.default, bool) else [True]
        wrong += [limit for limit in (parameter.low - 0.01, parameter.high + 0.01) if np.isfinite(limit)]
        for value in wrong:
            with pytest.raises(RecipeError, match=f"Parameter '{parameter.name}' of '{method.name}' is"):
                method.resolve({parameter.name: value}, count(method))  # type: ignore[dict-item]


@every_method
def test_wrong_number_of_values_is_refused(method: Method) -> None:
    for parameter in method.parameters:
        expected = rf"one value or {count(method)} \(one for each model\)" if parameter.per_model else "one value"
        with pytest.raises(RecipeError, match=f"'{parameter.name}' of '{method.name}' has 3 values. Give it {expected}"):
            method.resolve({parameter.name: (0.5, 0.5, 0.5)}, count(method))


@every_method
def test_unknown_parameter_gets_a_suggestion(method: Method) -> None:
    if not method.parameters:
        pytest.skip(f"{method.name} has no parameters")
    name = method.parameters[0].name

    with pytest.raises(RecipeError, match=f"no parameter '{name}s'. Did you mean '{name}'"):
        method.resolve({f"{name}s": 1.0}, count(method))


@every_method
def test_too_many_and_too_few_models_are_refused(method: Method) -> None:
    for parents in (method.min_parents - 1, method.max_parents + 1):
        with pytest.raises(RecipeError, match=f"'{method.name}' takes .* models?, not {parents}"):
            method.resolve({}, parents)


def test_unknown_method_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError, match=r"no merge method 'slerpp'. Did you mean 'slerp'"):
        method_named("slerpp")
