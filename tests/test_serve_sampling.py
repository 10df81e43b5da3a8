"""The choice of tokens: equal to llama.cpp's sampler chain, exact on large vocabularies, repeatable."""

from __future__ import annotations

import ctypes
import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.child.choice.sampling import Sampler, Vocabulary, largest
from slm.errors import EngineError, InputError
from slm.joints import SamplingOptions
from slm.native.llama import library

Logits = npt.NDArray[np.float32]
SEEDS = st.integers(0, 2**32 - 1)


def vocabulary(size: int) -> Vocabulary:
    return Vocabulary(size, frozenset({2}), lambda token, special: f"<{token}>".encode())


def random_logits(seed: int, size: int, spread: float = 4.0) -> Logits:
    return np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)


def llama_chain(logits: Logits, options: SamplingOptions, seen: list[int]) -> dict[int, float]:
    """What llama.cpp's own samplers leave, in the order in which llama-server chains them: token -> probability."""
    lib = library()
    size = len(logits)
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    try:
        penalties = lib.llama_sampler_init_penalties(size, 64, options.repeat_penalty, 0.0, 0.0)
        lib.llama_sampler_chain_add(chain, penalties)
        for token in seen[-64:]:
            lib.llama_sampler_accept(chain, token)
        if options.temperature <= 0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
        else:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(options.top_k))
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(options.top_p, 1))
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_min_p(options.min_p, 1))
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(options.temperature))
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(1))
        data = (lib.llama_token_data * size)()
        for token, logit in enumerate(logits):
            data[token].id, data[token].logit = token, logit
        array = lib.llama_token_data_array(data, size, -1, False)
        lib.llama_sampler_apply(chain, ctypes.byref(array))
        if options.temperature <= 0:
            return {array.data[array.selected].id: 1.0}
        return {array.data[n].id: array.data[n].p for n in range(array.size)}
    finally:
        lib.llama_sampler_free(chain)


def ours(logits: Logits, options: SamplingOptions, seen: list[int]) -> dict[int, float]:
    tokens, probabilities = Sampler(options, seen, vocabulary(len(logits))).distribution(logits)
    return dict(zip(tokens.tolist(), probabilities.tolist(), strict=True))


@settings(deadline=None, max_examples=150)
@given(
    seed=SEEDS,
    size=st.sampled_from([1, 7, 300, 5000, 20_011]),
    spread=st.sampled_from([0.5, 4.0, 12.0]),
    top_k=st.sampled_from([0, 1, 3, 40, 1000]),
    top_p=st.sampled_from([0.1, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.4]),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    repeat=st.sampled_from([1.0, 1.3]),
)
def test_the_probabilities_are_those_of_llama_cpps_chain(
    seed: int, size: int, spread: float, top_k: int, top_p: float, min_p: float, temperature: float, repeat: float
) -> None:
    logits = random_logits(seed, size, spread)
    seen = np.random.default_rng(seed).integers(0, size, 90).tolist()
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repeat_penalty=repeat)
    expected, got = llama_chain(logits, options, seen), ours(logits, options, seen)
    # llama.cpp sums in float32, an epsilon a token: of flat logits, those right at top-p's limit fall on either side.
    odd = sum(expected.get(token, 0.0) + got.get(token, 0.0) for token in set(expected) ^ set(got))
    assert odd < max(1e-3, size * float(np.finfo(np.float32).eps))
    for token in set(expected) & set(got):
        assert abs(got[token] - expected[token]) < 1e-5 + odd * expected[token]


@given(seed=SEEDS, size=st.integers(1, 40_000), count=st.integers(1, 300), ties=st.booleans())
@settings(deadline=None, max_examples=80)
def test_the_largest_are_found_as_by_a_full_sort(seed: int, size: int, count: int, ties: bool) -> None:
    logits = random_logits(seed, size)
    if ties:
        logits = np.round(logits)
    expected = np.sort(logits)[::-1][:count]
    tokens = largest(logits, count)
    assert logits[tokens].tolist() == expected.tolist()
    assert len(set(tokens.tolist())) == min(count, size)
    assert largest(np.full(size, -np.inf, np.float32), count).shape == (min(count, size),)


def test_seeds_repeat_and_the_choice_follows_the_probabilities() -> None:
    logits, known = random_logits(5, 2000), vocabulary(2000)
    options = SamplingOptions(temperature=1.5, top_k=20, top_p=1.0, min_p=0.0, seed=11)
    first, again, other = (Sampler(replace(options, seed=seed), [], known) for seed in (11, 11, 12))
    draws = [first.pick(logits).token for _ in range(4000)]
    assert draws == [again.pick(logits).token for _ in range(4000)]
    assert draws[:50] != [other.pick(logits).token for _ in range(50)]
    tokens, probabilities = again.distribution(logits)
    for token, probability in zip(tokens.tolist(), probabilities.tolist(), strict=True):
        assert abs(draws.count(token) / 4000 - probability) < 5 * math.sqrt(probability / 4000)


def test_the_choice_over_a_whole_large_vocabulary_follows_the_probabilities_too() -> None:
    logits = np.full(50_000, -20.0, np.float32)
    logits[[3, 700, 49_999]] = [1.0, 2.0, 1.5]
    options = SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=4)
    sampler = Sampler(options, [], vocabulary(len(logits)))
    tokens, probabilities = sampler.distribution(logits)
    assert len(tokens) == len(logits)
    draws = [sampler.pick(logits).token for _ in range(2000)]
    for token in (3, 700, 49_999):
        expected = float(probabilities[token])
        assert abs(draws.count(token) / 2000 - expected) < 5 * math.sqrt(expected / 2000)


def test_penalties_of_openai_count_what_was_generated_and_not_the_prompt() -> None:
    logits, known = np.array([1.0, 2.0, 0.5, -1.0], np.float32), vocabulary(4)
    options = SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, presence_penalty=0.5,
                              frequency_penalty=0.25)  # fmt: skip
    sampler = Sampler(options, [3, 3, 3], known)
    made = [sampler.pick(logits).token for _ in range(12)]
    expected = logits.astype(np.float64)
    for token in set(made):
        expected[token] -= 0.5 + 0.25 * made.count(token)
    tokens, probabilities = sampler.distribution(logits)
    assert tokens.tolist() == [0, 1, 2, 3]
    assert probabilities == pytest.approx(np.exp(expected) / np.exp(expected).sum(), abs=1e-6)
    greedy = Sampler(SamplingOptions(presence_penalty=1.4, frequency_penalty=0.15), [1, 1], known)
    assert [greedy.pick(logits).token for _ in range(3)] == [1, 0, 2]


def test_a_bias_forbids_or_forces_and_must_name_a_token() -> None:
    logits, known = random_logits(3, 500), vocabulary(500)
    best = int(logits.argmax())
    assert Sampler(SamplingOptions(logit_bias=((best, -100.0),)), [], known).pick(logits).token != best
    assert Sampler(SamplingOptions(logit_bias=((7, 100.0),)), [], known).pick(logits).token == 7
    with pytest.raises(InputError, match="500 is no token id"):
        Sampler(SamplingOptions(logit_bias=((500, 1.0),)), [], known)


def test_scores_are_of_the_unmodified_distribution() -> None:
    logits, known = random_logits(9, 3000), vocabulary(3000)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    options = SamplingOptions(temperature=0.7, top_k=5, logprobs=3, repeat_penalty=1.7, logit_bias=((4, 9.0),))
    picked = Sampler(options, list(range(60)), known).pick(logits)
    assert picked.score is not None
    assert picked.score.token == picked.token and picked.score.piece == f"<{picked.token}>".encode()
    assert picked.score.logprob == pytest.approx(exact[picked.token], abs=1e-5)
    order = np.argsort(-logits)[:3].tolist()
    assert [token for token, _, _ in picked.score.top] == order
    assert [value for _, _, value in picked.score.top] == pytest.approx(exact[order].tolist(), abs=1e-5)
    assert Sampler(SamplingOptions(), [], known).pick(logits).score is None


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 0}])
def test_logits_that_are_no_numbers_are_an_error(options: Any) -> None:
    logits = random_logits(1, 3000)
    logits[1234] = np.nan
    with pytest.raises(EngineError, match="no usable numbers"):
        Sampler(SamplingOptions(**options), [], vocabulary(3000)).pick(logits)
