"""Average bit-widths, a cost for each role and weighting; see :mod:`qnas.averages`."""

from qnas.averages import WEIGHTINGS, AverageBits

W_BITS, W_BITS_PARAMETERS, W_BITS_MACS, W_BITS_FEATURES = (AverageBits("w_bits", weighting) for weighting in WEIGHTINGS)
A_BITS, A_BITS_PARAMETERS, A_BITS_MACS, A_BITS_FEATURES = (AverageBits("a_bits", weighting) for weighting in WEIGHTINGS)
