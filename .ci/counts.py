"""Print how many tests ran, by suite, from a JUnit file; exit 1 if one was skipped that may not be.

usage: counts.py JUNIT.XML MAY-SKIP   (MAY-SKIP: one regular expression a line, over "test: reason"; # comments)
"""

import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path


def main(junit: Path, may_skip: Path) -> int:
    """Exit status."""
    lines = (line.strip() for line in may_skip.read_text().splitlines())
    allowed = [re.compile(line) for line in lines if line and not line.startswith("#")]
    counts: Counter[str] = Counter()
    skips = []
    for case in ET.parse(junit).getroot().iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        counts[name.removeprefix("tests.").split(".")[0]] += 1
        counts["all"] += 1
        skipped = case.find("skipped")
        if skipped is not None:
            skips.append(f"{name}: {skipped.get('message')}")
    for suite, count in sorted(counts.items()):
        print(f"{suite:<16}{count:>6} tests")
    forbidden = [skip for skip in skips if not any(pattern.search(skip) for pattern in allowed)]
    print(f"{'skipped':<16}{len(skips):>6}, {len(forbidden)} of them not allowed")
    for skip in skips:
        print(f"  {'NOT ALLOWED ' if skip in forbidden else ''}{skip}")
    return 1 if forbidden or not counts["all"] else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
