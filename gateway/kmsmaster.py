"""AWS KMS as master: Encrypt, Decrypt and ReEncrypt with the context as encryption context; the key never leaves KMS.

Rotation makes a new KMS key like the one in use and moves the alias to it: KMS's own yearly rotation stays possible,
but does not show in a ciphertext which material it is under.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.errors import PolicyRefused, Unavailable
from gateway.masters import MasterRefused

__all__ = ["KmsAccess", "KmsMaster"]

_TOKEN = re.compile(r"kms:([A-Za-z0-9-]{1,128}):([A-Za-z0-9+/=]+)")
_REFUSED = frozenset({"InvalidCiphertextException", "IncorrectKeyException", "ValidationException"})
_DISABLED = frozenset({"DisabledException", "KMSInvalidStateException", "KeyUnavailableException"})
_DENIED = frozenset(
    {
        "AccessDeniedException", "AccessDenied", "UnrecognizedClientException", "InvalidClientTokenId",
        "ExpiredTokenException", "ExpiredToken", "InvalidSignatureException", "IncompleteSignature",
        "MissingAuthenticationToken", "OptInRequired",
    }
)  # fmt: skip
DENIED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class KmsAccess:
    """key: an alias ('alias/...', needed to rotate), a key id or an ARN. region, endpoint: '' for AWS's own defaults.

    Credentials come from where boto3 looks: environment, shared files, container or instance role.
    """

    key: str = "alias/palimpsest"
    region: str = ""
    endpoint: str = ""
    timeout_seconds: float = 10.0


class KmsMaster:
    """A symmetric KMS key. See Master."""

    def __init__(self, access: KmsAccess) -> None:
        self._access = access
        self._client: tuple[int, Any] | None = None  # process id and client: a forked child makes its own

    def __repr__(self) -> str:
        return f"KmsMaster({self.name})"

    @property
    def name(self) -> str:
        """See Master."""
        return f"kms:{self._access.key}"

    def wrap(self, secret: bytes, context: bytes) -> str:
        """See Master."""
        key, bound = self._access.key, _bound(context)
        answer = self._ask(lambda kms: kms.encrypt(KeyId=key, Plaintext=secret, EncryptionContext=bound))
        return _token(answer)

    def unwrap(self, token: str, context: bytes) -> bytes:
        """See Master."""
        key, blob = _parts(token)
        bound = _bound(context)
        answer = self._ask(lambda kms: kms.decrypt(KeyId=key, CiphertextBlob=blob, EncryptionContext=bound))
        return bytes(answer["Plaintext"])

    def rewrap(self, token: str, context: bytes) -> str:
        """See Master. KMS does it alone."""
        key, blob = _parts(token)
        bound, new = _bound(context), self._access.key
        answer = self._ask(
            lambda kms: kms.re_encrypt(
                CiphertextBlob=blob, SourceKeyId=key, SourceEncryptionContext=bound,
                DestinationKeyId=new, DestinationEncryptionContext=bound,
            )
        )  # fmt: skip
        return _token(answer)

    def rotate(self) -> str:
        """See Master. Raises PolicyRefused 'key-master-no-alias' when the setting is no alias."""
        alias = self._access.key
        if not alias.startswith("alias/"):
            raise PolicyRefused("key-master-no-alias", "to rotate, PALIMPSEST_KMS_KEY must be an alias ('alias/...')")
        old = self._ask(lambda kms: kms.describe_key(KeyId=alias))["KeyMetadata"]
        policy = self._ask(lambda kms: kms.get_key_policy(KeyId=old["KeyId"], PolicyName="default"))["Policy"]
        tags = self._ask(lambda kms: kms.list_resource_tags(KeyId=old["KeyId"])).get("Tags", [])
        like = {"Description": old.get("Description", ""), "MultiRegion": bool(old.get("MultiRegion", False))}
        new = self._ask(lambda kms: kms.create_key(Policy=policy, Tags=tags, KeyUsage="ENCRYPT_DECRYPT", **like))
        key_id = str(new["KeyMetadata"]["KeyId"])
        self._ask(lambda kms: kms.update_alias(AliasName=alias, TargetKeyId=key_id))
        return key_id

    def version(self) -> str:
        """See Master."""
        return str(self._ask(lambda kms: kms.describe_key(KeyId=self._access.key))["KeyMetadata"]["KeyId"])

    def version_of(self, token: str) -> str:
        """See Master."""
        return _parts(token)[0]

    def _ask(self, request: Callable[[Any], Any]) -> Any:
        boto3, config, errors = _libraries()
        if self._client is None or self._client[0] != os.getpid():
            self._client = (os.getpid(), self._connect(boto3, config, errors))
        try:
            return request(self._client[1])
        except errors.ClientError as error:
            raise _translated(str(error.response.get("Error", {}).get("Code", ""))) from None
        except (errors.NoCredentialsError, errors.PartialCredentialsError, errors.CredentialRetrievalError):
            raise _denied() from None
        except errors.BotoCoreError:
            raise _unreachable() from None

    def _connect(self, boto3: Any, config: Any, errors: Any) -> Any:
        access, seconds = self._access, self._access.timeout_seconds
        options = config.Config(connect_timeout=seconds, read_timeout=seconds, retries={"max_attempts": 1})
        try:
            session = boto3.session.Session()  # boto3's default session is shared and not made for threads
            return session.client(
                "kms", region_name=access.region or None, endpoint_url=access.endpoint or None, config=options
            )
        except errors.BotoCoreError:
            message = "AWS KMS cannot be used with these settings: is PALIMPSEST_KMS_REGION set?"
            raise PolicyRefused("key-master-settings", message) from None


def _bound(context: bytes) -> dict[str, str]:
    return {"palimpsest": context.replace(b"\x00", b"/").decode("ascii")}


def _token(answer: Any) -> str:
    key_id = str(answer["KeyId"]).rsplit("/", 1)[-1]  # an ARN ends in the key's id
    return f"kms:{key_id}:{base64.b64encode(answer['CiphertextBlob']).decode('ascii')}"


def _parts(token: str) -> tuple[str, bytes]:
    found = _TOKEN.fullmatch(token)
    if found is None:
        raise MasterRefused
    try:
        return found[1], base64.b64decode(found[2], validate=True)
    except ValueError:
        raise MasterRefused from None


def _translated(code: str) -> Exception:
    if code in _REFUSED:
        return MasterRefused()
    if code in _DENIED:
        return _denied()
    if code in _DISABLED:
        return Unavailable("key-master-disabled", "the KMS key is disabled or to be deleted: enable it", DENIED_SECONDS)
    if code == "NotFoundException":
        message = "KMS has no key of that alias or id: create it, or correct the settings"
        return Unavailable("key-master-missing", message, DENIED_SECONDS)
    return _unreachable()


def _denied() -> Unavailable:
    message = "AWS denies access to the KMS key: check credentials and key policy (docs/operations.md)"
    return Unavailable("key-master-denied", message, DENIED_SECONDS)


def _unreachable() -> Unavailable:
    return Unavailable("key-master-unreachable", "AWS KMS cannot be reached; it is tried again")


def _libraries() -> tuple[Any, Any, Any]:
    try:
        import boto3
        import botocore.config
        import botocore.exceptions
    except ImportError:
        raise PolicyRefused(
            "key-master-extra", "PALIMPSEST_KEY_MASTER=kms needs `pip install palimpsest[aws]`"
        ) from None
    return boto3, botocore.config, botocore.exceptions
