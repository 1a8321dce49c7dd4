"""The demo: a small trained model, tasks with checkable answers, a server, traffic and a summary."""

from pathlib import Path

__all__ = ["MODEL_DIR"]

MODEL_DIR = Path(__file__).parent / "model"
"""The demo model, a folder that `vllm serve` takes; trained by `integration/demo_model/train.py`."""
