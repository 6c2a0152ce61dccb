"""The HTML of the page: one file, dark text on white, no scripts, no external links."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fairchem_kit.report.page.figures import Figure

_CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 96rem; padding: 1rem clamp(0.8rem, 3vw, 3rem) 4rem;
  background: #fff; color: #111; font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans",
  sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0 0.2rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 0.6rem; padding-top: 0.6rem;
  border-top: 2px solid #222; }
h3 { font-size: 1.02rem; margin: 1.2rem 0 0.4rem; }
p, ul { max-width: 52rem; }
.sub { color: #444; margin-top: 0; }
nav { font-size: 0.92rem; }
nav a { margin-right: 0.9rem; white-space: nowrap; }
a { color: #00508c; }
.figures { display: grid; gap: 1rem 1.4rem;
  grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); }
figure { margin: 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; max-height: 24rem; }
figcaption { font-size: 0.82rem; color: #333; }
/* A table wider than the page says so: a shadow and "scroll" at the edge where it continues. White
   covers that move with the table (local) hide them where it ends. */
.wide { overflow-x: auto; padding-top: 1.2rem; background-repeat: no-repeat; background-image:
  linear-gradient(to right, #fff 60%, transparent), linear-gradient(to left, #fff 90%, transparent),
  @HINT@, linear-gradient(to right, #0005, transparent),
  linear-gradient(to left, #0005, transparent);
  background-size: 2rem 100%, 6.5rem 100%, 4.5rem 1.2rem, 0.9rem 100%, 0.9rem 100%;
  background-position: left, right, right top, left, right;
  background-attachment: local, local, scroll, scroll, scroll; }
.wide:focus-visible, pre:focus-visible { outline: 2px solid #00508c; }
.wide + .figures { margin-top: 1.2rem; }
table { border-collapse: collapse; font-size: 0.9rem; overflow-wrap: normal; }
th, td { padding: 0.28rem 0.7rem; border-bottom: 1px solid #ccc; text-align: left;
  vertical-align: top; }
thead th { border-bottom: 2px solid #222; vertical-align: bottom; }
td.n { white-space: nowrap; font-variant-numeric: tabular-nums; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 0.15rem 1rem;
  margin: 0.4rem 0 1rem; }
dt { color: #444; }
dd { margin: 0; }
.cards { display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); }
pre { font-size: 0.78rem; white-space: pre-wrap; background: #f6f6f6; padding: 0.8rem; }
.warn { border-left: 4px solid #b00020; padding: 0.2rem 0 0.2rem 0.9rem; background: #fff0f0; }
.note { border-left: 4px solid #b35c00; padding: 0.2rem 0 0.2rem 0.9rem; background: #fff8ef; }
@media (max-width: 34rem) { dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dt { font-size: 0.82rem; margin-top: 0.4rem; } }
@media print {
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  nav, details { display: none; }
  .wide { overflow: visible; background: none; padding: 0; }
  table { font-size: 8pt; }
  th, td, td.n { padding: 0.15rem 0.3rem; white-space: normal; overflow-wrap: anywhere; }
  figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .figures { grid-template-columns: repeat(2, 1fr); }
}
"""
_HINT = (
    "url(\"data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' width='72' height='19'%3E"
    "%3Ctext x='66' y='14' text-anchor='end' font-family='sans-serif' font-size='13' "
    "fill='%23444'%3Escroll %E2%86%92%3C/text%3E%3C/svg%3E\")"
)
_CSS = _CSS.replace("@HINT@", _HINT)


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole file.

    Args:
        title: one line. subtitle: HTML. sections: (heading, HTML); an empty one is left out.
    """
    kept = [(heading, body) for heading, body in sections if body]
    links = "".join(f'<a href="#{_anchor(heading)}">{escape(heading)}</a>' for heading, _ in kept)
    body = "".join(
        f'<section id="{_anchor(heading)}"><h2>{escape(heading)}</h2>{text}</section>\n'
        for heading, text in kept
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>\n<body>"
        f'<h1>{escape(title)}</h1><p class="sub">{subtitle}</p><nav>{links}</nav>\n{body}'
        "</body></html>\n"
    )


def _anchor(heading: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in heading.lower())


def figures(drawn: Sequence[Figure]) -> str:
    """A grid of figures; "" for none."""
    if not drawn:
        return ""
    parts = [
        f"<figure>{figure.svg}"
        + (f"<figcaption>{escape(figure.caption)}</figcaption>" if figure.caption else "")
        + "</figure>"
        for figure in drawn
    ]
    return f'<div class="figures">{"".join(parts)}</div>'


def grouped(groups: Sequence[tuple[str, Sequence[Figure]]]) -> str:
    """Figures below their headings."""
    return "".join(
        (f"<h3>{escape(heading)}</h3>" if heading else "") + figures(drawn)
        for heading, drawn in groups
        if drawn
    )


def definitions(pairs: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return f"<dl>{rows}</dl>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def notes(lines: Sequence[str], kind: str = "note") -> str:
    """A list in a box, of the kind ``note`` or ``warn``; "" for none."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="{kind}"><ul>{items}</ul></div>' if lines else ""


def folded(summary: str, text: str) -> str:
    """Preformatted text that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"
