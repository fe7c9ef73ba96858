"""IDRNet, taught stage by stage in notebooks and exported as a plug-in context module.

The front door:
`from idrnet_nb import Segmentor, build_segmentor, IDRContext, add_idr, idr_loss, train, evaluate, predict`.
Each is loaded when it is asked for, so that importing the package alone is light."""
__version__ = "0.1.0"

_HOME = { # name -> the module that it is in
    'Segmentor': 'models.segmentor',
    'build_segmentor': 'models.segmentor',
    'IDRContext': 'method.idr',
    'add_idr': 'models.plugin',
    'idr_loss': 'models.plugin',
    'train': 'training.trainer',
    'evaluate': 'training.inference',
    'predict': 'training.inference',
}
__all__ = list(_HOME)

def __getattr__(name):
    "Load what the front door offers."
    if name not in _HOME: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    value = getattr(import_module(f'{__name__}.{_HOME[name]}'), name)
    globals()[name] = value
    return value

def __dir__(): return sorted({*globals(), *_HOME})
