"""What an image can carry is what embedding then takes; what it cannot has a reason."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from gateway.errors import InvalidInstance, Unsupported
from gateway.keys import KeyRing
from stego.errors import SealError
from stego.imagekey import image_key
from stego.lattice import fingerprint
from tests.object_makers import FACTS, image, noisy, packaged
from tests.unit.test_worker_stegoobject import grainy
from worker.candidate import build_candidate
from worker.capacity import HIDDEN, SEGMENTED, SELF_CONTAINED, frame_bits, measure_capacity
from worker.pixelrules import covers
from worker.pixels import open_pixels
from worker.splice import read_object
from worker.stegoframe import Mode, embed_capsule, read_frame
from worker.stegoobject import make_stego


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return KeyRing.load_or_create(tmp_path_factory.mktemp("ring") / "keys")


def test_every_mode_is_judged_and_the_prediction_holds(ring: KeyRing) -> None:
    data = image([grainy()], stored=12)
    found = measure_capacity(data)
    assert [each.mode for each in found.modes] == [SEGMENTED, SELF_CONTAINED, HIDDEN]
    assert all(each.suited and not each.reason and each.bits >= 6144 for each in found.modes)
    assert found.suggested() == SELF_CONTAINED
    json.dumps(asdict(found), allow_nan=False)
    for each in found.modes[1:]:
        mode: Mode = "hidden" if each.mode == HIDDEN else "self-contained"
        report = make_stego(data, FACTS, ring, mode=mode, side="archive").report
        assert report.capsule_bytes == found.payload_bytes
        assert each.psnr == pytest.approx(report.psnr, abs=0.5)
        assert each.max_change == report.max_change
        assert each.changed == pytest.approx(report.changed, rel=0.1)


@pytest.mark.parametrize("mode", [SELF_CONTAINED, HIDDEN])
def test_the_bits_promised_are_taken(mode: Mode) -> None:
    source = open_pixels(read_object(image([grainy(200, 200)], stored=12)))
    cover = next(covers(source))
    bits = frame_bits(cover, mode)
    assert bits % 8 == 0
    assert bits > 0
    salt = fingerprint(cover.cover.values, 12, False, mode)
    message = np.random.default_rng(3).bytes(bits // 8)
    done = embed_capsule(cover.cover, message, mode=mode, stego_key=image_key(bytes(32), salt, mode), salt=salt)
    assert done.max_change <= (1 if mode == HIDDEN else 2)


@pytest.mark.parametrize(("sigma", "suited"), [(6.0, True), (0.2, False)])
def test_segmented_is_judged_as_the_archive_does(ring: KeyRing, sigma: float, suited: bool) -> None:
    data = image([grainy(sigma=sigma)], stored=12)
    found = measure_capacity(data).modes[0]
    assert found.suited is suited
    assert (build_candidate(data, FACTS, ring).carrier == SEGMENTED) is suited
    assert bool(found.reason) is bool(found.why) is not suited


def test_a_larger_payload_may_not_fit() -> None:
    data = image([grainy(200, 200)], stored=12)
    hidden = measure_capacity(data, 768).modes[2]
    assert (hidden.suited, hidden.reason) == (False, "no-room")
    assert 0 < hidden.bits < 8 * 768
    assert measure_capacity(data, 256).modes[2].suited


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"BurnedInAnnotation": "YES"}, "burned-in"), ({"LossyImageCompression": "01"}, "lossy-source")],
)
def test_reasons_are_the_pixel_rules(changes: dict[str, str], reason: str) -> None:
    found = measure_capacity(image([grainy()], stored=12, **changes))
    assert {each.reason for each in found.modes[1:]} == {reason}
    assert found.suggested() == SEGMENTED


def test_overlays_in_a_later_frame_forbid_a_viewable_copy() -> None:
    found = measure_capacity(image([grainy(), grainy() | 0x8000], stored=12))
    assert {each.reason for each in found.modes[1:]} == {"unused-bits"}


def test_the_best_frame_counts() -> None:
    found = measure_capacity(image([np.zeros((288, 272), np.uint16), grainy()], stored=12))
    assert [each.frame for each in found.modes] == [1, 1, 1]


def test_what_has_no_pixels_is_an_error() -> None:
    with pytest.raises(Unsupported):
        measure_capacity(packaged("rtplan.dcm"))
    with pytest.raises(InvalidInstance):
        measure_capacity(b"no DICOM")


def test_a_frame_is_read_with_any_of_several_keys() -> None:
    source = open_pixels(read_object(image([noisy(192, 192)], stored=12)))
    cover = next(covers(source))
    with pytest.raises(SealError):
        read_frame(cover.cover, source.fmt, [("a", bytes(32)), ("b", b"\x01" * 32)])
