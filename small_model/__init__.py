"""
The small FUSION of two million parameters: its Hub folder, and how it is trained, measured and taken apart.

    python -m fusion_vlm.small_model.train       # data, tokenizer, tower, three stages, the folder `model/`
    python -m fusion_vlm.small_model.accuracy    # right answers on easy-VQA and drawn scenes
    python -m fusion_vlm.small_model.ablation run | report    # what each part of FUSION is worth

`data.py` draws the rows and reads easy-VQA, `tower.py` pretrains the vision tower. `recipes/` has the three stages and
the chat template, `results/` the runs of the ablation. docs/small_model.md has all figures.
"""
