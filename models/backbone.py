"""The frozen feature extractor: a timm model that returns one feature map per chosen layer."""

from __future__ import annotations

import difflib
import itertools
import logging
from collections.abc import Callable, Sequence

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.attention import attend, use_kernel, use_xformers
from models.feature_cache import FeatureCache
from models.weights import BACKBONES, digest, load_backbone_weights, load_timm, of_file
from utils.errors import ConfigError

LOG = logging.getLogger(__name__)
TIMM_PREFIX = "timm:"
FOLDED_ERROR = 1e-3  # of features, relative, when batch norms are folded; rounding makes 1e-6


class Backbone(nn.Module):
    """A frozen timm model whose chosen layers are returned on one common token grid.

    It stays in eval mode whatever `train()` is called with, and never builds a graph.

    Args:
        model: a timm model with `forward_intermediates`.
        layers: indices of transformer blocks, or of a convolutional network's levels, ascending.
        stride: side of one token in pixels of the network input.
        source: which weights these are, for the files of a run.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[int], stride: int, source: str = "random"
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.layers, self.stride, self.source = list(layers), stride, source
        self._identity = ""  # of the exact weights, once they are no longer held
        self.cache: FeatureCache | None = None
        self.runtime: Callable[[Tensor], list[Tensor]] | None = None
        self.position_directions = 0
        is_vit = isinstance(model, VisionTransformer)
        self.by_token = is_vit and model.patch_embed.patch_size == (stride, stride)
        # from pixels normalised for ImageNet to those that the model was trained on
        mean, std = map(torch.tensor, (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        trained_mean, trained_std = (torch.tensor(model.pretrained_cfg[k]) for k in ("mean", "std"))
        for name, value in (("scale", std), ("offset", mean - trained_mean)):
            value = (value / trained_std).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    @property
    def channels(self) -> list[int]:
        """Channels of each returned map."""
        return [self.model.feature_info[i]["num_chs"] for i in self.layers]

    def train(self, mode: bool = True) -> Backbone:
        return super().train(False)

    @property
    def identity(self) -> str:
        """A digest of the exact weights, whatever precision they are held in."""
        return self._identity or digest(self.model.state_dict())

    def hold_weights(self, dtype: torch.dtype) -> None:
        """Keep the weights of linear and convolution layers in the type to which autocast converts
        them at every pass: the same figures in half the memory, for good.
        """
        self._identity = self.identity
        for module in self.model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(dtype)

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)  # whose rounding is larger than what is looked for
    def fold_batch_norms(self, image_size: int) -> None:
        """Multiply what batch norms do into the convolutions before them, in place: features stay
        the same up to rounding, and a pass takes two thirds of the time on a CPU.

        Which convolution is before which norm is seen in a pass of one image of noise. Where that
        changes its features, as a convolution serves elsewhere, too, all stays as it was.

        Args:
            image_size: side of the square network input in pixels.
        """
        self._identity = self.identity
        outputs: dict[int, tuple[nn.Module, Tensor, int]] = {}
        pairs: list[tuple[nn.Module, nn.Module]] = []

        def remember(convolution: nn.Module, _: object, output: Tensor) -> None:
            outputs[id(output)] = convolution, output, output._version

        def pair(norm: nn.Module, inputs: tuple[Tensor]) -> None:
            convolution, _, version = outputs.get(id(inputs[0]), (None, None, 0))
            if convolution is not None and version == inputs[0]._version:  # nothing changed it
                pairs.append((convolution, norm))

        hooks = []
        for module in self.model.modules():
            if isinstance(module, nn.Conv2d):
                hooks.append(module.register_forward_hook(remember))
            elif isinstance(module, nn.BatchNorm2d):
                hooks.append(module.register_forward_pre_hook(pair))
        generator = torch.Generator().manual_seed(0)  # the global one is the head's
        noise = torch.randn(1, 3, image_size, image_size, generator=generator)
        expected = self.encode_by_torch(noise)
        for hook in hooks:
            hook.remove()
        names = {module: name for name, module in self.model.named_modules()}
        for convolution, norm in pairs:
            self.model.set_submodule(names[convolution], fuse_conv_bn_eval(convolution, norm))
            self.model.set_submodule(names[norm], getattr(norm, "act", nn.Identity()))
        folded = zip(self.encode_by_torch(noise), expected, strict=True)
        if any((ours - theirs).norm() > FOLDED_ERROR * theirs.norm() for ours, theirs in folded):
            for module in itertools.chain(*pairs):
                self.model.set_submodule(names[module], module)

    def run_by(self, runtime: Callable[[Tensor], list[Tensor]]) -> None:
        """Encode by a runtime, see `models.runtime`, and let go of the weights in torch."""
        self._identity, self.runtime = self.identity, runtime
        self.model.to("meta")

    def _apply(self, fn: Callable, recurse: bool = True) -> Backbone:
        return self if self.runtime is not None else super()._apply(fn, recurse)

    @torch.inference_mode()
    def leave_out_position(self, directions: int, image_size: int) -> None:
        """From now on return tokens without the leading directions, so many per layer, in which
        those of a blank image differ: they tell where in the window a token lies, not what is there
        (Yang et al. 2024, Denoising Vision Transformers).

        Args:
            directions: 0: tokens stay as they are.
            image_size: side of the square network input in pixels.

        Raises:
            ConfigError: a layer has no more channels, or no more tokens, than directions.
        """
        most = min(*self.channels, (image_size // self.stride) ** 2) - 1
        if directions > most:
            raise ConfigError(
                f"TRAIN.position_directions is {directions}, but the layers have at most {most} "
                "that could be left out; 4 are a good choice"
            )
        self.position_directions = directions
        if directions:
            blank = torch.zeros(1, 3, image_size, image_size, device=self.scale.device)
            for number, layer in enumerate(self.encode_by_torch(blank)):
                tokens = layer[0].flatten(1).T.float()
                leading = torch.linalg.svd(tokens - tokens.mean(0), full_matrices=False).Vh
                self.register_buffer(f"position_{number}", leading[:directions], persistent=False)

    def without_position(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_l, h, w) of all layers without the directions of `leave_out_position`."""
        if not self.position_directions:
            return list(maps)
        left = []
        for number, layer in enumerate(maps):
            directions = getattr(self, f"position_{number}").to(layer.dtype)
            tokens = layer.flatten(2).transpose(1, 2)
            tokens = tokens - tokens @ directions.T @ directions
            left.append(tokens.transpose(1, 2).unflatten(2, layer.shape[-2:]))
        return left

    @torch.inference_mode()
    def forward(self, images: Tensor) -> list[Tensor]:
        """One (B, C_l, H / stride, W / stride) map per layer; later layers do not run.

        They are outputs of the blocks before the final norm, without class and register tokens and
        what `leave_out_position` says, and inference tensors: what trains on one copies it first,
        as the head does where it concatenates the layers.

        Args:
            images: (B, 3, H, W) float, normalised with ImageNet mean and std; H and W multiples of
                `stride`.
        """
        encode = self.runtime or self.encode_by_torch
        maps = encode(images) if self.cache is None else self.cache(encode, images)
        # of a runtime, too, as comparisons want the channels of a token side by side
        maps = [layer.contiguous(memory_format=torch.channels_last) for layer in maps]
        return self.without_position(maps)

    def encode_by_torch(self, images: Tensor) -> list[Tensor]:
        """The maps by torch, whatever cache there is."""
        grid = (images.shape[-2] // self.stride, images.shape[-1] // self.stride)
        if not self.by_token:  # convolutions of a CPU take half the time
            images = images.contiguous(memory_format=torch.channels_last)
        maps = self.model.forward_intermediates(
            images * self.scale + self.offset, indices=self.layers, norm=False, stop_early=True,
            output_fmt="NLC" if self.by_token else "NCHW", intermediates_only=True,
        )  # fmt: skip
        # views: the tokens stay side by side in memory, as comparisons and 1 x 1 convolutions want
        if self.by_token:
            return [m.transpose(1, 2).unflatten(2, grid) for m in maps]
        return [to_grid(m, grid) for m in maps]


def to_grid(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bring a (B, C, h, w) map to the token grid: averaged if it is finer, bilinear if coarser."""
    if features.shape[-2] > grid[0] or features.shape[-1] > grid[1]:
        return F.adaptive_avg_pool2d(features, grid)
    if features.shape[-2:] != grid:
        return F.interpolate(features, grid, mode="bilinear", align_corners=False)
    return features


def timm_name_of(name: str) -> str:
    """timm's name of a backbone; ConfigError lists the names that there are."""
    timm_name = BACKBONES.get(name) or name.removeprefix(TIMM_PREFIX)
    listed = name in BACKBONES or name.startswith(TIMM_PREFIX)
    if not listed or not timm.is_model(timm_name):
        near = "".join(f" Did you mean {n}?" for n in difflib.get_close_matches(name, BACKBONES, 1))
        raise ConfigError(
            f"TRAIN.backbone is {name}; the backbones are {', '.join(BACKBONES)}, or "
            f"{TIMM_PREFIX}NAME with a name of timm.list_models().{near}"
        )
    model = timm_name.partition(".")[0]
    names = [model, *timm.list_models(f"{model}.*", pretrained=True)]
    if timm_name not in names:
        raise ConfigError(
            f"TRAIN.backbone: timm has no weights {timm_name}, only {', '.join(names)}"
        )
    return timm_name


def check_backbone(name: str, *, layers: Sequence[int], image_size: int, stride: int) -> None:
    """Try a backbone without weights, data and memory, see `build_backbone`.

    ConfigError: it is unknown, lacks a layer, has other patches, or does not take such images.
    """
    with torch.device("meta"):
        model = timm.create_model(timm_name_of(name), num_classes=0)
        if not hasattr(model, "forward_intermediates"):
            raise ConfigError(f"TRAIN.backbone: {name} has no features of layers; choose another")
        if hasattr(model, "set_input_size"):
            model.set_input_size((image_size, image_size))
        count = len(model.feature_info)
        if not layers or max(layers) >= count:
            raise ConfigError(
                f"TRAIN.SOFS.prior_layer_pointer is {list(layers)}, but the layers of {name} are "
                f"0 to {count - 1}"
            )
        patch = model.patch_embed.patch_size[0] if isinstance(model, VisionTransformer) else stride
        if name in BACKBONES and patch != stride:
            raise ConfigError(
                f"TRAIN.SOFS.vit_patch_size is {stride}, but the patches of {name} are {patch}"
            )
        try:
            Backbone(model, layers, stride)(torch.empty(1, 3, image_size, image_size))
        except (AssertionError, RuntimeError, ValueError) as error:
            if "meta" in str(error):  # a model that looks at values while it runs
                return
            sides = model.pretrained_cfg.get("input_size", (3, image_size, image_size))[1:]
            raise ConfigError(
                f"DATASET.image_size is {image_size}, but {name} does not take images of this size "
                f"({error!s:.200}); it was made for {sides[0]} x {sides[1]}: set "
                "DATASET.image_size and mask_size, or choose another backbone"
            ) from error


def build_backbone(
    name: str, *, layers: Sequence[int], image_size: int, stride: int, checkpoint: str = "",
    sha256: str = "", pretrained: bool = True, attention: str = "sdpa",
) -> Backbone:  # fmt: skip
    """Build a backbone by name with its weights.

    ConfigError: see `check_backbone`; WeightsError: missing or unfitting weights.

    Args:
        name: a name of `BACKBONES`, or `timm:NAME`.
        layers, stride: see `Backbone`; the stride of a ViT is its patch.
        image_size: side of the square input in pixels; position embeddings are resized to it once.
        checkpoint: weights file; empty for the official (or embedded) weights.
        sha256: expected checksum of that file; empty: unchecked.
        pretrained: False leaves random weights, for tests and speed measurements.
        attention: `sdpa`, or `xformers` on CUDA.
    """
    check_backbone(name, layers=layers, image_size=image_size, stride=stride)
    timm_name, source, about = timm_name_of(name), "random", "random"
    if pretrained and name not in BACKBONES:
        model = load_timm(timm_name, checkpoint, sha256)
        source, about = of_file(checkpoint)[1:] if checkpoint else ("timm", "those of timm")
    else:
        model = timm.create_model(timm_name, num_classes=0)
    if hasattr(model, "set_input_size"):
        model.set_input_size((image_size, image_size))
    if pretrained and name in BACKBONES:
        _, source, about = load_backbone_weights(model, name, checkpoint, sha256)
    LOG.info("weights of %s: %s", name, about)
    use_xformers(model) if attention == "xformers" else use_kernel(model, attend)
    backbone = Backbone(model, layers, stride, source)
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        backbone.fold_batch_norms(image_size)
    return backbone
