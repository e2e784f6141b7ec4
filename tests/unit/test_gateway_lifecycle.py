"""Processes say in the audit trail that they run, under which settings, and that they ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway import audit
from gateway.index import Index
from gateway.lifecycle import announced
from gateway.settings import load_settings


def told(home: Path, **settings: Any) -> list[tuple[str, str, str]]:
    """(event, actor, kind) of what one run of a process adds, oldest first."""
    chosen = load_settings(home=home, profile="demo", **settings)
    index = Index(chosen.database)
    index.create()
    before = index.audit_last()[0]
    with pytest.raises(KeyboardInterrupt), announced(chosen, "listener"):
        raise KeyboardInterrupt
    lines = audit.tail(index, index.audit_last()[0] - before)
    index.close()
    return [(line["event"], line["actor"], line["detail"].get("kind", "")) for line in reversed(lines)]


def test_starts_stops_and_changed_settings_are_told_and_no_value_is(tmp_path: Path) -> None:
    start, stop = ("started", "listener", ""), ("stopped", "listener", "")
    assert told(tmp_path) == [("configured", "listener", "first start"), start, stop]
    assert told(tmp_path) == [start, stop]
    changed = told(tmp_path, http_port=8099, vault_token="secret-1")
    assert changed == [("configured", "listener", "http_port"), start, stop]
    assert told(tmp_path, http_port=8099, vault_token="secret-2") == [start, stop]  # secrets leave no digest
    (tmp_path / "policy.toml").write_text("version = 1\n")
    assert told(tmp_path, http_port=8099)[0] == ("configured", "listener", "policy")
    many = {"dicom_port": 1, "poll_seconds": 9.0}
    assert "dicom_port http_port poll_seconds" in told(tmp_path, **many)[0][2]
