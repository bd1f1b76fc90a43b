"""Whether a completion's bits depend on more than its request: measured, on the user's own requests.

The same requests run together, as ``sample`` runs them, and then in other ways: each alone, beside other
requests, with another number of completions, in another order, with another limit of rows, with less sharing.
Tokens and log-probabilities are compared to the last bit. The last way is the positive control: together
again, with a known fault; a comparison that does not see it proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from treeshare.engine.engine import Engine
from treeshare.engine.plan import computed_tree
from treeshare.engine.runner import ModelRunner
from treeshare.errors import ConfigError
from treeshare.tree import PromptTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Sequence as Items

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.attention import BatchLayout
    from treeshare.config import EngineConfig, Sharing
    from treeshare.engine.sequence import Completion, Request, Sequence
    from treeshare.models import LoadedModel

Key = tuple[int, int]
"""Request, completion."""

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two ways of generating the same completions.

    Attributes:
        num_completions: Completions compared.
        num_same: Those whose tokens are all the same.
        num_same_logprobs: Those whose log-probabilities are all the same, bit for bit: of every token of the
            vocabulary at the positions compared, and ``cumulative_logprob``.
        num_positions: Positions compared: those whose preceding tokens are the same.
        num_identical: Those whose logits are the same, bit for bit.
        max_difference: Largest difference of a log-probability; infinite where one is not a number.
    """

    num_completions: int
    num_same: int
    num_same_logprobs: int
    num_positions: int
    num_identical: int
    max_difference: float

    @property
    def is_same(self) -> bool:
        """Whether no bit differs."""
        whole = (self.num_completions, self.num_completions, self.num_positions)
        return (self.num_same, self.num_same_logprobs, self.num_identical) == whole


@dataclass(frozen=True, slots=True)
class SharedNodes:
    """What of the prompts is computed once for several of them.

    Attributes:
        num_nodes: Nodes with others below them.
        num_tokens: Their tokens.
        num_prompts: Prompts that continue below them.
    """

    num_nodes: int
    num_tokens: int
    num_prompts: int

    @classmethod
    def of(cls, config: EngineConfig, requests: Items[Request]) -> SharedNodes:
        """The nodes on which the engine would run ``requests`` together."""
        prompts = PromptTree.from_prompts([request.prompt_token_ids for request in requests])
        tree = computed_tree(prompts, config)
        shared = [node.num_tokens for node in tree.nodes if node.children and node.num_tokens]
        num_prompts = sum(len(node.prompts) for node in tree.nodes if node.start)
        return cls(len(shared), sum(shared), num_prompts)


@dataclass(frozen=True, slots=True)
class Way:
    """A way of running requests.

    Attributes:
        name: For the table.
        config: The engine's.
        calls: What runs together, call after call: requests by their place in the plain run.
        runner: Runs the model.
    """

    name: str
    config: EngineConfig
    calls: Items[dict[int, Request]]
    runner: type[ModelRunner] = ModelRunner

    @property
    def num_completions(self) -> int:
        """Completions that it generates."""
        return sum(len(request.completion_indices) for call in self.calls for request in call.values())

    def run(
        self,
        loaded: LoadedModel,
        observe: Callable[[int, Sequence, Tensor], None],
        note_completion: Callable[[int, Completion], None],
    ) -> None:
        """Generate.

        Args:
            loaded: A loaded model.
            observe: Called for every token drawn: place of the request, sequence, logits ``[vocab_size]``.
            note_completion: Called with the place of the request and each completion.
        """
        engine = Engine(loaded, self.config, self.runner(loaded, self.config))
        for call in self.calls:
            places = list(call)

            def see(sequence: Sequence, logits: Tensor, places: list[int] = places) -> None:
                observe(places[sequence.request_index], sequence, logits)

            for completion in engine.run(list(call.values()), observe=see):
                note_completion(places[completion.request_index], completion)


class FaultyRunner(ModelRunner):
    """The positive control's fault: what a prompt remembers depends a little on where the tree is cut.

    Below a cut, the values that attention reads are a unit in the last place too large.
    """

    def forward(self, layout: BatchLayout, tokens: NDArray[np.int64], logits_rows: Items[int]) -> Tensor:
        """See ``ModelRunner.forward``."""
        logits = super().forward(layout, tokens, logits_rows)
        geometry = layout.store.geometry
        for chunk in layout.causal:
            if chunk.segment.parent is not None:
                for layer in range(geometry.num_layers):
                    values = chunk.segment.values(layer)[chunk.start : chunk.end]
                    values *= 1 + torch.finfo(geometry.dtype).eps
        return logits


class PlainRun:
    """All requests together, as ``sample`` runs them: what the other ways are compared with.

    Args:
        loaded: A loaded model.
        config: The engine's.
        requests: What to run.
        on_completion: Called for each completion.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: EngineConfig,
        requests: Items[Request],
        on_completion: Callable[[], object] = lambda: None,
    ) -> None:
        self._loaded, self._on_completion = loaded, on_completion
        self._logits: dict[tuple[int, int, int], Tensor] = {}  # by request, completion, position
        self._completions: dict[Key, Completion] = {}
        Way("plain", config, [dict(enumerate(requests))]).run(loaded, self._keep_logits, self._keep)

    def compare(self, way: Way) -> Comparison:
        """Run another way and compare what both have; completions only of ``way`` are left out."""
        differences: dict[Key, float] = {}  # completions with other bits
        num_positions = num_identical = num_completions = num_same = 0

        def observe(place: int, sequence: Sequence, logits: Tensor) -> None:
            nonlocal num_positions, num_identical
            position = len(sequence.token_ids)
            for index in sequence.completions:
                plain = self._completions.get((place, index))
                if plain is None or plain.token_ids[:position] != sequence.token_ids:
                    continue
                num_positions += 1
                expected = self._logits.get((place, index, position))
                if expected is not None and _same_bits(logits, expected):
                    num_identical += 1
                else:  # without logits: the plain run has ended its completion here
                    found = float("inf") if expected is None else _logprob_difference(logits, expected)
                    differences[place, index] = max(differences.get((place, index), 0.0), found)

        def note(place: int, completion: Completion) -> None:
            nonlocal num_completions, num_same
            key = (place, completion.completion_index)
            plain = self._completions.get(key)
            if plain is not None:
                num_completions += 1
                num_same += plain.token_ids == completion.token_ids
                if plain.cumulative_logprob != completion.cumulative_logprob:
                    found = 0.0
                    if plain.token_ids == completion.token_ids:
                        found = abs(plain.cumulative_logprob - completion.cumulative_logprob)
                    differences[key] = max(differences.get(key, 0.0), found)
            self._on_completion()

        way.run(self._loaded, observe, note)
        return Comparison(
            num_completions=num_completions,
            num_same=num_same,
            num_same_logprobs=num_completions - len(differences),
            num_positions=num_positions,
            num_identical=num_identical,
            max_difference=max(differences.values(), default=0.0),
        )

    def _keep_logits(self, place: int, sequence: Sequence, logits: Tensor) -> None:
        kept = logits.clone()
        for index in sequence.completions:
            self._logits[place, index, len(sequence.token_ids)] = kept

    def _keep(self, place: int, completion: Completion) -> None:
        self._completions[place, completion.completion_index] = completion
        self._on_completion()


class Verification:
    """Runs requests in every way, and the positive control.

    Args:
        loaded: A loaded model.
        config: The engine's, as ``sample`` would have it.
        requests: At least two, each with at least two completions.

    Attributes:
        shared: What the requests' prompts share.
        ways: The ways that are compared with the plain run.
        control: The plain run with a fault in it.

    Raises:
        ConfigError: If the prompts share no node: the ways would compare the same arithmetic with itself.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig, requests: Items[Request]) -> None:
        self._loaded, self._config, self._requests = loaded, config, requests
        self.shared = SharedNodes.of(config, requests)
        if not self.shared.num_nodes:
            got = f"{len(requests)} prompts of which no node is shared"
            raise ConfigError(
                f"verify: got {got} (at most {_common(requests)} tokens are equal), expected a shared node; "
                "give more worked examples (--shots), more problems (--limit), or problems that share more"
            )
        self.ways = list(_ways(config, requests))
        self.control = Way(
            "control: an inserted fault", config, [dict(enumerate(requests))], runner=FaultyRunner
        )

    @property
    def num_completions(self) -> int:
        """Completions that ``run`` generates."""
        plain = sum(len(request.completion_indices) for request in self._requests)
        return plain + sum(way.num_completions for way in (*self.ways, self.control))

    def run(self, on_completion: Callable[[], object] = lambda: None) -> Iterator[tuple[Way, Comparison]]:
        """Compare the ways, then the control, each with the plain run.

        Args:
            on_completion: Called for each completion of any way.

        Yields:
            Each way with its result; ``control`` last.
        """
        plain = PlainRun(self._loaded, self._config, self._requests, on_completion)
        for way in (*self.ways, self.control):
            yield way, plain.compare(way)


def compare_sharing(loaded: LoadedModel, config: EngineConfig, requests: Items[Request]) -> Comparison:
    """Compare ``config.sharing`` with every sequence attending to its whole path alone."""
    return PlainRun(loaded, config, requests).compare(_with_sharing(config, requests, "none"))


def compare_company(loaded: LoadedModel, config: EngineConfig, requests: Items[Request]) -> Comparison:
    """Compare all requests together with each of them alone."""
    return PlainRun(loaded, config, requests).compare(_alone(config, requests))


def _ways(config: EngineConfig, requests: Items[Request]) -> Iterator[Way]:
    together = dict(enumerate(requests))
    num_completions = sum(len(request.completion_indices) for request in requests)
    yield _alone(config, requests)
    yield Way("every second prompt", config, [dict(list(together.items())[::2])])
    n = max(len(request.completion_indices) for request in requests)
    for count in (n // 2, 2 * n):
        yield Way(f"n = {count}", config, [{i: _with_n(request, count) for i, request in together.items()}])
    yield Way("prompts in reverse order", config, [dict(reversed(together.items()))])
    rows = max(1, min(config.max_num_seqs, num_completions) // 3)
    fold_cost = replace(config.fold_cost, max_rows=rows)  # as ``LLM`` has it
    fewer_rows = replace(config, max_num_seqs=rows, fold_cost=fold_cost)
    yield Way(f"max_num_seqs = {rows}", fewer_rows, [together])
    yield Way("a row for each completion", replace(config, lazy_divergence=False), [together])
    yield _with_sharing(config, requests, "one-level")
    yield _with_sharing(config, requests, "none")


def _common(requests: Items[Request]) -> int:
    """The longest common beginning of two prompts, in tokens."""
    nodes = PromptTree.from_prompts([request.prompt_token_ids for request in requests]).nodes
    return max((node.end for node in nodes if node.children or len(node.prompts) > 1), default=0)


def _alone(config: EngineConfig, requests: Items[Request]) -> Way:
    return Way("each prompt alone", config, [{place: request} for place, request in enumerate(requests)])


def _with_sharing(config: EngineConfig, requests: Items[Request], sharing: Sharing) -> Way:
    return Way(f"sharing: {sharing}", replace(config, sharing=sharing), [dict(enumerate(requests))])


def _with_n(request: Request, n: int) -> Request:
    first = min(request.completion_indices)
    indices = range(first, first + n)
    return replace(request, params=replace(request.params, n=n), completion_indices=indices)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    kind = _INTEGERS[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.view(kind), b.view(kind))


def _logprob_difference(a: Tensor, b: Tensor) -> float:
    """Largest difference of a log-probability; infinite where one is not a number."""
    first, second = (logits.float().log_softmax(-1) for logits in (a, b))
    differences = torch.where(first == second, 0.0, (first - second).abs())
    return differences.nan_to_num(nan=float("inf"), posinf=float("inf")).max().item()
