"""No source unpickles what it reads: what ruff's rules in pyproject.toml do not see."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("datasets", "method_config", "models", "tests", "tools", "utils")


def unpickling(text):
    """Lines of a source that load files without excluding pickles."""
    lines = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            lines += [node.lineno for alias in node.names if alias.name == "load"]
        if isinstance(node, ast.Call):
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            unsafe = ast.unparse(node.func) == "torch.load" and given.get("weights_only") != "True"
            if unsafe or given.get("allow_pickle", "False") != "False":
                lines.append(node.lineno)
    return lines


def test_no_source_unpickles_what_it_reads():
    files = [*ROOT.glob("*.py"), *(p for name in FOLDERS for p in (ROOT / name).rglob("*.py"))]
    names = {file.relative_to(ROOT).as_posix() for file in files}
    assert {"train.py", "tools/cli.py", "models/weights.py"} < names
    assert not [(file, lines) for file in files if (lines := unpickling(file.read_text("utf-8")))]


def test_what_is_unsafe():
    unsafe = ["torch.load(x)", "torch.load(x, weights_only=False)", "torch.load(x, weights_only=w)",
              "from torch import load", "np.load(x, allow_pickle=True)"]  # fmt: skip
    safe = ["torch.load(x, weights_only=True)", "np.load(x)", "json.load(x)", "model.eval()"]
    assert [bool(unpickling(text)) for text in [*unsafe, *safe]] == [True] * 5 + [False] * 4
