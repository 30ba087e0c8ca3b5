"""Features kept on disk, by the network inputs that they are of: what is encoded again and again,
such as the supports of a test with many repeats, is encoded once."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.memory import comparison_type
from utils.errors import BROKEN
from utils.output_files import whole_file


class FeatureCache:
    """Features of one backbone in a folder, a file per network input.

    They are kept in the type of comparisons, so half precision rounds them once more than without
    a cache.

    Args:
        folder: where the files lie; runs may share it, and one may be killed at any time.
        channels: of each layer.
        identity: what tells this backbone, with its layers, from others.
    """

    def __init__(self, folder: str | Path, channels: Sequence[int], identity: str) -> None:
        self.folder, self.channels, self.identity = Path(folder), list(channels), identity

    def __call__(self, encode: Callable[[Tensor], list[Tensor]], images: Tensor) -> list[Tensor]:
        """Per layer (B, C_l, h, w) of images (B, 3, H, W): those that are not kept yet go through
        `encode` in one pass."""
        dtype = comparison_type(images.device)
        files = [self._file(image, dtype) for image in images]
        kept = [self._read(file, dtype) for file in files]
        missing = [i for i, tokens in enumerate(kept) if tokens is None]
        if missing:
            # a pass of one image is rounded in another way than one of several
            some = images[missing if len(missing) > 1 else missing * 2]
            maps = torch.cat([layer.to(dtype) for layer in encode(some)], dim=1)[: len(missing)]
            for i, tokens in zip(missing, maps.movedim(1, -1).cpu(), strict=True):
                kept[i] = tokens
                raw = tokens.contiguous().view(torch.int16) if dtype.itemsize == 2 else tokens
                content = io.BytesIO()
                np.save(content, raw.numpy())  # into a file it would not tell of a full disk
                with whole_file(files[i]) as file:
                    file.write(content.getbuffer())
        joined = torch.stack(kept).to(images.device).movedim(-1, 1)
        return list(joined.split(self.channels, dim=1))

    def _file(self, image: Tensor, dtype: torch.dtype) -> Path:
        about = f"{self.identity} {tuple(image.shape)} {dtype}".encode()
        pixels = image.float().cpu().contiguous().numpy()
        name = hashlib.blake2b(pixels, digest_size=20, key=hashlib.sha256(about).digest())
        return self.folder / name.hexdigest()[:2] / f"{name.hexdigest()}.npy"

    def _read(self, file: Path, dtype: torch.dtype) -> Tensor | None:
        """(h, w, C) of a file; None where there is none, or a broken one, which is made anew."""
        try:
            with file.open("rb") as opened:
                # not np.load, which takes other formats, and fails in other ways at an empty file
                tokens = torch.from_numpy(np.lib.format.read_array(opened))
        except BROKEN:
            return None
        return tokens.view(dtype) if dtype.itemsize == 2 else tokens
