"""The entry point with which lmms-eval finds the model; lmms-eval skips those of all packages if one fails to load."""

import ast
import configparser

from ..helpers import ROOT


def test_manifest_imports_nothing_but_the_class_that_lmms_eval_asks_for():
    tree = ast.parse((ROOT / "evaluation" / "manifest.py").read_text())
    imported = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [ast.unparse(node) for node in imported] == ["from lmms_eval.models.registry_v2 import ModelManifest"]


def test_entry_point_names_the_manifest():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    assert parser["options.entry_points"]["lmms_eval.models"].split() == [
        "fusion_vl",
        "=",
        "fusion_vlm.evaluation.manifest:MANIFEST",
    ]
