"""
The grammar of scenes that the small model was trained on.

Its draws, sentences and pixels are pinned: the recipes and the accuracy in the small model's card rest on them, and
`tests/small_model/test_grammar.py` compares them with recorded hashes. The data engine has a richer grammar in
`synthesis/scenes`.
"""
