"""The test job: measure on the test objects of a split, or on what its data set asks for."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from datasets.build import build_normal_images, build_test_index, view_settings
from datasets.queries import Query
from datasets.readers import reader_of
from datasets.samples import SampleIndex
from tools.anomaly import detect_anomalies
from tools.evaluator import (
    NoQueryError,
    Protocol,
    Teacher,
    episode_queries,
    evaluate,
    test_episodes,
)
from tools.gallery import Entry, chosen, query_panels, support_panels, write_gallery
from tools.job import begin, run_job
from tools.methods import weights_files
from tools.open_domain import segment_open_domain
from tools.predictor import Predictor
from tools.results import Evaluation
from utils.distributed import barrier, is_main
from utils.errors import DataError
from utils.output_files import sha256_of, write_json
from utils.run_folder import provenance, run_facts

LOG = logging.getLogger(__name__)


def run_test(cfg: CfgNode, config_file: str) -> Path:
    """Run test.py's job in NUM_GPUS processes; returns the run's folder."""
    kinds = {
        "episodes": test_split,
        "anomaly": detect_anomalies,
        "open_domain": segment_open_domain,
    }
    job = kinds[reader_of(cfg.DATASET.name).kind]
    return run_job(job, cfg, config_file, cfg.NUM_GPUS)


def test_split(cfg: CfgNode, folder: Path) -> list[str]:
    """Evaluate every test set of the config and write log, metrics, figures and gallery into `folder`. Returns a line
    for each set that could not be tested."""
    tests = {
        name: SplitTest(cfg, build_test_index(cfg, name), folder, name)
        for name in cfg.DATASET.sub_datasets
    }
    predictor = Predictor.from_config(cfg)
    begin(folder, cfg, "test.log", reads=weights_files(cfg))
    head = (
        {"head_sha256": sha256_of(cfg.TEST.load_model_path)} if "SOFS" in predictor.methods else {}
    )
    failed = []
    for test in tests.values():
        try:
            evaluation = test.run(predictor)
        except NoQueryError as error:  # what the other sets give is not lost
            failed.append(f"{test.name} could not be tested: {error}")
            continue
        if is_main():
            test.record(evaluation, f"test of {test.name}", **head)
            test.write_gallery(predictor, evaluation)
    if len(failed) == len(tests):
        raise DataError("; ".join(failed))
    return failed


class SplitTest:
    """A test by the protocol of the config.

    Args:
        cfg: the config.
        index: what is tested.
        folder: of the run.
        name: of the test set; files of others than `original` carry it.
    """

    def __init__(self, cfg: CfgNode, index: SampleIndex, folder: Path, name: str) -> None:
        self.cfg, self.index, self.folder, self.name = cfg, index, folder, name
        self.suffix = "" if name == "original" else f"_{name.replace('/', '_')}"
        visualize, data = cfg.TEST.VISUALIZE, cfg.DATASET
        self.settings = view_settings(cfg)
        self.protocol = Protocol(
            shot=data.shot,
            seed=cfg.RNG_SEED,
            repeats=data.few_shot_repeated_multiple,
            multiple=data.test_sample_repeated_multiple,
            scale_by=cfg.TEST.query_scale,
            normal_shot=data.normal_shot,
            normal=build_normal_images(cfg, index.objects(), name),
            num_workers=cfg.TRAIN_SETUPS.num_workers,
            batch_size=cfg.TEST_SETUPS.batch_size,
            figures=folder / f"figures{self.suffix}" if visualize.save_figure else None,
            figure_probability=visualize.sample_prob,
        )

    def run(self, predictor: Predictor) -> Evaluation:
        """Evaluate; all processes call it and get the same. Pictures of an earlier test go."""
        for note in self.index.notes:
            LOG.info("%s", note)
        LOG.info(
            "%d samples of %d classes in %s",
            len(self.index),
            len(self.index.classes()),
            self.index.root,
        )
        if is_main():
            for kind in ("figures", "gallery"):
                shutil.rmtree(self.folder / f"{kind}{self.suffix}", ignore_errors=True)
        barrier()
        return evaluate(predictor, self.index, self.settings, self.protocol)

    def record(self, evaluation: Evaluation, title: str, **more: Any) -> None:
        """Log the table; write metrics, counts of every query, and curves."""
        cfg = self.cfg
        LOG.info(
            "%s, split %d, %d-shot\n%s",
            title,
            cfg.DATASET.split,
            cfg.DATASET.shot,
            evaluation.table(),
        )
        write_json(
            self._file("metrics", "json"),
            run_facts(cfg) | evaluation.report() | more | provenance(),
        )
        evaluation.write_queries(self._file("queries", "csv"))
        write_json(self._file("curves", "json"), evaluation.curve_report())
        LOG.info("figures and metrics in %s", self.folder)

    def write_gallery(self, predictor: Predictor, evaluation: Evaluation) -> None:
        """Ask for the worst, median and best query of every class once more, and keep pictures of them."""
        write_gallery(self.folder / f"gallery{self.suffix}", self._entries(predictor, evaluation))

    def _entries(self, predictor: Predictor, evaluation: Evaluation) -> Iterator[Entry]:
        places = chosen(evaluation, predictor.main)
        episodes = test_episodes(self.index, self.protocol)
        numbers = [result.number for _, result in places]
        queries = episode_queries(
            episodes, self.settings, self.protocol, (0,), numbers, keep_pairs=True
        )
        teacher = Teacher(predictor, self.protocol)
        ious = {(r.number, r.method): r.iou for r in evaluation.results if r.repeat == 0}
        for (rank, result), query in zip(
            places, (queries[i] for i in range(len(queries))), strict=True
        ):
            if isinstance(query, Query) and (answers := teacher.answers(query).get(0)):
                panels = support_panels(query.supports[0].pairs) + query_panels(
                    query.image, query.target, answers
                )
                scores = {method: ious[result.number, method] for method in evaluation.methods}
                yield Entry(query.sample.class_name, rank, query.sample.image, scores, panels)

    def _file(self, stem: str, kind: str) -> Path:
        return self.folder / f"{stem}{self.suffix}.{kind}"
