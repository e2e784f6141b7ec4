"""Frozen settings, and the only reader of the environment in the project.

Every field is ``PALIMPSEST_<NAME>``; ``REDIS_URL`` and ``DATABASE_URL`` count also without the prefix.
Field descriptions give the unit and the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway.destination import Destination as Destination  # a part of the settings, and imported as one
from gateway.destination import Secret
from gateway.errors import Unavailable
from gateway.webhook import Webhook

MAX_SOCKET_PATH = 100  # bytes; sun_path holds 108 with its NUL (unix(7)), and servers append suffixes
GIB = 1 << 30
_MASTER_SETTINGS = ("vault_", "kms_")
WATERMARK: dict[str, int] = {"demo": 1_000_000_000, "production": 5_000_000_000}


class Settings(BaseSettings):
    """All that can be chosen from outside; built once by `load_settings` and handed down."""

    model_config = SettingsConfigDict(env_prefix="PALIMPSEST_", frozen=True, extra="ignore", populate_by_name=True)

    home: Path = Field(default=Path("var"), description="one folder for all state")
    profile: Literal["demo", "production"] = "demo"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    ae_title: str = Field(default="PALIMPSEST", max_length=16)
    dicom_host: str = "127.0.0.1"
    dicom_port: int = Field(default=11112, ge=0, le=65535, description="0: any free port (tests)")
    http_host: str = "127.0.0.1"
    http_port: int = Field(default=8080, ge=0, le=65535)
    calling_ae_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="comma-separated AE titles; empty: any in the demo profile, none in production"
    )
    query_ae_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="AE titles that may C-FIND, C-MOVE and C-GET; empty: every one that may associate"
    )
    query_max_matches: int = Field(
        default=20_000, ge=1, le=65_535, description="of one C-FIND; beyond them the answer ends with 0xA700"
    )
    commitment_unknown_seconds: float = Field(
        default=3600.0, ge=0, description="a commitment request may name objects that come so much later"
    )
    commitment_wait_seconds: float = Field(
        default=24 * 3600.0, ge=0, description="then what is here and not yet safe is answered as a failure"
    )
    commitment_copies: int = Field(default=0, ge=0, description="destinations that must have an object, too")
    commitment_max_references: int = Field(default=5000, ge=1, description="of one request")
    commitment_answer_seconds: float = Field(default=3600.0, gt=0, description="for a destination; then asked again")
    commitment_max_askings: int = Field(default=5, ge=1, description="of a destination; then dead letter")
    address_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="comma-separated CIDR networks beside this machine; empty: any in the demo profile, none elsewhere",
    )
    max_associations: int = Field(default=25, ge=1, description="above 10, the default that busy sites run into")
    max_associations_per_peer: int = Field(default=0, ge=0, description="by address; 0: as many as there are")
    listener_processes: int = Field(default=1, ge=1, le=16, description="behind one port; they share max_associations")
    dicom_plain: Literal["", "allow"] = Field(
        default="", description="'allow': the plain DICOM port is open outside the demo profile, too"
    )
    dicom_tls_port: int = Field(
        default=2762, ge=0, le=65535, description="dicom-tls; open where there is a certificate"
    )
    dicom_tls_cert: Path | None = Field(default=None, description="PEM chain: ours, as server and as client")
    dicom_tls_key: Path | None = Field(default=None, description="PEM private key of it, without a passphrase")
    dicom_tls_ca: Path | None = Field(default=None, description="PEM: who may have signed a peer's certificate")
    dicom_tls_bind_ae: bool = Field(
        default=False, description="the calling AE title must be the certificate's CN or one of its DNS names"
    )
    max_pdu: int = Field(default=0, ge=0, description="bytes announced (PS3.8 D.1); 0: the listener's choice, 1 MiB")
    max_object_bytes: int = Field(
        default=GIB, ge=1, le=2 * GIB - 1,
        description="bytes; more is refused while it arrives: what a worker's memory cannot seal must not be taken in",
    )  # fmt: skip
    network_timeout_seconds: float = Field(default=60.0, gt=0, description="idle, never whole-exchange")

    # Not in the repr: both URLs may hold a password.
    redis_url: str | None = Field(
        default=None, repr=False, validation_alias=AliasChoices("PALIMPSEST_REDIS_URL", "REDIS_URL")
    )
    database_url: str | None = Field(
        default=None, repr=False, validation_alias=AliasChoices("PALIMPSEST_DATABASE_URL", "DATABASE_URL")
    )
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
    poll_seconds: float = Field(default=0.5, gt=0)
    retrieve_timeout_seconds: float = Field(default=60.0, gt=0)
    cache_max_bytes: int = Field(default=4 * GIB, ge=0)
    hot_cache: Literal["arrival", "touch", "off"] = Field(
        default="arrival",
        description="when HTJ2K copies are made for viewers: as objects are archived, as their series is read, never",
    )
    hot_object_bytes: int = Field(default=GIB // 8, ge=0, description="of larger objects no copy is made ahead")
    prefetch_instances: int = Field(default=500, ge=0, description="of a series that are made ahead, at most")
    viewer_folder: Path | None = Field(default=None, description="where OHIF is installed; default <home>/viewer")
    token_ttl_seconds: int = Field(default=12 * 3600, ge=60)

    # What wraps the ring's keys. Credentials are never in a repr and never on a command line.
    key_master: Literal["file", "vault", "kms"] = "file"
    key_master_timeout_seconds: float = Field(default=10.0, gt=0, description="one request to Vault or KMS")
    vault_addr: str = Field(default="", description="URL of Vault or OpenBao; https, http on this machine only")
    vault_namespace: str = ""
    vault_ca_file: Path | None = Field(default=None, description="PEM; default: the CAs that Python trusts")
    vault_mount: str = Field(default="transit", description="path of the Transit engine")
    vault_key: str = Field(default="palimpsest", description="name of the Transit key")
    vault_token: str = Field(default="", repr=False)
    vault_token_file: Path | None = Field(default=None, description="wins over vault_token; read anew at each login")
    vault_role_id: str = Field(default="", repr=False, description="AppRole; wins over a token")
    vault_secret_id: str = Field(default="", repr=False)
    vault_secret_id_file: Path | None = Field(default=None, description="wins over vault_secret_id")
    vault_approle_mount: str = "approle"
    kms_key: str = Field(default="alias/palimpsest", description="alias (needed to rotate), key id or ARN")
    kms_region: str = Field(default="", description="default: AWS_REGION or the AWS configuration")
    kms_endpoint: str = Field(default="", description="URL of a private endpoint; default: AWS's own")

    study_quiet_seconds: float = Field(
        default=300.0, gt=0, description="without a new instance, then a study counts as complete if nothing says else"
    )
    stow_completes: bool = Field(default=False, description="one STOW-RS request holds all of a study")
    rejected_quality: Literal["hide", "show"] = Field(default="hide", description="what a note 113001 rejects")
    event_days: float = Field(default=30.0, gt=0, description="that study events are kept for subscribers")
    webhooks: tuple[Webhook, ...] = Field(default=(), description="JSON list: receivers of study events")

    destinations_file: Path | None = Field(default=None, description="JSON list; default <home>/destinations.json")
    destinations: tuple[Destination, ...] = ()
    policy_file: Path | None = Field(
        default=None, description="TOML; default <home>/policy.toml, and where there is none, today's defaults"
    )
    demo_destination_port: int = Field(default=11113, ge=0, le=65535)

    @field_validator("calling_ae_allow", "query_ae_allow", "address_allow", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("address_allow", mode="after")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ip_network(each, strict=False)) for each in value)

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

    @field_validator(
        "redis_url",
        "database_url",
        "viewer_folder",
        "vault_ca_file",
        "vault_token_file",
        "vault_secret_id_file",
        "dicom_tls_cert",
        "dicom_tls_key",
        "dicom_tls_ca",
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        return value or None

    @field_validator("home", "policy_file", "viewer_folder", mode="after")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    def allows_address(self, address: str) -> bool:
        """True if a DICOM peer may connect from there; IPv4 addresses also in their IPv6 form."""
        if not self.address_allow and self.profile == "demo":
            return True
        found = ip_address(address.partition("%")[0])
        found = getattr(found, "ipv4_mapped", None) or found
        return found.is_loopback or any(found in ip_network(each) for each in self.address_allow)

    @property
    def listens_plain(self) -> bool:
        """True if the DICOM port without TLS is open."""
        return self.profile == "demo" or self.dicom_plain == "allow"

    @property
    def listens_tls(self) -> bool:
        """True if there is a certificate, and so a DICOM port with TLS."""
        return self.dicom_tls_cert is not None

    @property
    def open_dicom_ports(self) -> tuple[int, ...]:
        """The DICOM ports that are open, plain first."""
        plain = (self.dicom_port,) if self.listens_plain else ()
        return (*plain, self.dicom_tls_port) if self.listens_tls else plain

    def allows_calling_ae(self, ae_title: str) -> bool:
        """True if this calling AE title may open an association (gateway.md: allow-list outside the demo profile)."""
        if not self.calling_ae_allow:
            return self.profile == "demo"
        return ae_title.strip() in self.calling_ae_allow

    def allows_query_ae(self, ae_title: str) -> bool:
        """True if this calling AE title may query and retrieve, once it has an association."""
        return not self.query_ae_allow or ae_title.strip() in self.query_ae_allow

    def move_destination(self, ae_title: str) -> Destination | None:
        """The DICOM node that a C-MOVE may name by this AE title, or None."""
        wanted = ae_title.strip()
        return next((d for d in self.destinations if d.kind == "dicom" and d.move and d.ae_title == wanted), None)

    def commitment_requester(self, ae_title: str) -> Destination | None:
        """The DICOM node of that AE title, to which the answer to its commitment request is sent, or None."""
        return next((d for d in self.destinations if d.kind == "dicom" and d.ae_title == ae_title.strip()), None)

    def commitment_providers(self, ae_title: str) -> tuple[str, ...]:
        """Names of the destinations whose word we ask for and that call themselves so."""
        asked = (d for d in self.destinations if d.commitment and d.ae_title == ae_title.strip())
        return tuple(d.name for d in asked)

    def destination(self, name: str) -> Destination | None:
        """The destination of that name, or None if it is not configured any more."""
        return next((d for d in self.destinations if d.name == name), None)

    @property
    def encode_queue(self) -> str:
        """Where the first wake-up for an encode goes; what lies there for long is offered to `encode` by the sweep."""
        return "gpu" if self.gpu_devices else "encode"

    @property
    def require_key_backup(self) -> bool:
        """Outside the demo profile no source is released before a key backup was made and opened."""
        return self.profile != "demo"

    @property
    def spool_dir(self) -> Path:
        """Received files, by digest."""
        return self.home / "spool"

    @property
    def incoming_dir(self) -> Path:
        """Files being received; inside the spool, because rename must not cross file systems."""
        return self.spool_dir / "incoming"

    @property
    def candidates_dir(self) -> Path:
        """Archive objects not yet in the archive, by digest."""
        return self.home / "candidates"

    @property
    def archive_dir(self) -> Path:
        """The filesystem archive."""
        return self.home / "archive"

    @property
    def cache_dir(self) -> Path:
        """Restored files, content-addressed; may be deleted at any time."""
        return self.home / "cache"

    @property
    def viewer_dir(self) -> Path:
        """OHIF as `palimpsest viewer install` left it; may be deleted at any time."""
        return self.viewer_folder or self.home / "viewer"

    @property
    def keys_dir(self) -> Path:
        """The key ring; never inside the archive."""
        return self.home / "keys"

    @property
    def quarantine_dir(self) -> Path:
        """Candidates that failed their proof, with the reason."""
        return self.home / "quarantine"

    @property
    def database_path(self) -> Path:
        """The SQLite file, used when no database URL is set."""
        return self.home / "palimpsest.db"

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the system of record; plain postgres URLs are given the psycopg 3 driver."""
        if self.database_url is None:
            return f"sqlite:///{self.database_path}"
        for prefix in ("postgres://", "postgresql://"):
            if self.database_url.startswith(prefix):
                return "postgresql+psycopg://" + self.database_url[len(prefix) :]
        return self.database_url

    @property
    def numba_cache_dir(self) -> Path:
        """Compiled kernels; writable where the install is not. A folder for each version of their sources."""
        return self.home / "numba" / kernel_sources()

    @property
    def run_dir(self) -> Path:
        """Sockets, pid files, audit heads, broker files."""
        return self.home / "run"

    @property
    def audit_head_path(self) -> Path:
        """Where the sweep writes the audit chain's head, outside the database."""
        return self.run_dir / "audit-head.json"

    @property
    def redis_socket(self) -> Path:
        """The embedded broker's unix socket; a short one in the temporary folder if the path were too long."""
        path = self.run_dir / "redis.sock"
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
            return path
        name = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"palimpsest-{os.getuid()}-{name}" / "redis.sock"

    @property
    def broker_url(self) -> str:
        """The broker in Celery's spelling: REDIS_URL, or the embedded server's socket."""
        return self.redis_url or f"redis+socket://{self.redis_socket}"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Every folder that must exist before anything runs (the key ring makes its own, with its own mode)."""
        return (
            self.home,
            self.spool_dir,
            self.incoming_dir,
            self.candidates_dir,
            self.archive_dir,
            self.cache_dir,
            self.quarantine_dir,
            self.numba_cache_dir,
            self.run_dir,
        )


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment and, for destinations, from the destinations file. Arguments win over both."""
    settings = Settings(**overrides)
    if settings.destinations:
        return settings
    path = settings.destinations_file or settings.home / "destinations.json"
    if not path.is_file():
        return settings
    return Settings(**{**overrides, "destinations": json.loads(path.read_text("utf-8"))})


def child_environment(settings: Settings) -> dict[str, str]:
    """Environment for a child process: the parent's, with the settings that must be equal in all processes."""
    env = dict(os.environ)
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
    named = (("REDIS_URL", settings.redis_url), ("DATABASE_URL", settings.database_url))
    policy = str(settings.policy_file) if settings.policy_file else None
    for name, value in (*named, ("PALIMPSEST_POLICY_FILE", policy)):
        if value:
            env[name] = value
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

    settings: whose key ring it will open; default: those of this process's own environment.
    """
    path = os.pathsep.join(part for part in (str(root), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, **(key_environment(settings) if settings else {}), "PYTHONPATH": path}


def use_home(home: Path) -> None:
    """Make `home` the home folder of this process and of those it starts, as PALIMPSEST_HOME would."""
    os.environ["PALIMPSEST_HOME"] = str(home.expanduser().absolute())


@cache
def kernel_sources() -> str:
    """16 hex digits that change with any source that kernels are compiled from.

    numba looks only at the file of the kernel that it is asked for: a kernel cached before one that it calls, or a
    table that it reads, was changed in another file would go on with the old one, and write past its buffers.
    """
    digest = hashlib.sha256(sys.version.encode())
    for room in ("codec", "stego", "worker"):
        for path in sorted((Path(__file__).resolve().parent.parent / room).rglob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def use_numba_cache(settings: Settings | None = None) -> None:
    """Point numba's cache at the home folder, without settings at the user's cache folder.

    Call before the first kernel is imported: the coder's are compiled each time where no folder is named.
    """
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = settings.numba_cache_dir if settings else user / "palimpsest" / "numba" / kernel_sources()
    if "NUMBA_CACHE_DIR" not in os.environ:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["NUMBA_CACHE_DIR"] = str(folder)
