"""gateway.pseudonym: stable, keyed, valid in DICOM, unlinkable between keys and domains."""

from __future__ import annotations

import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pseudonym import pseudonym_text, pseudonym_uid
from gateway.uids import parse_uid

KEY, OTHER = bytes(32), bytes([1]) * 32


@given(st.text(max_size=100))
def test_uids_are_valid_stable_and_keyed(uid: str) -> None:
    made = pseudonym_uid(uid, KEY)
    assert parse_uid(made) == made and len(made) <= 44
    number = uuid.UUID(int=int(made.removeprefix("2.25.")))
    assert number.version == 8 and number.variant == uuid.RFC_4122
    assert pseudonym_uid(uid, KEY) == made != pseudonym_uid(uid, OTHER)


@given(st.text(max_size=100), st.integers(13, 51))
def test_texts_are_stable_keyed_and_fit(value: str, length: int) -> None:
    made = pseudonym_text(value, KEY, "PAT-", length=length)
    assert len(made) == length and re.fullmatch(r"PAT-[0-9A-HJKMNP-TV-Z]+", made)
    assert pseudonym_text(value, KEY, "PAT-", length=length) == made
    assert pseudonym_text(value, OTHER, "PAT-", length=length) != made
    assert pseudonym_text(value, KEY, "ACC-", length=length)[4:] != made[4:]


def test_no_collisions_among_many() -> None:
    assert len({pseudonym_uid(str(i), KEY) for i in range(20_000)}) == 20_000
    assert len({pseudonym_text(str(i), KEY, "P") for i in range(20_000)}) == 20_000


def test_too_few_or_too_many_keyed_characters_are_a_callers_error() -> None:
    for length in (11, 56):
        with pytest.raises(ValueError):
            pseudonym_text("x", KEY, "PAT-", length=length)


def test_pseudonyms_stand_still() -> None:
    """Golden: archived objects are found again by these."""
    assert pseudonym_uid("1.2.3", KEY) == "2.25.167175991023362575415929732441639442117"
    assert pseudonym_text("DOE^JOHN", KEY, "PAT-") == "PAT-GNBD3XQN74BJ"
