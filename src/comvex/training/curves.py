"""The course of a run as a picture."""

from pathlib import Path
from typing import Any

from comvex.inference.task import Task
from comvex.plotting import BLUE, VERMILION, new_figure


def draw_curves(history: list[dict[str, Any]], best: dict[str, Any], file: Path, *, task: Task, title: str) -> None:
    """Loss and the task's criterion over the epochs; ``history`` has the rows of metrics.csv, of which one is best."""
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) < 3 else ""
    with new_figure(file, size=(9, 3.5)) as figure:
        loss, merit = figure.subplots(1, 2)
        loss.plot(
            epochs,
            [row["train_loss"] for row in history],
            color=BLUE,
            marker=marker,
            label="training (smoothed labels)",
        )
        loss.plot(epochs, [row["val_loss"] for row in history], color=VERMILION, marker=marker, label="validation")
        loss.set(title=task.loss_name, xlabel="epoch", ylabel="nats", ylim=(0, None))
        loss.legend()
        values = [row[task.criterion] for row in history]
        merit.plot(epochs, values, color=VERMILION, marker=marker)
        epoch, value = best["epoch"], best[task.criterion]
        merit.plot(epoch, value, "o", color=VERMILION, clip_on=False)
        merit.annotate(f"{value:.1f} %", (epoch, value), (0, -14), textcoords="offset points", ha="right")
        merit.set(title=f"Validation {task.criterion_name}", xlabel="epoch", ylabel="%")
        figure.suptitle(title, x=0.01, ha="left")
