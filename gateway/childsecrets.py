"""Which secrets of the environment a child process is given: those that its work needs, no others.

A process that is taken over gives away what it knows. The broker, the compiler of kernels and the proving process need
neither database nor Vault, only the API signs people in, only forwarding knows destinations' credentials.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final, Literal

from gateway.destination import Destination

if TYPE_CHECKING:
    from gateway.settings import Settings

__all__ = ["EVERYTHING", "NOTHING", "Need", "environment_for", "plain_environment"]

Need = Literal["database", "queue", "keys", "destinations", "sign-in"]
NOTHING: Final[frozenset[Need]] = frozenset()
EVERYTHING: Final[frozenset[Need]] = frozenset({"database", "queue", "keys", "destinations", "sign-in"})

#: Environment variables that hold secrets, and what for. A file's name is no secret: *_FILE goes to everybody.
_SECRET: Final[dict[str, frozenset[Need]]] = {
    "DATABASE_URL": frozenset({"database"}),
    "PALIMPSEST_DATABASE_URL": frozenset({"database"}),
    "PGPASSWORD": frozenset({"database"}),
    "REDIS_URL": frozenset({"queue"}),
    "PALIMPSEST_REDIS_URL": frozenset({"queue"}),
    "PALIMPSEST_REDIS_PASSWORD": frozenset({"queue"}),
    "PALIMPSEST_REDIS_SENTINEL_PASSWORD": frozenset({"queue"}),
    "PALIMPSEST_VAULT_TOKEN": frozenset({"keys"}),
    "PALIMPSEST_VAULT_ROLE_ID": frozenset({"keys"}),
    "PALIMPSEST_VAULT_SECRET_ID": frozenset({"keys"}),
    "VAULT_TOKEN": frozenset({"keys"}),
    "PALIMPSEST_OIDC_CLIENT_SECRET": frozenset({"sign-in"}),
    "PALIMPSEST_TOKEN": frozenset(),
}
#: Of boto3: the key ring under KMS, archives and destinations in S3.
_AWS: Final = "AWS_"
#: What a program needs to run at all, and what is ours without being secret.
_PLAIN: Final = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "VIRTUAL_ENV",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "XDG_CACHE_HOME", "PROMETHEUS_MULTIPROC_DIR",
})  # fmt: skip
_PLAIN_PREFIXES: Final = (
    "LC_", "LD_", "PYTHON", "NUMBA_", "OMP_", "MKL_", "OPENBLAS_", "CUDA_", "NVIDIA_", "MALLOC_", "COV", "PALIMPSEST_",
)  # fmt: skip


def plain_environment(env: Mapping[str, str], settings: Settings | None = None) -> dict[str, str]:
    """For a process that needs no secret: an allow-list of `env`, so that what we never heard of stays out, too."""
    secret = _secret_names(settings)
    allowed = (name for name in env if name in _PLAIN or name.startswith(_PLAIN_PREFIXES))
    return {name: env[name] for name in allowed if name not in secret}


def environment_for(env: Mapping[str, str], settings: Settings, needs: Collection[Need]) -> dict[str, str]:
    """`env` for a child: without the secrets that only other needs have. No needs: see `plain_environment`."""
    if not needs:
        return plain_environment(env, settings)
    wanted, secret = frozenset(needs), _secret_names(settings)
    return {name: value for name, value in env.items() if wanted & secret.get(name, _for_aws(name, settings, wanted))}


def _for_aws(name: str, settings: Settings, wanted: frozenset[Need]) -> frozenset[Need]:
    """Needs of a name that is no secret of ours: all of `wanted`, but AWS's."""
    if not name.startswith(_AWS):
        return wanted
    storage = frozenset[Need]({"destinations", "database"})
    return storage | frozenset[Need]({"keys"}) if settings.key_master == "kms" else storage


def _secret_names(settings: Settings | None) -> dict[str, frozenset[Need]]:
    """With those that the destinations name, and the archive's bucket."""
    places: list[tuple[Destination, Need]] = [
        (each, "destinations") for each in (settings.destinations if settings else ())
    ]
    if settings and settings.archive_s3:
        places.append((settings.archive_s3, "database"))
    named = {
        name: frozenset({need})
        for place, need in places
        for field in ("token_env", "password_env", "access_key_env", "secret_key_env")
        if (name := getattr(place, field))
    }
    return {**named, **_SECRET}
