"""A request's life as vLLM's engine core sees it, for any frontend on any host.

- :mod:`corevital.engines.vllm.core.register`: how the core's scheduler is found.
- :mod:`corevital.engines.vllm.core.watch`: what is recorded of its requests.
- :mod:`corevital.engines.vllm.core.describe`: a request of the core as :class:`~corevital.frames.lifecycle.Admitted`.
"""
