"""The contracts, as checks that raise ``AssertionError``."""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from qnas.costs import CostTable, cost_of
from qnas.data import Split, StreamedImages
from qnas.layers import LayerSpec
from qnas.nn.features import Feature, FloatHead
from qnas.nn.grid import AffineGrid, CodebookGrid
from qnas.nn.quantizer import Quantizer, SiteContext
from qnas.nn.ranks import Ranks
from qnas.plugins import load_registry
from qnas.protocols import (
    AverageCost,
    Calibrator,
    CostModel,
    Dataset,
    Device,
    FeatureTask,
    Predictor,
    PreparedSupervision,
    RangeCalibrator,
    Sampler,
    SearchProblem,
    State,
    Strategy,
    Supervision,
    Task,
    TrainingContext,
)
from qnas.rng import generator
from qnas.scoring import score_split
from qnas.space import QuantScheme, SearchSpace
from qnas.testing.parts import (
    CLASSES,
    RangeQuantizer,
    ToyTask,
    site,
    toy_data,
    toy_images,
    toy_problem,
    toy_space,
    toy_supernet,
    toy_trial,
)

_ROLE_SITES = (("weight", True), ("activation", False), ("activation", True))


def _values(role: str, signed: bool) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn((8, 4, 3, 3) if role == "weight" else (6, 8, 5, 5), generator=rng)
    return x if signed else x.abs()


def check_quantizer(cls: type[Quantizer]) -> None:
    """Starts from data, rounds to the grid that it exports, trains, keeps its state, works in a supernet."""
    assert cls.roles <= {"weight", "activation"}, "roles must name weight or activation"
    assert cls.roles, "a quantizer must play a role"
    for role, signed in _ROLE_SITES:
        if role not in cls.roles:
            continue
        x = _values(role, signed)
        for bits in (2, 4, 8):
            _check_quantizer_at(cls, role, signed, bits, x)
        if cls.inherit is not Quantizer.inherit:
            _check_lower_bits(cls, role, signed, x)
    both = {"weight": cls if "weight" in cls.roles else None, "act": cls if "activation" in cls.roles else None}
    _check_in_supernet(**both)


def _check_quantizer_at(cls: type[Quantizer], role: str, signed: bool, bits: int, x: torch.Tensor) -> None:
    quantizer = cls(site(role, signed=signed))
    ctx = SiteContext(bits, 8)
    quantizer.start(x, ctx)
    quantizer.eval()  # in training, grids may follow the data
    leaf = x.clone().requires_grad_()
    out = quantizer(leaf, ctx)
    assert out.shape == x.shape, "forward must keep the shape"
    assert out.dtype == x.dtype, "forward must keep the dtype"
    grid = quantizer.export(ctx)
    assert isinstance(grid, (AffineGrid, CodebookGrid)), "export must return a grid"
    assert grid.bits <= bits, f"a {bits}-bit grid must fit in {bits} bits"
    torch.testing.assert_close(grid.quantize(x), out.detach(), msg="forward must round to the exported grid")
    torch.testing.assert_close(grid.decode(grid.encode(x)), grid.quantize(x), msg="codes must decode to the values")
    torch.testing.assert_close(quantizer(out.detach(), ctx).detach(), out.detach(), msg="twice must equal once")
    if isinstance(grid, AffineGrid) and role == "activation":
        assert grid.qmin >= 0, "activation codes must be unsigned"
        assert grid.qmax <= 255, "activation codes must fit in a byte"
    out.square().sum().backward()
    assert leaf.grad is not None, "a gradient must reach the input"
    assert torch.isfinite(leaf.grad).all(), "the input's gradient must be finite"
    for name, parameter in quantizer.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), f"gradient of {name} must be finite"
    if quantizer.absorbs_relu:
        torch.testing.assert_close(quantizer(-x, ctx), quantizer(torch.zeros_like(x), ctx), msg="must cut at zero")
    narrow = x[:4] if role == "weight" else x[:, :4]
    assert quantizer(narrow, SiteContext(bits, 4)).shape == narrow.shape, "must serve fewer channels"
    other = cls(site(role, signed=signed)).eval()
    other.load_state_dict(quantizer.state_dict())
    torch.testing.assert_close(other(x, ctx), quantizer(x, ctx), rtol=0, atol=0, msg="state_dict must hold it all")
    assert quantizer(x.bfloat16(), ctx).dtype == torch.bfloat16, "must serve bfloat16"
    penalty = quantizer.penalty(ctx)
    assert penalty is None or penalty.ndim == 0, "a penalty must be a number"


def _check_lower_bits(cls: type[Quantizer], role: str, signed: bool, x: torch.Tensor) -> None:
    """State fits a quantizer with more, lower bit-widths, which answers the same; these can then be inherited."""
    few, many = (cls(site(role, signed=signed, bits=bits)).eval() for bits in ((4,), (2, 3, 4)))
    few.start(x, SiteContext(4, 8))
    held, room = few.state_dict(), many.state_dict()
    for name, tensor in held.items():
        assert name in room, f"{name} must keep its name where there are lower bit-widths"
        assert room[name].shape == tensor.shape, f"{name} must keep its shape where there are lower bit-widths"
    missing = many.load_state_dict(held, strict=False).missing_keys
    want = few(x, SiteContext(4, 8)).detach()
    message = "lower bit-widths must not change the others"
    torch.testing.assert_close(many(x, SiteContext(4, 8)).detach(), want, rtol=0, atol=0, msg=message)
    for high, low in ((4, 3), (3, 2)):
        ctx = SiteContext(low, 8)
        unset = many(x, ctx).detach()
        many.inherit(high, low)
        inherited = many(x, ctx).detach()
        assert torch.isfinite(inherited).all(), f"outputs at {low} bits must be finite once inherited"
        if missing:  # else everything follows from what all bit-widths share
            assert not torch.equal(inherited, unset), f"inherit({high}, {low}) must set what {low} bits need"
    torch.testing.assert_close(many(x, SiteContext(4, 8)).detach(), want, rtol=0, atol=0, msg=message)


def _check_in_supernet(weight: type[Quantizer] | None, act: type[Quantizer] | None) -> None:
    """Extraction answers as the supernet does; bit-widths that were not active get no gradient."""
    makers: dict[str, Any] = {k: v for k, v in {"weight": weight, "act": act}.items() if v is not None}
    supernet = toy_supernet(**makers)
    space = supernet.space
    for sample in (space.highest(), space.lowest(), {**space.highest(), "kernel": 3}):
        supernet.activate(sample)
        supernet.train()
        with torch.no_grad():
            want = supernet(toy_images())
        subnet = supernet.extract(sample)
        for norm in subnet.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.train()
        with torch.no_grad():
            torch.testing.assert_close(subnet(toy_images()), want, msg="an extracted subnet must answer the same")
    supernet.zero_grad()
    supernet.activate(space.highest())
    supernet(toy_images()).sum().backward()
    for quantizer in supernet.quantizers():
        for parameter in quantizer.parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def check_space(make: Callable[[QuantScheme], SearchSpace]) -> None:
    """Describes without building; keys, costs and the supernet agree with the description.

    Args:
        make: returns the space in a size that can run here, for one-channel images and 10 classes.
    """
    space = make(QuantScheme((2, 4), (2, 4), "layer"))
    rng = generator(0, "contract")
    samples = [space.lowest(), space.highest(), *(space.sample(r) for r in space.draw(rng, 5))]
    models: dict[str, CostModel] = {"bitops": _BitOps()}
    table = CostTable(space, models)
    vectorised = table.costs(space.indices(samples))["bitops"]
    supernet = toy_supernet(space)  # type: ignore[arg-type]
    for sample, bitops in zip(samples, vectorised, strict=True):
        layers = space.layers(sample)
        names = [layer.name for layer in layers]
        assert len(set(names)) == len(names), "layers must have different names"
        assert cost_of(layers, models["bitops"]) == bitops, "describe must depend on depends_on alone"
        assert space.layers(space.canonical(sample)) == layers, "inactive knobs must change nothing"
        size = space.resolution(sample)
        images = torch.zeros(2, 1, size, size)
        supernet.eval()
        supernet.activate(sample)
        assert supernet(images).shape == (2, space.num_classes), "the supernet must answer for every sample"
        described = {layer.name for layer in layers if layer.kind != "quantize"}
        subnet = supernet.extract(sample)
        built = {layer.spec.name for layer in subnet.subnet_layers()}
        assert built <= described, f"layers that no description has: {built - described}"
    low, high = (table.costs(space.indices([s]))["bitops"][0] for s in (space.lowest(), space.highest()))
    assert low <= high, "the lowest sample must not cost more than the highest"


class _BitOps:
    direction = "min"
    unit = "BitOPs"

    def layer_cost(self, layer: Any) -> Any:
        return layer.macs * layer.w_bits * layer.a_bits


def check_sampler(cls: Callable[[], Sampler]) -> None:
    """Draws valid samples, as many as asked, as a function of the generator."""
    space = toy_space()
    for n in (1, 2, 4, 9):
        first = cls().draw(space, generator(0, "contract"), n)
        assert len(first) == n, f"asked for {n} samples, got {len(first)}"
        for sample in first:
            space.validate(sample)
        assert first == cls().draw(space, generator(0, "contract"), n), "equal generators, equal samples"


def check_supervision(cls: Callable[[Task], Supervision]) -> None:
    """Gives a finite loss with a gradient for each subnet of a step, and keeps its state between epochs.

    One that learns from something outside its run finds the same when the run goes on.
    """
    supervision = cls(ToyTask())
    named = _prepare_supervision(supervision, {})
    rng = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 2, 1, 0])
    supervision.begin_stage(True, 0)
    for _ in range(2):
        supervision.begin_step(toy_images(4), labels)
        for position in range(4):
            logits = torch.randn(4, 3, generator=rng).requires_grad_()
            loss = supervision.loss(position, logits, labels)
            assert loss.ndim == 0, "a loss must be a number"
            assert torch.isfinite(loss), "a loss must be finite"
            loss.backward()  # type: ignore[no-untyped-call]
            assert logits.grad is not None, "a gradient must reach the outputs"
            assert logits.grad.abs().sum() > 0, "the gradient must not be zero"
    supervision.end_epoch(Ranks())
    other = cls(ToyTask())
    assert _prepare_supervision(other, named) == named, "what a run learns from must stay the same"
    other.load_state_dict(supervision.state_dict())
    other.begin_stage(True, 1)
    fixed = torch.randn(4, 3, generator=rng)
    for one in (supervision, other):
        one.begin_step(toy_images(4), labels)
    torch.testing.assert_close(other.loss(0, fixed, labels), supervision.loss(0, fixed, labels))


def _prepare_supervision(supervision: Supervision, recorded: State) -> State:
    if not isinstance(supervision, PreparedSupervision):
        return {}
    context = TrainingContext(toy_data(), torch.device("cpu"), load_registry(), recorded)
    named = supervision.begin_training(context)
    assert json.loads(json.dumps(named)) == named, "what names a teacher must be JSON"
    return named


def check_calibrator(cls: Callable[[], Any]) -> None:
    """Serves at least one of a calibrator's two moments: a stage's start, and before a subnet is judged."""
    calibrator = cls()
    assert calibrator.name, "a calibrator needs a name"
    moments = [name for name in ("start", "calibrate") if hasattr(calibrator, name)]
    assert moments, "a calibrator has a method start (ranges) or calibrate (subnets)"
    if "start" in moments:
        _check_range_calibrator(cls)
    if "calibrate" in moments:
        _check_subnet_calibrator(cls)


def _check_range_calibrator(cls: Callable[[], RangeCalibrator]) -> None:
    """Gives every quantizer of the roles asked for a range at each of its bit-widths, and changes nothing else."""
    for roles in (("weight",), ("activation",), ("weight", "activation")):
        supernet = toy_supernet(weight=RangeQuantizer, act=RangeQuantizer)
        before = {name: tensor.clone() for name, tensor in supernet.named_parameters()}
        supernet.train()
        supernet.activate(supernet.space.highest())
        cls().start(supernet, [toy_images(), toy_images() * 2], roles, _toy_loss)
        assert supernet.mode == "quantize", "the supernet must be left in its mode"
        for quantizer in supernet.quantizers():
            if not isinstance(quantizer, RangeQuantizer):
                continue
            wanted = set(quantizer.site.bits) if quantizer.site.role in roles else set()
            assert set(quantizer.ranges) == wanted, f"ranges of {quantizer.site.name} must be set for {wanted}"
            for low, high in quantizer.ranges.values():
                assert low <= 0 <= high, "a range must hold 0"
            seen = [high - low for low, high in quantizer.ranges.values()]
            assert max(seen, default=1.0) > 0 or quantizer.site.name == "classifier.out", "a range must follow the data"
        for name, parameter in supernet.named_parameters():
            torch.testing.assert_close(parameter, before[name], rtol=0, atol=0, msg="no parameter may change")


def _toy_loss(number: int, outputs: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, (torch.arange(len(outputs)) + number) % CLASSES)


def _check_subnet_calibrator(cls: Callable[[], Calibrator]) -> None:
    """Adjusts the subnet alone, the same way each time, and says what its settings are."""
    calibrator = cls()
    json.dumps(dict(calibrator.settings))
    supernet = toy_supernet()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    answers = []
    for _ in range(2):
        subnet = supernet.extract(supernet.space.highest())
        calibrator.calibrate(subnet, [toy_images(), toy_images() + 0.5])
        with torch.no_grad():
            answers.append(subnet.fold()(toy_images()))
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=0, msg="calibration must be deterministic")
    for name, tensor in supernet.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, msg="the supernet must not change")


def check_strategy(make: Callable[[SearchProblem], Strategy]) -> None:
    """Asks valid samples, none twice; resumed from JSON at any point, it asks the same."""
    problem = toy_problem()
    whole = _drive(problem, make, 30, reload_every=0)
    assert whole, "a strategy must ask something"
    for sample in whole:
        problem.space.validate(sample)
    keys = [problem.space.key(sample) for sample in whole]
    assert len(set(keys)) == len(keys), "no subnet must be asked twice"
    assert whole == _drive(problem, make, 30, reload_every=1), "a resumed strategy must ask the same"
    assert whole == _drive(problem, make, 30, reload_every=7), "a resumed strategy must ask the same"
    assert whole != _drive(toy_problem(seed=1), make, 30, reload_every=0), "another seed must ask others"


def _drive(problem: SearchProblem, make: Callable[[SearchProblem], Strategy], n: int, reload_every: int) -> list[Any]:
    strategy = make(problem)
    asked: list[Any] = []
    pending: list[Any] = []
    while len(asked) < n:
        pending = pending or strategy.ask(n - len(asked))
        if not pending:
            break
        sample = pending.pop(0)
        asked.append(sample)
        strategy.tell([toy_trial(problem, sample)])
        if reload_every and len(asked) % reload_every == 0:
            state = json.loads(json.dumps(strategy.state_dict()))
            strategy = make(problem)
            strategy.load_state_dict(state)
    return asked


def check_predictor(cls: Callable[..., Predictor]) -> None:
    """Learns a function of the samples, says the same again for a seed, and keeps all that it learned."""
    space = toy_space()
    indices = space.draw(generator(0, "check"), 200)
    encoded = space.encode(indices)
    targets = 0.5 + 0.3 * encoded @ np.linspace(-1, 1, encoded.shape[1], dtype=np.float32)
    predictor, again, other = cls(seed=1), cls(seed=1), cls(seed=2)
    predictor.fit(encoded, targets)
    found = predictor.predict(encoded)
    assert found.shape == targets.shape, "one prediction a sample"
    assert np.corrcoef(found, targets)[0, 1] > 0.9, "must learn a linear function of the encoding"
    assert predictor.predict(encoded[:0]).shape == (0,), "no samples, no predictions"
    again.fit(encoded, targets)
    np.testing.assert_array_equal(again.predict(encoded), found, "equal seeds, equal predictions")
    state = predictor.state_dict()
    assert all(isinstance(value, np.ndarray) for value in state.values()), "state_dict holds arrays"
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.predict(encoded), found, "state_dict must hold it all")


def check_cost(model: CostModel) -> None:
    """Gives non-negative numbers, whole ones or averages of them, the same for arrays as for single layers."""
    assert model.direction in ("min", "max"), "a direction is min or max"
    assert model.unit, "a cost needs a unit"
    space = toy_space()
    rows = space.draw(generator(0, "contract"), 20)
    many = CostTable(space, {"cost": model}).costs(rows)["cost"]
    layers = [space.layers(space.sample(row)) for row in rows]
    np.testing.assert_array_equal(many, [cost_of(sample, model) for sample in layers])
    assert (many >= 0).all(), "a cost must not be negative"
    average = isinstance(model, AverageCost)
    assert isinstance(cost_of([LayerSpec("x", "conv", 3, 4, 3)], model), float if average else int)
    summed = [model.layer_cost, model.layer_weight] if isinstance(model, AverageCost) else [model.layer_cost]
    for summand in summed:
        values = [summand(layer) for sample in layers for layer in sample]
        assert all(int(value) == value for value in values), "what is summed over layers must be whole numbers"


def check_dataset(dataset: Dataset, **options: Any) -> None:
    """Gives uint8 images with targets, in memory or streamed, each time the same."""
    first, second = dataset.load(**options), dataset.load(**options)
    assert len(first.images) > 0, "a data set must hold images"
    if first.has_classes:
        assert first.labels.min() >= 0, "labels start from 0"
        assert first.labels.max() < len(first.class_names), "every label needs a name"
    else:
        assert len(first.labels) == len(first.images), "every image needs a target"
        assert torch.isfinite(first.labels.double()).all(), "targets must be finite"
    splits = [chosen for chosen in (first.search, first.test) if chosen is not None]
    given = torch.cat(splits) if splits else torch.zeros(0, dtype=torch.int64)
    assert len(set(given.tolist())) == len(given), "an image is in one split alone"
    pixels = Split(first.images, first.labels).loaded()
    assert torch.equal(pixels, Split(second.images, second.labels).loaded()), "loading twice must give the same"
    assert torch.equal(first.labels, second.labels), "loading twice must give the same labels"
    if isinstance(first.images, StreamedImages) and isinstance(second.images, StreamedImages):
        assert first.images.digest() == second.images.digest(), "names of images must stay the same"
        sent = pickle.loads(pickle.dumps(first.images))  # as a worker gets it where processes are not forked
        assert torch.equal(sent.take(torch.arange(1)), pixels[:1]), "a stream must survive pickling"
    assert first.image_size >= 8, "image_size must say at which size to train"


def check_task(cls: Callable[..., Any], *, targets: torch.Tensor | None = None) -> None:
    """Gives a loss with a gradient, and scores a whole split; where it can, says which answers are right.

    Args:
        cls: of a classification task, or of one that works on features (:class:`qnas.protocols.FeatureTask`).
        targets: ``[4, ...]``, of images of 32 pixels; needed by the latter.
    """
    if hasattr(cls, "head"):
        assert targets is not None, "give targets that the task takes"
        _check_feature_task(cls, targets)
        return
    task = cls()
    logits, labels = torch.eye(3), torch.tensor([0, 1, 0])
    _check_loss(task, logits, labels)
    metrics, correct = score_split(task, logits, labels)
    assert metrics[task.metric] == 2 / 3, "two of three answers are right"
    assert correct is None or correct.dtype == torch.bool, "correct gives booleans"
    assert correct is None or correct.tolist() == [True, True, False]


def _check_loss(task: Task, outputs: torch.Tensor, targets: torch.Tensor) -> None:
    assert task.metric, "a task names its metric"
    leaf = outputs.detach().clone().requires_grad_()
    loss = task.loss(leaf, targets)
    assert loss.ndim == 0, "a loss must be a number"
    assert torch.isfinite(loss), "a loss must be finite"
    loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None, "a gradient must reach the outputs"
    assert leaf.grad.abs().sum() > 0, "the gradient must not be zero"


def _check_feature_task(cls: Callable[..., FeatureTask], targets: torch.Tensor) -> None:
    """Its head follows the seed, takes the features that were described, and answers as the loss and score want it."""
    features = (Feature(4, 6, 8), Feature(8, 10, 4))
    task = cls(features=features, image_size=32, num_classes=3)
    task.check_targets(targets)
    rng = torch.Generator().manual_seed(0)
    maps = tuple(torch.randn(4, f.channels, f.size, f.size, generator=rng) for f in features)
    answers = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            head = task.head()
        with torch.no_grad():
            answers.append(head(maps))
    assert isinstance(head, FloatHead), "a head is a FloatHead"
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=0, msg="equal seeds, equal heads")
    assert len(answers[0]) == 4, "a head answers for every image"
    twin = head.extract()
    with torch.no_grad():
        torch.testing.assert_close(twin(maps), answers[0], rtol=0, atol=0, msg="an extracted head answers the same")
    _check_loss(task, answers[0], targets)
    metrics, _ = score_split(task, answers[0], targets)
    assert all(0 <= value <= 1 for value in metrics.values()), "metrics are fractions"


def check_recipe(path: Any) -> None:
    """Is TOML that a run accepts, for small images and for large ones."""
    from qnas.config import load_config, read_settings

    settings, large = read_settings(Path(str(path)))
    load_config(settings)
    load_config(settings, large)


def check_device(cls: Callable[[], Device]) -> None:
    """Executes an exported subnet and answers as the subnet does; executes it over and over."""
    from qnas.deploy import export_onnx

    device = cls()
    supernet = toy_supernet()
    subnet = supernet.extract(supernet.space.highest()).fold()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(subnet, path, metadata={})
        outputs = device.run(str(path), toy_images().numpy(), 5)
        operators = device.operators(str(path))
        for batch in (1, 3):
            infer, clock = device.prepare(str(path), batch, 1), device.clock(1)
            start = clock()
            for _ in range(3):
                infer()
            assert clock() > start, "a device's clock must count the time that an inference takes"
    with torch.no_grad():
        want = subnet(toy_images()).numpy()
    assert outputs.shape == want.shape, "a device must answer for every image"
    assert np.abs(outputs - want).max() <= 3 * 0.125, "a device must answer as the subnet does"
    assert sum(operators.values()) > 0, "a device must tell which operators it executes"
    bits = device.native_bits
    assert bits, "a device must say which bit-widths it has kernels for"
    assert list(bits) == sorted(set(bits)), "bit-widths are different and ascending"
    assert device.version, "a device must say its version"
