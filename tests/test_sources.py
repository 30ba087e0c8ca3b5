"""No source, of the tests neither, runs what it reads: no pickle, no evaluated text, no shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("datasets", "method_config", "models", "tests", "tools", "utils")
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
YAML = {"yaml.load", "yaml.load_all"}
SAFE = {"SafeLoader", "CSafeLoader", "BaseLoader"}


def sources() -> list[Path]:
    return [*ROOT.glob("*.py"), *(path for part in PARTS for path in (ROOT / part).rglob("*.py"))]


def dotted(node: ast.expr) -> str:
    """Name of what is called, `a.b.c`; "" where it is no name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_safe(loader: ast.expr) -> bool:
    """Whether a YAML loader makes plain values alone."""
    if isinstance(loader, ast.IfExp):
        return is_safe(loader.body) and is_safe(loader.orelse)
    return dotted(loader).rsplit(".", 1)[-1] in SAFE


def called(node: ast.Call) -> str | None:
    """What is wrong with a call."""
    name = dotted(node.func)
    given = {word.arg: word.value for word in node.keywords}
    constant = {arg: value.value for arg, value in given.items() if isinstance(value, ast.Constant)}
    if name in BUILTINS | SHELLS:
        return f"calls {name}"
    if "shell" in given and constant.get("shell", True) is not False:
        return f"{name} with a shell"
    if name == "torch.load" and constant.get("weights_only") is not True:
        return "torch.load without weights_only=True"
    if name.rsplit(".", 1)[-1] == "load" and constant.get("allow_pickle", "allow_pickle" in given):
        return f"{name} with allow_pickle"
    loaders = [*node.args[1:], *([given["Loader"]] if "Loader" in given else [])]
    if name in YAML and not any(is_safe(loader) for loader in loaders):
        return f"{name} without a safe loader"
    return None


def faults(text: str) -> Iterator[str]:
    """What in a source could run what it reads."""
    for node in ast.walk(ast.parse(text)):
        names = set(imported(node))
        modules = {name.split(".")[0] for name in names} & MODULES
        if refused := modules or names & (SHELLS | YAML | {"torch.load"}):
            yield f"line {node.lineno}: imports {', '.join(sorted(refused))}"
        if isinstance(node, ast.Call) and (fault := called(node)):
            yield f"line {node.lineno}: {fault}"


def test_no_source_runs_what_it_reads():
    texts = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in sources()}
    assert {"train.py", "tools/cli.py", "models/weight_files.py"} < set(texts)
    assert not [f"{name}, {fault}" for name, text in texts.items() for fault in faults(text)]


REFUSED = """import pickle | import os, joblib.memory as m | from dill import loads | eval(x)
exec('a') | compile(a, b, c) | import os; os.system('ls') | from os import popen
run(x, shell=True) | run(x, shell=y) | torch.load(x) | torch.load(x, weights_only=False)
torch.load(x, weights_only=w) | from torch import load | yaml.load(x) | yaml.load(x, yaml.Loader)
yaml.load(x, Loader=yaml.SafeLoader if a else yaml.Loader) | np.load(x, allow_pickle=True)
yaml.load(x, Loader=yaml.Loader) | numpy.load(x, allow_pickle=a)"""
ALLOWED = """import pickletools | re.compile(x) | model.eval() | run(x, shell=False) | json.load(x)
os.path.join(a) | torch.load(x, weights_only=True) | yaml.load(x, Loader=yaml.SafeLoader)
yaml.load(x, Loader=yaml.BaseLoader if a else yaml.SafeLoader) | yaml.safe_load(x) | np.load(x)"""


def test_what_would_be_found():
    for text in REFUSED.replace("\n", " | ").split(" | "):
        assert len(list(faults(text))) == 1, text
    for text in ALLOWED.replace("\n", " | ").split(" | "):
        assert not list(faults(text)), text
