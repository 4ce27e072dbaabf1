"""Put the recorded tables and targets into docs/performance.md, between its markers, and beside each record its tables.

python benchmarks/performance_page.py          writes the pages
python benchmarks/performance_page.py --check  says whether they are what the records say, and changes nothing
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import recording
from tables import TABLES, Content, report, section
from targets import target_table

from comvex.errors import UserError
from comvex.files import write_text

PAGE = recording.FOLDER.parents[1] / "performance.md"
MARKED = re.compile(r"(<!-- from the records: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read_records(records: Path) -> dict[str, Content | None]:
    """Every record of a folder, None where there is none."""
    return {name: recording.read(name, records) for name in TABLES}


def filled(page: str, contents: dict[str, Content | None]) -> str:
    """The page with what stands between its markers made anew; raises ``ValueError`` if a marker is missing."""
    made = {name: section(content) for name, content in contents.items()} | {"targets": target_table(contents)}
    names = [match[1] for match in MARKED.findall(page)]
    if sorted(names) != sorted(made):
        raise UserError(f"The page has markers of {', '.join(names)}: it must have one of each of {', '.join(made)}.")
    return MARKED.sub(lambda match: f"{match[1]}\n{made[match[2]]}\n\n{match[3]}", page)


def pages(page: Path, records: Path) -> dict[Path, str]:
    """Every file that is made of the records: the page, and NAME.md beside each NAME.json."""
    contents = read_records(records)
    made = {records / f"{name}.md": report(content) for name, content in contents.items() if content is not None}
    return {page: filled(page.read_text(encoding="utf-8"), contents)} | made


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=recording.FOLDER, help="folder of the records")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--check", action="store_true", help="exit with 1 if the page is not what the records say")
    options = parser.parse_args(arguments)
    made = pages(options.page, options.records)
    if not options.check:
        for file, text in made.items():
            write_text(file, text)
        return
    other = [str(file) for file, text in made.items() if not file.exists() or file.read_text(encoding="utf-8") != text]
    if other:
        recording.tell(
            f"Not what the records say: {', '.join(other)}. python benchmarks/performance_page.py writes it."
        )
        sys.exit(1)


if __name__ == "__main__":
    recording.run(main)
