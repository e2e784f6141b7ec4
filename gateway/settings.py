"""Frozen settings, and the only reader of the environment in the project.

Every field is ``PALIMPSEST_<NAME>``; ``REDIS_URL`` and ``DATABASE_URL`` count also without the prefix.
Field descriptions give the unit and the reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, InitSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from gateway.childsecrets import EVERYTHING, Need, environment_for, plain_environment
from gateway.destination import Destination as Destination  # a part of the settings, and imported as one
from gateway.destination import Secret
from gateway.errors import Unavailable
from gateway.settings_access import SECRETS, AccessSettings
from gateway.settings_audit import AuditSettings
from gateway.settings_care import CareSettings
from gateway.settings_dicom import GIB, DicomSettings
from gateway.settings_folders import MAX_SOCKET_PATH as MAX_SOCKET_PATH
from gateway.settings_folders import FolderSettings, kernel_sources
from gateway.settings_hosts import HostSettings
from gateway.settings_keys import KeySettings
from gateway.settings_watch import WatchSettings
from gateway.webhook import Webhook

#: read by palimpsest/faultlayer.c, and by nothing of a gateway: where a test's control file lies
FAULT_LAYER = "PALIMPSEST_FAULT_LAYER"
_MASTER_SETTINGS = ("vault_", "kms_")
WATERMARK: dict[str, int] = {"demo": 1_000_000_000, "production": 5_000_000_000}


class Settings(
    FolderSettings, HostSettings, DicomSettings, KeySettings, AccessSettings, AuditSettings, CareSettings,
    WatchSettings, BaseSettings,
):  # fmt: skip
    """All that can be chosen from outside; built once by `load_settings` and handed down."""

    model_config = SettingsConfigDict(
        env_prefix="PALIMPSEST_", frozen=True, extra="ignore", populate_by_name=True,
        hide_input_in_errors=True,  # a check of several fields would quote all of them, secrets too
    )  # fmt: skip

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    watermark_bytes: int = Field(
        default_factory=lambda data: WATERMARK[data.get("profile", "production")],
        ge=0,
        description="free bytes under which nothing more is taken in",
    )

    codec_profile: Literal["fast", "default", "max"] = Field(
        default="default", description="how hard the codec tries where no rule of the policy says it"
    )
    codec_adapt: Literal["none", "image", "series"] = Field(
        default="none", description="what the codec's weights are fitted to where no rule of the policy says it"
    )
    codec_fit_seconds: float = Field(
        default=4.0, gt=0, description="that one fit, of an image or a series, may take of a worker"
    )
    encode_processes: int = Field(default=2, ge=1)
    gpu_devices: Annotated[tuple[int, ...], NoDecode] = Field(
        default=(), description="comma-separated CUDA device numbers, one worker process each; empty: no GPU is used"
    )
    gpu_batch: int = Field(
        default=32, ge=1, description="instances of one series that a GPU worker carries at once, if they are waiting"
    )
    gpu_batch_bytes: int = Field(
        default=GIB // 8, ge=1, description="received bytes of such a batch, at most: coding takes tens of times that"
    )
    gpu_provers: int = Field(default=2, ge=1, description="proving processes of a GPU worker: proofs stay CPU work")
    retrieve_processes: int = Field(default=1, ge=1, description="reserved: they never encode")
    forward_processes: int = Field(default=1, ge=1)
    lease_seconds: float = Field(default=60.0, gt=0, description="a worker silent for so long has lost its row")
    max_attempts: int = Field(default=3, ge=1, description="claims before an object goes on as PASSTHROUGH")
    forward_max_attempts: int = Field(default=12, ge=1, description="then dead letter")
    object_time_limit_seconds: float = Field(default=900.0, gt=0, description="one object in one worker")
    worker_memory_bytes: int = Field(
        default=6 * GIB, ge=256 << 20,
        description="limit of a worker's and of the prover's memory; sealing a file whole takes five times its size",
    )  # fmt: skip
    reference_every: int = Field(
        default=500, ge=0, description="every n-th small object is proven by the slow NumPy decoder too; 0: none"
    )
    visibility_timeout_seconds: int = Field(
        default=3600, ge=60, description="above the longest task, or Redis delivers it twice at once"
    )
    sweep_seconds: float = Field(default=5.0, gt=0)
    restart_pause_seconds: float = Field(
        default=30.0, gt=0, description="longest pause before the supervisor starts a process again that keeps dying"
    )
    poll_seconds: float = Field(default=0.5, gt=0)
    retrieve_timeout_seconds: float = Field(default=60.0, gt=0)
    cache_max_bytes: int = Field(default=4 * GIB, ge=0)
    hot_cache: Literal["arrival", "touch", "off"] = Field(
        default="arrival",
        description="when HTJ2K copies are made for viewers: as objects are archived, as their series is read, never",
    )
    hot_object_bytes: int = Field(default=GIB // 8, ge=0, description="of larger objects no copy is made ahead")
    prefetch_instances: int = Field(default=500, ge=0, description="of a series that are made ahead, at most")
    token_ttl_seconds: int = Field(default=12 * 3600, ge=60)

    study_quiet_seconds: float = Field(
        default=300.0, gt=0, description="without a new instance, then a study counts as complete if nothing says else"
    )
    stow_completes: bool = Field(default=False, description="one STOW-RS request holds all of a study")
    rejected_quality: Literal["hide", "show"] = Field(default="hide", description="what a note 113001 rejects")
    event_days: float = Field(default=30.0, gt=0, description="that study events are kept for subscribers")
    webhooks: tuple[Webhook, ...] = Field(default=(), description="JSON list: receivers of study events")

    policy_file: Path | None = Field(
        default=None, description="TOML; default <home>/policy.toml, and where there is none, today's defaults"
    )
    demo_destination_port: int = Field(default=11113, ge=0, le=65535)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then files that hold secrets, then the environment. Raises Unavailable ``secret-unreadable``."""
        return init_settings, InitSettingsSource(settings_cls, secrets_in_files()), env_settings

    @field_validator("policy_file", mode="after")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @field_validator("gpu_devices", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))

    @field_validator("gpu_devices", mode="after")
    @classmethod
    def _devices(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(number < 0 for number in value):
            raise ValueError("a CUDA device number is 0 or more")
        return value

    @property
    def encode_queue(self) -> str:
        """Where the first wake-up for an encode goes; what lies there for long is offered to `encode` by the sweep."""
        return "gpu" if self.gpu_devices else "encode"

    @property
    def require_key_backup(self) -> bool:
        """Outside the demo profile no source is released before a key backup was made and opened."""
        return self.profile != "demo"


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment and, for destinations, from the destinations file. Arguments win over both."""
    settings = Settings(**overrides)
    if settings.destinations:
        return settings
    path = settings.destinations_file or settings.home / "destinations.json"
    if not path.is_file():
        return settings
    return Settings(**{**overrides, "destinations": json.loads(path.read_text("utf-8"))})


def secrets_in_files() -> dict[str, str]:
    """The secrets that files hold, by field: for each of `SECRETS` the file that PALIMPSEST_<NAME>_FILE names.

    Raises Unavailable ``secret-unreadable``, whose text names the file and not what is in it.
    """
    found = {}
    for field in SECRETS:
        path = os.environ.get(f"PALIMPSEST_{field.upper()}_FILE")
        if path:
            try:
                found[field] = Path(path).read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise Unavailable("secret-unreadable", f"{path} cannot be read ({type(error).__name__})") from None
    return found


def child_environment(settings: Settings, needs: Collection[Need] = EVERYTHING) -> dict[str, str]:
    """Environment for a child process: the parent's, with the settings that must be equal in all processes, without the
    secrets that it does not need.
    """
    env = environment_for(os.environ, settings, needs)
    env["PALIMPSEST_HOME"] = str(settings.home)
    env["PALIMPSEST_PROFILE"] = settings.profile
    env["PALIMPSEST_DICOM_PORT"] = str(settings.dicom_port)
    env["PALIMPSEST_DICOM_TLS_PORT"] = str(settings.dicom_tls_port)
    env["PALIMPSEST_HTTP_PORT"] = str(settings.http_port)
    env["PALIMPSEST_CODEC_PROFILE"] = settings.codec_profile
    env["PALIMPSEST_CODEC_ADAPT"] = settings.codec_adapt
    env["PALIMPSEST_CODEC_FIT_SECONDS"] = str(settings.codec_fit_seconds)
    env["PALIMPSEST_GPU_DEVICES"] = ",".join(map(str, settings.gpu_devices))
    env["PALIMPSEST_DESTINATIONS"] = json.dumps(
        [each.model_dump(mode="json", exclude_defaults=True) for each in settings.destinations]
    )
    env["NUMBA_CACHE_DIR"] = str(settings.numba_cache_dir)
    if settings.local_dir:
        env["PALIMPSEST_LOCAL_DIR"] = str(settings.local_dir)
    if settings.policy_file:
        env["PALIMPSEST_POLICY_FILE"] = str(settings.policy_file)
    in_files = secrets_in_files()
    named: tuple[tuple[Need, str, str | None], ...] = (
        ("queue", "redis_url", settings.redis_url), ("database", "database_url", settings.database_url),
    )  # fmt: skip
    for need, field, value in named:
        if need in needs and value and value != in_files.get(field):
            env.pop(f"PALIMPSEST_{field.upper()}_FILE", None)
            env[field.upper()] = value
    return env


def _of_a_master(name: str) -> bool:
    return name.startswith(_MASTER_SETTINGS)


def key_environment(settings: Settings) -> dict[str, str]:
    """What a child process needs to open the key ring, credentials included: for its environment, nowhere else."""
    names = ("key_master", "key_master_timeout_seconds", *filter(_of_a_master, Settings.model_fields))
    values = {name: getattr(settings, name) for name in names}
    return {f"PALIMPSEST_{name.upper()}": str(value) for name, value in values.items() if value is not None}


def credential(destination: Destination, secret: Secret) -> str:
    """A destination's secret from its file or its environment variable, '' where it names none; never kept.

    Raises Unavailable ``credential-unreadable``, whose text names the place and not what is in it.
    """
    file: Path | None = getattr(destination, f"{secret}_file")
    variable: str = getattr(destination, f"{secret}_env")
    if file is None:
        if variable and not os.environ.get(variable):
            raise Unavailable("credential-unreadable", f"the environment has no {variable}")
        return os.environ.get(variable, "") if variable else ""
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable("credential-unreadable", f"{file} cannot be read ({type(error).__name__})") from None


def python_environment(root: Path, settings: Settings | None = None) -> dict[str, str]:
    """Environment for a Python child that must import our packages from `root`, wherever it is started.

    settings: whose key ring it will open; default: it opens none. It gets no other secret.
    """
    path = os.pathsep.join(part for part in (str(root), os.environ.get("PYTHONPATH", "")) if part)
    env = environment_for_keys(settings) if settings else plain_environment(os.environ)
    return {**env, "PYTHONPATH": path}


def environment_for_keys(settings: Settings) -> dict[str, str]:
    """Nothing secret but what opens the key ring."""
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return {
        **plain_environment(os.environ, settings),
        **key_environment(settings),
        **(aws if settings.key_master == "kms" else {}),
    }


def use_home(home: Path) -> None:
    """Make `home` the home folder of this process and of those it starts, as PALIMPSEST_HOME would."""
    os.environ["PALIMPSEST_HOME"] = str(home.expanduser().absolute())


def name_metrics_folder(folder: Path) -> None:
    """Tell prometheus_client where this process's values lie; it asks the environment for each file it makes."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


def kernel_cache() -> Path:
    """Where compiled kernels lie that belong to no home: this process's NUMBA_CACHE_DIR, else the user's cache."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("NUMBA_CACHE_DIR") or user / "palimpsest" / "numba" / kernel_sources())


def use_numba_cache(settings: Settings | None = None) -> None:
    """Point numba's cache at the home folder, without settings at the user's cache folder.

    Call before the first kernel is imported: the coder's are compiled each time where no folder is named.
    """
    folder = settings.numba_cache_dir if settings else kernel_cache()
    if "NUMBA_CACHE_DIR" not in os.environ:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["NUMBA_CACHE_DIR"] = str(folder)
