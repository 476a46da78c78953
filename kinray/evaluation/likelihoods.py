"""Log-likelihood requests of lm-eval's tasks: in tokens and planned once, answered by one set of weights after another."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from kinray.errors import RunError, TaskError
from kinray.evaluation.packed import Packed, Prefixes
from kinray.evaluation.packing import Request, plan, request_of
from kinray.evaluation.sharing import Sharing

Answer = tuple[float, bool] | float
"""What lm-eval calls a response: log-likelihood and whether it is greedy, or a rolling log-likelihood."""


class Likelihoods:
    """Requests in packs, of which only those of one pack go through the model together.

    The same requests are packed the same way whatever the weights are, since in half precision answers depend on it. Nothing
    of an answer is kept.

    Args:
        lm: lm-eval's model, for its tokens and for requests that share nothing.
        packs: each one's instances, of types ``loglikelihood`` and ``loglikelihood_rolling``.
        sharing: what the model's requests may share.
        budget: tokens in one forward pass of requests that share.

    Raises:
        TaskError: for an answer without tokens, or one that is longer than the longest prompt.
    """

    def __init__(self, lm: Any, packs: Sequence[Sequence[Any]], sharing: Sharing, budget: int) -> None:
        self._lm = lm
        self._asked: list[list[tuple[Any, range]]] = []
        requests: list[Request] = []
        encoded: list[tuple[Any, list[int], list[int]]] = []
        for pack, instances in enumerate(packs):
            spans = []
            for instance in instances:
                start = len(requests)
                for context, continuation in _encoded(lm, instance):
                    _check(instance, context, continuation, lm.max_length)
                    encoded.append((instance.args, context, continuation))
                    # Windows of one text are no choices: they share nothing.
                    rolling = instance.request_type == "loglikelihood_rolling"
                    question = instance.task_name, ("window", len(requests)) if rolling else instance.doc_id
                    requests.append(request_of(context, continuation, lm.max_length, question, instance.task_name, pack))
                spans.append((instance, range(start, len(requests))))
            self._asked.append(spans)
        made = plan(requests, budget, sharing.reach, sharing.prefix)
        self._plain: dict[int, dict[int, Any]] = defaultdict(dict)
        for number in made.plain:
            self._plain[requests[number].pack][number] = encoded[number]
        self._packed = Packed(requests, made, lm.device)

    def answer(self, pack: int = 0, prefixes: Prefixes | None = None) -> list[Answer]:
        """Ask the model in its present weights.

        Args:
            pack: number of the pack.
            prefixes: what these weights computed in earlier packs.

        Returns:
            the answer to each instance of the pack.

        Raises:
            RunError: when an answer is NaN.
        """
        likelihoods, greedy = self._packed.answer(self._lm.model, pack, prefixes)
        answers = dict(enumerate(zip(likelihoods.tolist(), greedy.tolist(), strict=True)))
        if own := self._plain[pack]:
            plain = self._lm._loglikelihood_tokens(list(own.values()), disable_tqdm=True)
            answers |= dict(zip(own, plain, strict=True))
        asked = [answers[part] for _, span in self._asked[pack] for part in span]
        bad = sum(likelihood != likelihood for likelihood, _ in asked)
        if bad:
            raise RunError(f"{bad} of {len(asked)} log-likelihoods of the child are NaN")
        return [
            sum(answers[part][0] for part in span) if instance.request_type == "loglikelihood_rolling" else answers[span.start]
            for instance, span in self._asked[pack]
        ]


def _encoded(lm: Any, instance: Any) -> Iterator[tuple[list[int], list[int]]]:
    """Put a request into the tokens that lm-eval asks it in: context and continuation, or those of each window of a text."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    if instance.request_type == "loglikelihood_rolling":
        (text,) = instance.args
        windows = get_rolling_token_windows(lm.tok_encode(text), lm.prefix_token_id, lm.max_length, context_len=1)
        yield from map(make_disjoint_window, windows)
        return
    context, continuation = instance.args
    if context:
        yield lm._encode_pair(context, continuation)
        return
    tokens = lm.tok_encode(continuation, add_special_tokens=False)
    # An empty context becomes the prefix token, unless the continuation begins with it.
    yield (tokens[:1], tokens[1:]) if tokens[:1] == [lm.prefix_token_id] else ([lm.prefix_token_id], tokens)


def _check(instance: Any, context: Sequence[int], continuation: Sequence[int], longest: int) -> None:
    if context and 0 < len(continuation) <= longest:
        return
    where = f"Task '{instance.task_name}', item {instance.doc_id}"
    answer = repr(instance.args[-1][:40])
    if not context:
        raise TaskError(f"{where}: the prompt before the answer {answer} has no token. Give the task a doc_to_text with words.")
    if not continuation:
        raise TaskError(f"{where}: the answer {answer} has no token of its own, so it has no likelihood. Leave the item out.")
    raise TaskError(
        f"{where}: the answer {answer} has {len(continuation)} tokens, but a prompt with its answer may have {longest}. "
        "Raise evaluation.max_length."
    )
