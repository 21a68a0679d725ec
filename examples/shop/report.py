"""The sales report: its figures by SQL, its drawing with fpdf2. The job monthly_report joins the two.

PDF's own fonts know Latin-1 only, so amounts are in EUR and not in its sign.
"""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from fpdf import FPDF
from sqlalchemy import ColumnElement, Date, cast, func, select
from sqlalchemy.orm import Session

from examples.shop.models import Order, Product

INK, PALE, ACCENT, GREY = (24, 38, 66), (238, 241, 247), (226, 104, 62), (110, 118, 134)
LEFT, WIDTH = 18, 174  # mm, of an A4 page


@dataclass(frozen=True)
class Figures:
    """A month's sales. Only paid orders are revenue."""

    first: date
    orders: int
    revenue: Decimal
    unpaid: int
    by_day: list[Decimal]  # revenue of day 1, 2, ...
    best: list[tuple[str, int, Decimal]]  # name, pieces, revenue

    @property
    def average(self) -> Decimal:
        return self.revenue / self.orders if self.orders else Decimal(0)


def figures(session: Session, month: date) -> Figures:
    first = month.replace(day=1)
    following = (first + timedelta(days=31)).replace(day=1)
    start, end = (datetime(day.year, day.month, 1, tzinfo=UTC) for day in (first, following))
    within: ColumnElement[bool] = (Order.ordered_at >= start) & (Order.ordered_at < end)
    paid = within & Order.paid_at.is_not(None)
    day = cast(func.timezone("UTC", Order.ordered_at), Date)
    revenue = func.sum(Order.total)

    orders, total = session.execute(select(func.count(), func.coalesce(revenue, Decimal(0))).where(paid)).one()
    unpaid = session.scalar(select(func.count()).where(within, Order.paid_at.is_(None))) or 0
    days = {
        row.day: row.revenue
        for row in session.execute(select(day.label("day"), revenue.label("revenue")).where(paid).group_by(day))
    }
    best = (
        select(Product.name, func.sum(Order.quantity), revenue)
        .join(Order, Order.sku == Product.sku)
        .where(paid)
        .group_by(Product.sku)
        .order_by(revenue.desc())
        .limit(8)
    )
    length = monthrange(first.year, first.month)[1]
    by_day = [days.get(first + timedelta(days=number), Decimal(0)) for number in range(length)]
    return Figures(
        first, orders, total, unpaid, by_day, [(name, pieces, sold) for name, pieces, sold in session.execute(best)]
    )


def draw(figures: Figures) -> bytes:
    pdf = FPDF(format="A4")
    pdf.set_auto_page_break(False)
    pdf.set_title(f"Sales in {figures.first:%B %Y}")
    pdf.c_margin = 0  # text starts where the boxes start
    pdf.add_page()
    _band(pdf, figures)
    _tiles(pdf, figures)
    _chart(pdf, figures)
    _best_sellers(pdf, figures)
    _text(pdf, LEFT, 281, WIDTH, f"Made {datetime.now(UTC):%d %B %Y at %H:%M} UTC by the job monthly_report.", 8, GREY)
    return bytes(pdf.output())


def _band(pdf: FPDF, figures: Figures) -> None:
    pdf.set_fill_color(*INK)
    pdf.rect(0, 0, 210, 38, style="F")
    _text(pdf, LEFT, 11, WIDTH, "THE PRINT SHOP", 9, (168, 180, 206))
    _text(pdf, LEFT, 18, WIDTH, f"Sales in {figures.first:%B %Y}", 24, (255, 255, 255), "B")


def _tiles(pdf: FPDF, figures: Figures) -> None:
    tiles = {
        "Revenue, EUR": f"{figures.revenue:,.2f}",
        "Orders paid": f"{figures.orders:,}",
        "Average order, EUR": f"{figures.average:,.2f}",
        "Orders not paid": f"{figures.unpaid:,}",
    }
    width = (WIDTH - 3 * 5) / 4
    for number, (label, value) in enumerate(tiles.items()):
        x = LEFT + number * (width + 5)
        pdf.set_fill_color(*PALE)
        pdf.rect(x, 52, width, 25, style="F", round_corners=True, corner_radius=2)
        _text(pdf, x + 3, 55, width - 6, label, 8, GREY)
        _text(pdf, x + 3, 62, width - 6, value, 17, INK, "B")


def _chart(pdf: FPDF, figures: Figures) -> None:
    """Revenue a day: one bar each, the best one in colour."""
    top, height, left = 96, 62, LEFT + 12
    _text(pdf, LEFT, 85, WIDTH, "Revenue a day, EUR", 12, INK, "B")
    most = max(figures.by_day)
    step = _round_step(most / 4)
    scale = height / float(step * 4)
    pdf.set_draw_color(214, 219, 230)
    pdf.set_line_width(0.2)
    for line in range(5):
        y = top + height - float(step * line) * scale
        pdf.line(left, y, LEFT + WIDTH, y)
        _text(pdf, LEFT, y - 3, 10, f"{step * line:,.0f}", 7, GREY, align="R")
    room = (WIDTH - 12) / len(figures.by_day)
    for number, revenue in enumerate(figures.by_day):
        x, bar = left + number * room, float(revenue) * scale
        pdf.set_fill_color(*(ACCENT if revenue and revenue == most else (72, 104, 168)))
        pdf.rect(x + room * 0.14, top + height - bar, room * 0.72, bar, style="F")
        if number % 2 == 0:
            _text(pdf, x, top + height + 1.5, room, str(number + 1), 7, GREY, align="C")


def _best_sellers(pdf: FPDF, figures: Figures) -> None:
    top = 172
    _text(pdf, LEFT, top, WIDTH, "Best sellers", 12, INK, "B")
    columns = ((LEFT, 78, "L"), (LEFT + 80, 18, "R"), (LEFT + 102, 26, "R"), (LEFT + 134, 40, "L"))
    for (x, width, align), heading in zip(columns, ("Product", "Pieces", "Revenue, EUR", "Share"), strict=True):
        _text(pdf, x, top + 9, width, heading, 8, GREY, align=align)
    for number, (name, pieces, revenue) in enumerate(figures.best):
        y = top + 16 + number * 9.5
        if number % 2 == 0:
            pdf.set_fill_color(*PALE)
            pdf.rect(LEFT - 3, y - 1.7, WIDTH + 6, 9.5, style="F")
        share = float(revenue / figures.revenue)
        cells = (name, f"{pieces:,}", f"{revenue:,.2f}")
        for (x, width, align), cell in zip(columns[:3], cells, strict=True):
            _text(pdf, x, y, width, cell, 10, INK, align=align)
        x, width, _ = columns[3]
        longest = float(figures.best[0][2] / figures.revenue)
        pdf.set_fill_color(*ACCENT)
        pdf.rect(x, y + 1, (width - 14) * share / longest, 4, style="F")
        _text(pdf, x + width - 12, y, 12, f"{share:.1%}", 9, GREY, align="R")


def _text(
    pdf: FPDF,
    x: float,
    y: float,
    width: float,
    text: str,
    size: int,
    colour: tuple[int, int, int],
    style: str = "",
    align: str = "L",
) -> None:
    pdf.set_xy(x, y)
    pdf.set_font("Helvetica", style, size)
    pdf.set_text_color(*colour)
    pdf.cell(width, 6 if size < 14 else 10, text.encode("latin-1", "replace").decode("latin-1"), align=align)


def _round_step(rough: Decimal) -> Decimal:
    """1, 2 or 5 times a power of ten, and not below `rough`: so that the axis has round numbers."""
    step = Decimal(1)
    while True:
        for factor in (1, 2, 5):
            if step * factor >= rough:
                return step * factor
        step *= 10
