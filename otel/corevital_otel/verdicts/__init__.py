"""The verdict for the caller: what ``corevital_return`` puts on the answer of a request over HTTP.

- :mod:`corevital_otel.verdicts.collector`: which sequences an answer consists of, and what their reports say.
- :mod:`corevital_otel.verdicts.wording`: a report as the caller sees it.
- :mod:`corevital_otel.verdicts.answer`: the answer with it, in each of its forms.

A request that did not ask passes through untouched.
"""
