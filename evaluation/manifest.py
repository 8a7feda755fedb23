"""
Tell lmms-eval about the model `fusion_vl`: the entry point of the group `lmms_eval.models`.

lmms-eval loads the entry points of all packages, and skips all of them if one fails. So this module imports nothing
but the class that lmms-eval asks for.
"""

from lmms_eval.models.registry_v2 import ModelManifest


MANIFEST = ModelManifest("fusion_vl", simple_class_path="fusion_vlm.evaluation.lmms_model.FusionVL")
