"""FROC as the challenge's script does it, step by step and pixel by pixel: what ``froc.py`` is held against."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage import measure

L0_MPP, LEVEL = 0.243, 5
RATES = [0.25, 0.5, 1, 2, 4, 8]


def number_lesions(mask: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """(labels, those that are isolated tumour cells) of a mask with tumour = 255."""
    distance = ndimage.distance_transform_edt(255 - mask)
    near = distance < 75 / (L0_MPP * 2**LEVEL * 2)
    labels = measure.label(ndimage.binary_fill_holes(near), connectivity=2)
    longest = 275 / (L0_MPP * 2**LEVEL)
    itc = [region.label for region in measure.regionprops(labels) if region.axis_major_length < longest]
    return labels, itc


def sort_detections(
    rows: np.ndarray, labels: np.ndarray | None, itc: Sequence[int]
) -> tuple[list[float], list[np.float32], int]:
    """(false positives, score per lesion, lesions to be found) of rows (probability, x, y)."""
    if labels is None:
        return list(rows[:, 0]), [], 0
    false_positives = []
    scores = np.zeros(labels.max(), np.float32)
    for probability, x, y in rows:
        label = labels[int(y / 2**LEVEL), int(x / 2**LEVEL)]
        if label == 0:
            false_positives.append(probability)
        elif label not in itc and probability > scores[label - 1]:
            scores[label - 1] = probability
    return false_positives, list(scores), labels.max() - len(itc)


def curve(
    slides: Sequence[tuple[list[float], list[np.float32], int]],
) -> tuple[np.ndarray, np.ndarray]:
    """(false positives per slide, sensitivity), from the lowest threshold to (0, 0)."""
    wrong = [probability for slide in slides for probability in slide[0]]
    right = [score for slide in slides for score in slide[1]]
    wrong_counts, right_counts = [], []
    for threshold in sorted(set(wrong + right))[1:]:
        wrong_counts.append((np.asarray(wrong) >= threshold).sum())
        right_counts.append((np.asarray(right) >= threshold).sum())
    lesions = sum(slide[2] for slide in slides)
    return np.array([*wrong_counts, 0]) / len(slides), np.array([*right_counts, 0]) / lesions


def score(fps_per_slide: np.ndarray, sensitivity: np.ndarray) -> float:
    return float(np.mean(np.interp(RATES, fps_per_slide[::-1], sensitivity[::-1])))
