"""Built-in recipes: TOML files beside this module, by name."""

from importlib.resources import files

_HERE = files(__name__)

OFA_EVOLUTION = _HERE / "ofa-evolution.toml"
MULTIQUANT = _HERE / "multiquant.toml"
ANYPRECISION = _HERE / "anyprecision.toml"
ROBUSTQUANT = _HERE / "robustquant.toml"
QUANTNAS = _HERE / "quantnas.toml"
BATCHQUANT = _HERE / "batchquant.toml"
BASQ = _HERE / "basq.toml"
PTQ = _HERE / "ptq.toml"
OQAT = _HERE / "oqat.toml"
NAS_THEN_QUANTIZE = _HERE / "nas-then-quantize.toml"
SEARCH_THEN_RETRAIN = _HERE / "search-then-retrain.toml"
