"""Figures beside their targets, and tables."""


class Report:
    """Collects claims; each is a figure, a bound, and whether the figure keeps it."""

    def __init__(self):
        self.claims = []
        self.figures = {}

    def at_most(self, what, figure, bound, unit="", note=""):
        self._claim(what, figure, "≤", bound, unit, note, figure is not None and figure <= bound)

    def at_least(self, what, figure, bound, unit="", note=""):
        self._claim(what, figure, "≥", bound, unit, note, figure is not None and figure >= bound)

    def _claim(self, what, figure, relation, bound, unit, note, kept):
        self.claims.append({
            "what": what, "figure": figure, "relation": relation, "bound": bound, "unit": unit, "note": note,
            "kept": kept,
        })

    def print(self):
        rows = [
            ("met" if c["kept"] else "SHORT", c["what"], f"{number(c['figure'])} {c['unit']}".strip(),
             f"{c['relation']} {number(c['bound'])} {c['unit']}".strip(), c["note"])
            for c in self.claims
        ]
        table("Targets", ["", "what", "measured", "target", ""], rows)
        short = sum(not c["kept"] for c in self.claims)
        print(f"\n{len(rows) - short} of {len(rows)} targets met" + (f", {short} fall short" if short else ""))


def number(value):
    """A number with as many digits as mean something."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def table(title, header, rows):
    rows = [[number(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    print(f"\n{title}\n")
    for row in [header, ["─" * width for width in widths], *rows]:
        # Words to the left, figures to the right.
        cells = [
            cell.rjust(width) if cell[:1].isdigit() or cell == "–" or row is header and index > 1 else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        ]
        print("  " + "  ".join(cells).rstrip())
