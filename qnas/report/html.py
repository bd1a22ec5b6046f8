"""A run -> one HTML page."""

from __future__ import annotations

from qnas.report import evidence, sections
from qnas.report.charts import chart_data
from qnas.report.data import ReportData
from qnas.report.insights import insights
from qnas.report.page import Section, render_page, text_file

SCRIPTS = ("tables.js", "plot.js", "insights.js", "charts.js")


def render_html(data: ReportData) -> str:
    """Return the page of a run. Equal data give an equal page."""
    parts = [
        Section("front", "Front", "Front", sections.front(data)),
        Section("notes", "", "How to read these numbers", sections.notes(data)),
        Section("gap", "Gap", "From the search to the test split", evidence.gap(data)),
        Section("subnets", "Layers", "Layer by layer", sections.subnets(data)),
        Section("sensitivity", "Bit-widths", "What bit-widths cost", evidence.bit_widths(data)),
        Section("insights", "Insights", "What good subnets prefer at each training stage", insights(data)),
        Section("exports", "Exports", "Exports and verification", sections.exports(data)),
        Section("search", "Search", "Search progress", sections.search(data)),
        Section("training", "Training", "Training progress", sections.training(data)),
    ]
    if data.inside:
        parts.append(Section("inside", "Inside", "Inside the supernet", evidence.inside(data)))
    if data.ranks:
        parts.append(
            Section("ranks", "Ranking", "Does the supernet rank as training alone does?", evidence.ranks(data))
        )
    if data.alone:
        parts.append(Section("alone", "Alone", "Subnets trained alone", evidence.alone(data)))
    parts += [
        Section("trials-section", "Trials", "Trials", sections.trials(data)),
        Section("timings", "Time", "Time by phase", sections.timings(data)),
        Section("reproduce", "Reproduce", "How to reproduce", sections.reproduce(data)),
    ]
    drawn = bool(data.trials or data.points or data.history or data.ranks or data.insights)
    return render_page(
        "qnas report",
        data.name,
        sections.subtitle(data),
        sections.tiles(data),
        parts,
        chart_data(data),
        [text_file(name) for name in SCRIPTS],
        drawn=drawn,
    )
