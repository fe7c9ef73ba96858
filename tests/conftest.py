"""Every test begins from the same chance: what fails once fails again, and a rare unlucky draw is no failure of somebody else's change."""
import random

import numpy as np
import pytest, torch

@pytest.fixture(autouse=True)
def same_chance():
    random.seed(0); np.random.seed(0); torch.manual_seed(0)
