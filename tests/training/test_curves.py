"""The course of a run as pictures: they are drawn for every kind of run, and show what the tables say."""

import pytest
from matplotlib.figure import Figure
from PIL import Image

from comvex.files import read_table
from comvex.inference.task import SingleLabel
from comvex.training.curves import draw_curves, draw_heads


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to look at what is on them."""
    figures, save = [], Figure.savefig

    def keep(figure: Figure, *arguments, **options) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def lines(axes) -> list[list[float]]:
    return [[float(value) for value in line.get_ydata()] for line in axes.lines]


def test_heads_are_drawn_thin_and_each_layers_mean_thick(small_run, tmp_path, drawn):
    rows = read_table(small_run / "heads.csv")
    draw_heads(rows, tmp_path / "heads.png", title="a run")
    titles = [axes.get_title(loc="left") for axes in drawn[0].axes]
    assert titles == ["Gate", "Non-locality", "Non-locality, content"]
    gates, blended, _ = drawn[0].axes
    num_heads = len({row["head"] for row in rows})
    thick = [line for line in blended.lines if line.get_linewidth() == 2 and len(line.get_ydata())]
    assert len(thick) == 2  # one local layer and one that is not
    assert len([line for line in gates.lines if line.get_linewidth() == 0.7]) == num_heads
    first = [row["nonlocality_blended"] for row in rows if (row["layer"], row["epoch"]) == (0, 0)]
    assert list(thick[0].get_xdata()) == list(range(11))  # from before the first step
    assert thick[0].get_ydata()[0] == pytest.approx(sum(first) / num_heads)
    assert [text.get_text() for text in drawn[0].legends[0].texts] == ["layer 0", "layer 1"]
    with Image.open(tmp_path / "heads.png") as picture:
        assert picture.width > 1200


def test_layers_that_differ_by_little_fill_the_panels_and_no_title_runs_into_the_legend(tmp_path, drawn):
    rows = [
        {"epoch": epoch, "layer": layer, "head": 0, "gate": 0.73 + layer / 1000, "nonlocality_content": 7 + layer / 100,
         "nonlocality_positional": 1.0, "nonlocality_blended": 5 + layer / 100}
        for epoch in (1, 2) for layer in range(12)
    ]  # fmt: skip
    draw_heads(rows, tmp_path / "heads.png", title="a run")
    drawn[0].set_dpi(300)  # which saving has set back
    for axes in drawn[0].axes:
        low, high = axes.get_ylim()
        assert high - low < 0.02 if "Gate" in axes.get_title(loc="left") else high - low < 0.2
        assert axes.get_tightbbox().x1 <= drawn[0].legends[0].get_window_extent().x0


def test_a_plain_vision_transformer_has_no_panel_of_gates(tmp_path, drawn):
    rows = [
        {"epoch": epoch, "layer": layer, "head": 0, "gate": None, "nonlocality_content": 2.0,
         "nonlocality_positional": None, "nonlocality_blended": 2.0}
        for epoch in (1, 2) for layer in (0, 1)
    ]  # fmt: skip
    draw_heads(rows, tmp_path / "heads.png", title="a run")
    assert "Gate" not in " ".join(axes.get_title(loc="left") for axes in drawn[0].axes)


@pytest.mark.parametrize("num_epochs", [1, 5])
def test_curves_show_loss_accuracy_learning_rate_and_gradient_norm(tmp_path, drawn, num_epochs):
    history = [
        {"epoch": epoch, "step": 10 * epoch, "learning_rate": 1e-3 / epoch, "train_loss": 2 / epoch,
         "gradient_norm": 1.0 + epoch, "val_loss": 3 / epoch, "val_top1": 10.0 * epoch, "val_top5": 90.0}
        for epoch in range(1, num_epochs + 1)
    ]  # fmt: skip
    draw_curves(history, history[-1], tmp_path / "curves.png", task=SingleLabel(), title="a run")
    by_title = {axes.get_title(loc="left"): lines(axes) for axes in drawn[0].axes}
    assert by_title["Cross-entropy"] == [[row[name] for row in history] for name in ("train_loss", "val_loss")]
    assert by_title["Validation top-1 accuracy"][0] == [row["val_top1"] for row in history]
    assert by_title["Learning rate"] == [[row["learning_rate"] for row in history]]
    assert by_title["Gradient norm before clipping"] == [[row["gradient_norm"] for row in history]]
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1200
