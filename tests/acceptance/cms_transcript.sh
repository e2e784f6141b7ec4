#!/bin/sh
# A transcript of the CMS copy: keys by openssl, the identity sealed by Palimpsest, opened by openssl alone.
#   tests/acceptance/cms_transcript.sh [PYTHON]    prints to standard output; exit status 0 only if the identity came out
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${1:-$root/.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
say() { printf '\n$ %s\n' "$*"; "$@"; }

openssl version
say openssl req -x509 -newkey rsa:3072 -noenc -keyout key.pem -out cert.pem -days 365 -subj "/O=Trusted archive/CN=Recipient" 2>/dev/null

printf '\n# Palimpsest: a CT header, de-identified; what was removed goes to cert.pem in (0400,0500)\n'
PYTHONPATH=$root "$python" - <<'PYTHON'
import io
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydicom import dcmread
from pydicom.data import get_testdata_file
from worker.deid import Profile, deidentify
from worker.encrypted_attributes import attach, seal_attributes

signing = Ed25519PrivateKey.generate()
source = dcmread(get_testdata_file("CT_small.dcm", download=False))
print("original:     ", source.PatientName, source.PatientID, source.SOPInstanceUID)
done = deidentify(source, Profile(), bytes(range(32)))
item = seal_attributes(done.removed, [Path("cert.pem").read_bytes()],
                       belongs_to=done.dataset.SOPInstanceUID, signer=("sign-1", signing.private_bytes_raw()))
attach(done.dataset, [item])
done.dataset.save_as("deidentified.dcm", enforce_file_format=True)
sent = dcmread("deidentified.dcm")
print("de-identified:", sent.PatientName, sent.PatientID, sent.SOPInstanceUID)
content = sent.EncryptedAttributesSequence[0]
print("content is in: ", content.EncryptedContentTransferSyntaxUID, len(content.EncryptedContent), "bytes of CMS")
Path("content.der").write_bytes(content.EncryptedContent)
assert str(source.PatientID).encode() not in Path("deidentified.dcm").read_bytes()
PYTHON

printf '\n$ openssl cms -cmsout -print -noout -inform DER -in content.der   (algorithms and recipient)\n'
openssl cms -cmsout -print -noout -inform DER -in content.der | grep -E 'contentType|issuer|algorithm:|encryptedKey' | head -12
say openssl cms -decrypt -binary -inform DER -in content.der -inkey key.pem -recip cert.pem -out opened.bin
say openssl dgst -sha256 opened.bin

printf '\n# any DICOM reader: the Encrypted Attributes Data Set\n'
"$python" - <<'PYTHON'
from pathlib import Path
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset

original = dcmread(get_testdata_file("CT_small.dcm", download=False))
sent = dcmread("deidentified.dcm").EncryptedAttributesSequence[0]
syntax = sent.EncryptedContentTransferSyntaxUID
(item,) = read_dataset(DicomBytesIO(Path("opened.bin").read_bytes()), syntax.is_implicit_VR, syntax.is_little_endian).ModifiedAttributesSequence
print("opened:       ", item.PatientName, item.PatientID, item.SOPInstanceUID, f"({len(item)} attributes)")
assert (item.PatientName, item.PatientID, item.SOPInstanceUID) == (original.PatientName, original.PatientID, original.SOPInstanceUID)
PYTHON

printf '\n# a stranger'"'"'s key opens nothing\n'
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072 -out other.pem 2>/dev/null
if openssl cms -decrypt -binary -inform DER -in content.der -inkey other.pem -recip cert.pem -out stolen.bin 2>/dev/null; then
    echo "opened with a stranger's key"; exit 1
fi
echo "refused"
