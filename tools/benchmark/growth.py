"""How time and memory grow with the number of windows and of supports.

    python -m tools.benchmark.growth WINDOWS ... < config

is the process whose memory is measured: it segments one image of so many windows after the other, and prints its peak
memory and its seconds for each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
from yacs.config import CfgNode

from tools.benchmark.figures import AT_MOST, EXACTLY, Figure
from tools.benchmark.inference import (
    background_tokens,
    counted_passes,
    random_image,
    random_predictor,
    teach,
)
from tools.open_domain_files import write_answers

SECTION = "growth"
_MB = 1e6
_MOST_MEMORY, _MOST_TIME, _MOST_SUPPORTS = 200, 1.10, 1.3


def measure_growth(
    cfg: CfgNode, windows: tuple[int, int, int], *, slack: float = 1.0
) -> list[Figure]:
    """Peak memory from one batch to many windows, and time per window, measured in a process of its own.

    Args:
        cfg: the config; weights may be random.
        windows: of the three images: the memory of the first is the reference, the time per window of the second.
        slack: factor on the bound of the time.
    """
    command = [sys.executable, "-m", "tools.benchmark.growth", *map(str, windows)]
    done = subprocess.run(command, input=cfg.dump(), text=True, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    first, some, many = (found[str(n)] for n in windows)
    return [
        Figure(SECTION, f"peak memory, {windows[0]} windows (model and one batch)", first["peak"] / _MB, "MB"),
        Figure(SECTION, f"peak memory, {windows[2]} windows, more than that", (many["peak"] - first["peak"]) / _MB,
               "MB", _MOST_MEMORY, AT_MOST),
        Figure(SECTION, f"backbone passes for {windows[2]} windows", many["passes"], bound=windows[2], kind=EXACTLY),
        Figure(SECTION, f"time per window, {windows[2]} over {windows[1]} windows",
               many["seconds"] / windows[2] / (some["seconds"] / windows[1]), bound=_MOST_TIME * slack, kind=AT_MOST),
    ]  # fmt: skip


def measure_supports(
    cfg: CfgNode, supports: int, windows: int, *, repeats: int, slack: float = 1.0
) -> list[Figure]:
    """Time per window with many supports beside that with one, both with bounded memory, in turn within one run.

    Args:
        cfg: the config; weights may be random.
        supports: support images, each in several views.
        windows: of the image.
        repeats: the least times of so many are compared.
        slack: factor on the bound.
    """
    predictor = random_predictor(cfg)
    memories = []
    for count in (1, supports):
        teach(predictor, count)
        memories.append(predictor.memory)
    image = random_image((predictor.settings.crop_size, windows * predictor.settings.crop_size))
    times: list[list[float]] = [[], []]
    for _ in range(repeats):
        for seconds, memory in zip(times, memories, strict=True):
            predictor.memory = memory
            start = time.perf_counter()
            predictor.predict(image)
            seconds.append(time.perf_counter() - start)
    kept = background_tokens(memories[1])
    return [
        Figure(SECTION, f"background tokens of {supports} supports", kept, bound=cfg.TEST.memory_tokens, kind=AT_MOST),
        Figure(SECTION, f"time per window, {supports} supports over 1", min(times[1]) / min(times[0]),
               bound=_MOST_SUPPORTS * slack, kind=AT_MOST),
    ]  # fmt: skip


def _measure_here(cfg: CfgNode, counts: list[int]) -> dict[str, dict[str, float]]:
    predictor = random_predictor(cfg)
    teach(predictor)
    side = predictor.settings.crop_size
    found = {}
    with TemporaryDirectory(prefix="sofs_benchmark_") as folder:
        for count in counts:
            rows = next(n for n in range(int(count**0.5), 0, -1) if count % n == 0)
            file = Path(folder) / f"{count}.jpg"
            cv2.imwrite(str(file), random_image((rows * side, count // rows * side)))
            _forget_peak()
            with counted_passes(predictor.backbone) as passes:
                start = time.perf_counter()
                (outcome,) = predictor.segment([file], predictor.memory)
                write_answers(
                    Path(folder), str(count), outcome.image, {"": outcome.answers["SOFS"]}
                )
                seconds = time.perf_counter() - start
            found[str(count)] = {"peak": _peak_bytes(), "seconds": seconds, "passes": sum(passes)}
            del outcome
    return found


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    """Largest resident memory of this process since `_forget_peak`, bytes; Linux tells it."""
    line = next(
        li for li in Path("/proc/self/status").read_text().splitlines() if li.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


def main() -> None:
    """The measured process."""
    cfg = CfgNode.load_cfg(sys.stdin.read())
    print(json.dumps(_measure_here(cfg, [int(n) for n in sys.argv[1:]])))


if __name__ == "__main__":
    main()
