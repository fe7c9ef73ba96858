"""The command `idrnet`. Each command has a module of its name, e.g. `cli/train.py`;
options that several commands have stand in `cli/shared_options.py`."""
from .entry_point import main, parser

__all__ = ['main', 'parser']
