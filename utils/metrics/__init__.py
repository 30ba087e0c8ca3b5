"""Every measure: its key in metrics files, and how people read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """Its key in metrics.json, its label, and its unit: "%" shows a fraction in percent."""

    name: str
    label: str
    unit: str = "%"
    higher_is_better: bool = True


CLASS_IOU = Measure("iou", "IoU")
TOLERANT = {  # by the tolerance in pixels
    1: Measure("iou_1px", "IoU, 1 px tolerance"),
    2: Measure("iou_2px", "IoU, 2 px tolerance"),
}
SEGMENTATION = (
    Measure("miou", "mIoU"),
    Measure("product_miou", "product mIoU"),
    Measure("fb_iou", "FB-IoU"),
    *TOLERANT.values(),
)
NORMAL = (
    Measure("normal_empty", "normal images left empty"),
    Measure("normal_area", "marked area of normal images", higher_is_better=False),
    Measure("normal_auroc", "AUROC against normal images"),
)
ANOMALY = (
    Measure("image_auroc", "image AUROC"),
    Measure("image_ap", "image AP"),
    Measure("image_f1_max", "image F1-max"),
    Measure("pixel_auroc", "pixel AUROC"),
    Measure("pixel_ap", "pixel AP"),
    Measure("pixel_f1_max", "pixel F1-max"),
    Measure("aupro", "AUPRO"),
)
BY_SIZE = (
    CLASS_IOU,
    Measure("recall", "recall"),
    Measure("false_positive_area", "false-positive area of the image", higher_is_better=False),
    Measure("found", "found defects"),
    Measure("false_alarms", "false alarms per image", "", higher_is_better=False),
)
SECONDS = Measure("rough_seconds_per_image", "rough seconds per image", "s", higher_is_better=False)
MEASURES = {m.name: m for m in (*SEGMENTATION, *NORMAL, *ANOMALY, *BY_SIZE, SECONDS)}
