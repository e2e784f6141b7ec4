"""The token that the command line sends to this machine's own gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import PolicyRefused
from gateway.tokens import LOCAL_ONLY, mint_token

if TYPE_CHECKING:
    from gateway.bootstrap import Gateway

__all__ = ["own_token"]


def own_token(gateway: Gateway, role: str, subject: str, seconds: float) -> str:
    """A local one in the demo profile, else one that the identity provider gives to the gateway's own client.

    That client must be allowed client credentials there, and be given the role. Raises PolicyRefused ``local-token``
    without an identity provider, TokenRefused if it gives none, Unavailable.
    """
    if gateway.settings.profile == "demo":
        return mint_token(gateway, role, subject, seconds)
    from service.oidc import provider_of

    provider = provider_of(gateway.settings)
    if provider is None:
        raise PolicyRefused("local-token", LOCAL_ONLY)
    return provider.own_token()
