"""One writer of self-contained HTML pages and charts, used by every report."""

from stablelm.reporting.charts import Series, bar_chart, histogram_chart, line_chart, share_chart
from stablelm.reporting.page import Page

__all__ = ["Page", "Series", "bar_chart", "histogram_chart", "line_chart", "share_chart"]
