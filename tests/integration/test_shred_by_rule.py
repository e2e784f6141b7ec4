"""Shredding where policy did more than the default: shared objects are said to stay open, sealed bitmaps still open."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from gateway.accept import accept_instance
from gateway.bootstrap import Gateway, build
from gateway.errors import Gone, IntegrityError, PolicyRefused
from gateway.index import InstanceRow
from gateway.jobs import MemoryQueue
from gateway.keys import Recipient
from gateway.policy import ArchiveRule, Policy
from gateway.settings import Settings
from stego import recipients
from tests.object_makers import image, noisy
from tests.proving import InProcess
from worker.encrypted_attributes import open_attributes
from worker.indexing import index_instance
from worker.pipeline import process_instance
from worker.restore import StegoImage, exact_image, read_image, restore
from worker.retrieve import original_bytes, retrieve
from worker.shred import find_patient, shred
from worker.sweep import release_spool

PATIENT = "PID-77120-X"


@pytest.fixture
def gw(tmp_path: Path) -> Iterator[Gateway]:
    made = build(Settings(home=tmp_path / "home", watermark_bytes=0), queue=MemoryQueue())
    yield made
    made.close()


def archived(gw: Gateway, data: bytes, **rule: object) -> tuple[InstanceRow, bytes]:
    """The row and its envelope, made under one rule; the received file is gone."""
    gw = replace(gw, policy=Policy(version=1, archive=(ArchiveRule(name="test", **rule),)))  # type: ignore[arg-type]
    incoming = gw.spool.incoming()
    incoming.write_bytes(data)
    row = accept_instance(gw, incoming, source="stow", calling_ae="TEST").row
    index_instance(gw, row.id)
    process_instance(gw, InProcess(gw.keys), row.id, "test")  # type: ignore[arg-type]
    release_spool(gw)
    row = gw.index.get(row.id)
    return row, gw.archive.get(str(row.archive_key), str(row.archive_digest))


@pytest.mark.parametrize("share", ["recipients", "cms"])
def test_what_is_shared_is_not_shredded_unless_that_is_understood(gw: Gateway, share: str) -> None:
    private, public = recipients.generate("rsa")
    gw.keys.add_recipient(Recipient("partner", "rsa", public))
    row, envelope = archived(gw, image([noisy()], stored=16), shreddable=False, **{share: ("partner",)})
    patient = find_patient(gw, PATIENT)
    assert patient.subject.shared == (row.id,)
    with pytest.raises(PolicyRefused) as caught:
        shred(gw, patient, actor="admin", reason="test")
    assert caught.value.reason == "shred-shared"
    assert original_bytes(gw, row) == image([noisy()], stored=16)
    shred(gw, patient, actor="admin", reason="test", partial=True)
    with pytest.raises(IntegrityError):
        restore(envelope, gw.keys)
    if share == "cms":  # it does stay readable to the partner: that is why it had to be asked for
        item = pydicom.dcmread(io.BytesIO(envelope)).EncryptedAttributesSequence[0]
        opened = open_attributes(item, private, find_verify_key=gw.keys.find_verify_key)
        assert opened.removed.PatientID == PATIENT


def test_a_sealed_bitmap_opens_after_the_identity_is_gone(gw: Gateway) -> None:
    private, public = recipients.generate("xwing")
    gw.keys.add_recipient(Recipient("safe", "xwing", public, True))
    row, envelope = archived(gw, image([noisy()], stored=16), seal_bitmap=True)
    assert (row.carrier, gw.index.facts(row.id)["shared_with"]) == ("sealed-bitmap", [])
    picture = (gw.settings.cache_dir / retrieve(gw, row.id, "rendered:png:1")["path"]).read_bytes()
    patient = find_patient(gw, PATIENT)
    assert patient.subject.shared == ()
    shred(gw, patient, actor="admin", reason="test")
    row = gw.index.get(row.id)
    for kind in ("original", "metadata"):
        with pytest.raises(Gone):
            retrieve(gw, row.id, kind)
    assert type(read_image(envelope)) is StegoImage
    for found in (exact_image(envelope, gw.keys), exact_image(envelope, recovery=private)):
        assert np.array_equal(found.frame(0), noisy())
    again = (gw.settings.cache_dir / retrieve(gw, row.id, "rendered:png:1")["path"]).read_bytes()
    assert again.startswith(b"\x89PNG") and picture.startswith(b"\x89PNG")


def test_the_policy_s_carrier_reaches_the_archive(gw: Gateway) -> None:
    path = get_testdata_file("CT_small.dcm", download=False)
    row, _ = archived(gw, Path(str(path)).read_bytes(), carrier="beside")
    assert (row.carrier, gw.index.facts(row.id)["rule"]) == ("beside", "test")
