"""Reports: one HTML file that needs nothing else. No scripts, no fonts or pictures from elsewhere, everything escaped.

write("report.html", document("Title", section("Loss", lines({"training": [(1, 2.3), (2, 1.9)]}))))
"""

from .charts import bars, heat, lines
from .html import Safe, badge, document, facts, section, table, tag, tiles, write

__all__ = [
    "Safe", "badge", "bars", "document", "facts", "heat", "lines", "section", "table", "tag", "tiles", "write",
]  # fmt: skip
