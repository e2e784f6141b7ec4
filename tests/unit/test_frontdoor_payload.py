"""`palimpsest payload` as a newcomer uses it: files and a key ring, nothing running, nothing made unasked."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.bootstrap import build
from gateway.database import Database
from gateway.settings import load_settings
from palimpsest.cli import app
from palimpsest.payload_files import REFUSED
from tests.object_makers import IDENTITY, image, noisy, outside_uids
from tests.unit.test_worker_stegoobject import as_dataset, grainy

runner = CliRunner()
POLICY = """
version = 1
[[delivery]]
name = "research"
destination = "research"
representation = "hidden"
unsuitable = ["self-contained"]
deidentify = "retain-uids"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PALIMPSEST_HOME", "PALIMPSEST_PROFILE", "DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("in.dcm").write_bytes(image([grainy()], stored=12))
    return tmp_path


def call(*arguments: str, ok: bool = True) -> str:
    result = runner.invoke(app, ["payload", *arguments])
    assert (result.exit_code == 0) is ok, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.output


def embedded(*arguments: str) -> str:
    return call("embed", "in.dcm", "-o", "out.dcm", "--keys", "keys", "--create-keys", *arguments)


def listed() -> set[str]:
    return {path.name for path in Path().iterdir()}


@pytest.mark.parametrize("mode", ["auto", "segmented", "self-contained", "hidden"])
def test_a_file_goes_in_and_comes_out_again(place: Path, mode: str) -> None:
    apart = ["--restoration", "rest.dcm"] if mode == "hidden" else []
    shown = embedded("--mode", mode, *apart)
    assert "opened again and compared" in shown
    given = call("extract", "out.dcm", "-o", "back.dcm", "--keys", "keys", *apart)
    assert "bit for bit" in given
    assert Path("back.dcm").read_bytes() == Path("in.dcm").read_bytes()
    assert stat.S_IMODE(os.stat("back.dcm").st_mode) == 0o600
    made, told = outside_uids(Path("out.dcm").read_bytes()), outside_uids((shown + given).encode())
    for value in IDENTITY.values():
        assert value.encode() not in told
        assert value.encode() not in made
    assert not (place / "home").exists()


def test_nothing_is_made_unasked(place: Path) -> None:
    shown = call("embed", "in.dcm", "-o", "out.dcm", "--keys", "keys", ok=False)
    assert "--create-keys" in shown
    assert "no key ring" in call("extract", "in.dcm", "-o", "out.dcm", ok=False)
    call("inspect", "in.dcm")
    call("capacity", "in.dcm")
    assert listed() == {"in.dcm"}


def test_nothing_is_overwritten_unasked(place: Path) -> None:
    embedded()
    before = Path("out.dcm").read_bytes()
    assert "--force" in call("embed", "in.dcm", "-o", "out.dcm", "--keys", "keys", ok=False)
    assert "--force" in call("extract", "out.dcm", "-o", "in.dcm", "--keys", "keys", ok=False)
    assert Path("out.dcm").read_bytes() == before
    embedded("--force")
    assert Path("out.dcm").read_bytes() != before


def test_a_file_that_appears_meanwhile_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from palimpsest import payload_files

    monkeypatch.setattr(payload_files, "check_free", lambda path, force: None)
    Path("out.dcm").write_bytes(b"precious")
    assert "exists" in call("embed", "in.dcm", "-o", "out.dcm", "--keys", "keys", "--create-keys", ok=False)
    assert Path("out.dcm").read_bytes() == b"precious"
    assert listed() == {"in.dcm", "out.dcm", "keys"}


def test_refusals_are_one_and_write_nothing(place: Path) -> None:
    embedded()
    good = Path("out.dcm").read_bytes()
    at = good.index(b"\xe0\x7f\x10\x00") + 12
    damaged = bytearray(good)
    for offset in range(0, 60_000, 50):
        damaged[at + offset] ^= 1
    Path("damaged.dcm").write_bytes(bytes(damaged))
    call("embed", "in.dcm", "-o", "other.dcm", "--keys", "other", "--create-keys")
    Path("archive.dcm").write_bytes(b"")
    call("embed", "in.dcm", "-o", "archive.dcm", "--mode", "segmented", "--keys", "keys", "--force")
    broken = bytearray(Path("archive.dcm").read_bytes())
    broken[-100] ^= 1
    Path("broken.dcm").write_bytes(bytes(broken))
    cases = (("out.dcm", "other"), ("damaged.dcm", "keys"), ("in.dcm", "keys"), ("archive.dcm", "other"),
             ("broken.dcm", "keys"))  # fmt: skip
    shown = {call("extract", name, "-o", "back.dcm", "--keys", keys, ok=False) for name, keys in cases}
    assert len(shown) == 1
    assert REFUSED in " ".join(next(iter(shown)).split())
    assert "back.dcm" not in listed()


def test_hidden_needs_a_place_for_its_restoration_and_the_record_to_come_back(place: Path) -> None:
    shown = call("embed", "in.dcm", "-o", "out.dcm", "--mode", "hidden", "--keys", "keys", "--create-keys", ok=False)
    assert "--restoration" in shown
    assert listed() == {"in.dcm"}
    embedded("--mode", "hidden", "--restoration", "rest.dcm")
    shown = call("extract", "out.dcm", "-o", "back.dcm", "--keys", "keys", ok=False)
    assert "--restoration" in shown
    assert "back.dcm" not in listed()


def test_auto_takes_the_archive_object_where_no_viewable_image_can_be_made(place: Path) -> None:
    Path("in.dcm").write_bytes(image([grainy()], stored=12, BurnedInAnnotation="YES"))
    shown = embedded()
    assert "not self-contained: burned-in" in shown
    assert "segmented" in shown
    shown = call("embed", "in.dcm", "-o", "x.dcm", "--mode", "self-contained", "--keys", "keys", ok=False)
    assert "identifying text" in shown
    assert "x.dcm" not in listed()


def test_auto_follows_the_policy_for_a_destination(place: Path) -> None:
    Path("policy.toml").write_text(POLICY)
    asked = ("--policy", "policy.toml", "--destination", "research")
    shown = call("embed", "in.dcm", "-o", "out.dcm", "--keys", "keys", "--create-keys", *asked, ok=False)
    assert "--restoration" in shown
    assert "hidden" in embedded(*asked, "--restoration", "rest.dcm")
    assert as_dataset(Path("out.dcm").read_bytes()).StudyInstanceUID == IDENTITY["StudyInstanceUID"]
    Path("in.dcm").write_bytes(image([noisy(160, 160, noise=3)], stored=12))
    shown = embedded(*asked, "--restoration", "rest2.dcm", "--force")
    assert "not hidden" in shown


def test_an_unknown_option_names_the_known_ones(place: Path) -> None:
    shown = call("embed", "in.dcm", "-o", "o.dcm", "--option", "keep-all", "--keys", "k", "--create-keys", ok=False)
    assert "retain-uids" in " ".join(shown.replace("│", " ").split())


# --- inspect ---


def test_inspect_says_in_layers_what_can_be_known(place: Path) -> None:
    embedded()
    plain = json.loads(call("inspect", "out.dcm", "--json"))
    assert set(plain) == {"without a key"}
    assert plain["without a key"]["kind"] == "stego object"
    shown = call("inspect", "out.dcm", "--keys", "keys", "--json")
    keyed = json.loads(shown)["with the keys"]
    assert keyed["opens"] is True
    assert keyed["carrier"] == "self-contained"
    assert {"file_sha256", "pixel_sha256", "signer", "received_at", "keys"} <= set(keyed)
    for value in IDENTITY.values():
        assert value.encode() not in outside_uids(shown.encode())
    named = json.loads(call("inspect", "out.dcm", "--keys", "keys", "--json", "--identity"))["with the keys"]
    assert named["identity"]["patient_name"] == IDENTITY["PatientName"]


def test_inspect_tells_nothing_of_a_hidden_object_without_the_key(place: Path) -> None:
    embedded("--mode", "hidden", "--restoration", "rest.dcm")
    hidden = json.loads(call("inspect", "out.dcm", "--json", "--no-keys"))
    assert hidden == json.loads(call("inspect", "in.dcm", "--json", "--no-keys"))
    found = json.loads(call("inspect", "out.dcm", "--json", "--keys", "keys"))["with the keys"]
    assert found["carrier"] == "hidden"
    record = json.loads(call("inspect", "rest.dcm", "--json", "--keys", "keys"))
    assert record["without a key"]["kind"] == "restoration record of a stego object"
    assert record["without a key"]["object"] == found["object"]
    assert record["with the keys"]["opens"] is True


def test_inspect_of_an_archive_object(place: Path) -> None:
    embedded("--mode", "segmented")
    facts = json.loads(call("inspect", "out.dcm", "--json", "--keys", "keys"))
    assert facts["without a key"]["kind"] == "archive object"
    assert facts["without a key"]["carrier"] == "segmented"
    assert facts["with the keys"]["restores exactly"] is True
    assert facts["without a key"]["sealed for"] == [facts["with the keys"]["keys"][0]]
    assert "archive object" in call("inspect", "out.dcm", "--keys", "keys")


def test_inspect_with_the_wrong_keys_says_that_it_does_not_open(place: Path) -> None:
    embedded()
    call("embed", "in.dcm", "-o", "other.dcm", "--keys", "other", "--create-keys")
    facts = json.loads(call("inspect", "out.dcm", "--json", "--keys", "other"))
    assert facts["with the keys"] == {"opens": False, "reason": REFUSED}


def test_inspect_of_a_damaged_archive_object(place: Path) -> None:
    embedded("--mode", "segmented")
    data = bytearray(Path("out.dcm").read_bytes())
    data[-500] ^= 1
    Path("bad.dcm").write_bytes(bytes(data))
    assert "damaged" in call("inspect", "bad.dcm", ok=False)


# --- capacity ---


def test_capacity_as_a_table_and_as_json(place: Path) -> None:
    Path("burned").mkdir()
    Path("burned/b.dcm").write_bytes(image([noisy()], stored=12, BurnedInAnnotation="YES"))
    shown = call("capacity", "in.dcm", "burned", "--json", "c.json")
    for word in ("segmented", "self-contained", "hidden", "PSNR", "burned-in"):
        assert word in shown
    rows = json.loads(Path("c.json").read_text())
    assert [Path(row["path"]).name for row in rows] == ["in.dcm", "b.dcm"]
    assert rows[0]["suggested"] == "self-contained"
    assert rows[1]["modes"][1]["reason"] == "burned-in"


def test_capacity_of_what_is_no_image(place: Path) -> None:
    Path("notes.txt").write_text("hello")
    assert "not-part10" in call("capacity", "notes.txt", ok=False)
    assert "no such file" in call("capacity", "nowhere.dcm", ok=False)


# --- with a gateway's own keys ---


def test_the_gateways_own_keys_are_audited(place: Path) -> None:
    build(load_settings()).close()
    call("embed", "in.dcm", "-o", "out.dcm")
    call("extract", "out.dcm", "-o", "back.dcm")
    call("inspect", "out.dcm", "--identity")
    settings = load_settings()
    with Database(settings.database).read() as conn:
        from gateway.index_schema import audit

        events = [row.event for row in conn.execute(audit.select().order_by(audit.c.seq))]
    assert events[-3:] == ["payload-embedded", "payload-extracted", "payload-inspected"]


def test_a_folder_shares_one_payload(place: Path) -> None:
    Path("series").mkdir()
    for seed in range(4):
        frame = grainy(200, 200, seed=seed)
        Path(f"series/{seed}.dcm").write_bytes(image([frame], stored=12, SOPInstanceUID=f"1.2.3.{seed}"))
    keys = ("--keys", "keys", "--restoration", "rest.dcm")
    assert "hidden only" in call("embed", "series", "-o", "made", *keys, ok=False)
    shown = call("embed", "series", "-o", "made", "--mode", "hidden", "--create-keys", *keys)
    assert "4 images share one payload" in shown
    call("extract", "made", "-o", "back", *keys)
    for seed in range(4):
        assert Path(f"back/1.2.3.{seed}.dcm").read_bytes() == Path(f"series/{seed}.dcm").read_bytes()
    next(Path("made").iterdir()).unlink()
    assert REFUSED in " ".join(call("extract", "made", "-o", "other", *keys, ok=False).split())
    assert not Path("other").exists()


def series_of(count: int, **changes: object) -> None:
    Path("series").mkdir()
    for seed in range(count):
        uid = {"SOPInstanceUID": f"1.2.3.{seed}", **changes}
        Path(f"series/{seed}.dcm").write_bytes(image([grainy(200, 200, seed=seed)], stored=12, **uid))


def test_the_image_never_replaces_its_own_restoration_record(place: Path) -> None:
    options = ("--mode", "hidden", "--keys", "keys", "--create-keys", "--force")
    for name in ("out.dcm", "./out.dcm", "../" + place.name + "/out.dcm"):
        shown = call("embed", "in.dcm", "-o", "out.dcm", "--restoration", name, *options, ok=False)
        assert "two files" in " ".join(shown.split())
    assert listed() == {"in.dcm"}


def test_a_restoration_record_is_never_replaced(place: Path) -> None:
    """`--force` over one's own stego image would destroy the only way back to the original."""
    embedded("--mode", "hidden", "--restoration", "rest.dcm")
    before = Path("rest.dcm").read_bytes(), Path("out.dcm").read_bytes()
    again = ("embed", "out.dcm", "-o", "out.dcm", "--keys", "keys", "--mode", "hidden", "--restoration", "rest.dcm")
    assert "never replaced" in " ".join(call(*again, "--force", ok=False).split())
    assert (Path("rest.dcm").read_bytes(), Path("out.dcm").read_bytes()) == before
    series_of(4)
    folder = ("embed", "series", "-o", "made", "--keys", "keys", "--mode", "hidden", "--restoration", "rest.dcm")
    assert "never replaced" in " ".join(call(*folder, "--force", ok=False).split())
    assert not Path("made").exists()


def test_a_series_restoration_record_may_lie_beside_its_images(place: Path) -> None:
    series_of(4)
    keys = ("--keys", "keys", "--restoration", "made/rest.dcm")
    call("embed", "series", "-o", "made", "--mode", "hidden", "--create-keys", *keys)
    call("extract", "made", "-o", "back", *keys)
    assert len(list(Path("back").iterdir())) == 4


@pytest.mark.parametrize("uid", ["1.2.3.4", "../../none"])
def test_images_of_one_uid_do_not_replace_each_other(place: Path, uid: str) -> None:
    series_of(4, SOPInstanceUID=uid)
    keys = ("--keys", "keys", "--restoration", "rest.dcm")
    call("embed", "series", "-o", "made", "--mode", "hidden", "--create-keys", *keys)
    call("extract", "made", "-o", "back", "--force", *keys)
    given = {path.read_bytes() for path in Path("series").iterdir()}
    assert {path.read_bytes() for path in Path("back").iterdir()} == given
    assert len(given) == 4


def test_a_folder_that_cannot_be_made_is_said_plainly(place: Path) -> None:
    series_of(4)
    keys = ("--keys", "keys", "--restoration", "rest.dcm")
    shown = call("embed", "series", "-o", "in.dcm", "--mode", "hidden", "--create-keys", *keys, ok=False)
    assert "cannot be written" in shown
    assert "rest.dcm" not in listed()


def test_nothing_is_given_out_that_the_trail_does_not_know_of(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.errors import Unavailable
    from palimpsest import payload_files

    series_of(4)
    rest = ("--keys", "keys", "--restoration", "rest.dcm")
    call("embed", "series", "-o", "made", "--mode", "hidden", "--create-keys", *rest)
    embedded()

    def down(*_: object) -> None:
        raise Unavailable("database", "the database is away")

    before = listed()
    monkeypatch.setattr(payload_files, "record_use", down)
    call("extract", "made", "-o", "back", *rest, ok=False)
    call("extract", "out.dcm", "-o", "back.dcm", "--keys", "keys", ok=False)
    call("embed", "in.dcm", "-o", "new.dcm", "--keys", "keys", ok=False)
    call("embed", "series", "-o", "new", "--mode", "hidden", "--keys", "keys", "--restoration", "r.dcm", ok=False)
    assert listed() == before


def test_inspect_of_a_container_without_sense_says_damaged(place: Path) -> None:
    """Digests that fit, contents that do not: whoever can write a file can make one."""
    from worker import container as box
    from worker.container import SectionType
    from worker.stegoheader import CREATOR

    embedded()
    for sections in ({SectionType.CONTEXT: b"x"}, dict.fromkeys(
        (SectionType.CONTEXT, SectionType.WRAPS, SectionType.RECORD, SectionType.SIDE), b"")):  # fmt: skip
        ds = as_dataset(Path("out.dcm").read_bytes())
        ds.private_block(0x4D51, CREATOR)[0x10].value = box.build(sections)
        ds.save_as("odd.dcm", enforce_file_format=True)
        assert "damaged" in call("inspect", "odd.dcm", "--no-keys", ok=False)
        assert REFUSED in " ".join(call("extract", "odd.dcm", "-o", "back.dcm", "--keys", "keys", ok=False).split())


def test_capacity_goes_on_after_a_file_that_cannot_be_read(place: Path) -> None:
    Path("folder").mkdir()
    Path("folder/a.dcm").symlink_to("nowhere")
    Path("folder/b.dcm").write_bytes(Path("in.dcm").read_bytes())
    shown = call("capacity", "folder", "--json", "report.json")
    assert "there is no such file" in " ".join(shown.split())
    assert [row.get("reason") for row in json.loads(Path("report.json").read_bytes())] == ["no-such-file", None]


def test_a_restoration_record_that_is_not_needed_is_not_silently_left_out(place: Path) -> None:
    assert "rest.dcm: not written" in embedded("--mode", "segmented", "--restoration", "rest.dcm")


def test_rebind_takes_a_restoration_record_that_was_kept_by_hand(place: Path) -> None:
    call("embed", "in.dcm", "-o", "out.dcm", "--create-keys", "--mode", "hidden", "--restoration", "rest.dcm")
    whole = Path("out.dcm").read_bytes()
    Path("pixels.raw").write_bytes(whole[whole.index(b"\xe0\x7f\x10\x00") + 12 :])
    shape = ("--rows", "288", "--columns", "272")
    call("rebind", "pixels.raw", "-o", "back.dcm", *shape, ok=False)
    assert "8 or 16" in call("rebind", "pixels.raw", "-o", "back.dcm", *shape, "--allocated", "12", ok=False)
    call("rebind", "pixels.raw", "-o", "back.dcm", *shape, "--restoration", "rest.dcm")
    assert Path("back.dcm").read_bytes() == Path("in.dcm").read_bytes()


def test_rebind_does_not_speak_of_an_option_that_it_has_not(place: Path) -> None:
    shown = call("rebind", "in.dcm", "-o", "in.dcm", ok=False)
    assert "exists" in shown
    assert "--force" not in shown
