"""What the tests share: running a script as a user does, and small real files."""

import ast
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("scrape", "preprocess", "train_vae", "plot_latent")

# A shell's background job ignores Ctrl-C, and so would the scripts that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    text = "takes more than about two seconds; leave them out with -m 'not slow'"
    config.addinivalue_line("markers", f"slow: {text}")


def pytest_collection_modifyitems(items):
    for item in items:
        if "studio" in item.fixturenames:  # trained models, which take half a minute
            item.add_marker("slow")


def read_settings(path):
    """Return {name: AST node} of the UPPER_CASE assignments of a script."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {
        node.targets[0].id: node
        for node in body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id.isupper()
    }


def copy_script(script, folder, **edits):
    """Copy a script into the folder with some settings edited, and return the copy.

    Args:
        script: path below the repository, for example "preprocess.py".
        folder: where the copy is put.
        **edits: setting=value. A name that is no setting raises KeyError.
    """
    source = ROOT / script
    lines = source.read_text(encoding="utf-8").splitlines()
    places = read_settings(source)
    for name in edits:
        node = places[name]
        first, last = node.lineno - 1, node.end_lineno
        # Blank lines fill the rest: a traceback names the line of the original.
        lines[first:last] = [f"{name} = {edits[name]!r}"] + [""] * (last - first - 1)
    copy = Path(folder) / source.name
    copy.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return copy


def run_script(script, folder, timeout=900, environment=None, **edits):
    """Run an edited copy of a script in the folder, as a user would.

    Args:
        environment: variables to set beside those of the tests.

    Returns:
        The finished process with `returncode`, `stdout` and `stderr` as text.
    """
    copy = copy_script(script, folder, **edits)
    usual = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUTF8": "1"}
    result = subprocess.run(
        [sys.executable, copy.name],
        cwd=folder,
        env={**os.environ, **usual, **(environment or {})},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )
    print(result.stdout, result.stderr, sep="\n")  # pytest shows it when a test fails
    return result


def signal_at(folder, number, event, ending, count=1):
    """Return variables that let a script get a signal at a known moment.

    Python tells of the files that a process opens and renames (its audit events). At
    the right one the process sends itself the signal, so that no test can be too late.

    Args:
        folder: where a module is put that Python imports when it starts.
        number: the signal.
        event: "open", or "os.rename", which is os.replace as well.
        ending: of the path that is opened, or of the new name.
        count: at which event of this kind.
    """
    place = {"open": 0, "os.rename": 1}[event]
    (folder / "at_start").mkdir(exist_ok=True)
    (folder / "at_start/sitecustomize.py").write_text(
        "import os, sys\n"
        "seen = []\n"
        "def watch(event, details):\n"
        f"    if event == {event!r} and str(details[{place}]).endswith({ending!r}):\n"
        "        seen.append(event)\n"
        f"        if len(seen) == {count}:\n"
        f"            os.kill(os.getpid(), {int(number)})\n"
        "sys.addaudithook(watch)\n"
    )
    return {"PYTHONPATH": str(folder / "at_start")}


def load_script(script):
    """Import a script by its path and return the module: importing does nothing."""
    path = ROOT / script
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
