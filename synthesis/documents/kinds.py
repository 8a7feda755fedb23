"""The kinds of drawn pages. They are exact only: no image model draws their numbers as a text says."""

from fusion_vlm.synthesis.documents.ask_chart import ask_chart
from fusion_vlm.synthesis.documents.ask_document import ask_document
from fusion_vlm.synthesis.documents.ask_table import ask_table
from fusion_vlm.synthesis.documents.charts import build_chart
from fusion_vlm.synthesis.documents.genres import build_document
from fusion_vlm.synthesis.documents.tables import build_table
from fusion_vlm.synthesis.kinds.kind import SHORT_CONVERSATION, Kind


KINDS = [
    Kind("chart", build_chart, ask_chart, SHORT_CONVERSATION, None, 120, is_exact_only=True),
    Kind("table", build_table, ask_table, SHORT_CONVERSATION, None, 120, is_exact_only=True),
    Kind("document", build_document, ask_document, SHORT_CONVERSATION, None, 120, is_exact_only=True),
]
