import json

import pytest
from matplotlib.figure import Figure
from PIL import Image

from crosschannel.report import validation_curve


def test_it_shows_every_row_of_the_log(tmp_path, monkeypatch):
    rows = [{"step": 2, "train/loss": 3.0}, {"step": 4, "train/loss": 2.5}]
    rows += [{"step": 4, "val/loss": 2.75, "val/kl_share": 0.9}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (drawn.append(figure), savefig(figure, *a, **k)))
    out = validation_curve(tmp_path, tmp_path / "curve.png", "kl_share", (1.0, "best constant"))
    assert Image.open(out).size == (1080, 432)
    losses, figures = (
        {line.get_label(): tuple(map(tuple, line.get_xydata())) for line in axes.lines} for axes in drawn[0].axes
    )
    assert losses == {"Training": ((2, 3.0), (4, 2.5)), "Validation": ((4, 2.75),)}
    assert figures["Validation"] == ((4, 0.9),)
    assert [y for _, y in figures["Baseline: best constant"]] == pytest.approx([1, 1])
