"""A stand-in for a model and a sampler: they take a GPU's time and memory as those of an engine do."""

from __future__ import annotations

import torch
from integration.gpu.place import Place


class Model:
    """A forward pass that writes bfloat16 logits over those of the step before; on a GPU a replayed graph, as in vLLM.

    Args:
        place: where.
        rows: of each step.
        layers: of 33.6 million parameters at the default width; the output matrix is not among them.
        width: of the hidden states.
        scale: of the logits; their standard deviation.
    """

    def __init__(self, place: Place, rows: int, layers: int = 0, width: int = 64, scale: float = 4.0) -> None:
        def random(*shape: int, of: float) -> torch.Tensor:
            return torch.randn(shape, dtype=torch.bfloat16, device=place.device) * of

        self._ticks = torch.zeros((), device=place.device)
        self._hidden = random(rows, width, of=3.0)
        self._layers = [
            (random(width, 4 * width, of=width**-0.5), random(4 * width, width, of=width**-0.5)) for _ in range(layers)
        ]
        self._head = random(width, place.vocab, of=scale * width**-0.5)
        self.logits = torch.empty(rows, place.vocab, dtype=torch.bfloat16, device=place.device)
        self.parameters = 8 * width * width * layers + self._head.numel()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._forward()
        if not place.dry:
            place.wait()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._forward()

    def _forward(self) -> None:
        self._ticks += 1
        x = torch.sin(self._hidden.float() + 0.37 * self._ticks).bfloat16()  # other logits at each step
        for up, down in self._layers:
            x = torch.nn.functional.rms_norm(x + torch.relu(x @ up) @ down, x.shape[-1:])
        torch.mm(torch.nn.functional.rms_norm(x, x.shape[-1:]), self._head, out=self.logits)

    def __call__(self) -> torch.Tensor:
        """Logits ``[rows, vocab]``, valid until the next call."""
        if self._graph is None:
            self._forward()
        else:
            self._graph.replay()
        return self.logits


def billion(place: Place, rows: int) -> Model:
    """A model of a billion parameters, those of the output among them."""
    return Model(place, rows, layers=place.size(22, 1), width=place.size(2048, 16))


def sample(logits: torch.Tensor, temperatures: torch.Tensor, top_k: int = 0) -> torch.Tensor:
    """Tokens ``[rows]`` int64. Scales and masks the logits in place, as samplers do."""
    logits.div_(temperatures[:, None])
    if top_k:
        least = logits.topk(min(top_k, logits.shape[1]), dim=-1).values[:, -1:]
        logits.masked_fill_(logits < least, -torch.inf)
    return (logits - torch.empty_like(logits).exponential_().log_()).argmax(-1)


class Truth:
    """What float64 says of a step's rows, on their device: logsumexp, entropy, and log-probability of the token."""

    def __init__(self, logits: torch.Tensor) -> None:
        logprobs = logits.double().log_softmax(-1)
        self._logits = logits.clone()
        self.logsumexp = logits.double().logsumexp(-1)
        self.entropy = -torch.where(logprobs.exp() > 0, logprobs.exp() * logprobs, 0.0).sum(-1)

    def logprob(self, tokens: torch.Tensor) -> torch.Tensor:
        """``[rows]`` float64, under the distribution before the temperature."""
        chosen = self._logits.gather(1, tokens[:, None])[:, 0].double() - self.logsumexp
        del self._logits
        return chosen
