"""The model and its gradients, number for number the published implementation's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from models.backbone import Backbone
from models.comparison import Comparison
from models.head import Head, fuse
from models.losses import MixedNormalDiceLoss
from models.memory import label
from models.priors import downsample_mask, layer_prototype, upsample
from tools.checkpoint import head_state, our_name

LAYERS = range(5, 11)


def agree(ours, reference, tolerance=5e-5):
    """Features and logits; probabilities at 1e-5."""
    assert_close(ours, reference, rtol=0, atol=tolerance)


def relatively_agree(ours, reference):
    """Gradients: within 1e-4 of the largest entry."""
    assert_close(ours, reference, rtol=1e-4, atol=1e-4 * float(reference.abs().max()))


@pytest.fixture(scope="module")
def reference(golden_model):
    """The tiny model averaging as published."""
    return golden_model(skip_empty_supports=False)


@pytest.fixture(scope="module")
def a(tensors):
    return tensors("case_a_1shot")


@pytest.fixture(scope="module")
def b(tensors):
    return tensors("case_b_4shot")


@torch.no_grad()
def compare(model, case, masks=None):
    """The queries of a case beside a memory of their supports each."""
    masks = case["support_mask"] if masks is None else masks
    features, share = model.backbone(case["support"].flatten(0, 1)), model.shares(masks[:, :, 0])
    extras = {model.name: model.encode(features, share)}
    return Comparison(model.backbone(case["query"]), replace(label(features, share), extras=extras))


@torch.no_grad()
def figures(model, compared):
    """Every figure of one pass in eval mode, by the golden name."""
    kept = compared.memory.extras[model.name]
    return {
        "semantic_similarity": compared.semantic_prior(kept["weight"]),
        "normal_similarity": compared.abnormal_prior,
        "patch_logits": model.token_logits(compared, kept),
        "prototype": kept["support_prototype"],
        "prob": model.answer(compared, (70, 70)),
    }


def run(model, case, masks=None):
    return figures(model, compare(model, case, masks))


def test_backbone_with_resized_position_embedding(tensors, golden_vit):
    case, vit = tensors("backbone_interp"), golden_vit(98)
    features = Backbone(vit, LAYERS, 14)(case["image"])
    agree(features[0], case["feat_5"])
    agree(features[-1], case["feat_10"])
    with torch.no_grad():
        agree(vit.forward_features(case["image"])[:, 0], case["cls_norm"])


def test_one_shot(reference, a):
    ours = run(reference, a)
    for name in ("semantic_similarity", "normal_similarity", "patch_logits"):
        agree(ours[name], a[name])
    agree(ours["prob"], a["prob"], 1e-5)
    agree(torch.stack([1 - ours["prob"], ours["prob"]], 1)[..., ::7, ::7], a["out"], 1e-5)


@torch.no_grad()
def test_four_shots_and_all_figures_inside_the_head(reference, b):
    names = {
        "query_reduce": ["down_query"], "support_reduce": ["down_supp"],
        "prototype_reduce": ["down_supp_semantic"], "support_mix": ["supp_merge"],
        "query_mix": ["query_merge"], "transformer": ["sa_support", "sa_query"],
    }  # fmt: skip
    seen, hooks = {name: [] for name in names}, []
    for name in names:
        module = getattr(reference.head, name)
        hooks += [module.register_forward_hook(lambda *args, n=name: seen[n].append(args[-1]))]
    compared = compare(reference, b)
    reference.answer(compared, (70, 70))
    for hook in hooks:
        hook.remove()
    for module, expected in names.items():
        for x, name in zip(seen[module], expected, strict=True):
            agree(x.flatten(2).transpose(1, 2) if module == "transformer" else x, b[name])
    supports = reference.backbone(b["support"].flatten(0, 1))
    for layer, *maps in zip(LAYERS, compared.features, supports, strict=True):
        agree(maps, [b[f"query_feat_{layer}"], b[f"supp_feat_{layer}"]])
    share = downsample_mask(b["support_mask"].flatten(0, 1), 14)
    agree(share, b["mask_ds"], 1e-7)
    agree(layer_prototype(supports[0], share[:, 0])[..., None, None], b["weighted_gap_5"])
    ours, kept = figures(reference, compared), compared.memory.extras["SOFS"]
    for name in ("semantic_similarity", "normal_similarity", "patch_logits", "prototype"):
        agree(ours[name], b[name])
    agree(ours["normal_similarity"].amax(1), b["normal_max"])
    agree(upsample(ours["patch_logits"], (70, 70)), b["logits"])
    agree(ours["prob"], b["prob"], 1e-5)
    # the fusion over the marked tokens alone is the published one over all of them
    query = b["sa_query"].transpose(1, 2).unflatten(2, (5, 5))
    agree(fuse(query, kept["tokens"], kept["shares"], 0.1), b["transformer_q"])


@pytest.mark.parametrize("skip", [True, False])
def test_no_marked_pixel_answers_with_the_abnormal_prior(golden_model, tensors, a, b, skip):
    case, model = tensors("case_c_empty"), golden_model(skip_empty_supports=skip)
    for shots, inputs in (("1shot", a), ("4shot", b)):
        ours = run(model, inputs, torch.zeros_like(inputs["support_mask"]))
        agree(ours["normal_similarity"], case[f"normal_similarity_{shots}"])
        agree(ours["prob"], case[f"prob_{shots}"], 1e-5)
        assert torch.equal(ours["patch_logits"], case[f"patch_logits_{shots}"])


def test_mixed_batch_as_published(reference, tensors, a, b):
    case = tensors("case_d_mixed")
    ours = run(reference, b, case["support_mask"])
    for name in ("semantic_similarity", "normal_similarity", "patch_logits", "prototype"):
        agree(ours[name], case[name])
    agree(ours["prob"], case["prob"], 1e-5)
    agree(run(reference, a, case["support_mask_1shot"])["prob"], case["prob_1shot"], 1e-5)


def test_a_skipped_empty_support_is_as_if_it_had_not_been_given(golden_model, tensors, b):
    """Only as a picture of normality it still counts: its tokens stay in the abnormal prior."""
    model, case, rest = golden_model(), tensors("case_d_mixed"), [0, 1, 3]
    masks = case["support_mask"][:1]
    given = {"query": b["query"][:1], "support": b["support"][:1]}
    full = compare(model, given, masks)
    fewer = compare(model, given | {"support": given["support"][:, rest]}, masks[:, rest])
    ours, expected = figures(model, full), figures(model, fewer)
    agree(ours["semantic_similarity"], expected["semantic_similarity"])
    agree(ours["normal_similarity"], case["normal_similarity"][:1])
    kept, kept_of_fewer = (c.memory.extras["SOFS"] for c in (full, fewer))
    for name in ("prototype", "support_prototype"):
        agree(kept[name], kept_of_fewer[name])
    extras = {"SOFS": kept_of_fewer | {"weight": kept["weight"]}}
    same = Comparison(full.features, replace(full.memory, extras=extras))
    agree(ours["prob"], figures(model, same)["prob"], 1e-5)
    assert (ours["patch_logits"] - case["patch_logits"][:1]).abs().max() > 1e-2


def trainable(model):
    """Training mode with the settings of the golden figures: no dropout, BatchNorm frozen."""
    model.train()
    for module in model.head.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def training_step(model, inputs, target, smooth_r):
    """Loss, label map and gradients by our names."""
    query, supports = model.backbone(inputs["query"]), inputs["support"].flatten(0, 1)
    masks = inputs["support_mask"][:, :, 0]
    logits = model.episode_logits(query, model.backbone(supports), masks)
    loss = MixedNormalDiceLoss(smooth_r, 1.0, 0.01)(logits.sigmoid(), target)
    loss.backward()
    gradients = {f"head.{n}": p.grad for n, p in model.head.named_parameters()}
    return loss.detach(), (upsample(logits.detach(), (70, 70)) > 0).to(torch.uint8), gradients


def check_norms(gradients, names, norms):
    assert sorted(gradients) == sorted(our_name(n) for n in names)
    for name, norm in zip(names, norms, strict=True):
        relatively_agree(gradients[our_name(name)].norm(), norm)


@pytest.mark.parametrize("smooth_r", [1, 100000])
@pytest.mark.parametrize("shots", ["1shot", "4shot"])
def test_training_step(golden_model, tensors, a, b, shots, smooth_r):
    case, tag = tensors("case_e_train"), f"{shots}_sr{smooth_r}"
    share = downsample_mask(case["target"][:, 0], 14)
    agree(share, case["patch_target_area"], 1e-7)
    assert torch.equal((share > 0.1).to(torch.uint8), case["patch_target"])
    model, inputs = trainable(golden_model(skip_empty_supports=False)), {"1shot": a, "4shot": b}
    loss, label_map, gradients = training_step(model, inputs[shots], case["patch_target"], smooth_r)
    agree(loss, case[f"loss_{tag}"], 1e-5)
    assert torch.equal(label_map, case[f"label_{tag}"])
    check_norms(gradients, case["grad_names"], case[f"grad_norm_{tag}"])
    stored = [k for k in case if k.startswith(f"grad_{tag}/")]
    assert len(stored) == 4
    for key in stored:
        relatively_agree(gradients[our_name(key.split("/")[1])], case[key])


def test_convolutional_classifier_and_its_training_step(golden_model, tensors, b):
    case = tensors("case_f_metacls0")
    model, seen = golden_model(meta_cls=False, skip_empty_supports=False), []
    hook = model.head.classifier.register_forward_hook(lambda *args: seen.append(args[-1]))
    compared = compare(model, b)
    ours, kept = figures(model, compared), compared.memory.extras["SOFS"]
    hook.remove()
    agree(seen[0], case["patch_logits"])
    agree(ours["patch_logits"], case["patch_logits"][:, 1] - case["patch_logits"][:, 0])
    agree(ours["prob"], case["prob"], 1e-5)
    with torch.no_grad():
        query = model.head.transformer(b["query_merge"])
    agree(fuse(query, kept["tokens"], kept["shares"], 0.1), case["transformer_q"])
    target = tensors("case_e_train")["patch_target"]
    loss, label_map, gradients = training_step(trainable(model), b, target, 1)
    agree(loss, case["loss_sr1"], 1e-5)
    assert torch.equal(label_map, case["label_sr1"])
    check_norms(gradients, case["grad_names"], case["grad_norm_sr1"])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("with_backbone", [True, False])
def test_published_checkpoint_loads(golden, prefix, with_backbone):
    """Outputs hardly show the epsilon of the layer norms, so it is looked at."""
    head, published = Head(6 * 48, 12, reduce_dim=32, embed_dim=32), golden("state_dict")
    given = [n for n in published if with_backbone or not n.startswith("backbone.")]
    state = head_state({prefix + name: torch.tensor(published[name]) for name in given})
    head.load_state_dict(state, strict=True)
    for name in (n for n in published if not n.startswith("backbone.")):
        ours = state[our_name(name).removeprefix("head.")]
        np.testing.assert_array_equal(ours.numpy(), published[name])
    assert {m.eps for m in head.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
