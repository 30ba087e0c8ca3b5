"""Exported models give the masks of those they were made of, without any of this program's code."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import onnxruntime
import openvino
import pytest
from PIL import Image
from safetensors.numpy import load_file

from datasets.images import read_image
from models.build import build_method
from tests.helpers import TINY, draw_defect, surface, tiny_config
from tools.checkpoint import save_head
from tools.export.__main__ import main
from tools.export.encoder import NEAR
from tools.predictor import Predictor

WHOLE = {"DATASET__name": "VISION_V1"}  # every image is one window


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    """A folder of the tests' own in which exported encoders are kept, for all of their processes:
    an export takes seconds."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(folder / "encoders"))
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folder of six square pictures of 64 pixels with a defect each, and the masks of two."""
    folder, rng, masks = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1), []
    for number in range(6):
        image = surface((64, 64), rng)
        top, bottom, left, right = draw_defect(image, "line" if number % 2 else "spot", rng)
        Image.fromarray(image).save(folder / f"{number}.png")
        masks.append(np.zeros((64, 64), np.uint8))
        masks[-1][top:bottom, left:right] = 1
    return folder, masks


@pytest.fixture
def arguments(tmp_path):
    """Arguments of the command by settings of `tiny_config`, for the folder `exported`."""
    values = TINY | {"DATASET.name": "VISION_V1", "TEST.baseline": False}

    def build(*options, **changes):
        opts = values | {key.replace("__", "."): value for key, value in changes.items()}
        words = [str(part) for pair in opts.items() for part in pair]
        file = tmp_path / "run.yaml"
        file.write_text("NUM_GPUS: 1\n")
        out = str(tmp_path / "exported")
        return ["--cfg", str(file), "--out", out, *options, "--opts", *words]

    return build


def taught(cfg, pictures, file):
    """A predictor that was taught by two pictures and one of them as normal, saved to a file."""
    folder, masks = pictures
    predictor = Predictor.from_config(cfg)
    names = [folder / f"{number}.png" for number in range(3)]
    predictor.set_support(names, [masks[0], masks[1], None])
    predictor.save_support(file)
    return predictor


def window(path, about):
    """An image as the manifest says it is to be given: (1, 3, S, S) float32."""
    pixels = read_image(path).astype(np.float32) / 255
    mean, std = (np.array(about[name], np.float32) for name in ("mean", "std"))
    return ((pixels - mean) / std).transpose(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("form", "method", "directions"),
    [("onnx", "SOFS", 2), ("onnx", "prior", 0), ("openvino", "contrast", 0)],
)
def test_both_graphs_give_the_scores_of_the_predictor(
    form, method, directions, pictures, arguments, tmp_path
):
    """By the manifest alone: inputs, normalisation, memory and threshold. OpenVINO reads the graphs
    in ONNX, too."""
    changes = {"TEST__method": method, "TRAIN__SOFS__prior_residual": True} | WHOLE
    changes["TRAIN__SOFS__transformer_num_stages"] = 1  # each takes seconds to export
    changes["TRAIN__position_directions"] = directions
    cfg = tiny_config(tmp_path, tmp_path, TEST__baseline=False, **changes)
    if method == "SOFS":
        head, model = tmp_path / "head.safetensors", build_method(cfg, method)
        save_head(head, model, cfg.dump())
        changes |= {"TEST__load_checkpoint": True, "TEST__load_model_path": str(head)}
        cfg = tiny_config(tmp_path, tmp_path, TEST__baseline=False, **changes)
    support = tmp_path / "support.safetensors"
    predictor = taught(cfg, pictures, support)
    options = ("--format", form, "--support", str(support), "--images", str(pictures[0]))
    assert main(arguments(*options, **changes)) == 0
    folder = tmp_path / "exported"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["answer"]["normal_images"] == 1 and manifest["answer"]["method"] == method

    runs = {}
    for part in ("encoder", "answer"):
        file, options = folder / manifest[part]["file"], {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(file, "CPU", options)
        runs["openvino", part] = lambda inputs, model=compiled: list(model(inputs).values())
        if form == "onnx":
            session = onnxruntime.InferenceSession(file)
            runs["onnx", part] = lambda inputs, model=session: model.run(None, inputs)

    memory = load_file(folder / manifest["memories"][0]["file"])
    encoder = manifest["encoder"]
    for number in range(3, 6):
        path = pictures[0] / f"{number}.png"
        wanted, about = predictor.predict(path), manifest["answer"]
        for runtime in {runtime for runtime, _ in runs}:
            images = {encoder["input"]["name"]: window(path, encoder["input"])}
            features = runs[runtime, "encoder"](images)
            outputs = [output["name"] for output in encoder["outputs"]]
            named = dict(zip(outputs, features, strict=True))
            inputs = {name: (named | memory)[name] for name in about["inputs"]}
            (score,) = runs[runtime, "answer"](inputs)
            np.testing.assert_allclose(score[0], wanted.score, atol=1e-4)
            mask = (score[0] > about["threshold"]) & (score.max() > about["gate"])
            assert (mask != wanted.mask).mean() <= 1e-3


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_int8_is_calibrated_and_runs_in_every_job(form, pictures, arguments, tmp_path, capsys):
    """Its features are near to those of torch, or as near as with more products in floating point;
    it takes less than half of the bytes of the weights, and TEST.runtime_path runs it."""
    options = ("--format", form, "--images", str(pictures[0]), "--precision", "int8")
    assert main(arguments(*options, TEST__method="prior")) == 0
    encoder = json.loads((tmp_path / "exported" / "manifest.json").read_text())["encoder"]
    stem = (tmp_path / "exported" / encoder["file"]).stem
    size = max(file.stat().st_size for file in (tmp_path / "exported").glob(f"{stem}.*"))
    assert encoder["precision"] == "int8" and 1e-3 < encoder["relative_error"] < 0.2
    tries = re.findall(r"first (\d+) products .* cosine (.*)", capsys.readouterr().out)
    far = {int(kept): 1 - float(cosine) for kept, cosine in tries}
    kept, cosine = encoder["products_in_floating_point"], encoder["centred_cosine"]
    assert 1 - far[kept] == pytest.approx(cosine, abs=1e-4)
    assert cosine >= NEAR or (len(far) == 5 and far[kept] <= 1.1 * min(far.values()) + 1e-4)
    runs = {"TEST__runtime": "auto", "TEST__runtime_path": str(tmp_path / "exported")}
    by_torch, by_int8 = (
        taught(tiny_config(tmp_path, tmp_path, TEST__method="prior", **WHOLE, **more), pictures,
               tmp_path / "support")
        for more in ({}, runs)
    )  # fmt: skip
    assert by_int8.backbone.runtime is not None
    assert size < sum(weight.nbytes for weight in by_torch.backbone.parameters()) / 2
    differ = [
        (by_torch.predict(path).mask != by_int8.predict(path).mask).mean()
        for path in sorted(pictures[0].glob("*.png"))
    ]
    assert np.mean(differ) < 0.03
    other = tiny_config(
        tmp_path, tmp_path, TRAIN__SOFS__prior_layer_pointer=[1, 2], **WHOLE, **runs
    )
    from utils.errors import WeightsError

    with pytest.raises(WeightsError, match=r"the export of another encoder.*\[1, 2, 3\]"):
        Predictor.from_config(other)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--format", "onnx", "--precision", "bf16"), "no bf16 products on CPUs"),
        (("--images", "{empty}"), "holds no image"),
        (("--images", "{folder}/0.png", "--support", "{folder}/none"), "no such support file"),
        (("--images", "{folder}/0.png", "--support", "{normal}"), "holds normal images alone"),
    ],
)
def test_mistakes_end_with_one_message(options, fault, pictures, arguments, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    predictor = Predictor.from_config(
        tiny_config(tmp_path, tmp_path, TEST__method="prior", **WHOLE)
    )
    predictor.set_support([pictures[0] / "0.png"], [None])
    predictor.save_support(tmp_path / "normal")
    places = {"empty": tmp_path / "empty", "folder": pictures[0], "normal": tmp_path / "normal"}
    given = [option.format(**places) for option in options]
    assert main(arguments(*given, TEST__method="prior")) == 2
    assert fault in capsys.readouterr().err
    assert not (tmp_path / "exported" / "manifest.json").exists()
