"""Refuse a licence of any package that the product installs, extras included, that is not in the list below.

    .venv/bin/python .ci/licenses.py

What only tests use is not looked at: it is not handed on. `pip-licenses` reads the packages' metadata.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

from constraints import closure

#: SPDX identifiers, and how older packages call the same, in small letters and without "license". Copyleft of a whole
#: work (GPL, AGPL, SSPL) is none of them.
ALLOWED = frozenset({
    "mit", "mit-cmu", "mit-0", "bsd", "bsd-2-clause", "bsd-3-clause", "0bsd", "3-clause bsd", "apache", "apache-2.0",
    "apache 2.0", "apache software", "isc", "isc iscl", "psf-2.0", "python software foundation", "zlib", "cc0-1.0",
    "hpnd", "unlicense", "mpl-2.0", "mozilla public 2.0 mpl 2.0", "bsl-1.0", "llvm-exception",
})  # fmt: skip
#: Allowed for one package each, and why.
FOR_ONE = {
    "psycopg": "LGPL-3.0-only: imported as it is, and replaceable (LGPL 4)",
    "psycopg-binary": "LGPL-3.0-only: as psycopg",
}


def allowed(text: str) -> bool:
    """True if a licence may be handed on: of alternatives (OR) one must be allowed, of all else each."""
    alternatives = re.split(r"\s+OR\s+", text)
    if len(alternatives) > 1:
        return any(map(allowed, alternatives))
    parts = [re.sub(r"[()]|\blicen[sc]e\b", "", part, flags=re.I) for part in re.split(r"\s+(?:AND|WITH)\s+|;", text)]
    return all(" ".join(part.lower().split()) in ALLOWED for part in parts)


def main() -> None:
    """Exit 1 with a line for each package that may not be handed on."""
    names = sorted(closure())
    command = [sys.executable, "-m", "piplicenses", "--from=mixed", "--with-system", "--format=json", "--packages"]
    found = json.loads(subprocess.run([*command, *names], check=True, capture_output=True, text=True).stdout)
    licences = {re.sub(r"[-_.]+", "-", each["Name"]).lower(): each["License"] for each in found}
    wrong = [
        f"{name}: {licences.get(name, 'unknown')}"
        for name in names
        if name not in FOR_ONE and not allowed(licences.get(name, "unknown"))
    ]
    if wrong:
        sys.exit("licences that are not in the list of .ci/licenses.py:\n" + "\n".join(wrong))
    print(f"{len(names)} packages, each under a licence of the list; by exception: {', '.join(FOR_ONE)}")


if __name__ == "__main__":
    main()
