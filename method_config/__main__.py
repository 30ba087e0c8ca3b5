"""`python -m method_config` makes the tables of docs/configuration.md from defaults.py."""

from __future__ import annotations

import re
from pathlib import Path

from method_config.values import SCHEMA

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
MARKS = "<!-- tables made by python -m method_config -->\n", "<!-- end of the tables -->\n"
# a line that sets a key: name, default, and the comment behind it
_KEY = re.compile(r"""(?:_C\.|    ")?([\w.]+)(?: =|":) (.+?),?(?:  # (.*))?""")


def page(text: str) -> str:
    """`text` with new tables between the two marks, from the headings (## in a comment) and keys of
    defaults.py and published.py."""
    made, comment = "", []
    for name in ("defaults.py", "published.py"):
        for line in Path(__file__).with_name(name).read_text("utf-8").splitlines():
            setting = _KEY.fullmatch(line)
            if line.startswith("# ## "):
                made += f"\n{line[2:]}\n\n| key | default | meaning |\n|---|---|---|\n"
            elif line.startswith("# "):
                comment.append(line[2:])
                continue
            elif setting and setting[1] in SCHEMA:
                default = setting[2].replace('"', "") or '""'
                meaning = " ".join([*comment, setting[3] or ""]).strip()
                meaning = re.sub(r"docs/(\w+\.md)(#[\w-]+)?", r"[\1](\1\2)", meaning)
                meaning = re.sub("^ours: ", "*ours*: ", meaning)
                made += f"| `{setting[1]}` | `{default}` | {meaning} |\n"
            comment = []
    before, _, rest = text.partition(MARKS[0])
    return f"{before}{MARKS[0]}{made}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
