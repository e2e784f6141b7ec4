"""The proving process opens a ring that Vault keeps: credentials by environment, never on a command line."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from pydicom.data import get_testdata_file

from gateway.bootstrap import build
from gateway.errors import Unavailable
from gateway.jobs import MemoryQueue
from gateway.settings import Settings
from tests.contract.transit_server import Vault, serving
from worker.candidate import build_candidate
from worker.identity import Provenance
from worker.verify import Verifier


def test_the_prover_reads_a_ring_under_vault(tmp_path: Path) -> None:
    with serving(Vault(tokens={"s3cret"})) as vault:
        settings = Settings(home=tmp_path, key_master="vault", vault_addr=vault.address, vault_token="s3cret")
        gw = build(settings, queue=MemoryQueue())
        data = Path(str(get_testdata_file("CT_small.dcm", download=False))).read_bytes()
        facts = Provenance("2026-01-01T00:00:00+00:00", "test", "TEST", "tests")
        envelope = build_candidate(data, facts, gw.keys).envelope
        with Verifier(settings.keys_dir, settings=settings) as verifier:
            report = verifier.check(envelope)
            command = " ".join(psutil.Process(verifier.pid).cmdline())
        assert report.ok, report
        assert "sign-1" in report.keys and ("pat-" in report.keys or "kek-" in report.keys)
        assert "s3cret" not in command and "--keys" in command
        vault.fault = "sealed"
        with Verifier(settings.keys_dir, settings=settings) as verifier, pytest.raises(Unavailable):
            verifier.check(envelope)
        gw.close()
