"""What finetuning trains, and the statistics that it starts from, wherever batch normalisation stands."""

from __future__ import annotations

import torch

from qnas.nn.batchnorm import recalibrate
from qnas.nn.norm import ElasticNorm
from qnas.nn.supernet import Supernet, take_statistics, tuned_parameters
from qnas.space import Knob
from qnas.testing.parts import toy_images, toy_supernet

KNOB = Knob("kernel", (1, 3, 5))


def net():
    """The toy supernet behind a batch normalisation that stands alone, with a bank for each kernel size."""
    toy = toy_supernet()
    alone = ElasticNorm("images", 1, "stem", bank_knobs=(KNOB,))
    return Supernet(toy.space, [alone, *toy.parts])


def test_norms_are_gamma_and_beta_of_all_banks_and_biases_beta_alone():
    supernet = net()
    names = {id(p): name for name, p in supernet.named_parameters()}
    norms, biases = ([names[id(p)] for p in tuned_parameters(supernet, kind)] for kind in ("norms", "biases"))
    assert sum(name.startswith("parts.0.") for name in norms) == 6
    assert {name.split(".")[-2] for name in norms} == {"weights", "biases"}
    assert biases == [name for name in norms if name.split(".")[-2] == "biases"]
    assert not [name for name in norms if "classifier" in name]  # its bias belongs to no batch normalisation
    quantizer = supernet.quantizers()[0]
    quantizer.clips = lambda: [quantizer.alpha]
    quantizer.alpha = torch.nn.Parameter(torch.tensor(6.0))
    assert tuned_parameters(supernet, "biases")[-1] is quantizer.alpha


def test_statistics_of_a_calibrated_subnet_go_to_its_own_banks():
    supernet = net()
    supernet.eval()
    sample = {**supernet.space.highest(), "kernel": 3}
    subnet = supernet.extract(sample)
    images = toy_images(16) * 3 + 1
    recalibrate(subnet, [images])
    with torch.no_grad():
        take_statistics(supernet, subnet)
        norm = supernet.parts[0].bn
        pixels = images.double()
        torch.testing.assert_close(norm.mean1.double(), pixels.mean().reshape(1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(norm.var1.double(), pixels.var(correction=0).reshape(1), rtol=1e-5, atol=1e-5)
        assert norm.mean0.item() == norm.mean2.item() == 0.0  # banks of other kernels
        assert norm.var0.item() == norm.var2.item() == 1.0
        supernet.activate(sample)
        torch.testing.assert_close(supernet(images), subnet(images), rtol=1e-5, atol=1e-5)
