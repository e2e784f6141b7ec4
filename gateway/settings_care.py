"""Settings of the archive's care: scrubbing, backlogs, and coding anew what was coded in a hurry."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings


class CareSettings(BaseSettings):
    """A part of `gateway.settings.Settings`."""

    scrub_sample: int = Field(default=200, ge=0, description="archive objects read and decoded each day, at random")
    scrub_whole_days: float = Field(default=90.0, ge=0, description="between two walks over the whole archive; 0: none")
    scrub_share: float = Field(default=0.1, gt=0, le=1, description="of one processor that scrubbing takes")
    backlog_limit_seconds: float = Field(
        default=1800.0, ge=0,
        description="age of the oldest waiting instance, above which new work is coded by JPEG-LS or HTJ2K; 0: never",
    )  # fmt: skip
    recode_forward: Literal["keep", "send"] = Field(
        default="keep", description="whether destinations that have an envelope get the one that was coded anew, too"
    )
