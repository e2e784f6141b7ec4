"""Training on a CUDA device: the checks of tests/unit/test_codec_train_torch.py there."""

from __future__ import annotations

from pathlib import Path

import pytest

from codec.gpu import NoDevice
from codec.train.machine import Machine, open_machine
from tests.gpu.conftest import REQUIRED
from tests.unit.test_codec_train_torch import check_gradients, check_handing_over, check_training

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cuda() -> Machine:
    """torch on CUDA device 0."""
    try:
        return open_machine("cuda")
    except NoDevice as error:
        if REQUIRED:
            pytest.fail(str(error))
        pytest.skip(str(error))


def test_gradients(cuda: Machine) -> None:
    check_gradients(cuda)


def test_training(cuda: Machine) -> None:
    check_training(cuda, 1.0)


def test_handing_over(cuda: Machine, tmp_path: Path) -> None:
    check_handing_over(cuda, tmp_path)
