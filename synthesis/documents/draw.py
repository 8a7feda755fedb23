"""Draws pages of any genre."""

from PIL import Image

from fusion_vlm.synthesis.documents.draw_chart import draw_chart
from fusion_vlm.synthesis.documents.draw_document import draw_document
from fusion_vlm.synthesis.documents.draw_table import draw_table
from fusion_vlm.synthesis.documents.page import Page


_PAINTERS = {"chart": draw_chart, "table": draw_table, "document": draw_document}


def draw_page(page: Page, size: int) -> Image.Image:
    """Draw a page as an RGB image of `size` pixels a side. Equal pages give equal pixels."""
    return _PAINTERS[page.page](page, size)
