from crosschannel.report import Heading, Page, Table, Text
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


def test_latex_special_characters_are_all_escaped():
    assert latex_escape("\\&%$#_{}~^") == (r"\textbackslash{}\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}")
    assert latex_escape("plain, text; (a=1)") == "plain, text; (a=1)"


def test_a_page_is_three_files(tmp_path):
    page = Page("Title & more")
    page.add(Heading("First"), Text("a < b"), TABLE)
    assert [path.name for path in page.write(tmp_path)] == ["report.md", "report.html", "tables.tex"]
    assert (tmp_path / "report.md").read_text().startswith("# Title & more\n\n## First\n\na < b\n\n**50 %")
    assert "<title>Title &amp; more</title>" in (tmp_path / "report.html").read_text()
