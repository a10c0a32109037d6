"""What a figure's key in ``metrics.json`` is called among people."""

WORDS = {"auc": "AUC", "ece": "calibration error", "mae": "MAE", "rmse": "RMSE", "r2": "R²", "f1": "F1",
         "brier": "Brier score"}  # fmt: skip


def figure_name(key: str) -> str:
    """``auc_macro`` is ``AUC macro``."""
    return " ".join(WORDS.get(word, word) for word in key.split("_"))
