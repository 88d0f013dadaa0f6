"""The promises that hold for all four scripts, read from their text."""

import ast
import csv
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import (
    ROOT,
    SCRIPTS,
    copy_script,
    load_script,
    read_settings,
    run_script,
)

DEFAULTS = {
    "scrape": {
        "ENGINES": ("commons", "openverse"),
        "MAX_NUM": 1000,
        "MIN_NUM": 200,
        "LICENSE": None,
        "MIN_SIZE": (128, 128),
        "OUT_DIR": "data/raw",
        "CONTACT": "",
        "DOWNLOADER_THREADS": 4,
        "ALLOW_PRIVATE_HOSTS": False,
        "HOST_CONCURRENCY": 2,
        "REQUEST_TIMEOUT": 10,
        "IMAGE_DEADLINE": 30,
        "PAGE_TIMEOUT": 30,
        "MAX_PIXELS": 50_000_000,
        "MAX_BYTES": 20_971_520,
        "ENDPOINTS": {
            "commons": "https://commons.wikimedia.org/w/api.php",
            "openverse": "https://api.openverse.org/v1/images/",
            "bing": "https://www.bing.com/images/async",
        },
    },
    "preprocess": {
        "INPUT": "data/raw",
        "OUTPUT_FILE": "data/images.npy",
        "IMAGE_SIZE": 256,
        "COLOR": "rgb",
        "FIT": "crop",
        "BACKGROUND": "keep",
        "PERSON_MODEL": "data/person.tflite",
        "PERSON_MODEL_URL": (
            "https://storage.googleapis.com/mediapipe-assets/"
            "selfie_segmentation.tflite?generation=1683332563830600"
        ),
        "PERSON_MODEL_SHA256": (
            "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c"
        ),
        "MIN_PERSON": 0.02,
        "MIRROR": True,
        "FIGURE_DIR": "figures",
        "SEED": 0,
    },
    "train_vae": {
        "INPUT_FILE": "data/images.npy",
        "MODEL_DIR": "model",
        "FIGURE_DIR": "figures",
        "LATENT_DIM": 2,
        "KL_WEIGHT": 5e-4,
        "EPOCHS": 50,
        "BATCH_SIZE": 32,
        "OPTIMIZER": "adam",
        "LEARNING_RATE": None,
        "VALIDATION_IMAGES": 256,
        "PRECISION": "float32",
        "SEED": 0,
    },
    "plot_latent": {
        "INPUT_FILE": "data/images.npy",
        "MODEL_DIR": "model",
        "FIGURE_DIR": "figures",
        "COLOR_BY": None,
        "GRID_SIZE": 15,
        "QUANTILES": (0.05, 0.95),
    },
}

# Functions of one name that do another thing in each script.
ONE_FOR_EACH = {"main", "check_settings"}


def settings_of(script):
    nodes = read_settings(ROOT / f"{script}.py")
    return {name: ast.literal_eval(node.value) for name, node in nodes.items()}


@pytest.mark.parametrize("script", SCRIPTS)
def test_settings_are_literals_with_the_promised_defaults(script):
    settings = settings_of(script)
    for name, value in DEFAULTS[script].items():
        assert settings[name] == value, name


def test_one_name_has_one_value_in_every_script():
    values = {}
    for script in SCRIPTS:
        for name, value in settings_of(script).items():
            assert values.setdefault(name, value) == value, (script, name)
    assert settings_of("preprocess")["INPUT"] == settings_of("scrape")["OUT_DIR"]
    assert values["OUTPUT_FILE"] == values["INPUT_FILE"]


def names_read(node, at_import=False):
    """Yield the names that the code below an AST node reads, perhaps only at import."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        yield node.id
    parts = ast.iter_child_nodes(node)
    if at_import and isinstance(node, ast.FunctionDef):
        parts = [node.args, *node.decorator_list]
    for part in parts:
        yield from names_read(part, at_import)


@pytest.mark.parametrize("script", SCRIPTS)
def test_settings_are_read_when_a_function_runs_and_each_is_used(script):
    """Settings in a default argument or at import would ignore a later edit."""
    body = ast.parse((ROOT / f"{script}.py").read_text(encoding="utf-8")).body
    names = set(settings_of(script))
    guard = body[-1]
    assert isinstance(guard, ast.If)
    early = set()
    used = set(names_read(guard))
    for node in body[:-1]:
        early |= set(names_read(node, at_import=True)) & names
        used |= set(names_read(node))
    assert early == set()
    assert names - used == set()


def test_helpers_that_stand_in_several_scripts_are_the_same_text():
    texts = {}
    for script in SCRIPTS:
        source = (ROOT / f"{script}.py").read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef):
                lines = source.splitlines()
                start = min(x.lineno for x in [node, *node.decorator_list])
                text = "\n".join(lines[start - 1 : node.end_lineno])
                texts.setdefault(node.name, {})[script] = text
    repeated = {name for name in texts if len(texts[name]) > 1} - ONE_FOR_EACH
    everywhere = "check", "is_text", "is_whole", "is_number", "replacing", "is_running"
    everywhere += "open_streams", "describe_error", "stop"
    for name in everywhere:
        assert len(texts[name]) == 4, name
    assert {"quiet", "is_terminal", "is_foreign", "read_images_id"} <= repeated
    different = {name for name in repeated if len(set(texts[name].values())) > 1}
    assert different == set()


HEAD = (
    r".+\n\n    python (\w+)\.py\n\nReads   .+\nWrites  .+\n"
    r"Exits   with 0: done; 1: a message says what to mend; 130: stopped by Ctrl-C\.\n"
    r"\nStopped.+\n\nThe file in order: .+\."
)
GUARD = """\
if __name__ == '__main__':
    open_streams()
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        stop(error, PATH)"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_have_one_silhouette(script):
    """The same kind of head, the same last sections, the same start."""
    source = (ROOT / f"{script}.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    head = re.fullmatch(HEAD, ast.get_docstring(tree), re.DOTALL)
    assert head is not None and head[1] == script
    rule = "# " + 76 * "-"
    banners = re.findall(rf"^{rule}\n# (.+)\n(?:# .+\n)?{rule}$", source, re.MULTILINE)
    assert banners[0] == "Settings: edit these"
    last = ["Files", "Checks of the settings", "Messages and errors", "All of it"]
    start = banners.index("Files")
    assert banners[start : start + 4] == last
    assert set(banners[start + 4 :]) <= {
        "The explorer's page: fill_page() puts the title and the data in"
    }
    guard = ast.unparse(tree.body[-1])
    guard = re.sub(r"'Stopped: [^']+\. Run again( to go on)?\.'", "STOPPED", guard)
    guard = re.sub(r"stop\(error, [A-Z_]+\)", "stop(error, PATH)", guard)
    assert guard == GUARD


@pytest.mark.skipif(os.name == "nt", reason="there nothing is cleared away")
def test_leftovers_of_killed_runs_are_cleared_and_others_stay(tmp_path):
    """By the `replacing` of one script: the test above says that all have the same."""
    code = (
        "import pathlib, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import scrape\n"
        "with scrape.replacing(pathlib.Path(sys.argv[1])) as path:\n"
        "    path.write_text('half')\n"
        "    print('begun', flush=True)\n"
        "    input()\n"
    )

    def begin(name):
        """Start a run that writes a file; return it and what it has put there."""
        before = set(tmp_path.iterdir())
        run = subprocess.Popen(
            [sys.executable, "-B", "-c", code, name], cwd=tmp_path, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert run.stdout.readline() == "begun\n"
        return run, set(tmp_path.iterdir()) - before

    killed, leftovers = begin("loss.png")
    other, leftovers_of_other = begin("other.png")
    for run in (killed, other):
        run.kill()
        run.communicate()
    lives, unfinished = begin("loss.png")
    files = (*leftovers, *leftovers_of_other, *unfinished)
    assert len(files) == 3 and "loss.png" not in {path.name for path in files}
    scrape = load_script("scrape.py")
    with scrape.replacing(tmp_path / "loss.png") as path:
        path.write_text("whole")
    assert set(tmp_path.iterdir()) == {
        tmp_path / "loss.png", *leftovers_of_other, *unfinished
    }  # fmt: skip
    lives.communicate("go on\n")
    assert lives.returncode == 0
    assert set(tmp_path.iterdir()) == {tmp_path / "loss.png", *leftovers_of_other}
    assert (tmp_path / "loss.png").read_text() == "half"  # the last one to end


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_stand_alone(script):
    tree = ast.parse((ROOT / f"{script}.py").read_text(encoding="utf-8"))
    others = {*SCRIPTS, "tests", "conftest", "argparse", "click", "yaml"} - {script}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not {name.name.split(".")[0] for name in node.names} & others
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] not in others
        assert not isinstance(node, ast.Assert), "asserts can be switched off"


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_importing_does_nothing(script, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {script}"
    command = [sys.executable, "-B", "-c", code]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


STOP = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)"


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize(
    ("script", "module"),
    [("scrape", "bs4"), ("preprocess", "cv2"), ("plot_latent", "scipy")],
)
def test_ctrl_c_while_a_script_imports_leaves_no_traceback(script, module, tmp_path):
    (tmp_path / f"{module}.py").write_text(STOP)
    result = run_script(f"{script}.py", tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


WINDOW = """
import runpy, sys
class Window:
    text = ""
    def write(self, text): self.text += text
    def flush(self): pass
terminal, sys.stdout = sys.stdout, Window()
try:
    runpy.run_path(sys.argv[1], run_name="__main__")
finally:
    terminal.write(sys.stdout.text)
"""


@pytest.mark.parametrize(
    ("script", "edits"),
    [
        ("scrape", {"ENGINES": ("urls",), "URL_FILE": "list.txt", "MIN_NUM": 0}),
        ("preprocess", {"INPUT": "x.npz", "IMAGE_SIZE": 28}),
    ],
)
def test_scripts_run_where_stdout_is_no_real_stream(script, edits, tmp_path):
    """As in IDLE: an object with write and flush only. (Trained so elsewhere.)"""
    (tmp_path / "list.txt").touch()
    np.savez(tmp_path / "x.npz", x_train=np.zeros((3, 28, 28), np.uint8))
    copy_script(f"{script}.py", tmp_path, **edits)
    command = [sys.executable, "-c", WINDOW, f"{script}.py"]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "Wrote data" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "setting"),
    [
        ("preprocess", "INPUT"),
        ("train_vae", "INPUT_FILE"),
        ("plot_latent", "MODEL_DIR"),
    ],
)
def test_an_input_that_cannot_be_looked_at_is_told_as_such(script, setting, tmp_path):
    """Here a name that is too long for any system."""
    result = run_script(f"{script}.py", tmp_path, **{setting: 300 * "a"})
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert f"{tmp_path / (300 * 'a')}" in result.stderr
    assert f"({setting})" in result.stderr and "Cannot write" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "missing", "remedy"),
    [
        ("preprocess", "raw", "scrape.py"),
        ("train_vae", "images.npy", "preprocess.py"),
        ("plot_latent", "encoder.keras", "train_vae.py"),
    ],
)
def test_a_script_without_its_input_names_the_one_to_run(
    script, missing, remedy, tmp_path
):
    result = run_script(f"{script}.py", tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert str(tmp_path) in result.stderr
    assert missing in result.stderr and remedy in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{script}.py"]


@pytest.mark.slow
def test_the_chain_from_drawings_to_the_grid(tmp_path):
    """Draw, prepare, train and plot at a small size, as a user does at the real one."""
    assert run_script("tests/draw_athletes.py", tmp_path, NUM_IMAGES=60).returncode == 0
    assert run_script("preprocess.py", tmp_path, IMAGE_SIZE=32).returncode == 0
    assert run_script("train_vae.py", tmp_path, EPOCHS=2).returncode == 0
    assert run_script("plot_latent.py", tmp_path, GRID_SIZE=3).returncode == 0
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    expected = """
        data/raw/000060.jpg data/raw/factors.csv
        data/images.npy data/images.csv data/rejected.csv figures/dataset.png
        model/encoder.keras model/decoder.keras model/history.csv model/summary.json
        figures/loss.png figures/reconstructions.png
        figures/latent_grid.png figures/morph.gif
    """
    assert set(expected.split()) <= made
    assert not [name for name in made if name.split("/")[-1].startswith(".")]
    rows = list(csv.DictReader((tmp_path / "data/images.csv").open()))
    assert len(rows) == 120
    summary = json.loads((tmp_path / "model/summary.json").read_text())
    assert summary["settings"]["images_id"] == rows[0]["images_id"]
