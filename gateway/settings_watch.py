"""Settings of what watches the gateway: traces, Flower."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings


class WatchSettings(BaseSettings):
    """A part of `gateway.settings.Settings`."""

    tracing_endpoint: str = Field(
        default="", description="OTLP over HTTP, e.g. http://collector:4318/v1/traces; empty: no traces, nothing loaded"
    )
    tracing_share: float = Field(default=1.0, ge=0, le=1, description="part of the instances that are traced")
    exporter_host: str = Field(default="127.0.0.1", description="of `palimpsest exporter`")
    exporter_port: int = Field(default=9464, ge=0, le=65535)
    flower: bool = Field(default=False, description="Flower below /admin/flower, for admins (extra `flower`)")
