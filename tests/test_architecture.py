"""The arrows between the parts point one way, and importing the model stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import comvex

ROOT = Path(comvex.__file__).parent
MAY_IMPORT = {
    "convit": set(),
    "data": set(),
    "inference": {"convit", "data"},
    "bench": {"convit", "inference"},
    "training": {"convit", "data", "inference"},
    "explain": {"convit", "data", "inference", "training"},
    "study": {"convit", "data", "inference", "training"},
    "commands": {"convit", "data", "inference", "training", "explain", "study", "bench"},
}
SHARED = {
    "errors",
    "files",
    "help",
    "randomness",
    "device",
    "plotting",
    "preprocessing",
    "allocator",
    "processor",
    "run_folder",
    "terminal",
}


def imported_parts(file: Path) -> set[str]:
    """The parts of comvex that a file imports, such as {"convit", "errors"}."""
    parts = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "comvex":
            inside = node.module.split(".")[1:]
            parts |= {inside[0]} if inside else {name.name for name in node.names}
        elif isinstance(node, ast.Import):
            parts |= {name.name.split(".")[1] for name in node.names if name.name.startswith("comvex.")}
    return parts


def test_every_part_imports_only_what_comes_before_it():
    folders = {folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").exists()}
    assert folders == MAY_IMPORT.keys()
    for folder, allowed in MAY_IMPORT.items():
        for file in (ROOT / folder).rglob("*.py"):
            strangers = imported_parts(file) - allowed - SHARED - {folder}
            assert not strangers, f"{file.relative_to(ROOT)} imports {strangers}"
    for name in SHARED:
        assert imported_parts(ROOT / f"{name}.py") <= SHARED, name
    # Itself by name, so that running it as a script registers its models once.
    assert imported_parts(ROOT / "timm_models.py") <= SHARED | {"convit", "timm_models"}


def test_the_model_imports_without_timm_and_comvex_without_torch():
    program = "import sys, {0}; assert '{1}' not in sys.modules"
    for imported, absent in (("comvex", "torch"), ("comvex.cli", "torch"), ("comvex.convit", "timm")):
        subprocess.run([sys.executable, "-c", program.format(imported, absent)], check=True, timeout=120)


def test_a_prediction_imports_neither_pytorchs_compiler_nor_what_only_training_needs():
    """torch._dynamo takes as long to import as all the rest of PyTorch, and torchvision imports it."""
    program = (
        "import sys; from comvex.cli import main; assert main(['predict', 'convit_fashion_mnist']) == 0\n"
        "heavy = {'torchvision', 'torch._dynamo', 'timm', 'sklearn', 'matplotlib', 'pandas'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, stdout=subprocess.DEVNULL)


def test_nothing_draws_from_a_generator_at_import():
    program = (
        "import torch; torch.manual_seed(0); expected = torch.get_rng_state().clone()\n"
        "import comvex.convit, comvex.training.trainer, comvex.inference.predictor\n"
        "assert torch.equal(torch.get_rng_state(), expected)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
