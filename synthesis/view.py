"""A page to look at the samples of a run, kept and rejected, with filters by kind, type of question and reason."""

import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image

from fusion_vlm.synthesis.browse import SampleIndex, Shown


PAGE_SIZE = 24
KEPT, REJECTED = "kept", "rejected"
HEADERS = ["question", "answer", "type"]


@dataclass
class Widgets:
    """What the events of the page read and change."""

    state: gr.Radio
    kinds: gr.Dropdown
    types: gr.Dropdown
    reasons: gr.Dropdown
    page: gr.Number
    position: gr.Markdown
    gallery: gr.Gallery
    image: gr.Image
    reason: gr.Textbox
    turns: gr.Dataframe
    sample: gr.JSON

    @property
    def filters(self) -> list:
        return [self.state, self.kinds, self.types, self.reasons]

    @property
    def details(self) -> list:
        return [self.image, self.reason, self.turns, self.sample]


def find(index: SampleIndex, state: str, kinds: list[str], types: list[str], reasons: list[str]) -> np.ndarray:
    """Return the places of the samples that the filters of the page let through."""
    return index.find(state == KEPT, kinds, types, reasons)


def show_page(index: SampleIndex, state, kinds, types, reasons, page: float | None):
    """Return the pictures of a page, counted from 1, where it is, and its number."""
    places = find(index, state, kinds, types, reasons)
    num_pages = max(1, -(-len(places) // PAGE_SIZE))
    page = min(max(int(page or 1), 1), num_pages)
    first = (page - 1) * PAGE_SIZE
    pictures = [make_picture(shown) for shown in index.read(places[first : first + PAGE_SIZE])]
    return pictures, f"{len(places):,} samples, page {page:,} of {num_pages:,}", page


def make_picture(shown: Shown) -> tuple[Image.Image, str]:
    """Return the image of a sample, gray if it has none, and what stands below."""
    question = shown.sample.turns[0].question if shown.sample.turns else shown.sample.caption
    return open_image(shown) or Image.new("RGB", (64, 64), "#dddddd"), f"{shown.sample.kind}: {question[:80]}"


def open_image(shown: Shown) -> Image.Image | None:
    return None if shown.image is None else Image.open(io.BytesIO(shown.image)).convert("RGB")


def show_sample(index: SampleIndex, state, kinds, types, reasons, page: float, number: int):
    """Return image, reason, turns and all fields of a sample, given its number on the page, from 0."""
    place = find(index, state, kinds, types, reasons)[(int(page) - 1) * PAGE_SIZE + number]
    (shown,) = index.read([place])
    sample = shown.sample
    # Cells of text: as Markdown or HTML, what a model wrote could load files from elsewhere.
    turns = [[turn.question_with_options, turn.answer, turn.type] for turn in sample.turns]
    reason = gr.update(value=sample.reason or "", visible=sample.reason is not None)
    return open_image(shown), reason, turns, sample.to_dict()


def lay_out(index: SampleIndex) -> Widgets:
    """Place the widgets: filters, pictures of a page, and the sample that was clicked."""
    with gr.Row():
        state = gr.Radio([KEPT, REJECTED], value=KEPT, label="Samples")
        kinds = gr.Dropdown(index.kinds, multiselect=True, value=[], label="Kinds")
        types = gr.Dropdown(index.types, multiselect=True, value=[], label="Types of questions")
        reasons = gr.Dropdown(index.reasons, multiselect=True, value=[], label="Reasons of rejects")
    with gr.Row():
        page = gr.Number(1, label="Page", precision=0, minimum=1)
        position = gr.Markdown()
    gallery = gr.Gallery(label="Samples", columns=6, allow_preview=False, buttons=[])
    with gr.Row():
        image = gr.Image(label="Image", interactive=False, buttons=["fullscreen"])
        with gr.Column():
            reason = gr.Textbox(label="Rejected", visible=False, interactive=False)
            turns = gr.Dataframe(headers=HEADERS, datatype="str", wrap=True, interactive=False, label="Turns")
    with gr.Accordion("All fields", open=False):
        sample = gr.JSON()
    return Widgets(state, kinds, types, reasons, page, position, gallery, image, reason, turns, sample)


def make_page(folder: Path) -> gr.Blocks:
    """
    Build the page of a run without serving it.

    Raises:
        ValueError: if the folder holds no shards of a run.
    """
    index = SampleIndex(folder)
    show = partial(show_page, index)

    # Not a partial: Gradio finds the event by the annotation.
    def select(state, kinds, types, reasons, number, event: gr.SelectData):
        return show_sample(index, state, kinds, types, reasons, number, event.index)

    with gr.Blocks(title=f"Samples of {folder.name}", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        widgets = lay_out(index)
        inputs, outputs = [*widgets.filters, widgets.page], [widgets.gallery, widgets.position, widgets.page]
        page.load(show, inputs, outputs, api_name="page")
        widgets.page.submit(show, inputs, outputs)
        for widget in widgets.filters:
            widget.change(lambda *values: show(*values, 1), widgets.filters, outputs, api_name=False)
        widgets.gallery.select(select, inputs, widgets.details, api_name=False)
    return page


def launch(page: gr.Blocks, port: int | None) -> str:
    """Start to serve the page on this machine alone, and return its address; `port` None is any free port."""
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        ssr_mode=False,
    )
    return address
