"""The course of a run as a picture."""

from pathlib import Path
from typing import Any

from comvex.plotting import BLUE, VERMILION, new_figure


def draw_curves(history: list[dict[str, Any]], file: Path, *, title: str) -> None:
    """Loss and validation accuracy over the epochs; ``history`` has the rows of metrics.csv."""
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) < 3 else ""
    with new_figure(file, size=(9, 3.5)) as figure:
        loss, accuracy = figure.subplots(1, 2)
        loss.plot(
            epochs,
            [row["train_loss"] for row in history],
            color=BLUE,
            marker=marker,
            label="training (smoothed labels)",
        )
        loss.plot(epochs, [row["val_loss"] for row in history], color=VERMILION, marker=marker, label="validation")
        loss.set(title="Cross-entropy", xlabel="epoch", ylabel="nats", ylim=(0, None))
        loss.legend()
        accuracy.plot(epochs, [row["val_top1"] for row in history], color=VERMILION, marker=marker)
        best = max(history, key=lambda row: (row["val_top1"], -row["val_loss"]))
        accuracy.plot(best["epoch"], best["val_top1"], "o", color=VERMILION, clip_on=False)
        accuracy.annotate(
            f"{best['val_top1']:.1f} %",
            (best["epoch"], best["val_top1"]),
            (0, -14),
            textcoords="offset points",
            ha="right",
        )
        accuracy.set(title="Validation top-1 accuracy", xlabel="epoch", ylabel="%")
        figure.suptitle(title, x=0.01, ha="left")
