"""SGLang's sampling observer with real logits: SGLang's calls in their order, by stand-ins for its requests.

``integration/tests/sglang`` has the real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from integration.tests.engine.sink import SERVER, Sink

from corevital.engines.sglang.sampling import Sampling
from corevital.engines.sglang.watch import carry
from corevital.frames.stamp import Stamp
from corevital.steps.recorder import Recorder

VOCAB = 300


class Frames(Sink):
    """The frame thread's part, in this thread; what is lost is counted."""

    lost = 0

    def lose(self, owners: Any, rows: int) -> None:
        self.lost += rows


class Seen:
    """The watch's part: whether anything is measured, and whose first tokens it has seen."""

    measures = True

    def __init__(self) -> None:
        self.began_with: list[Any] = []

    def began(self, req: Any) -> None:
        self.began_with.append(req)


def request(key: int | None) -> Any:
    made = SimpleNamespace()
    carry(made, None if key is None else Stamp(SERVER, key))
    return made


@pytest.fixture
def frames() -> Frames:
    return Frames()


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def sampling(frames: Frames, seen: Seen) -> Sampling:
    made = Sampling(seen, frames)  # type: ignore[arg-type]
    made.record(Recorder(made.keep))
    return made


def step(sampling: Sampling, logits: torch.Tensor, tokens: list[int], reqs: list[Any], indices: Sequence[int | None],
         *, greedy: bool = False, bias: torch.Tensor | None = None) -> None:  # fmt: skip
    """One step of SGLang's; an index is that of a request's committed token, None where none was."""
    info = SimpleNamespace(is_all_greedy=greedy, logit_bias=bias, has_custom_logit_processor=False)
    assert sampling.is_active(info)
    state = sampling.before_grammar(logits, info)
    assert state is not None
    if bias is not None:
        logits += bias  # as SGLang does, in place, after the observer
    if not greedy:
        logits[:] = torch.softmax(logits / 0.7, dim=-1)  # as its sampler does, in place
    on_device = sampling.after_sample(state, torch.tensor(tokens))
    assert on_device is not None
    commits = [
        None if index is None else SimpleNamespace(output_index=index, token_ids=(token,))
        for index, token in zip(indices, tokens, strict=True)
    ]
    on_device.copy_to_host(lambda tensor: tensor).consume(SimpleNamespace(reqs=reqs), commits)


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("greedy", [False, True])
def test_each_token_has_its_row_and_the_log_probability_of_the_logits_shown(
    sampling: Sampling, frames: Frames, seen: Seen, greedy: bool
) -> None:
    reqs = [request(1), request(2)]
    shown = [torch.randn(2, VOCAB) * 3 for _ in range(3)]
    expected = [torch.log_softmax(logits, dim=-1) for logits in shown]
    for index, logits in enumerate(shown):
        step(sampling, logits, [7 + index, 8], reqs, [index, index], greedy=greedy)
    assert set(frames.rows) == set(frames.tokens) == {(key, index) for key in (1, 2) for index in range(3)}
    for index, logprobs in enumerate(expected):
        for key, row, token in ((1, 0, 7 + index), (2, 1, 8)):
            assert frames.tokens[key, index] == (token, pytest.approx(float(logprobs[row, token]), abs=1e-4))
            entropy = -(logprobs[row].exp() * logprobs[row]).sum()
            assert frames.rows[key, index]["entropy"] == pytest.approx(float(entropy), abs=1e-4)
    assert seen.began_with == reqs


@pytest.mark.usefixtures("tables")
def test_a_bias_does_not_change_what_was_shown(sampling: Sampling, frames: Frames) -> None:
    logits, bias = torch.zeros(1, VOCAB), torch.zeros(1, VOCAB)
    logits[0, 3], bias[0, 7] = 0.01, 2.0  # nearly flat: a biased token stays below the sum of all
    expected = torch.log_softmax(logits, dim=-1)
    step(sampling, logits, [7], [request(1)], [0], greedy=True, bias=bias)
    assert frames.tokens[1, 0] == (7, pytest.approx(float(expected[0, 7]), abs=1e-4))


@pytest.mark.usefixtures("tables")
def test_rows_without_a_committed_token_and_of_others_are_left_out(sampling: Sampling, frames: Frames) -> None:
    chunk, other, ours = request(1), request(None), request(3)
    step(sampling, torch.randn(3, VOCAB), [5, 6, 7], [chunk, other, ours], [None, 4, 2])
    assert list(frames.tokens) == list(frames.rows) == [(3, 2)]
    step(sampling, torch.randn(2, VOCAB), [5, 6], [chunk, other], [None, 5])
    step(sampling, torch.randn(1, VOCAB), [9], [ours], [3])
    assert list(frames.tokens) == [(3, 2), (3, 3)]


def test_the_owners_of_like_steps_are_one_object(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that their frames are sent together."""
    posted: list[Any] = []
    monkeypatch.setattr(sampling._frames, "post", posted.append)
    reqs = [request(1), request(2)]
    for index in range(3):
        step(sampling, torch.randn(2, VOCAB), [5, 6], reqs, [index, index])
    step(sampling, torch.randn(2, VOCAB), [5, 6], reqs, [3, None])
    assert [posted[at].owners is posted[0].owners for at in (2, 4, 6)] == [True, True, False]


def test_logits_whose_rows_are_not_one_for_each_request_are_lost_and_counted(
    sampling: Sampling, frames: Frames
) -> None:
    state = sampling.before_grammar(torch.randn(4, VOCAB), SimpleNamespace(is_all_greedy=True))
    assert state is not None
    on_device = sampling.after_sample(state, torch.tensor([1, 2, 3, 4]))
    assert on_device is not None
    on_device.copy_to_host(lambda tensor: tensor).consume(SimpleNamespace(reqs=[request(1)]), [None])
    assert (frames.lost, frames.rows) == (4, {})


def test_nothing_is_observed_while_nothing_is_measured(sampling: Sampling, seen: Seen) -> None:
    seen.measures = False
    assert not sampling.is_active(None)
