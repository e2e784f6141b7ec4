"""A place that objects are forwarded to: a DICOM node, a DICOMweb service, an S3 bucket or a folder.

No credential stands in here: only the file, or the name of the environment variable, that holds one. So a destination
may be printed, logged and handed to a child process (`gateway.settings.credential` reads it).
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Kind = Literal["dicom", "stow", "s3", "filesystem"]
#: what each kind cannot do without, and what may stand beside it; all else is refused, for it would do nothing
NEEDED: Final[dict[Kind, tuple[str, ...]]] = {
    "dicom": (), "stow": ("url",), "s3": ("bucket",), "filesystem": ("path",)
}  # fmt: skip
_HTTP: Final = (
    "url", "token_file", "token_env", "username", "password_file", "password_env", "ca_file", "client_cert_file",
    "client_key_file",
)  # fmt: skip
ALLOWED: Final[dict[Kind, frozenset[str]]] = {
    "dicom": frozenset({
        "host", "port", "ae_title", "tls", "commitment", "move", "forward", "path", "allow_http", *_HTTP,
    }),
    "stow": frozenset({"read_back", "dimse", "allow_http", *_HTTP}),
    "s3": frozenset({
        "bucket", "prefix", "endpoint_url", "region", "sse", "sse_kms_key", "conditional", "access_key_file",
        "access_key_env", "secret_key_file", "secret_key_env", "ca_file", "allow_http",
    }),
    "filesystem": frozenset({"path"}),
}  # fmt: skip
LOCAL_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})
Secret = Literal["token", "password", "access_key", "secret_key"]


def _without_slash(url: str) -> str:
    return url.rstrip("/")


class Node(BaseModel):
    """A DICOM application entity: where it listens and what it is called."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=104, ge=1, le=65535)
    ae_title: str = Field(default="ANY-SCP", max_length=16)


class Destination(Node):
    """One entry of destinations.json. In which form an object goes there, and which objects: the policy file says."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    kind: Kind = "dicom"
    tls: bool = Field(default=False, description="DIMSE over TLS (PS3.15 B)")
    commitment: bool = Field(default=False, description="ask for storage commitment (PS3.4 J) after C-STORE")
    move: bool = Field(default=False, description="a C-MOVE may have originals sent there")
    forward: bool = Field(default=True, description="false: nothing is forwarded there; for C-MOVE only")
    path: str = Field(default="", description="folder; of a dicom destination: where its files can be read back")
    url: Annotated[str, AfterValidator(_without_slash)] = Field(
        default="", description="DICOMweb base URL; of a dicom destination: for reading back by the probe only"
    )
    dimse: Node | None = Field(default=None, description="the same archive's DICOM node: for reading back by the probe")
    read_back: bool = Field(default=False, description="stow: fetch every object again and compare, before it is sent")
    allow_http: bool = Field(default=False, description="plain HTTP to another machine: identity in clear on the wire")

    token_file: Path | None = Field(default=None, description="bearer token (RFC 6750); read anew for each batch")
    token_env: str = ""
    username: str = Field(default="", description="basic authentication (RFC 7617), with a password")
    password_file: Path | None = None
    password_env: str = ""
    ca_file: Path | None = Field(default=None, description="PEM; default: the CAs that Python trusts")
    client_cert_file: Path | None = Field(default=None, description="PEM chain, for mutual TLS")
    client_key_file: Path | None = None

    bucket: str = ""
    prefix: str = Field(default="", pattern=r"^[A-Za-z0-9!_.*'()/-]{0,200}$", description="before each object's key")
    endpoint_url: str = Field(default="", description="of another vendor's S3; default: AWS's own")
    region: str = ""
    sse: Literal["", "AES256", "aws:kms"] = Field(default="", description="server-side encryption that is asked for")
    sse_kms_key: str = ""
    conditional: bool = Field(
        default=True, description="put with If-None-Match; false for an endpoint that refuses the header"
    )
    access_key_file: Path | None = Field(default=None, description="default: where boto3 looks for credentials")
    access_key_env: str = ""
    secret_key_file: Path | None = None
    secret_key_env: str = ""

    @model_validator(mode="before")
    @classmethod
    def _without_representation(cls, value: Any) -> Any:
        """Older destination files say `"representation": "envelope"`, which is what holds without a policy."""
        if isinstance(value, dict) and value.get("representation") == "envelope":
            return {key: part for key, part in value.items() if key != "representation"}
        return value

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Destination:
        said = {name for name in type(self).model_fields if getattr(self, name) != _default(name)} - {"name", "kind"}
        for name in NEEDED[self.kind]:
            if name not in said:
                raise ValueError(f"destination '{self.name}' of kind {self.kind} needs {name}")
        if wrong := sorted(said - ALLOWED[self.kind]):
            raise ValueError(f"destination '{self.name}' of kind {self.kind} has no use for {', '.join(wrong)}")
        if bool(self.username) != bool(self.password_file or self.password_env):
            raise ValueError(f"destination '{self.name}': username and password_file (or password_env) go together")
        if self.username and (self.token_file or self.token_env):
            raise ValueError(f"destination '{self.name}': choose between a token and a password")
        if (self.client_cert_file is None) != (self.client_key_file is None):
            raise ValueError(f"destination '{self.name}': client_cert_file and client_key_file go together")
        for url in filter(None, (self.url, self.endpoint_url)):
            self._check_url(url)
        return self

    def _check_url(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"destination '{self.name}': a URL begins with https:// and a host name")
        if parts.username or parts.password:
            raise ValueError(f"destination '{self.name}': no credentials in a URL; use token_file or password_file")
        if parts.scheme == "http" and parts.hostname not in LOCAL_HOSTS and not self.allow_http:
            raise ValueError(
                f"destination '{self.name}': http to another machine would show identities; use https, or say "
                "allow_http = true where the network is protected otherwise"
            )

    @property
    def where(self) -> str:
        """The address, for people."""
        match self.kind:
            case "dicom":
                return f"{self.ae_title} {self.host}:{self.port}{' (TLS)' if self.tls else ''}"
            case "stow":
                return self.url
            case "s3":
                return f"s3://{self.bucket}/{self.prefix}"
            case _:
                return "folder"

    @property
    def place(self) -> str:
        """Hex digest that changes with the place an object ends up in: what was learned of another one is void."""
        parts = (self.kind, self.host, self.port, self.ae_title, self.path, self.url, self.bucket, self.prefix,
                 self.endpoint_url)  # fmt: skip
        return sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _default(name: str) -> Any:
    return Destination.model_fields[name].default
