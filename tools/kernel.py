"""Run notebooks in a real Jupyter kernel, as JupyterLab would, and throw the result away.

    python tools/kernel.py nbs/index.ipynb nbs/5_experiments/07_toy_world.ipynb

nbdev-test runs cells in its own shell; this shows that they also run where a reader runs them. It works on a copy of nbs/,
leaves out the cells that nbdev-test leaves out (slow, cuda, online), and keeps nbdev-export from writing."""

import os, shutil, sys, tempfile, time
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.config import get_config

ROOT = Path(__file__).resolve().parents[1]


def marks(source):
    "The names of the `#|` lines at the top of a cell."
    lines = [l[2:].replace(':', ' ').split() for l in source.split('\n') if l.startswith('#|')]
    return {l[0] for l in lines if l}


def run(path, flags, timeout):
    "Execute the notebook at `path` in place and return how many cells ran."
    nb = nbformat.read(path, as_version=4)
    nb.cells = [c for c in nb.cells if c.cell_type == 'code' and not marks(c.source) & flags]
    NotebookClient(
        nb,
        timeout=timeout,
        kernel_name=NATIVE_KERNEL_NAME,
        resources={'metadata': {'path': str(path.parent)}},
        extra_arguments=['--IPKernelApp.log_level=40'],
    ).execute()  # it warns that local TCP is not encrypted
    return sum(bool(c.get('execution_count')) for c in nb.cells)


def main(files):
    cfg = get_config(ROOT)
    os.environ.update(IN_TEST='1', JUPYTER_PREFER_ENV_PATH='1', PYDEVD_DISABLE_FILE_VALIDATION='1')
    with tempfile.TemporaryDirectory() as tmp:
        nbs = shutil.copytree(ROOT / 'nbs', Path(tmp) / 'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
        for f in files:
            path, start = Path(nbs).parent / Path(f).resolve().relative_to(ROOT), time.time()
            if not path.exists():
                sys.exit(f'{f}: no such notebook')
            try:
                n = run(path, set(cfg.tst_flags.split()), cfg.cell_timeout)
            except CellExecutionError as e:
                sys.exit(f'{f} fails in a Jupyter kernel:\n{e}')
            if not n:
                sys.exit(f'{f}: no cell ran')
            print(f'{f}: {n} code cells in {time.time() - start:.0f} s')


if __name__ == '__main__':
    main(sys.argv[1:] or sys.exit(__doc__))
