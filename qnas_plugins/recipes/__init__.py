"""Built-in recipes: TOML files beside this module, by name."""

from importlib.resources import files

_HERE = files(__name__)

OFA_EVOLUTION = _HERE / "ofa-evolution.toml"
PTQ = _HERE / "ptq.toml"
OQAT = _HERE / "oqat.toml"
