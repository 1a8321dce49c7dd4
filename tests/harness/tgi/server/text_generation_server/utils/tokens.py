"""Stand-in: token choosers whose warpers work in place, and stopping criteria."""

from __future__ import annotations

from typing import Any

import torch

EOS = 1


class _Temperature:
    def __init__(self, temperatures: list[float]) -> None:
        self.temperatures = temperatures

    def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:
        scores.div_(torch.tensor(self.temperatures, dtype=scores.dtype).unsqueeze(1))
        return scores

    def filter(self, indices: list[int]) -> _Temperature | None:
        kept = [self.temperatures[index] for index in indices]
        return _Temperature(kept) if any(each != 1.0 for each in kept) else None


class NextTokenChooser:
    def __init__(self, parameters: Any) -> None:
        warper = _Temperature([parameters.temperature]) if parameters.temperature != 1.0 else None
        self.static_warper = None if warper is None else lambda scores: self._warp(warper, scores)

    @staticmethod
    def _warp(warper: Any, scores: torch.Tensor) -> Any:
        scores = warper(None, scores)
        return scores, torch.log_softmax(scores, -1)

    def __call__(self, input_ids: Any, scores: torch.Tensor) -> Any:
        if self.static_warper is None:
            logprobs = torch.log_softmax(scores, -1)
        else:
            scores, logprobs = self.static_warper(scores)
        return scores[-1].argmax().view(1, 1), logprobs


class HeterogeneousNextTokenChooser:
    def __init__(self, parameters: list[Any]) -> None:
        self.parameters = parameters
        temperatures = [each.temperature for each in parameters]
        self.warpers: list[Any] = [_Temperature(temperatures)] if any(each != 1.0 for each in temperatures) else []

    def __call__(
        self,
        input_ids: Any,
        scores: torch.Tensor,
        speculate: int,
        speculated_ids: torch.Tensor | None = None,
        speculative_scores: Any = None,
        verbose: bool = False,
    ) -> Any:
        drafts = 0 if speculated_ids is None else speculated_ids.shape[1]
        scores = scores.view(-1, drafts + 1, scores.shape[-1])
        chosen = torch.zeros(scores.shape[:2], dtype=torch.long)
        for j in range(drafts + 1):
            now = scores[:, j]
            for warper in self.warpers:
                now = warper(input_ids, now)
            scores[:, j] = now
            chosen[:, j] = now.argmax(-1)
        accepted = torch.ones(len(scores), dtype=torch.long)
        if speculated_ids is not None:
            accepted += (chosen[:, :-1] == speculated_ids).long().cumprod(1).sum(1)
        kept = [token for row, count in zip(chosen.tolist(), accepted.tolist(), strict=True) for token in row[:count]]
        return torch.tensor(kept), accepted, scores

    def filter(self, indices: list[int]) -> HeterogeneousNextTokenChooser:
        self.parameters = [self.parameters[index] for index in indices]
        self.warpers = [kept for warper in self.warpers if (kept := warper.filter(indices)) is not None]
        return self


class StoppingCriteria:
    def __init__(self, parameters: Any) -> None:
        self.parameters = parameters
        self.current_tokens = 0
        self.output = ""

    def __call__(self, last_token: Any, last_output: str) -> tuple[bool, int | None]:
        self.current_tokens += 1
        self.output += last_output
        if self.current_tokens >= self.parameters.max_new_tokens:
            return True, 0
        if int(last_token) == EOS:
            return True, 1
        if any(self.output.endswith(stop) for stop in self.parameters.stop_sequences):
            return True, 2
        return False, None
