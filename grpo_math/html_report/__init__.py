"""One self-contained HTML page for a run, or for several beside each other.

The page needs no network: plotly.js is inside it. Texts of models and data are hostile: everything is escaped, nothing of them
reaches plotly, and the page's policy lets it load and send nothing.

>>> write_page([read_run(Path("outputs/countdown_tiny"))], Path("report.html"))
"""

from grpo_math.html_report.page import write_page
from grpo_math.html_report.runs import Run, named, read_run

__all__ = ["Run", "named", "read_run", "write_page"]
