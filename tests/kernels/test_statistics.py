"""The statistics are right, for ordinary logits and for the ones that break things."""

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corevital.kernels import token_stats

from .conftest import Check

NAN, INF = math.nan, math.inf
DTYPES = [torch.float32, torch.bfloat16]
LARGEST = 3e38


def normal(*shape: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * scale


def filled(vocab: int, value: float, entries: dict[int, float]) -> list[float]:
    row = [value] * vocab
    for token, logit in entries.items():
        row[token] = logit
    return row


ROWS = {
    "one token": [3.0],
    "one masked token": [-INF],
    "one NaN": [NAN],
    "two equal tokens": [1.0, 1.0],
    "fewer tokens than top_k": [0.0, 2.0, 1.0],
    "all equal": [0.25] * 3001,
    "rising": [i / 64 for i in range(2100)],
    "falling": [-i / 64 for i in range(2100)],
    "both zeros tie": [-0.0, 0.0, -0.0, 0.0, -1.0, 0.0],
    "both zeros tie at the end of the top k": [*([5.0] * 19), -1.0, -0.0, 0.0, 0.0],
    "both zeros tie across groups": filled(1408, -1.0, {3: -0.0, **dict.fromkeys(range(64, 1408, 64), 0.0)}),
    "smallest numbers": [1e-45, -1e-45, 0.0, 1e-38, -1e-38],
    "largest numbers": [LARGEST, -LARGEST, LARGEST, 0.0, -LARGEST],
    "largest numbers, all equal": [LARGEST] * 70,
    "smallest numbers, all equal": [-LARGEST] * 70,
    "a sure token": filled(5000, -60.0, {4999: 60.0}),
    "a sure token beyond exp": filled(5000, -LARGEST, {77: LARGEST}),
    "a peak over a plateau that weighs as much": filled(60000, 0.0, {31: 11.0}),
    "a peak late in the row": filled(4000, 0.0, {3999: 80.0}),
    "large and close together": [1e6 + i % 7 for i in range(2000)],
    "ties across the borders of groups": filled(2100, 0.0, {63: 1.0, 64: 1.0, 1023: 1.0, 1024: 1.0, 2099: 1.0}),
    "more ties than top_k": filled(9000, 0.0, dict.fromkeys(range(100, 9000, 300), 7.0)),
    "all masked": [-INF] * 1500,
    "all NaN": [NAN] * 1500,
    "all +inf": [INF] * 1500,
    "NaN and masked only": filled(3000, NAN, {2500: -INF, 1200: -INF}),
    "one allowed token": filled(3000, -INF, {1234: -7.0}),
    "three allowed tokens": filled(3000, -INF, {2999: 1.0, 5: 2.0, 1024: 1.0}),
    "more groups of NaN than top_k before the masked tokens": filled(3000, -INF, dict.fromkeys(range(2000), NAN)),
    "one number among NaN": filled(3000, NAN, {2047: 3.0}),
    "one NaN among numbers": filled(3000, 1.0, {2999: NAN}),
    "NaN before the highest logit": filled(200, 0.0, {3: NAN, 4: 9.0}),
    "one +inf": filled(2000, 0.0, {1999: INF, 10: 4.0}),
    "+inf and masked only": filled(2000, -INF, {7: INF}),
    "+inf before and after the highest finite logit": filled(3000, 0.0, {5: INF, 1500: 8.0, 2500: INF}),
    "everything at once": filled(
        2500, 0.5, {0: NAN, 1: INF, 2: -INF, 64: NAN, 1023: -INF, 1024: INF, 2047: 9.0, 2499: NAN}
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_rows_that_break_things(check: Check, name: str, dtype: torch.dtype) -> None:
    check(torch.tensor([ROWS[name]]).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_do_not_touch_each_other(check: Check, dtype: torch.dtype) -> None:
    vocab = 3001
    rows = [(row * math.ceil(vocab / len(row)))[:vocab] for row in ROWS.values()]
    check(torch.tensor(rows).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "vocab", "scale"), [(1, 151936, 3.0), (3, 128256, 0.1), (2, 32000, 12.0), (1, 262144, 5.0)]
)
def test_vocabularies_of_real_models(check: Check, rows: int, vocab: int, scale: float, dtype: torch.dtype) -> None:
    check(normal(rows, vocab, scale=scale).to(dtype))


@pytest.mark.parametrize("vocab", [2, 63, 64, 65, 4095, 4096, 4097, 8192, 50257])
def test_vocabularies_around_what_a_kernel_takes_at_once(check: Check, vocab: int) -> None:
    logits = normal(2, vocab)
    logits[1, -1] = 50.0
    check(logits)
    check(logits[:, : vocab - 1])


@pytest.mark.parametrize("top_k", [1, 2, 9, 10, 11, 20, 33, 200, 500])
@pytest.mark.parametrize("vocab", [1, 9, 20, 400, 2048])
def test_any_top_k(check: Check, vocab: int, top_k: int) -> None:
    check(normal(2, vocab), top_k)


def test_no_rows(check: Check) -> None:
    stats = check(torch.empty(0, 50))
    assert stats.entropy.shape == (0,)
    assert stats.topk_ids.shape == (0, 20)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_of_either_sign_is_nan(check: Check, dtype: torch.dtype) -> None:
    logits = normal(2, 1100).to(dtype)
    logits.view(torch.int32 if dtype == torch.float32 else torch.int16)[:, 3::100] = -1  # all bits set
    stats = check(logits)
    assert stats.nan_count.tolist() == [11, 11]
    assert stats.entropy.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_layout_in_memory(check: Check, dtype: torch.dtype) -> None:
    device = check.device  # type: ignore[attr-defined]
    padded = torch.full((5, 1200), NAN, dtype=dtype, device=device)  # what lies between the rows must not be read
    padded[1:4, 40:1140] = normal(3, 1100).to(padded)
    for layout in (
        padded[1:4, 40:1140],  # rows apart, and not from the start
        padded[1:4:2, 40:1140],
        padded[1:4, 40:1140:3],  # entries of a row apart
        normal(1100, 3).to(padded).t(),
        normal(1, 700).to(padded).expand(4, 700),  # rows on top of each other
        normal(2, 1).to(padded).expand(2, 300),
        padded[1:4, 41:42],
        padded[1, 40:1140][None],
    ):
        before = layout.clone()
        check(layout)
        assert torch.equal(layout, before), "the logits were written to"


def test_logits_of_a_model_in_training_or_inference_mode(check: Check) -> None:
    stats = check(normal(2, 100).requires_grad_())
    assert not stats.entropy.requires_grad
    with torch.inference_mode():
        check(normal(2, 100))


@pytest.mark.parametrize("rows", [0, 1, 3, 40])
def test_results_go_where_they_are_asked_to_and_nowhere_else(check: Check, rows: int) -> None:
    backend, device = check.backend, check.device  # type: ignore[attr-defined]
    logits = normal(rows, 1100).to(device)
    wide = torch.full((rows, 60), -7, dtype=torch.int32, device=device)
    stats = token_stats(logits, top_k=20, backend=backend, out=wide[:, 3:54])
    assert torch.equal(wide[:, 3:54], check(logits).words)
    assert rows == 0 or stats.entropy.data_ptr() == wide[:, 7:].data_ptr()
    assert (wide[:, :3] == -7).all()
    assert (wide[:, 54:] == -7).all()
    for other in (wide, wide[:, 3:54].long(), wide.repeat(1, 2)[:, ::2][:, :51], wide.repeat(2, 1)[:, :51]):
        if rows:
            with pytest.raises(ValueError, match="out must be int32"):
                token_stats(logits, backend=backend, out=other)


def test_float16_is_read_too(check: Check) -> None:
    check(normal(3, 1000).half())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_more_than_2_to_the_31_entries_apart(check: Check, dtype: torch.dtype) -> None:
    if check.device != "cpu":  # type: ignore[attr-defined]
        pytest.skip("there the whole of it would be memory; here only what is touched is")
    apart, vocab = 2**31 + 8, 3000
    rows = torch.empty(apart + vocab, dtype=dtype).as_strided((2, vocab), (apart, 1))
    rows.copy_(normal(2, vocab))
    check(rows)


def test_many_rows_at_once(check: Check) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # whatever the machine has: more threads than one take part from here on
    try:
        check(normal(37, 16384))
        interpreted = check.backend == "triton" and check.device == "cpu"  # type: ignore[attr-defined]
        check(normal(60 if interpreted else 600, 8001, scale=0.5).bfloat16())
        check(normal(100 if interpreted else 1024, 2048))
    finally:
        torch.set_num_threads(threads)


SPECIAL = st.sampled_from([NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 1.0000001, LARGEST, -LARGEST, 1e-45, 88.0, -104.0])
ANYTHING = st.one_of(SPECIAL, st.floats(width=32))
SHAPES = st.tuples(st.integers(0, 4), st.one_of(st.integers(1, 140), st.sampled_from([1023, 1024, 1025, 1088, 2500])))
BOUNDED = settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@BOUNDED
@given(
    logits=hnp.arrays(np.float32, SHAPES, elements=ANYTHING, fill=ANYTHING),
    top_k=st.integers(1, 30),
    dtype=st.sampled_from(DTYPES),
)
def test_any_contents(check: Check, logits: np.ndarray, top_k: int, dtype: torch.dtype) -> None:
    check(torch.from_numpy(logits).to(dtype), top_k)


@BOUNDED
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 6000)),
    scale=st.sampled_from([0.01, 1.0, 5.0, 40.0]),
    offset=st.sampled_from([0.0, -30.0, 1000.0]),
    steps=st.sampled_from([None, 4.0, 1.0]),
    special=st.lists(st.tuples(st.integers(0, 5999), SPECIAL), max_size=6),
    dtype=st.sampled_from(DTYPES),
)
def test_any_distribution(check: Check, seed, shape, scale, offset, steps, special, dtype) -> None:
    logits = np.random.default_rng(seed).normal(offset, scale, shape).astype(np.float32)
    if steps is not None:
        logits = np.round(logits * steps) / steps  # many ties
    for place, value in special:
        logits.flat[place % logits.size] = value
    check(torch.from_numpy(logits).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [3, 4093, 8192])
def test_what_lies_around_a_row_is_not_read_as_part_of_it(check: Check, vocab: int, dtype: torch.dtype) -> None:
    """A kernel may read from a multiple of 16 bytes before a row's start."""
    for start in (1, 3, 8):
        whole = torch.randn(3, vocab + 9, generator=torch.Generator().manual_seed(vocab)).to(dtype)
        whole[:, :start] = float("nan")
        whole[:, start + vocab :] = float("inf")
        rows = whole[:, start : start + vocab]
        rows[1, vocab // 2] = float("nan")
        assert check(rows).nan_count.tolist() == [0, 1, 0]
