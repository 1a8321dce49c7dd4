"""The check for a machine with a GPU: what only a GPU shows, in at most eight minutes and one table.

    python -m integration.gpu [section ...] [--out FILE] [--docs] [--dry]

It needs this repository, PyTorch, Triton, transformers, numba, numpy, pytest and hypothesis; neither vLLM nor a
network. The engines are stand-ins that behave towards the adapters as vLLM's two model runners do. ``--dry`` runs
the same on a CPU at tiny sizes, in Triton's interpreter; goals for a GPU are then not judged.

- :mod:`integration.gpu.table`: goals, rows, and the table as text and Markdown.
- :mod:`integration.gpu.runner`: each section in its own process, within the budget.
- :mod:`integration.gpu.sections`: their names, order and seconds.
- :mod:`integration.gpu.place`: the device, and sizes on it.
- :mod:`integration.gpu.model`, :mod:`integration.gpu.engines`: the stand-ins.
- :mod:`integration.gpu.calls`: an adapter alone.
- :mod:`integration.gpu.records`: what left, against what should have.
- :mod:`integration.gpu.exactness`, :mod:`integration.gpu.behaviour`, :mod:`integration.gpu.memory`,
  :mod:`integration.gpu.speed`, :mod:`integration.gpu.steps`, :mod:`integration.gpu.machine_checks`: the checks.
"""
