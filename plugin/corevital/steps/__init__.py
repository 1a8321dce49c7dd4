"""One step of any engine: from the logits of its rows to a frame on its way to the telemetry half.

- :mod:`~corevital.steps.slots`: whose sequence is in which slot.
- :mod:`~corevital.steps.recorder`: from one step's logits to tables on their way to the host. What adapters call.
- :mod:`~corevital.steps.step`: what the engine's thread hands to the frame thread.
- :mod:`~corevital.steps.host_tables`, :mod:`~corevital.steps.gpu_tables`: those tables on a CPU and on a GPU.
- :mod:`~corevital.steps.device_tables`: those tables by torch alone.
- :mod:`~corevital.steps.device`: whether a device can be measured.
- :mod:`~corevital.steps.frame_thread`: from tables to frames, beside the engine's thread.
"""
