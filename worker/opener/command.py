"""The command line of the opener: files in, received files out."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from codec.weights import MAGIC, MAX_BYTES, BadWeights, add, find
from worker.opener.errors import OpenError
from worker.opener.keys import Keys, read_backup, read_private, read_public
from worker.opener.restore import Opened, open_object
from worker.opener.standards import FrameDecoder

WEIGHTS_FORMAT = b"palimpsest-weights/1"


def parser() -> argparse.ArgumentParser:
    """What may be asked for."""
    out = argparse.ArgumentParser(prog="open.py", description="Restore received files from archive objects.")
    out.add_argument("objects", nargs="+", type=Path, help="archive objects, or folders that hold some (*.dcm)")
    out.add_argument("--out", type=Path, required=True, help="folder for the received files")
    out.add_argument("--key", type=Path, action="append", default=[], help="a recipient's private key; may be repeated")
    out.add_argument("--backup", type=Path, help="a backup of the key ring (palimpsest keys backup)")
    out.add_argument("--passphrase-file", type=Path, help="of the backup; default: asked for")
    out.add_argument("--public-keys", type=Path, help="to check signatures (palimpsest keys export-public)")
    out.add_argument("--weights", type=Path, action="append", default=[], help="a weight file that is not in here")
    out.add_argument("--program", action="append", default=[], metavar="CODER=COMMAND",
                     help="decoder of jxl or htj2k frames; {in} and {out} stand for files")  # fmt: skip
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 if every object opened."""
    asked = parser().parse_args(arguments)
    try:
        keys = gather_keys(asked.key, asked.backup, asked.passphrase_file, asked.public_keys)
        files = list(_files(asked.objects))
        for path in (*asked.weights, *filter(_holds_weights, files)):
            add(find(path.read_bytes()))
        decoder = FrameDecoder(dict(text.split("=", 1) for text in asked.program))
        asked.out.mkdir(parents=True, exist_ok=True)
    except (OpenError, BadWeights, OSError, ValueError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    failed = 0
    for path in files:
        if _holds_weights(path):
            continue
        try:
            for opened in open_object(path.read_bytes(), keys, decoder):
                _write(path, opened, asked.out)
        except OpenError as error:
            failed += 1
            print(f"{path}: {error}", file=sys.stderr)
    return 1 if failed else 0


def gather_keys(private: Sequence[Path], backup: Path | None, passphrase: Path | None, public: Path | None) -> Keys:
    """All keys that were named. Raises Refused, OSError."""
    keys = Keys()
    if backup is not None:
        asked = passphrase.read_text("utf-8").rstrip("\r\n") if passphrase else getpass.getpass("Passphrase: ")
        keys = read_backup(backup.read_bytes(), asked)
    signers = dict(keys.signers)
    if public is not None:
        signers |= read_public(public.read_bytes())
    return replace(keys, private=tuple(read_private(path.read_bytes()) for path in private), signers=signers)


def _holds_weights(path: Path) -> bool:
    """Whether a file is the archive object of a weight file: these lie among the others."""
    if path.stat().st_size > MAX_BYTES + (1 << 16):
        return False
    data = path.read_bytes()
    return WEIGHTS_FORMAT in data and MAGIC in data


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        yield from sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


def _write(source: Path, opened: Opened, folder: Path) -> None:
    """Never over another file: the name is the digest."""
    target = folder / f"{opened.sha256}.dcm"
    if not target.exists():
        target.write_bytes(opened.data)
    words = {True: "signature holds", False: "SIGNATURE DOES NOT HOLD", None: "signature not checked"}
    how = "as received" if opened.exact else "received compressed, restored with native pixels"
    print(f"{source.name}: {target.name}, {how}, {words[opened.signed]}")
