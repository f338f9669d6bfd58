"""The built-in data sets: real ones, which scikit-learn carries with it, so that no network is needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

from trainer.data.source import Rows


def load_digit_images() -> Rows:
    """1,797 handwritten digits as (1, 8, 8) images. Their grey values 0 to 16 become 0 to 1."""
    x, y = load_digits(return_X_y=True)
    return Rows((x / 16).astype(np.float32).reshape(-1, 1, 8, 8), y.astype(np.int64))


def load_breast_cancer_table() -> Rows:
    """569 cell samples of 30 columns, malignant (0) or benign (1)."""
    x, y = load_breast_cancer(return_X_y=True)
    return Rows(x.astype(np.float32), y.astype(np.int64))


def load_diabetes_table() -> Rows:
    """442 patients of 10 columns, with the disease's progression after one year."""
    x, y = load_diabetes(return_X_y=True)
    return Rows(x.astype(np.float32), y.astype(np.float32))


SOURCES: dict[str, Callable[[], Rows]] = {
    "digits": load_digit_images,
    "breast_cancer": load_breast_cancer_table,
    "diabetes": load_diabetes_table,
}
