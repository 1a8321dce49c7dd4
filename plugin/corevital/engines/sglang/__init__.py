"""SGLang, through its plugin interface. See docs/operate/engines/sglang.md.

- :mod:`~corevital.engines.sglang.register`: whether SGLang was to be measured, and which of its methods are hooked.
- :mod:`~corevital.engines.sglang.frontend`: in a tokenizer manager: a request's arguments and origin.
- :mod:`~corevital.engines.sglang.workers`: the same where there are several.
- :mod:`~corevital.engines.sglang.watch`: in a scheduler: each sequence's start and end.
- :mod:`~corevital.engines.sglang.sampling`: in a scheduler: logits and tokens.
- :mod:`~corevital.engines.sglang.names`: every private name of SGLang that we use, and the versions it was checked on.
"""
