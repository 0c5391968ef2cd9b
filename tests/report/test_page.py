from pathlib import Path

import pytest

from crosschannel.report import Figure, Heading, Page, Table, Text
from crosschannel.report.page import latex_escape

TABLE = Table("50 % of a_b & c", ["net", "x|y"], [["theirs", "1.0"], ["<ours>", "2.0 ± 0.1"]], published=1)


def test_a_table_is_the_same_in_every_format():
    assert "| *theirs* | *1.0* |\n| &lt;ours> | 2.0 ± 0.1 |" in TABLE.markdown() and "x\\|y" in TABLE.markdown()
    html = TABLE.html()
    assert "<tr class=published><td>theirs</td><td>1.0</td></tr>" in html and "<td>&lt;ours&gt;</td>" in html
    latex = TABLE.latex()
    assert r"\caption{50 \% of a\_b \& c}" in latex and r"2.0 $\pm$ 0.1 \\" in latex
    assert latex.index("theirs") < latex.index(r"\midrule", latex.index("theirs")) < latex.index("<ours>")
    assert latex.count(r"\begin{") == latex.count(r"\end{") == 2


HOSTILE = [
    "[click](javascript:alert(1))",
    "![x](https://example.org/pixel.png)",
    r"\[x\](javascript:alert(1))",
    r"\\[x\\](javascript:alert(1))",
    "[x]  (javascript:alert(1))",
    "[x][y] [y]: javascript:alert(1)",
    "[y]: javascript:alert(1) 'title'",
    "<javascript:alert(1)>",
    "<img src=x onerror=alert(1)>",
    "</td><script>alert(1)</script>",
    "<!-- hidden",
    "<?php ?>",
    "`[x](javascript:alert(1))",
    "a](javascript:alert(1)) ![b",
    "a|b",
    r"a\|b",
    "x\n\n<script>alert(1)</script>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_anywhere_is_no_link_image_or_html_in_markdown(text):
    """Read by another program's parser of Markdown."""
    reader = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    own = Figure(Path("a b.png"), text)
    blocks = [Table(text, ["net", text], [[text, text]]), Heading(text), Text(text), own]
    types = []
    for block in blocks:
        tokens = reader.parse(block.markdown())
        inner = [child for token in tokens for child in token.children or ()]
        types.append([token.type for token in (*tokens, *inner)])
        images = [child.attrs["src"] for child in inner if child.type == "image"]
        assert images in ([], ["a%20b.png"]) and (block is own or not images)
    assert not {kind for kinds in types for kind in kinds} & {"link_open", "html_block", "html_inline"}
    assert types[0].count("td_open") == 2 and types[0].count("th_open") == 2


def test_plain_text_reads_in_markdown_as_it_is():
    assert Text("95 % [1.2, 3.4], a < b, conv1 (fc6)").markdown() == "95 % [1.2, 3.4], a < b, conv1 (fc6)\n"


def test_latex_special_characters_are_all_escaped():
    assert latex_escape("\\&%$#_{}~^") == (r"\textbackslash{}\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}")
    assert latex_escape("plain, text; (a=1)") == "plain, text; (a=1)"


def test_a_page_is_three_files(tmp_path):
    page = Page("Title & more")
    page.add(Heading("First"), Text("a < b"), TABLE)
    assert [path.name for path in page.write(tmp_path)] == ["report.md", "report.html", "tables.tex"]
    assert (tmp_path / "report.md").read_text().startswith("# Title & more\n\n## First\n\na < b\n\n**50 %")
    assert "<title>Title &amp; more</title>" in (tmp_path / "report.html").read_text()
