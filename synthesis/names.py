"""Names that help texts list. They are apart from what they name, because help texts must not wait for Pillow."""

# In the order of the paper: captions for pre-training, then instructions; then drawn pages. A run takes its kinds in
# turn, so another order gives other samples.
KINDS = (
    "caption_colour",
    "caption_count",
    "caption_spatial",
    "caption_scene",
    "caption_text",
    "multiple_choice",
    "short_conversation",
    "long_conversation",
    "contrast_short",
    "contrast_long",
    "reasoning",
    "text_qa",
    "chart",
    "table",
    "document",
)
# The steps of a run in order, each of several stages. One can be a run of its own, and so can some that follow each
# other. `filter` stands alone.
STAGES = ("descriptions", "images", "questions")
