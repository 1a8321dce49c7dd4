"""The resource of our spans: the service, this instance of it, the engine and the device it serves on."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource

from corevital_otel import __version__
from corevital_otel import conventions as names

Facts = Mapping[str, str | int]
"""Of the engine and its device, by the names behind ``corevital.``: ``engine.dtype``, ``device.name``."""


def make_resource(engine: Facts | None = None) -> Resource:
    """The SDK's own resource (``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``), and what it leaves open.

    The service's name is the engine's where none is set. What the user sets takes precedence.

    Args:
        engine: facts of the engine.
    """
    resource = Resource.create()
    ours: dict[str, str | int] = {names.VERSION: __version__}
    ours |= {f"corevital.{name}": value for name, value in (engine or {}).items()}
    name = (engine or {}).get("engine.name")
    if name is not None and str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        ours[SERVICE_NAME] = name
    if SERVICE_INSTANCE_ID not in resource.attributes:
        ours[SERVICE_INSTANCE_ID] = str(uuid.uuid4())
    kept = {name: value for name, value in ours.items() if name == SERVICE_NAME or name not in resource.attributes}
    return resource.merge(Resource(kept))
