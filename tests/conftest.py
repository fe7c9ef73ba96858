"""Every test begins from the same chance: what fails once fails again, and a rare unlucky draw is no failure of somebody else's change."""

import random, sys
from pathlib import Path

import numpy as np
import pytest, torch

# Helpers of one test file may be used by another, in whatever folder it lies.
sys.path += [str(f) for f in Path(__file__).parent.iterdir() if f.is_dir()]


@pytest.fixture(autouse=True)
def same_chance():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
