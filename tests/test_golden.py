"""The model, number for number that of the original implementation; skipped where its figures are not at hand."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from models.backbone import Backbone
from tools.checkpoint import head_state, our_name
from models.comparison import Comparison
from models.head import Head, fuse
from models.losses import MixedNormalDiceLoss
from models.priors import downsample_mask, layer_prototype, upsample

GOLDEN = Path(os.environ.get("SOFS_GOLDEN", Path(__file__).parents[1] / ".." / "shared" / "golden"))
if not GOLDEN.is_dir():
    pytest.skip(f"no golden figures in {GOLDEN}; set SOFS_GOLDEN", allow_module_level=True)
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


def run(model, case, masks=None):
    """Every figure of one eval pass, by the golden name."""
    masks = case["support_mask"] if masks is None else masks
    with torch.no_grad():
        memory = model.encode_support(case["support"], masks[:, :, 0])
        compared = Comparison(model.backbone(case["query"]), memory.known)
        semantic, abnormal = compared.priors(memory.summary.weight)
        logits, _ = model.token_logits(compared, memory.summary)
        return {
            "memory": memory,
            "semantic_similarity": semantic,
            "normal_similarity": abnormal,
            "patch_logits": logits,
            "prototype": memory.summary.support_prototype,
            "prob": model.segment(case["query"], memory),
        }


def outputs_of(module, call):
    """What `module` returned while `call` ran."""
    seen = []
    handle = module.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    call()
    handle.remove()
    return seen


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


def test_four_shots(reference, b):
    ours = run(reference, b)
    for name in ("semantic_similarity", "normal_similarity", "patch_logits", "prototype"):
        agree(ours[name], b[name])
    agree(ours["normal_similarity"].amax(1), b["normal_max"])
    agree(upsample(ours["patch_logits"], (70, 70)), b["logits"])
    agree(ours["prob"], b["prob"], 1e-5)


def test_four_shots_features_shares_and_prototype(reference, b):
    query, support = reference.backbone(b["query"]), reference.backbone(b["support"].flatten(0, 1))
    for layer, of_query, of_support in zip(LAYERS, query, support, strict=True):
        agree(of_query, b[f"query_feat_{layer}"])
        agree(of_support, b[f"supp_feat_{layer}"])
    share = downsample_mask(b["support_mask"].flatten(0, 1), 14)
    agree(share, b["mask_ds"], 1e-7)
    agree(layer_prototype(support[0], share[:, 0])[..., None, None], b["weighted_gap_5"])


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("query_reduce", ["down_query"]),
        ("support_reduce", ["down_supp"]),
        ("prototype_reduce", ["down_supp_semantic"]),
        ("support_mix", ["supp_merge"]),
        ("query_mix", ["query_merge"]),
        ("transformer", ["sa_support", "sa_query"]),
    ],
)
def test_four_shots_inside_the_head(reference, b, module, names):
    seen = outputs_of(
        getattr(reference.head, module),
        lambda: reference.segment(b["query"], remember(reference, b)),
    )
    assert len(seen) == len(names)
    for ours, name in zip(seen, names, strict=True):
        agree(ours.flatten(2).transpose(1, 2) if module == "transformer" else ours, b[name])


def remember(model, case):
    return model.encode_support(case["support"], case["support_mask"][:, :, 0])


def test_four_shots_fusion(reference, b):
    """The fusion over the marked tokens only is the original's over all of them."""
    with torch.no_grad():
        memory = remember(reference, b).summary
    query = b["sa_query"].transpose(1, 2).unflatten(2, (5, 5))
    agree(fuse(query, memory.tokens, memory.shares, 0.1), b["transformer_q"])


@pytest.mark.parametrize("shots", ["1shot", "4shot"])
@pytest.mark.parametrize("skip", [True, False])
def test_no_marked_pixel_answers_with_the_abnormal_prior(golden_model, tensors, a, b, shots, skip):
    inputs, case = {"1shot": a, "4shot": b}[shots], tensors("case_c_empty")
    ours = run(
        golden_model(skip_empty_supports=skip), inputs, torch.zeros_like(inputs["support_mask"])
    )
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


def test_skipped_empty_support_is_as_if_it_had_not_been_given(golden_model, tensors, b):
    """Only as a picture of normality it still counts: its tokens stay in the abnormal prior."""
    model, masks, kept = golden_model(), tensors("case_d_mixed")["support_mask"][:1], [0, 1, 3]
    given = {"query": b["query"][:1], "support": b["support"][:1]}
    full = run(model, given, masks)
    fewer = run(model, given | {"support": given["support"][:, kept]}, masks[:, kept])
    agree(full["semantic_similarity"], fewer["semantic_similarity"])
    agree(full["prototype"], fewer["prototype"])
    agree(full["memory"].summary.prototype, fewer["memory"].summary.prototype)
    agree(full["normal_similarity"], tensors("case_d_mixed")["normal_similarity"][:1])
    with torch.no_grad():
        summary = dataclasses.replace(fewer["memory"].summary, weight=full["memory"].summary.weight)
        same_normality = dataclasses.replace(full["memory"], summary=summary)
        agree(full["prob"], model.segment(given["query"], same_normality), 1e-5)
    assert (full["patch_logits"] - tensors("case_d_mixed")["patch_logits"][:1]).abs().max() > 1e-2


def train_mode(model):
    """Training mode with the golden figures' settings: no dropout, BatchNorm frozen."""
    model.train()
    for module in model.head.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def training_step(model, inputs, target, smooth_r):
    """Loss and label map; gradients are left on the model."""
    memory = remember(model, inputs)
    logits, _ = model.token_logits(
        Comparison(model.backbone(inputs["query"]), memory.known), memory.summary
    )
    loss = MixedNormalDiceLoss(smooth_r, 1.0, 0.01)(logits.sigmoid(), target)
    loss.backward()
    return loss.detach(), (upsample(logits.detach(), (70, 70)) > 0).to(torch.uint8)


def check_gradient_norms(model, names, norms):
    ours = {f"head.{n}": p.grad for n, p in model.head.named_parameters()}
    assert sorted(ours) == sorted(our_name(n) for n in names)
    for name, norm in zip(names, norms, strict=True):
        relatively_agree(ours[our_name(name)].norm(), norm)
    return ours


def test_training_target(tensors):
    case = tensors("case_e_train")
    share = downsample_mask(case["target"][:, 0], 14)
    agree(share, case["patch_target_area"], 1e-7)
    assert torch.equal((share > 0.1).to(torch.uint8), case["patch_target"])


@pytest.mark.parametrize("smooth_r", [1, 100000])
@pytest.mark.parametrize("shots", ["1shot", "4shot"])
def test_training_step(golden_model, tensors, a, b, shots, smooth_r):
    case, tag = tensors("case_e_train"), f"{shots}_sr{smooth_r}"
    model = train_mode(golden_model(skip_empty_supports=False))
    loss, label = training_step(
        model, {"1shot": a, "4shot": b}[shots], case["patch_target"], smooth_r
    )
    agree(loss, case[f"loss_{tag}"], 1e-5)
    assert torch.equal(label, case[f"label_{tag}"])
    gradients = check_gradient_norms(model, case["grad_names"], case[f"grad_norm_{tag}"])
    stored = [k for k in case if k.startswith(f"grad_{tag}/")]
    assert len(stored) == 4
    for key in stored:
        relatively_agree(gradients[our_name(key.split("/")[1])], case[key])


def test_convolutional_classifier(golden_model, tensors, b):
    case, model = (
        tensors("case_f_metacls0"),
        golden_model(meta_cls=False, skip_empty_supports=False),
    )
    ours = {}
    (scores,) = outputs_of(
        model.head.classifier, lambda: ours.update(run(model, b | {"query": b["query"]}))
    )[:1]
    agree(scores, case["patch_logits"])
    agree(ours["patch_logits"], case["patch_logits"][:, 1] - case["patch_logits"][:, 0])
    agree(ours["prob"], case["prob"], 1e-5)
    with torch.no_grad():
        memory = remember(model, b).summary
        query = model.head.transformer(b["query_merge"])
    agree(fuse(query, memory.tokens, memory.shares, 0.1), case["transformer_q"])


def test_training_step_of_the_convolutional_classifier(golden_model, tensors, b):
    case = tensors("case_f_metacls0")
    model = train_mode(golden_model(meta_cls=False, skip_empty_supports=False))
    loss, label = training_step(model, b, tensors("case_e_train")["patch_target"], 1)
    agree(loss, case["loss_sr1"], 1e-5)
    assert torch.equal(label, case["label_sr1"])
    check_gradient_norms(model, case["grad_names"], case["grad_norm_sr1"])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("with_backbone", [True, False])
def test_published_state_dict_loads(golden, prefix, with_backbone):
    published = {
        k: v
        for k, v in golden("state_dict").items()
        if with_backbone or not k.startswith("backbone.")
    }
    state = head_state({prefix + k: torch.tensor(v) for k, v in published.items()})
    Head(6 * 48, 12, reduce_dim=32, embed_dim=32).load_state_dict(state, strict=True)
    for name, value in published.items():
        if not name.startswith("backbone."):
            np.testing.assert_array_equal(
                state[our_name(name).removeprefix("head.")].numpy(), value
            )


def test_layer_norms_use_the_published_epsilon(golden_model):
    """Outputs hardly show it, so it is looked at."""
    norms = [m for m in golden_model().modules() if isinstance(m, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}
