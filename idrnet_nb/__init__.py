"""IDRNet, taught stage by stage in notebooks and exported as a plug-in context module."""
__version__ = "0.1.0"
