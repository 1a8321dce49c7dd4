"""Every test of numbers runs over every backend that this machine has."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from corevital.kernels import TokenStats, available_backends, token_stats

from .reference import reference

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
BACKENDS = [(backend, device) for device in DEVICES for backend in available_backends(device)]

# Largest errors allowed, absolute and relative. Logits may be as large as 3e38, where float32 has steps of 2e31.
TOLERANCE = {
    "logsumexp": (1e-5, 2e-7),
    "entropy": (2e-5, 0.0),
    "varentropy": (1e-4, 0.0),
    "max_logit": (0.0, 0.0),
    "top1_prob": (2e-6, 0.0),
    "margin": (2e-6, 0.0),
    "topk_mass": (2e-6, 0.0),
    "topk_ids": (0.0, 0.0),
    "topk_logprobs": (1e-5, 2e-7),
    "nan_count": (0.0, 0.0),
    "posinf_count": (0.0, 0.0),
    "neginf_count": (0.0, 0.0),
}

Check = Callable[..., TokenStats]


@pytest.fixture(params=BACKENDS, ids="-".join, scope="session")
def check(request: pytest.FixtureRequest) -> Check:
    """Call a backend with these logits, and compare all that it returns with the reference."""
    backend, device = request.param

    def check_one(logits: torch.Tensor, top_k: int = 20) -> TokenStats:
        logits = logits.to(device)
        stats = token_stats(logits, top_k=top_k, backend=backend)
        expected = reference(logits.detach().float().cpu().numpy(), top_k)
        for name, (absolute, relative) in TOLERANCE.items():
            actual = getattr(stats, name)
            assert actual.device == logits.device, name
            wanted = expected[name]
            if actual.dtype == torch.float32:
                with np.errstate(over="ignore"):  # a log-probability of -6e38 is -inf in float32
                    wanted = wanted.astype(np.float32).astype(np.float64)
            found = actual.cpu().numpy().astype(np.float64)
            np.testing.assert_allclose(found, wanted, atol=absolute, rtol=relative, err_msg=name)
        return stats

    check_one.backend = backend  # type: ignore[attr-defined]
    check_one.device = device  # type: ignore[attr-defined]
    return check_one
