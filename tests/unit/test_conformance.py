"""docs/conformance.md says what the code does: its checked tables are read here and compared."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import pytest

from gateway import commitment, errors, transfer_syntaxes
from gateway.index_commitment_out import ASK_AGAIN, FOR_A_PERSON, SEND_AGAIN, UNANSWERED
from gateway.matching import COLUMNS, LISTED
from gateway.settings import Settings
from gateway.tls import harden
from service import listener_commitment, listener_exchange, listener_retrieve, listener_syntax
from service.access import RULES
from service.listener_identifier import MODELS, BadIdentifier
from service.listener_move import UnknownDestination
from service.listener_store import UNEXPECTED
from worker.deid_profile import METHOD_CODES
from worker.deid_table import table
from worker.deid_values import MAX_SHIFT

STATUSES = {
    "SUCCESS", "PENDING", "PENDING_PARTIAL", "CANCELLED", "OUT_OF_RESOURCES", "CANNOT_COUNT", "UNABLE_TO_PERFORM",
    "WARNINGS", "SOP_CLASS_NOT_SUPPORTED", "UNABLE_TO_PROCESS",
}  # fmt: skip
COMMITMENT_STATUSES = (
    "SUCCESS", "PROCESSING_FAILURE", "NO_SUCH_EVENT", "NO_SUCH_ACTION", "DUPLICATE_TRANSACTION", "RESOURCE_LIMITATION",
)  # fmt: skip
TEXT = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text("utf-8")


def section(title: str) -> str:
    """The text after a `*checked: title*` mark, up to the next heading."""
    found = re.search(rf"^\*checked: {title}\*$(.*?)(?=^#)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/conformance.md has no table marked {title}"
    return found.group(1)


def rows(title: str) -> list[list[str]]:
    """Cells of the table's body rows, without back quotes."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")][2:]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]


def test_transfer_syntaxes_are_those_of_the_listener_in_its_order() -> None:
    documented = [uid.strip() for row in rows("order") for uid in row[1].split(",")]
    assert documented == list(listener_syntax.KNOWN_SYNTAXES)


def test_every_status_of_the_door_is_documented() -> None:
    door = (errors.InvalidInstance, errors.BadUID, errors.UIDMismatch, errors.NotDicom, errors.PolicyRefused,
            errors.OutOfResources, errors.Unavailable, errors.Unsupported, errors.IntegrityError)  # fmt: skip
    documented = {int(row[0], 16) for row in rows("status")}
    assert documented == {0x0000, UNEXPECTED} | {error.dimse_status for error in door}


def test_query_retrieve_models_keys_and_statuses_are_those_of_the_code() -> None:
    assert {row[0]: (row[1], row[2]) for row in rows("models")} == MODELS
    homes = {keyword: level for keyword, (_, level, _) in COLUMNS.items()} | dict.fromkeys(LISTED, "study")
    assert {key.strip(): row[0] for row in rows("keys") for key in row[1].split(",")} == homes
    answered = {
        value for name, value in (vars(listener_exchange) | vars(listener_retrieve)).items() if name in STATUSES
    }
    answered |= {BadIdentifier.dimse_status, UnknownDestination.dimse_status, errors.PolicyRefused.dimse_status}
    assert {int(row[0], 16) for row in rows("query statuses")} == answered


def test_statuses_and_failure_reasons_of_storage_commitment_are_those_of_the_code() -> None:
    here = vars(listener_commitment)
    own = {here[name] for name in COMMITMENT_STATUSES}
    own |= {error.dimse_status for error in (commitment.BadCommitment, errors.NotFound, errors.PolicyRefused)}
    assert {int(row[0], 16) for row in rows("commitment statuses")} == own
    table = {row[0]: row for row in rows("failure reasons")}
    answered = {int(reason, 16) for reason, row in table.items() if row[1] != "-"}
    assert answered == {commitment.PROCESSING_FAILURE, commitment.NO_SUCH_OBJECT, commitment.CLASS_CONFLICT}
    done = {"sent again": SEND_AGAIN, "asked for again": ASK_AGAIN, "a dead letter": FOR_A_PERSON}
    for what, reasons in done.items():
        told = {int(reason, 16) for reason, row in table.items() if row[2] == what and reason != "other"}
        assert told == {reason for reason in reasons if reason != UNANSWERED}


def test_dicomweb_routes_and_roles_are_those_served() -> None:
    documented = {(method, path): set(roles.split(", ")) for method, path, roles in rows("routes")}
    served = {key: {role.value for role in roles} for key, roles in RULES.items() if key[1].startswith("/dicomweb")}
    assert documented == served


def test_transfer_syntaxes_that_are_made_and_their_media_types() -> None:
    documented = {row[0].split()[0]: row[1].split(":")[0] for row in rows("transcoding")}
    assert list(documented) == list(transfer_syntaxes.MADE)
    frames = {uid: media for uid, media in documented.items() if media != "none"}
    assert frames == {
        uid: transfer_syntaxes.FRAME_MEDIA.get(uid, "application/octet-stream") for uid in frames
    } and set(documented) - set(frames) == {transfer_syntaxes.DEFLATED_LE}


def test_tls_versions_and_suites_are_those_offered() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    harden(context)
    suites = [suite["name"] for suite in context.get_ciphers() if suite["protocol"] == "TLSv1.2"]
    documented = dict(rows("tls"))
    assert documented["suites of TLS 1.2"].split(", ") == suites
    assert documented["versions"].split(", ") == ["TLSv1.2", "TLSv1.3"]
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_deidentification_options_and_codes_are_those_of_the_code() -> None:
    documented = {row[0].replace("-", "_"): row[1] for row in rows("deidentification")}
    assert documented == {name: value for name, (value, _) in METHOD_CODES.items()}
    assert f"{len(table()['rows'])} lines" in TEXT and f"1 to {MAX_SHIFT} whole days" in TEXT


@pytest.mark.parametrize("field", ["ae_title", "dicom_port", "dicom_tls_port", "max_associations"])
def test_defaults_of_the_application_entity_are_documented(field: str) -> None:
    default = Settings.model_fields[field].default
    line = next(line for line in TEXT.splitlines() if f"PALIMPSEST_{field.upper()}" in line and line.startswith("|"))
    assert re.search(rf"\b{default}\b", line)
