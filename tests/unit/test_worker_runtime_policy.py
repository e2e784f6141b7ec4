"""The policy in the pipeline: which rule made the archive object, and that it was obeyed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from gateway.accept import accept_instance
from gateway.bootstrap import Gateway, build
from gateway.instance import Form
from gateway.jobs import MemoryQueue
from gateway.policy import DeliveryRule, Policy
from gateway.settings import Settings
from tests.object_makers import image, noisy
from tests.proving import InProcess
from worker.pipeline import process_instance
from worker.rules import delivery_rule, modality_of

POLICY = """
version = 1
[[archive]]
name = "computed"
modality = "CT"
carrier = "beside"
[[archive]]
name = "plans"
sop_class = "RTPlanStorage"
shreddable = false
"""


@pytest.fixture
def gw(tmp_path: Path) -> Iterator[Gateway]:
    home = tmp_path / "home"
    home.mkdir()
    (home / "policy.toml").write_text(POLICY)
    gateway = build(Settings(home=home, watermark_bytes=0), queue=MemoryQueue())
    yield gateway
    gateway.close()


def archive(gw: Gateway, data: bytes) -> int:
    incoming = gw.spool.incoming()
    incoming.write_bytes(data)
    instance_id = accept_instance(gw, incoming, source="stow", calling_ae="TEST").row.id
    process_instance(gw, InProcess(gw.keys), instance_id, "test-1")  # type: ignore[arg-type]
    return instance_id


@pytest.mark.parametrize(
    ("modality", "rule", "carrier"), [("CT", "computed", "beside"), ("PT", "default", "segmented")]
)
def test_the_rule_that_matches_makes_the_archive_object(gw: Gateway, modality: str, rule: str, carrier: str) -> None:
    instance_id = archive(gw, image([noisy()], stored=12, Modality=modality))
    row, facts = gw.index.get(instance_id), gw.index.facts(instance_id)
    assert (row.form, row.carrier) == (Form.CODED, carrier)
    assert (facts["rule"], facts["modality"]) == (rule, modality)
    assert row.patient_key is not None and row.patient_key.startswith("pat-")


def test_objects_that_are_sealed_whole_have_a_rule_too(gw: Gateway) -> None:
    instance_id = archive(gw, Path(str(get_testdata_file("rtplan.dcm", download=False))).read_bytes())
    assert gw.index.get(instance_id).form == Form.PASSTHROUGH
    assert gw.index.facts(instance_id)["rule"] == "plans"
    assert str(gw.index.get(instance_id).patient_key).startswith("pat-")


def test_modality_is_read_from_odd_files_as_far_as_they_go() -> None:
    assert modality_of(image([noisy()], stored=12)) == "CT"
    assert modality_of(image([noisy()], stored=12)[:400]) in ("", "CT")
    assert modality_of(b"no DICOM") == ""
    deflated = Path(str(get_testdata_file("image_dfl.dcm", download=False))).read_bytes()
    assert modality_of(deflated) == "OT"


def test_delivery_rules_find_the_modality_where_it_was_recorded_and_ask_nothing_where_no_rule_does(gw: Gateway) -> None:
    instance_id = archive(gw, image([noisy()], stored=12))
    row = gw.index.get(instance_id)
    assert row.modality is None  # not indexed yet
    assert delivery_rule(gw, row, "anywhere").name == "default"
    object.__setattr__(gw, "policy", Policy(version=1, delivery=(DeliveryRule(name="ct", modality=("CT",)),)))
    assert delivery_rule(gw, row, "anywhere").name == "ct"
    with gw.index.write() as conn:  # as archived by an earlier release
        conn.exec_driver_sql("UPDATE proof SET facts = '{}'")
    assert delivery_rule(gw, row, "anywhere").name == "ct"
