"""Our numbers are the authors' numbers: every tensor of every golden file (folders in IDRNET_GOLDEN, separated as PATH is)."""

import os
from pathlib import Path
import pytest
from golden_check import compare

FOLDERS = os.environ.get('IDRNET_GOLDEN') or str(Path(__file__).parents[1] / 'golden')
FILES = [f for d in FOLDERS.split(os.pathsep) if d for f in sorted(Path(d).glob('*.safetensors'))]


def test_there_are_files():
    assert FILES, f'no *.safetensors in IDRNET_GOLDEN={FOLDERS}'


@pytest.mark.parametrize('path', FILES, ids=lambda f: f'{f.parent.name}-{f.stem}')
def test_golden(path):
    rows = list(compare(path))
    wrong = [f'{what}: {err:.2e} > {tol:.0e}' for what, err, tol in rows if not err <= tol]
    assert not wrong, '\n'.join(wrong)
    assert len(rows) > 30
