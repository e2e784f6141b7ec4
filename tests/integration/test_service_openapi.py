"""The OpenAPI document, and what schemathesis makes of the application with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from gateway.bootstrap import Gateway, build
from gateway.settings import load_settings
from gateway.tokens import mint_token
from service.access import PUBLIC, RULES
from service.api import ROUTES
from service.openapi import SHOWN, document
from tests.integration.test_service_api import serving
from tests.integration.test_service_wado import Working, changed, take_in

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]

EXAMPLES = 6


@schemathesis.serializer("application/dicom", "multipart/related")
def as_it_is(context: Any, value: Any) -> bytes:
    """A body of bytes, in the one boundary that the document names."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


def test_the_document_tells_of_every_route_for_programs() -> None:
    made = document(ROUTES, RULES)
    told = {(name.upper(), path) for path, operations in made["paths"].items() for name in operations}
    served = {(method, path.replace(":path", "")) for method, path, _ in ROUTES if path.startswith(SHOWN)}
    assert {item for item in told if item[0] != "HEAD"} == served
    for (method, path), roles in RULES.items():
        if path.startswith(SHOWN):
            operation = made["paths"][path.replace(":path", "")][method.lower()]
            assert ("security" in operation) == (roles != PUBLIC), path


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    queue = Working()
    home = tmp_path_factory.mktemp("home")
    unhurried = {f"rate_{kind}": "1000000/second" for kind in ("requests", "logins", "refused")}
    queue.gateway = build(load_settings(home=home, watermark_bytes=1, **unhurried), queue=queue)
    take_in(queue.gateway, changed("CT_small.dcm", StudyInstanceUID="1.2", SeriesInstanceUID="1.2.3"))
    yield queue.gateway
    queue.gateway.close()


DESCRIBED = schemathesis.openapi.from_dict(document(ROUTES, RULES))
OPERATIONS = {one.label: one for each in DESCRIBED.get_all_operations() if (one := each.ok()) is not None}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def served(gateway: Gateway) -> Iterator[str]:
    with serving(gateway) as base:
        yield base


def role_for(method: str, path: str) -> str:
    """A role that may do this."""
    by_path = {(rule_method, rule.replace(":path", "")): roles for (rule_method, rule), roles in RULES.items()}
    roles = by_path[("GET" if method.upper() == "HEAD" else method.upper(), path)]
    return sorted(roles)[-1].value if roles else "clinician"


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", OPERATIONS)
def test_the_application_does_what_the_document_says(
    served: str, gateway: Gateway, label: str, mode: GenerationMode
) -> None:
    operation = OPERATIONS[label]
    token = mint_token(gateway, role_for(operation.method, operation.path), "schemathesis")

    # What is not ready yet is a 503, which is no fault; bodies are described roughly; query parameters that nobody
    # knows are passed over, but for those of DICOMweb.
    excluded: list[Any] = [not_a_server_error]
    excluded += [positive_data_acceptance] if label.startswith("POST") else []
    excluded += [] if "/dicomweb/" in label else [negative_data_rejection]

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def conforms(case: Case[Any]) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        answer = case.call_and_validate(base_url=served, headers=headers, excluded_checks=excluded)
        assert answer.status_code in (503, 507) or answer.status_code < 500

    try:
        conforms()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, "nothing can be generated from the document"
