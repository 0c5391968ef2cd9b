"""Report pages with headings, text, tables and figures, written as Markdown, HTML and LaTeX tables."""

import base64
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import quote

from crosschannel.console import escape_control
from crosschannel.files import Writer, atomic_write

FILES = ("report.md", "report.html", "tables.tex")
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
p.caption { font-weight: 600; margin: 1.5rem 0 .4rem; } p.caption + .scroll table { margin-top: 0; }
th, td { padding: .25rem .7rem; text-align: right; }
td + td { white-space: nowrap; } th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #1f2933; } tbody tr:last-child td { border-bottom: 1px solid #9aa5b1; }
tr.published td { color: #616e7c; font-style: italic; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; } figcaption { color: #616e7c; }
pre { background: #f5f7fa; padding: .8rem; overflow-x: auto; font-size: .85rem; } code { font-size: .9em; }
.scroll { overflow-x: auto; width: max-content; max-width: calc(50vw + 50% - 1rem); }
"""


@dataclass
class Table:
    """A table of text cells; the first column holds row labels.

    Attributes:
        caption: caption above the table.
        head: column titles.
        rows: cells, row by row.
        published: number of leading rows with published results, which are formatted differently.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    published: int = 0

    def markdown(self) -> str:
        rows = [[markdown(cell) for cell in row] for row in self.rows]
        cells = [[markdown(cell) for cell in self.head], ["---", *["---:"] * (len(self.head) - 1)]]
        cells += [[f"*{cell}*" for cell in row] for row in rows[: self.published]] + rows[self.published :]
        return f"**{markdown(self.caption)}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"

    def html(self) -> str:
        head = "".join(f"<th>{escape(cell)}</th>" for cell in self.head)
        body = "".join(
            f"<tr{' class=published' if i < self.published else ''}>"
            + "".join(f"<td>{escape(cell)}</td>" for cell in row)
            + "</tr>\n"
            for i, row in enumerate(self.rows)
        )
        caption, rows = escape(self.caption), f"<thead><tr>{head}</tr></thead><tbody>\n{body}</tbody>"
        return f'<p class="caption">{caption}</p><div class="scroll"><table aria-label="{caption}">{rows}</table></div>'

    def latex(self) -> str:
        """Format a table for the LaTeX package booktabs."""
        rows = [" & ".join(map(latex_escape, row)) + r" \\" for row in self.rows]
        if 0 < self.published < len(rows):
            rows.insert(self.published, r"\midrule")
        head = " & ".join(map(latex_escape, self.head)) + r" \\"
        lines = [
            r"\begin{table}", r"\centering", rf"\caption{{{latex_escape(self.caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(self.head) - 1)}}}", r"\toprule", head, r"\midrule", *rows,
            r"\bottomrule", r"\end{tabular}", r"\end{table}",
        ]  # fmt: skip
        return "\n".join(lines) + "\n"


@dataclass
class Heading:
    """A section heading."""

    text: str
    level: int = 2

    def markdown(self) -> str:
        return f"{'#' * self.level} {markdown(self.text)}\n"

    def html(self) -> str:
        return f"<h{self.level}>{escape(self.text)}</h{self.level}>"


@dataclass
class Text:
    """A paragraph; text in backticks is set as code."""

    text: str

    def markdown(self) -> str:
        return f"{markdown(self.text)}\n"

    def html(self) -> str:
        text = re.sub("`([^`]+)`", r"<code>\1</code>", escape(self.text))
        return f"<p>{text}</p>"


@dataclass
class Figure:
    """A picture file next to the page; the HTML page embeds it.

    Attributes:
        path: path of the picture.
        caption: caption below the picture.
        draw: function that writes the picture, given a :data:`~crosschannel.files.Writer`; None if the file exists.
    """

    path: Path
    caption: str
    draw: Callable[[Writer], object] | None = None

    def markdown(self) -> str:
        label = markdown(self.caption).replace("[", "&#91;").replace("]", "&#93;")
        return f"![{label}]({quote(self.path.name)})\n\n{markdown(self.caption)}\n"

    def html(self) -> str:
        data = base64.b64encode(self.path.read_bytes()).decode()
        image = f'<img alt="{escape(self.caption)}" src="data:image/png;base64,{data}">'
        return f"<figure>{image}<figcaption>{escape(self.caption)}</figcaption></figure>"


def copied(picture: Path, path: Path, caption: str) -> Figure:
    """Create a figure by copying an existing picture to ``path``."""

    def copy(write: Writer) -> None:
        with write(path) as part:
            shutil.copyfile(picture, part)

    return Figure(path, caption, copy)


@dataclass
class Listing:
    """Preformatted text in a collapsed block below a summary line."""

    summary: str
    text: str

    def markdown(self) -> str:
        fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", self.text)), default=0))
        text = escape_control(self.text)
        return f"<details><summary>{escape(self.summary)}</summary>\n\n{fence}\n{text}\n{fence}\n\n</details>\n"

    def html(self) -> str:
        return f"<details><summary>{escape(self.summary)}</summary><pre>{escape(self.text)}</pre></details>"


Block = Table | Heading | Text | Figure | Listing


@dataclass
class Page:
    """A title and blocks, in order."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block) -> None:
        self.blocks += blocks

    def files(self, folder: Path) -> list[Path]:
        """Return the paths that :meth:`write` writes: the figures, and ``FILES`` in the folder."""
        return [*(block.path for block in self.blocks if isinstance(block, Figure)), *(folder / name for name in FILES)]

    def write(self, folder: Path, write: Writer = atomic_write) -> list[Path]:
        """Draw the figures and write ``FILES``.

        Args:
            folder: output folder.
            write: context manager that opens an output file.

        Returns:
            the paths of ``FILES``.
        """
        for block in self.blocks:
            if isinstance(block, Figure) and block.draw:
                block.draw(write)
        blocks = [Heading(self.title, 1), *self.blocks]
        html = (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head><body>\n"
            + "\n".join(block.html() for block in blocks)
            + "\n</body></html>\n"
        )
        tables = [block.latex() for block in self.blocks if isinstance(block, Table)]
        markdown_text = "\n".join(block.markdown() for block in blocks)
        texts = (markdown_text, html, "% requires \\usepackage{booktabs}\n" + "\n".join(tables))
        for name, text in zip(FILES, texts, strict=True):
            with write(folder / name) as part:
                part.write_text(escape_control(text), encoding="utf-8")
        return [folder / name for name in FILES]


def markdown(text: object) -> str:
    """Escape text for one line of Markdown, so that it cannot form HTML, links, images, references or table cells.

    Brackets become entities, because a backslash before an escaped bracket would undo the escape.
    """
    line = " ".join(escape_control(text).split())
    line = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)
    line = re.sub(r"\](?=\s*[(\[:])", "&#93;", line)
    return re.sub(r"(\\*)\|", r"\1\1\\|", line)  # double preceding backslashes, which would undo the escape


def latex_escape(text: str) -> str:
    """Escape the special characters of LaTeX."""
    escapes = {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--",
    }  # fmt: skip
    return "".join(escapes.get(character, character) for character in text)
