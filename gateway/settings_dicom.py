"""Settings of the DICOM side: who may connect and how, storage commitment, destinations."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode

from gateway.destination import Destination

GIB = 1 << 30


class DicomSettings(BaseSettings):
    """A part of `gateway.settings.Settings`."""

    profile: Literal["demo", "production"] = "demo"
    ae_title: str = Field(default="PALIMPSEST", max_length=16)
    dicom_host: str = "127.0.0.1"
    dicom_port: int = Field(default=11112, ge=0, le=65535, description="0: any free port (tests)")
    calling_ae_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="comma-separated AE titles; empty: any in the demo profile, none in production"
    )
    query_ae_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="AE titles that may C-FIND, C-MOVE and C-GET; empty: any in the demo profile, else none"
    )
    rejection_ae_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="AE titles (STOW-RS: token subjects) whose rejection notes (IHE IOCM) hide images; empty: any in "
        "the demo profile, else those of query_ae_allow",
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
        default_factory=lambda data: data.get("profile") != "demo",
        description="the calling AE title must be the certificate's CN or a DNS name of it; false in the demo profile",
    )
    max_pdu: int = Field(default=0, ge=0, description="bytes announced (PS3.8 D.1); 0: the listener's choice, 1 MiB")
    max_object_bytes: int = Field(
        default=GIB, ge=1, le=2 * GIB - 1,
        description="bytes; more is refused while it arrives: what a worker's memory cannot seal must not be taken in",
    )  # fmt: skip
    network_timeout_seconds: float = Field(default=60.0, gt=0, description="idle, never whole-exchange")
    destinations_file: Path | None = Field(default=None, description="JSON list; default <home>/destinations.json")
    destinations: tuple[Destination, ...] = ()

    @field_validator("calling_ae_allow", "query_ae_allow", "rejection_ae_allow", "address_allow", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("address_allow", mode="after")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ip_network(each, strict=False)) for each in value)

    @field_validator("dicom_tls_cert", "dicom_tls_key", "dicom_tls_ca", mode="before")
    @classmethod
    def _no_tls_file(cls, value: Any) -> Any:
        return value or None

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
        if not self.query_ae_allow:
            return self.profile == "demo"
        return ae_title.strip() in self.query_ae_allow

    def allows_rejection_ae(self, name: str) -> bool:
        """True if a rejection note from this AE title, or token subject, hides what it names."""
        return name.strip() in self.rejection_ae_allow if self.rejection_ae_allow else self.allows_query_ae(name)

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
