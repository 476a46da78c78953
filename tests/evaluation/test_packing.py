"""The plan of requests: whoever reads a row sees each request as if it were alone."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinray.evaluation.packing import PREFIX, WIDTH, Batch, Plan, Request, Row, plan, request_of

Token = st.integers(0, 3)
"""Few tokens, so that requests often begin alike."""


@st.composite
def requests(draw: st.DrawFn) -> list[Request]:
    """Some questions of some tasks, with examples that several of them may begin with."""
    made = []
    for family in range(draw(st.integers(1, 2))):
        examples = draw(st.lists(Token, min_size=0, max_size=12))
        for question in range(draw(st.integers(1, 5))):
            context = (examples if draw(st.booleans()) else []) + draw(st.lists(Token, min_size=1, max_size=6))
            for _ in range(draw(st.integers(1, 4))):
                answer = draw(st.lists(Token, min_size=1, max_size=5))
                made.append(request_of(context, answer, draw(st.sampled_from([6, 100])), (family, question), family))
    return made


def seen(batch: Batch, row: Row, place: int) -> tuple[list[int], list[int]]:
    """Walk the row as attention would: the tokens that a place sees, itself the last, and their positions."""
    visible = [k for k in range(place + 1) if place < row.ends[k]]
    prefix = list(batch.prefix)
    return prefix + [row.tokens[k] for k in visible], list(range(len(prefix))) + [row.positions[k] for k in visible]


@given(requests(), st.integers(4, 40), st.sampled_from([None, 1, 3]))
def test_every_target_is_scored_once_behind_exactly_its_own_request(
    asked: list[Request], budget: int, prefix: int | None
) -> None:
    made = plan(asked, budget, prefix=prefix)

    scored = Counter[tuple[int, int]]()
    for batch in made.batches:
        for row in batch.rows:
            for place, target, number in row.scored:
                tokens, positions = seen(batch, row, place)
                request = asked[number]
                at = len(tokens) - (len(request.tokens) - len(request.targets)) - 1
                assert tuple(tokens) == request.tokens[: len(tokens)]
                assert positions == list(range(len(tokens)))
                assert target == request.targets[at]
                scored[number, at] += 1
    assert scored == Counter((number, at) for number, request in enumerate(asked) for at in range(len(request.targets)))


@given(requests(), st.integers(4, 40))
def test_a_batch_keeps_to_the_budget_unless_it_is_one_row(asked: list[Request], budget: int) -> None:
    for batch in plan(asked, budget, prefix=4).batches:
        longest = max(len(row.tokens) for row in batch.rows)

        assert len(batch.rows[0].tokens) == longest
        assert len(batch.rows) == 1 or len(batch.rows) * longest <= budget


@given(requests())
def test_the_same_requests_have_the_same_plan(asked: list[Request]) -> None:
    assert plan(asked, 32, prefix=4) == plan(list(asked), 32, prefix=4)


def ask(context: str, answer: str, question: str = "q", family: str = "task") -> Request:
    """Make a request of single letters."""
    return request_of([ord(letter) for letter in context], [ord(letter) for letter in answer], 1000, question, family)


def rows(made: Plan) -> list[str]:
    """Spell the rows of a plan."""
    return ["".join(map(chr, row.tokens)) for batch in made.batches for row in batch.rows]


def test_choices_share_their_question_and_what_they_begin_with() -> None:
    made = plan([ask("question:", "ten"), ask("question:", "tea"), ask("question:", "two"), ask("question:", "t")], 1000)

    # The last letter of a request is never read, only predicted.
    assert rows(made) == ["question:tew"]


def test_options_before_one_ending_share_what_comes_before_them() -> None:
    made = plan([ask("she met Ann", " and left"), ask("she met Bea", " and left")], 1000)

    assert rows(made) == ["she met Ann and lefBea and lef"]


def test_requests_that_begin_differently_share_no_tree_but_short_ones_share_a_row() -> None:
    made = plan([ask("abc", "d"), ask("xyz", "d")], 1000)

    assert rows(made) == ["abcxyz"]
    assert made.batches[0].rows[0].ends == [3, 3, 3, 6, 6, 6]


def test_a_question_beyond_the_budget_is_split_into_rows_that_repeat_it() -> None:
    made = plan([ask("a" * 90, letter * 60) for letter in "bcd"], 160, prefix=None)

    assert sorted(rows(made)) == ["a" * 90 + letter * 59 for letter in "bcd"]
    assert WIDTH < 149


def test_a_prefix_that_a_familys_questions_share_is_computed_apart() -> None:
    examples = "some examples that all of them show. "
    questions = ["one", "two", "six", "ten", "red"]
    asked = [ask(examples + question, answer, question) for question in questions for answer in ("x", "yz")]

    made = plan([*asked, ask(examples + "three", "x", "three", "another task")], 1000)

    assert ["".join(map(chr, batch.prefix)) for batch in made.batches] == [examples, ""]
    assert rows(made) == ["oneyredytenysixytwoy", examples + "three"]
    assert made.tokens == len(examples) + 20 + len(examples + "three")


def test_a_prefix_that_saves_little_is_not_worth_a_pass_of_its_own() -> None:
    made = plan([ask("a" * 33 + question, "x", question) for question in ("one", "two")], 1000)

    assert rows(made) == ["a" * 33 + "one" + "a" * 33 + "two"]


def test_a_prefix_never_holds_what_is_scored() -> None:
    made = plan([ask("a" * 200, "bbb", "one"), ask("a" * 200, "bbb", "two")], 1000)

    assert ["".join(map(chr, batch.prefix)) for batch in made.batches] == ["a" * 199]
    assert rows(made) == ["abbabb"]


def test_requests_beyond_the_reach_are_left_alone() -> None:
    made = plan([ask("abc", "d"), ask("abcdef", "gh"), ask("abcd", "e")], 1000, reach=4)

    assert made.plain == (1,)
    assert rows(made) == ["abcd"]
    assert plan([ask("abc", "d")], 1000, reach=0) == Plan((), (0,))


@pytest.mark.parametrize("longest", [4, 6, 7, 8, 20])
def test_a_request_is_cut_from_the_left_as_in_lm_eval(longest: int) -> None:
    context, answer = [1, 2, 3, 4, 5], [6, 7, 8]

    request = request_of(context, answer, longest, "q", "task")

    assert list(request.tokens) == (context + answer)[-(longest + 1) :][:-1]
    assert list(request.targets) == answer


def test_no_position_lies_beyond_those_of_the_requests() -> None:
    from kinray.evaluation.packed import Packed

    shared = tuple(range(60))
    requests = [
        Request((*shared, *range(100 * question, 100 * question + length), answer, answer), (answer,), question, "task")
        for question, length in enumerate((97, 97, 95, 90), 1)
        for answer in (7, 8, 9)
    ]
    longest = max(len(request.tokens) for request in requests)

    for prefix in (PREFIX, None):
        made = plan(requests, 512, prefix=prefix)
        batches = [batch for own in Packed(requests, made, "cpu").batches.values() for batch in own]

        assert max(len(batch.prefix) + len(row.tokens) for batch in made.batches for row in batch.rows) > longest
        assert any(len({len(row.tokens) for row in batch.rows}) > 1 for batch in made.batches)
        assert max(int(batch.positions.max()) for batch in batches) == longest - 1
