"""Every master of the key ring keeps one contract: the ring's own keys, Vault Transit over HTTP, AWS KMS.

Vault is a small server of our own that real hvac talks to; KMS is moto, called by real boto3.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from moto import mock_aws

from gateway import keyfile
from gateway.keys import KeyRing, ShreddedKey
from gateway.keystate import RingState, new_state
from gateway.kmsmaster import KmsAccess, KmsMaster
from gateway.masters import Master, MasterRefused, open_master, state_master
from gateway.settings import Settings, key_environment
from gateway.vaultmaster import VaultAccess, VaultMaster
from tests.contract.transit_server import Vault, serving
from tests.unit.keyring_errors import refused, unavailable

KINDS = ("file", "vault", "kms")
ANNA = "P\0anna"
SECRET, CONTEXT = bytes(range(32)), b"palimpsest/patient/v1\0pat-X"
PASSPHRASE = "correct horse battery"


@pytest.fixture
def vault() -> Iterator[Vault]:
    with serving(Vault()) as running:
        yield running


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        kms = boto3.client("kms", region_name="eu-central-1")
        key = kms.create_key(Description="palimpsest")["KeyMetadata"]["KeyId"]
        kms.create_alias(AliasName="alias/palimpsest", TargetKeyId=key)
        yield kms


def file_master() -> Master:
    state: list[RingState] = [new_state("2026")]

    def add() -> str:
        state[0] = state[0].with_new("kek", "2026")
        return state[0].current("kek").id

    return state_master(lambda: state[0], add)


def remote(kind: str, request: pytest.FixtureRequest) -> Master | None:
    if kind == "vault":
        return VaultMaster(VaultAccess(request.getfixturevalue("vault").address, token="root", timeout_seconds=60.0))
    if kind == "kms":
        request.getfixturevalue("aws")
        return KmsMaster(KmsAccess(region="eu-central-1"))
    return None


@pytest.fixture(params=KINDS)
def master(request: pytest.FixtureRequest) -> Master:
    return remote(request.param, request) or file_master()


@pytest.fixture(params=KINDS)
def keeper(request: pytest.FixtureRequest) -> Master | None:
    """What a ring is opened with: None for a file ring."""
    return remote(request.param, request)


# --- the master by itself ---


def test_what_is_wrapped_unwraps_under_its_context_only(master: Master) -> None:
    token = master.wrap(SECRET, CONTEXT)
    assert master.unwrap(token, CONTEXT) == SECRET
    assert token.isascii() and "\n" not in token and SECRET.hex() not in token
    assert master.version_of(token) == master.version() and master.wrap(SECRET, CONTEXT) != token
    for context in (b"", CONTEXT + b"x", b"palimpsest/patient/v1\0pat-Y"):
        with pytest.raises(MasterRefused):
            master.unwrap(token, context)


def test_damaged_and_foreign_tokens_are_refused(master: Master) -> None:
    token = master.wrap(SECRET, CONTEXT)
    body = len(token) - 12  # behind whatever names the key
    flipped = token[:body] + ("A" if token[body] != "A" else "B") + token[body + 1 :]
    for wrong in ("", "x", token[:-8], flipped, "vault:v9:AAAA", "kek-9:AAAA", token.replace(":", ";")):
        with pytest.raises(MasterRefused):
            master.unwrap(wrong, CONTEXT)
    for wrong in ("", "x", "aws:1:AA", token.replace(":", ";")):
        with pytest.raises(MasterRefused):
            master.version_of(wrong)


def test_rotation_adds_a_version_that_old_tokens_outlive(master: Master) -> None:
    old = master.wrap(SECRET, CONTEXT)
    before = master.version()
    assert master.rotate() == master.version() != before
    assert master.version_of(old) == before and master.unwrap(old, CONTEXT) == SECRET
    new = master.rewrap(old, CONTEXT)
    assert master.version_of(new) == master.version() and master.unwrap(new, CONTEXT) == SECRET
    with pytest.raises(MasterRefused):
        master.unwrap(new, b"other")
    with pytest.raises(MasterRefused):
        master.rewrap(old[:-8], CONTEXT)
    assert master.version_of(master.wrap(SECRET, CONTEXT)) == master.version()


def test_a_master_shows_no_secret(master: Master) -> None:
    token = master.wrap(SECRET, CONTEXT)
    for shown in (repr(master), str(master), master.name):
        assert "root" not in shown and SECRET.hex() not in shown and token not in shown


def test_several_threads_use_one_master(master: Master) -> None:
    with ThreadPoolExecutor(4) as pool:
        tokens = list(pool.map(lambda n: master.wrap(SECRET, b"%d" % n), range(20)))
        assert all(pool.map(lambda n: master.unwrap(tokens[n], b"%d" % n) == SECRET, range(20)))


# --- a ring under it ---


def test_a_ring_lives_under_every_master(keeper: Master | None, tmp_path: Path) -> None:
    ring = KeyRing.load_or_create(tmp_path / "keys", master=keeper)
    kek, anna = ring.kek_current(), ring.patient_key(ANNA)
    for again in (
        KeyRing.load_or_create(tmp_path / "keys", master=keeper),
        KeyRing.open_readonly(tmp_path / "keys", master=keeper),
    ):
        assert again.kek_current() == kek and again.patient_key(ANNA) == anna and again.find_kek(anna[0]) == anna[1]
        assert [row.id for row in again.list()] == [row.id for row in ring.list()]
    text = "".join(path.read_text() for path in (tmp_path / "keys").rglob("*.json"))
    if keeper is not None:
        for secret in (kek[1], anna[1], ring.signing_key()[1], ring.pseudonym_key(), ring.stego_key()[1]):
            assert base64.b64encode(secret).decode() not in text and secret.hex() not in text
    ring.destroy_patient_key(anna[0], b"t")
    with pytest.raises(ShreddedKey):
        KeyRing.open_readonly(tmp_path / "keys", master=keeper).find_kek(anna[0])
    assert ring.patient_key(ANNA)[0] != anna[0]


def test_rotation_rewraps_under_every_master(keeper: Master | None, tmp_path: Path) -> None:
    ring = KeyRing.load_or_create(tmp_path / "keys", master=keeper)
    keys = [ring.patient_key(f"P\0{number}") for number in range(4)]
    before = ring.master.version()
    assert ring.rotate("kek") == "kek-2"
    now = ring.master.version()
    assert now != before
    assert {ring.master.version_of(ring.patients.stored(key_id).wrapped) for key_id, _ in keys} == {now}
    fresh = KeyRing.open_readonly(tmp_path / "keys", master=keeper)
    assert [(key_id, fresh.find_kek(key_id)) for key_id, _ in keys] == keys
    seal = fresh._state().seal
    assert seal is None or fresh.master.version_of(seal.token) == now
    assert ring.rewrap() == 0


def _work(folder: str, master: Master | None, gate: Any) -> list[str]:
    ring = KeyRing.load_or_create(Path(folder), master=master)
    gate.wait(240)
    made = [ring.patient_key(f"P\0{number}") for number in range(6)]
    assert made == [(key_id, ring.find_kek(key_id)) for key_id, _ in made]
    return [key_id for key_id, _ in made]


def _process(folder: str, master: Master | None, gate: Any, answers: Any) -> None:
    answers.put(_work(folder, master, gate))


def test_others_work_while_the_master_is_rotated(keeper: Master | None, tmp_path: Path) -> None:
    """Other processes; under KMS other threads, for moto keeps its keys in one process."""
    folder = str(tmp_path / "keys")
    ring = KeyRing.load_or_create(tmp_path / "keys", master=keeper)
    known = ring.patient_key(ANNA)
    if isinstance(keeper, KmsMaster):
        barrier = threading.Barrier(4)
        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(_work, folder, keeper, barrier) for _ in range(3)]
            _rotate(ring, barrier)
            found = [future.result(240) for future in futures]
    else:
        context = multiprocessing.get_context("fork")
        gate, answers = context.Barrier(4), context.Queue()
        processes = [context.Process(target=_process, args=(folder, keeper, gate, answers)) for _ in range(3)]
        for process in processes:
            process.start()
        _rotate(ring, gate)
        found = [answers.get(timeout=240) for _ in processes]
        for process in processes:
            process.join(240)
            assert process.exitcode == 0
    assert all(each == found[0] for each in found) and ring.find_kek(known[0]) == known[1]
    ring.rewrap()
    versions = {ring.master.version_of(ring.patients.stored(key_id).wrapped) for key_id in ring.patients.ids()}
    assert versions == {ring.master.version()}


def _rotate(ring: KeyRing, gate: Any) -> None:
    gate.wait(240)
    for _ in range(3):
        ring.rotate("kek")


@pytest.mark.parametrize("to", KINDS)
def test_a_backup_moves_a_ring_to_any_master(
    keeper: Master | None, to: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    ring = KeyRing.load_or_create(tmp_path / "keys", master=keeper)
    kek, anna = ring.kek_current(), ring.patient_key(ANNA)
    gone = ring.patient_key("P\0gone")[0]
    ring.destroy_patient_key(gone, b"stone")
    proof = ring.backup(tmp_path / "backup", PASSPHRASE, log2_n=10)
    assert proof.patients == 1
    other = remote(to, request)
    moved = KeyRing.restore(tmp_path / "backup", PASSPHRASE, tmp_path / "moved", master=other)
    for each in (moved, KeyRing.open_readonly(tmp_path / "moved", master=other)):
        assert each.kek_current() == kek and each.patient_key(ANNA) == anna
        assert each._state().seal is None if other is None else each.master.name == other.name
        with pytest.raises(ShreddedKey):
            each.find_kek(gone)


@pytest.mark.parametrize("used", KINDS)
def test_a_ring_under_another_master_is_refused(
    keeper: Master | None, used: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    KeyRing.load_or_create(tmp_path / "keys", master=keeper)
    other = remote(used, request)
    if (other and other.name) == (keeper and keeper.name):
        KeyRing.open_readonly(tmp_path / "keys", master=other)
        return
    before = (tmp_path / "keys" / keyfile.RING_FILE).read_bytes()
    for use in (KeyRing.load_or_create, KeyRing.open_readonly):
        with refused("key-master-mismatch") as caught:
            use(tmp_path / "keys", master=other)
        assert "PALIMPSEST_KEY_MASTER" in caught.value.message
    assert (tmp_path / "keys" / keyfile.RING_FILE).read_bytes() == before


# --- Vault and its faults ---


def test_a_stopped_vault_stops_new_work_and_loses_nothing(vault: Vault, tmp_path: Path) -> None:
    faults = (("sealed", "key-master-sealed"), ("failing", "key-master-unreachable"), ("denied", "key-master-denied"))
    for fault, reason in (*faults, ("slow", "key-master-unreachable"), ("nonsense", "key-master-unreachable")):
        seconds = 1.0 if fault == "slow" else 60.0
        master = VaultMaster(VaultAccess(vault.address, token="root", timeout_seconds=seconds))
        ring = KeyRing.load_or_create(tmp_path / "keys", master=master)
        anna = ring.patient_key(ANNA)
        vault.fault = fault
        with unavailable(reason):
            ring.patient_key("P\0new")
        assert ring.find_kek(anna[0]) == anna[1]  # unwrapped before
        with unavailable(reason):
            KeyRing.open_readonly(tmp_path / "keys", master=master)
        with unavailable(reason):
            ring.rotate("kek")
        vault.fault = ""
        assert [row.id for row in ring.list() if row.kind == "kek"] == ["kek-1"]
    assert ring.patient_key_ids("P\0new") == []
    vault.keys.clear()
    with unavailable("key-master-missing"):
        ring.patient_key("P\0new")


def test_an_unreachable_vault_is_unavailable(tmp_path: Path) -> None:
    master = VaultMaster(VaultAccess("http://127.0.0.1:9", token="root", timeout_seconds=0.5))
    with unavailable("key-master-unreachable"):
        KeyRing.load_or_create(tmp_path / "keys", master=master)
    assert not (tmp_path / "keys" / keyfile.RING_FILE).exists()


def test_approle_logs_in_again_when_its_token_ran_out(vault: Vault, tmp_path: Path) -> None:
    secret = tmp_path / "secret-id"
    secret.write_text("secret-1\n")
    master = VaultMaster(VaultAccess(vault.address, role_id="role-1", secret_id_file=secret))
    token = master.wrap(SECRET, CONTEXT)
    assert master.unwrap(token, CONTEXT) == SECRET and vault.logins == 1
    vault.expire_tokens()
    assert master.unwrap(token, CONTEXT) == SECRET and vault.logins == 2
    secret.write_text("old")
    vault.expire_tokens()
    with unavailable("key-master-denied"):
        master.unwrap(token, CONTEXT)
    secret.unlink()
    with unavailable("key-master-denied"):
        VaultMaster(VaultAccess(vault.address, role_id="role-1", secret_id_file=secret)).version()


def test_a_token_file_is_read_anew(vault: Vault, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("root\n")
    master = VaultMaster(VaultAccess(vault.address, token_file=file))
    token = master.wrap(SECRET, CONTEXT)
    vault.tokens = {"renewed"}
    with unavailable("key-master-denied"):
        master.unwrap(token, CONTEXT)
    file.write_text("renewed")
    assert master.unwrap(token, CONTEXT) == SECRET


def test_a_namespace_is_sent(vault: Vault) -> None:
    vault.namespace = "hospital/imaging"
    with unavailable("key-master-denied"):
        VaultMaster(VaultAccess(vault.address, token="root")).version()
    assert VaultMaster(VaultAccess(vault.address, token="root", namespace="hospital/imaging")).version() == "v1"


def test_a_version_that_vault_no_longer_decrypts_is_refused(vault: Vault, tmp_path: Path) -> None:
    master = VaultMaster(VaultAccess(vault.address, token="root"))
    ring = KeyRing.load_or_create(tmp_path / "keys", master=master)
    anna = ring.patient_key(ANNA)
    old = master.wrap(SECRET, CONTEXT)
    ring.rotate("kek")
    vault.min_decryption_version = 2
    with pytest.raises(MasterRefused):
        master.unwrap(old, CONTEXT)
    fresh = KeyRing.load_or_create(tmp_path / "keys", master=master)  # everything was rewrapped
    assert fresh.find_kek(anna[0]) == anna[1]


def test_rewrapping_shows_vaults_caller_nothing(vault: Vault) -> None:
    master = VaultMaster(VaultAccess(vault.address, token="root"))
    token = master.wrap(SECRET, CONTEXT)
    master.rotate()
    vault.seen.clear()
    master.rewrap(token, CONTEXT)
    assert vault.seen == ["transit/rewrap/palimpsest"]


def test_a_ring_file_that_changes_costs_vault_nothing(vault: Vault, tmp_path: Path) -> None:
    ring = KeyRing.load_or_create(tmp_path / "keys", master=VaultMaster(VaultAccess(vault.address, token="root")))
    vault.seen.clear()
    ring.rotate("sign")
    ring.signing_key()
    ring.patient_key(ANNA)
    ring.patient_key(ANNA)
    assert vault.seen == ["transit/encrypt/palimpsest", "transit/decrypt/palimpsest"]


def certificate(folder: Path) -> tuple[Path, Path]:
    """(key and certificate for the server, the certificate alone for its clients)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "vault")])
    now = datetime.datetime.now(datetime.UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    ).public_bytes(Encoding.PEM)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.pem").write_bytes(private + made)
    (folder / "ca.pem").write_bytes(made)
    return folder / "server.pem", folder / "ca.pem"


def test_tls_is_checked_against_the_given_ca(tmp_path: Path) -> None:
    server, ca = certificate(tmp_path)
    with serving(Vault(), server) as vault:
        assert VaultMaster(VaultAccess(vault.address, token="root", ca_file=ca)).version() == "v1"
        with unavailable("key-master-unreachable"):
            VaultMaster(VaultAccess(vault.address, token="root", timeout_seconds=1.0)).version()
        with unavailable("key-master-unreachable"):
            missing = VaultAccess(vault.address, token="root", ca_file=tmp_path / "no.pem", timeout_seconds=1.0)
            VaultMaster(missing).version()


# --- KMS and its faults ---


def test_the_context_is_kms_encryption_context(aws: Any) -> None:
    master = KmsMaster(KmsAccess(region="eu-central-1"))
    key_id, blob = master.wrap(SECRET, CONTEXT).split(":")[1:]
    found = aws.decrypt(
        CiphertextBlob=base64.b64decode(blob), KeyId=key_id,
        EncryptionContext={"palimpsest": "palimpsest/patient/v1/pat-X"},
    )  # fmt: skip
    assert found["Plaintext"] == SECRET


def test_kms_faults_are_unavailable(aws: Any) -> None:
    master = KmsMaster(KmsAccess(region="eu-central-1"))
    token = master.wrap(SECRET, CONTEXT)
    with unavailable("key-master-missing"):
        KmsMaster(KmsAccess("alias/other", "eu-central-1")).wrap(SECRET, CONTEXT)
    with unavailable("key-master-unreachable"):
        KmsMaster(KmsAccess(region="eu-central-1", endpoint="http://127.0.0.1:9", timeout_seconds=0.3)).version()
    assert master.unwrap(token, CONTEXT) == SECRET


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("AccessDeniedException", "key-master-denied"),
        ("ExpiredTokenException", "key-master-denied"),
        ("KMSInvalidStateException", "key-master-disabled"),
        ("DisabledException", "key-master-disabled"),
        ("ThrottlingException", "key-master-unreachable"),
        ("KMSInternalException", "key-master-unreachable"),
    ],
)
def test_kms_answers_are_told_apart(aws: Any, code: str, reason: str) -> None:
    from botocore.exceptions import ClientError

    def failing(kms: Any) -> None:
        raise ClientError({"Error": {"Code": code, "Message": "arn:aws:iam::123456789012:user/secret"}}, "Decrypt")

    with unavailable(reason) as caught:
        KmsMaster(KmsAccess(region="eu-central-1"))._ask(failing)
    assert "arn" not in caught.value.message and caught.value.__cause__ is None


def test_kms_rotation_needs_an_alias_and_keeps_the_policy(aws: Any) -> None:
    master = KmsMaster(KmsAccess(region="eu-central-1"))
    old = master.version()
    with refused("key-master-no-alias"):
        KmsMaster(KmsAccess(old, "eu-central-1")).rotate()
    policy = json.dumps({"Version": "2012-10-17", "Id": "ours", "Statement": []})
    aws.put_key_policy(KeyId=old, PolicyName="default", Policy=policy)
    new = master.rotate()
    assert new != old and aws.get_key_policy(KeyId=new, PolicyName="default")["Policy"] == policy
    assert aws.describe_key(KeyId=old)["KeyMetadata"]["Enabled"]


# --- settings ---


def test_settings_choose_the_master(vault: Vault, tmp_path: Path) -> None:
    assert open_master(Settings(home=tmp_path)) is None
    login = {"vault_addr": vault.address, "vault_token": "root"}
    made = open_master(Settings(home=tmp_path, key_master="vault", **login))
    assert made is not None and made.version() == "v1" and made.name == "vault:transit/palimpsest"
    kms = open_master(Settings(home=tmp_path, key_master="kms", kms_key="alias/x", kms_region="eu-central-1"))
    assert kms is not None and kms.name == "kms:alias/x"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"vault_addr": "vault.example"},
        {"vault_addr": "https://vault.example"},
        {"vault_addr": "https://vault.example", "vault_role_id": "r"},
        {"vault_addr": "http://vault.example:8200", "vault_token": "t"},
    ],
)
def test_incomplete_or_insecure_vault_settings_are_refused(given: dict[str, str], tmp_path: Path) -> None:
    with refused("key-master-settings") as caught:
        open_master(Settings(home=tmp_path, key_master="vault", **given))  # type: ignore[arg-type]
    assert "PALIMPSEST_VAULT" in caught.value.message


def test_what_goes_in_clear_stays_on_this_machine(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert VaultMaster(VaultAccess(vault.address, token="root")).version() == "v1"
    with refused("key-master-settings"):
        open_master(Settings(home=tmp_path, key_master="kms", kms_endpoint="http://kms.example"))
    assert open_master(Settings(home=tmp_path, key_master="kms", kms_endpoint="http://127.0.0.1:4566"))


def test_credentials_are_in_no_repr_and_reach_children_by_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"vault_token": "s3cret-t", "vault_secret_id": "s3cret-i", "vault_role_id": "s3cret-r"}
    settings = Settings(home=tmp_path, key_master="vault", vault_addr="https://v", **given)  # type: ignore[arg-type]
    assert "s3cret" not in repr(settings) + str(settings) + repr(open_master(settings))
    assert "s3cret" not in repr(VaultAccess("https://v", token="s3cret", role_id="s3cret", secret_id="s3cret"))
    for name, value in key_environment(settings).items():
        monkeypatch.setenv(name, value)
    again = Settings(home=tmp_path)
    for name in ("key_master", "vault_ca_file", *given):
        assert getattr(again, name) == getattr(settings, name)


@pytest.mark.parametrize(("kind", "library"), [("vault", "hvac"), ("kms", "boto3")])
def test_a_missing_extra_is_named(kind: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    settings = Settings(home=tmp_path, key_master=kind, vault_addr="https://v", vault_token="t")  # type: ignore[arg-type]
    made = open_master(settings)
    assert made is not None
    with refused("key-master-extra") as caught:
        made.version()
    assert "pip install palimpsest[" in caught.value.message


def test_refusals_of_the_master_are_no_faults_of_an_object(vault: Vault, tmp_path: Path) -> None:
    """A patient key that the master refuses is Unavailable: the object waits, and is not quarantined."""
    ring = KeyRing.load_or_create(tmp_path / "keys", master=VaultMaster(VaultAccess(vault.address, token="root")))
    key_id = ring.patient_key(ANNA)[0]
    ring.patients._cache.clear()
    vault.keys["palimpsest"] = [os.urandom(32)]
    with unavailable("patient-key-damaged"):
        ring.find_kek(key_id)
    with unavailable("keys-corrupt"):
        KeyRing.open_readonly(tmp_path / "keys", master=VaultMaster(VaultAccess(vault.address, token="root")))
