"""`python -m method_config` makes the tables of docs/configuration.md from defaults.py."""

from __future__ import annotations

import re
from pathlib import Path

from method_config.values import SCHEMA

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
MARKS = "<!-- tables made by python -m method_config -->\n", "<!-- end of the tables -->\n"
# a line that sets a key: name, default, and the comment behind it
_KEY = re.compile(r"""(?:_C\.|    ")?([\w.]+)(?: =|":) (.+?),?(?:  # (.*))?""")


def tables() -> str:
    """The headings (## in a comment) and keys of defaults.py and published.py as Markdown."""
    text, comment = "", []
    for name in ("defaults.py", "published.py"):
        for line in Path(__file__).with_name(name).read_text("utf-8").splitlines():
            setting = _KEY.fullmatch(line)
            if line.startswith("# ## "):
                text += f"\n{line[2:]}\n\n| key | default | meaning |\n|---|---|---|\n"
            elif line.startswith("# "):
                comment.append(line[2:])
                continue
            elif setting and setting[1] in SCHEMA:
                text += _row(setting[1], setting[2], " ".join([*comment, setting[3] or ""]).strip())
            comment = []
    return text + "\n"


def _row(key: str, default: str, meaning: str) -> str:
    default = default.replace('"', "") or '""'
    meaning = re.sub(r"docs/(\w+\.md)(#[\w-]+)?", r"[\1](\1\2)", meaning)
    meaning = re.sub("^ours: ", "*ours*: ", meaning)
    return f"| `{key}` | `{default}` | {meaning} |\n"


def page(text: str) -> str:
    """`text` with new tables between the two marks."""
    before, _, rest = text.partition(MARKS[0])
    return before + MARKS[0] + tables() + MARKS[1] + rest.partition(MARKS[1])[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
