"""Put the recorded tables and targets into docs/performance.md, between its markers.

python benchmarks/performance_page.py          writes the page
python benchmarks/performance_page.py --check  says whether the page is what the records say, and changes nothing
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import recording
from tables import TABLES, section, target_table

from comvex.errors import UserError
from comvex.files import write_text

PAGE = recording.FOLDER.parents[1] / "performance.md"
MARKED = re.compile(r"(<!-- from the records: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str, records: Path) -> str:
    """The page with what stands between its markers made anew; raises ``ValueError`` if a marker is missing."""
    contents = {name: recording.read(name, records) for name in TABLES}
    made = {name: section(content) for name, content in contents.items()} | {"targets": target_table(contents)}
    names = [match[1] for match in MARKED.findall(page)]
    if sorted(names) != sorted(made):
        raise UserError(f"The page has markers of {', '.join(names)}: it must have one of each of {', '.join(made)}.")
    return MARKED.sub(lambda match: f"{match[1]}\n{made[match[2]]}\n\n{match[3]}", page)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=recording.FOLDER, help="folder of the records")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--check", action="store_true", help="exit with 1 if the page is not what the records say")
    options = parser.parse_args(arguments)
    page = options.page.read_text(encoding="utf-8")
    made = filled(page, options.records)
    if not options.check:
        write_text(options.page, made)
    elif made != page:
        recording.tell(f"{options.page} is not what the records say: python benchmarks/performance_page.py writes it.")
        sys.exit(1)


if __name__ == "__main__":
    recording.run(main)
