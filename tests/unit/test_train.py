"""The training loop: sums of gradients, stages, stopping and resuming to the same bits, divergence, events."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from qnas import components
from qnas.checkpoint import load_checkpoint, load_weights, read_progress, save_checkpoint
from qnas.config import load_config
from qnas.data import TrainBatches
from qnas.errors import ConfigError, StoreError, TrainingDivergedError
from qnas.processes import Processes
from qnas.rng import generator
from qnas.train import Progress, Stage, Trainer, TrainSettings

STAGES = (Stage("float", 1, 0.01, False), Stage("quantized", 2, 0.01, True))
SETTINGS = TrainSettings(num_subnets=3, start_images=32, clip_norm=1e9)
SGD = dataclasses.replace(SETTINGS, optimizer="sgd")
ADAM = dataclasses.replace(SETTINGS, optimizer="adam")


class Log:
    def __init__(self):
        self.events = []

    def record(self, event, values):
        self.events.append((event, copy.deepcopy(dict(values))))


@pytest.fixture(scope="module")
def space(make_space):
    return make_space(num_classes=2, depths=(1,), kernels=(3, 5), expansions=(3, 4), resolutions=(12, 16))


@pytest.fixture
def make_trainer(space, make_supernet, tiny_data, registry):
    """Returns a trainer of a tiny supernet at its start; quantizers are as if they had not started."""

    def make(stages=STAGES, settings=SETTINGS, *, supervision="inplace-distillation", recorder=None, batch_size=40):
        supernet = make_supernet(space)
        with torch.no_grad():
            for group in supernet.quantizers():
                for parameter in group.parameters():
                    parameter.fill_(-1.0)
        data = TrainBatches(tiny_data.train, tiny_data.pixels, tiny_data.augmentation, batch_size, settings.seed)
        parts = (
            registry.load("sampler", "sandwich")(),
            registry.load("supervision", supervision)(registry.load("task", "classification")()),
        )
        return Trainer(supernet, data, *parts, stages, settings, recorder)

    return make


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.supernet.state_dict().items()}


def assert_equal_bits(one, other):
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def begin(trainer, stage=0):
    """Enter a stage without training."""
    trainer.progress.stage = stage
    trainer._enter_stage()
    return trainer


# --- a step --------------------------------------------------------------------------------------------------------


class Given:
    """Draws the samples that it is given."""

    def __init__(self, samples):
        self.samples = samples

    def draw(self, space, rng, n):
        return self.samples


@pytest.mark.parametrize("quantize", [False, True])
def test_a_step_adds_up_the_gradients_of_its_subnets(make_trainer, quantize):
    stages = (Stage("only", 1, 0.01, quantize),)
    first = make_trainer(stages)
    samples = first.sampler.draw(first.supernet.space, generator(0, "test"), 3)
    images, labels = next(iter(first.batches.epoch(0)))

    def gradients(chosen):
        trainer = begin(make_trainer(stages, supervision="hard"))
        trainer.sampler = Given(chosen)
        trainer.step(images, labels, 0, 0, 0.01)
        return {name: p.grad for name, p in trainer.supernet.named_parameters() if p.grad is not None}

    together = gradients(samples)
    apart = [gradients([sample]) for sample in samples]
    assert together.keys() == set().union(*apart)
    for name, gradient in together.items():
        total = sum(part[name] for part in apart if name in part)
        torch.testing.assert_close(gradient, total, rtol=1e-4, atol=1e-5 * max(1.0, float(total.abs().max())))


def test_bits_that_no_subnet_used_get_no_gradient(make_trainer):
    trainer = begin(make_trainer((Stage("only", 1, 0.01, True),)))
    trainer.sampler = Given([trainer.supernet.space.highest()])
    trainer.step(*next(iter(trainer.batches.epoch(0))), 0, 0, 0.01)
    found = {name: p.grad for name, p in trainer.supernet.named_parameters() if ".log_steps." in name}
    used = {name.rpartition(".")[2] for name, gradient in found.items() if gradient is not None}
    assert used == {"4", "8"}  # 2 bits are searched, too; 8 are at the edges


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_reported(make_trainer):
    log = Log()
    trainer = begin(make_trainer(settings=TrainSettings(num_subnets=2, clip_norm=1e-3), recorder=log))
    _, norm = trainer.step(*next(iter(trainer.batches.epoch(0))), 0, 0, 0.01)
    gradients = [p.grad.norm() for p in trainer.supernet.parameters() if p.grad is not None]
    assert float(torch.stack(gradients).norm()) == pytest.approx(1e-3, rel=1e-3)
    assert norm > 1e-3
    assert log.events[-1][1]["clip_ratio"] == pytest.approx(1e-3 / norm)
    assert log.events[-1][1]["gradient_norm"] == norm


def test_image_passes_count_work_in_units_of_the_largest_subnet(make_trainer):
    trainer = begin(make_trainer())
    space = trainer.supernet.space
    for sample, expected in ((space.highest(), 1.0), (space.lowest(), None)):
        trainer.progress.image_passes = 0.0
        trainer.sampler = Given([sample])
        trainer.step(*next(iter(trainer.batches.epoch(0))), 0, 0, 0.01)
        share = trainer.progress.image_passes / trainer.batches.batch_size
        macs = [sum(layer.macs for layer in space.layers(s)) for s in (sample, space.highest())]
        assert share == pytest.approx(expected or macs[0] / macs[1])


def test_decay_falls_on_weights_alone_and_quantizers_have_their_own_rate(make_trainer):
    trainer = begin(
        make_trainer(settings=TrainSettings(num_subnets=1, weight_decay=0.3, quantizer_lr=0.5, clip_lr=2.0))
    )
    decays = [group["weight_decay"] for group in trainer.optimizer.param_groups]
    assert decays == [0.3, 0.0, 0.0, 0.0]
    trainer.step(*next(iter(trainer.batches.epoch(0))), 0, 0, 0.02)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.02, 0.02, 0.01, 0.04]
    grouped = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in grouped}) == len(grouped) == len(list(trainer.supernet.parameters()))


def test_every_setting_of_training_can_be_configured(registry, space, make_supernet, tiny_data):
    given = {"num_subnets": 2, "optimizer": "sgd", "momentum": 0.5, "weight_decay": 0.2, "quantizer_lr": 0.1}
    given |= {"clip_lr": 3.0, "clip_norm": 3.0, "warmup": 0.2, "start_images": 7, "record_every": 5}

    def build(config):
        return components.build_trainer(registry, config, make_supernet(space), tiny_data, None, Processes())

    trainer = build(load_config({"seed": 4, "train": given}))
    assert dataclasses.asdict(trainer.settings) == {**given, "seed": 4}
    assert isinstance(begin(trainer).optimizer, torch.optim.SGD)
    assert isinstance(begin(build(load_config({}))).optimizer, torch.optim.AdamW)
    assert type(begin(build(load_config({"train": {"optimizer": "adam"}}))).optimizer) is torch.optim.Adam
    with pytest.raises(ConfigError, match=r"train\.optimizer cannot be 'lion'"):
        load_config({"train": {"optimizer": "lion"}})


def test_adam_steps_as_its_formula_says_and_leaves_what_no_subnet_used(make_trainer):
    """Kingma and Ba 2015, Algorithm 1, in float64: the weights' decay is in the gradient; bias is corrected by the
    steps that a parameter took part in, and where it took no part neither it nor its moments move."""
    settings = dataclasses.replace(ADAM, weight_decay=0.3, quantizer_lr=0.5)
    trainer = begin(make_trainer((Stage("only", 1, 0.01, True),), settings))
    space, seen, state = trainer.supernet.space, [], trainer.optimizer.state
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.extend(
            (group, p, p.detach().double(), p.grad, {n: v.clone() for n, v in state.get(p, {}).items()})
            for group in optimizer.param_groups
            for p in group["params"]
        )
    )
    moments, unused = {}, 0
    for step, sample in enumerate((space.highest(), space.lowest(), space.highest())):
        trainer.sampler = Given([sample])
        trainer.step(*next(iter(trainer.batches.epoch(0))), 0, step, 0.02)
        for group, parameter, before, gradient, known in seen:
            if gradient is None:
                assert torch.equal(parameter.double(), before)
                assert all(torch.equal(state[parameter][name], value) for name, value in known.items())
                unused += bool(known)
                continue
            g = gradient.double() + group["weight_decay"] * before
            count, m, v = moments.get(parameter, (0, torch.zeros_like(g), torch.zeros_like(g)))
            count, m, v = count + 1, 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            moments[parameter] = count, m, v
            change = m / (1 - 0.9**count) / ((v / (1 - 0.999**count)).sqrt() + 1e-8)
            want = before - 0.02 * group["factor"] * change
            torch.testing.assert_close(parameter.double(), want, rtol=1e-5, atol=1e-6)
        seen.clear()
    decays = [group["weight_decay"] for group in trainer.optimizer.param_groups]
    assert decays == [0.3, 0.0, 0.0, 0.0]
    assert unused > 5


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_steps_as_its_formula_says_and_leaves_what_no_subnet_used(make_trainer, momentum):
    """Nesterov's momentum in float64: v = m v + g, p = p - lr (g + m v); g holds the decay, of weights alone."""
    settings = dataclasses.replace(SGD, momentum=momentum, weight_decay=0.3, quantizer_lr=0.5)
    trainer = begin(make_trainer((Stage("only", 1, 0.01, True),), settings))
    space, seen = trainer.supernet.space, []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.extend(
            (
                group["weight_decay"],
                group["factor"],
                p,
                p.detach().double(),
                None if p.grad is None else p.grad.double(),
            )
            for group in optimizer.param_groups
            for p in group["params"]
        )
    )
    velocity, unused = {}, 0
    for step, sample in enumerate((space.highest(), space.lowest(), space.highest())):
        trainer.sampler = Given([sample])
        trainer.step(*next(iter(trainer.batches.epoch(0))), 0, step, 0.02)
        for decay, factor, parameter, before, gradient in seen:
            if gradient is None:
                assert torch.equal(parameter.double(), before)
                unused += 1
                continue
            g = gradient + decay * before
            velocity[parameter] = momentum * velocity.get(parameter, 0.0) + g
            want = before - 0.02 * factor * (g + momentum * velocity[parameter])
            torch.testing.assert_close(parameter.detach().double(), want, rtol=1e-4, atol=1e-6)
        seen.clear()
    assert unused
    assert {group["factor"] for group in trainer.optimizer.param_groups} == {1.0, 0.5}


# --- the schedule ------------------------------------------------------------------------------------------------


def test_the_rate_rises_linearly_and_falls_along_a_cosine(make_trainer):
    trainer = make_trainer(settings=TrainSettings(warmup=0.1))
    stage = Stage("long", 10, 0.5, False)
    total = 10 * trainer.batches.steps
    warm = round(0.1 * total)
    rates = [trainer._lr(stage, step) for step in range(total)]
    assert rates[0] == pytest.approx(0.5 / warm)
    assert rates[warm - 1] == rates[warm] == pytest.approx(0.5)
    assert max(rates) == pytest.approx(0.5)
    half = warm + (total - warm) / 2
    assert trainer._lr(stage, half) == pytest.approx(0.25)
    assert trainer._lr(stage, total) == pytest.approx(0, abs=1e-12)
    assert all(a >= b for a, b in zip(rates[warm:], rates[warm + 1 :], strict=False))


class Steps:
    def __init__(self, steps):
        self.steps = steps


@settings(max_examples=50, deadline=None)
@given(epochs=st.integers(1, 20), steps=st.integers(1, 30), warmup=st.floats(0, 0.99))
def test_the_rate_is_positive_and_never_above_its_peak(epochs, steps, warmup):
    trainer = object.__new__(Trainer)
    trainer.batches, trainer.settings = Steps(steps), TrainSettings(warmup=warmup)
    stage = Stage("any", epochs, 0.1, False)
    for step in range(epochs * steps):
        assert 0 < trainer._lr(stage, step) <= 0.1 * (1 + 1e-12)


# --- stages ------------------------------------------------------------------------------------------------------


def test_quantizers_start_from_data_at_the_first_quantized_stage_only(make_trainer):
    stages = (Stage("f", 1, 0.01, False), Stage("q1", 1, 0.01, True), Stage("q2", 1, 0.01, True))
    trainer = make_trainer(stages)
    steps = [p for q in trainer.supernet.quantizers() for p in q.parameters()]
    begin(trainer)
    assert trainer.supernet.mode == "float"
    assert all((p == -1).all() for p in steps)
    trainer.optimizer = None
    begin(trainer, 1)
    assert trainer.supernet.mode == "quantize"
    started = [p.clone() for p in steps]
    assert not any((p == -1).all() for p in steps)
    with torch.no_grad():
        for parameter in steps:
            parameter.add_(0.125)
    trainer.optimizer = None
    begin(trainer, 2)
    assert all(torch.equal(p, q + 0.125) for p, q in zip(steps, started, strict=True))


def test_quantizers_do_not_start_again_in_the_middle_of_a_stage(make_trainer):
    trainer = make_trainer((Stage("q", 3, 0.01, True),))
    trainer.progress.epoch = 1
    begin(trainer)
    assert all((p == -1).all() for q in trainer.supernet.quantizers() for p in q.parameters())


def test_training_learns(make_trainer):
    trainer = make_trainer((Stage("float", 3, 0.01, False), Stage("quantized", 3, 0.01, True)))
    trainer.run(lambda _: None)
    history = trainer.progress.history
    assert history[2]["losses"][0] < history[0]["losses"][0]
    assert history[-1]["losses"][0] < math.log(2)
    assert trainer.finished


# --- stop and resume ---------------------------------------------------------------------------------------------


class StopError(Exception):
    pass


@pytest.mark.parametrize(
    "settings", [SETTINGS, ADAM, SGD, dataclasses.replace(SGD, momentum=0.0)], ids=["adamw", "adam", "sgd", "plain"]
)
def test_stopping_after_any_epoch_and_resuming_gives_the_same_bits(make_trainer, tmp_path, settings):
    whole = make_trainer(settings=settings)
    saves = []

    def save(trainer):
        path = tmp_path / f"{len(saves)}.safetensors"
        save_checkpoint(trainer, path)
        saves.append(path)

    whole.run(save)
    assert [(read_progress(p).stage, read_progress(p).epoch) for p in saves] == [(1, 0), (1, 1), (2, 0)]
    for path in saves:
        resumed = make_trainer(settings=settings)
        torch.manual_seed(1234)
        load_checkpoint(resumed, path)
        again = tmp_path / "again.safetensors"
        save_checkpoint(resumed, again)
        assert again.read_bytes() == path.read_bytes()
        resumed.run(lambda trainer, again=again: save_checkpoint(trainer, again))
        assert_equal_bits(weights(whole), weights(resumed))
        assert resumed.progress == whole.progress
        assert again.read_bytes() == saves[-1].read_bytes()
    kept = {name.rpartition(".")[2] for name in load_file(saves[1]) if name.startswith("optimizer.")}
    momentum = {"momentum_buffer"} if settings.momentum else set()
    assert kept == ({"step", "exp_avg", "exp_avg_sq"} if settings.optimizer != "sgd" else momentum)


def test_checkpoints_of_equal_training_are_equal_bytes(make_trainer, tmp_path):
    for name in ("a", "b"):
        make_trainer((Stage("q", 2, 0.01, True),)).run(lambda t, name=name: save_checkpoint(t, tmp_path / name))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_checkpoint_that_does_not_fit_or_is_torn_is_refused(make_trainer, make_space, make_supernet, tmp_path):
    path = tmp_path / "run" / "stages" / "00-a" / "checkpoint.safetensors"
    path.parent.mkdir(parents=True)
    save_checkpoint(make_trainer(), path)
    with pytest.raises(StoreError, match=r"does not fit.*config\.toml"):
        load_weights(make_supernet(make_space(w_bits=(3,))), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StoreError, match="cannot be read"):
        read_progress(path)


# --- divergence --------------------------------------------------------------------------------------------------


class Poisoned:
    """Answers NaN for one subnet of one step."""

    def __init__(self, inner, at):
        self.inner, self.at, self.calls = inner, at, 0

    def begin_stage(self, quantized, epoch):
        self.inner.begin_stage(quantized, epoch)

    def begin_step(self, images, labels):
        self.inner.begin_step(images, labels)

    def loss(self, position, logits, labels):
        self.calls += 1
        return self.inner.loss(position, logits, labels) * (float("nan") if self.calls == self.at else 1)

    def end_epoch(self, ranks):
        self.inner.end_epoch(ranks)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_a_loss_that_is_not_finite_stops_with_step_and_subnet_and_the_checkpoint_holds(make_trainer, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    saved = {}

    def save(trainer):
        save_checkpoint(trainer, path)
        saved.update(weights(trainer))

    trainer = make_trainer()
    steps = trainer.batches.steps
    trainer.supervision = Poisoned(
        trainer.supervision, at=3 * steps + 3 * 1 + 3
    )  # second epoch of all, first of its stage, second step, third subnet
    with pytest.raises(TrainingDivergedError) as error:
        trainer.run(save)
    lowest = trainer.supernet.space.lowest()
    for part in ("loss is nan", "'quantized'", "epoch 1", "step 2", trainer.supernet.space.key(lowest), "--lr"):
        assert part in str(error.value)
    fresh = make_trainer()
    load_checkpoint(fresh, path)
    assert_equal_bits(weights(fresh), saved)
    assert (fresh.progress.stage, fresh.progress.epoch) == (1, 0)
    assert all(torch.isfinite(tensor).all() for tensor in weights(fresh).values() if tensor.is_floating_point())
    fresh.run(lambda _: None)
    assert fresh.finished


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(make_trainer):
    trainer = begin(make_trainer())
    trainer.supervision = Poisoned(trainer.supervision, at=-1)
    before = {name: p.detach().clone() for name, p in trainer.supernet.named_parameters()}
    images, labels = next(iter(trainer.batches.epoch(0)))
    next(iter(trainer.supernet.parameters())).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingDivergedError, match="gradient norm is"):
        trainer.step(images, labels, 0, 0, 0.01)
    assert all(torch.equal(p, before[name]) for name, p in trainer.supernet.named_parameters())


# --- events ------------------------------------------------------------------------------------------------------


def test_events_come_in_order_with_their_values(make_trainer):
    log = Log()
    trainer = make_trainer(recorder=log)
    trainer.run(lambda _: None)
    steps = trainer.batches.steps
    epoch = ["step"] * (steps - 1) + ["inside", "step", "epoch"]
    assert [event for event, _ in log.events] == ["stage", *epoch, "stage", *epoch, *epoch]
    stages = [values for event, values in log.events if event == "stage"]
    assert stages == [
        {"name": "float", "epochs": 1, "steps": steps},
        {"name": "quantized", "epochs": 2, "steps": steps},
    ]
    assert [values for event, values in log.events if event == "epoch"] == trainer.progress.history
    for _, values in (item for item in log.events if item[0] == "step"):
        keys = {"stage", "epoch", "number", "step", "losses", "gradient_norm", "clip_ratio", "lr"}
        assert keys == values.keys()
        assert len(values["losses"]) == SETTINGS.num_subnets
    entry = trainer.progress.history[-1]
    last = [v for e, v in log.events if e == "step"][-steps:]
    assert entry["losses"][0] == pytest.approx(sum(v["losses"][0] for v in last) / steps)


def test_a_look_inside_names_what_each_subnet_did(make_trainer):
    log = Log()
    trainer = make_trainer(recorder=log, settings=dataclasses.replace(SETTINGS, record_every=1))
    trainer.run(lambda _: None)
    looks = [values for event, values in log.events if event == "inside"]
    assert len(looks) == trainer.batches.steps * 3
    assert [look["number"] for look in looks] == list(range(1, len(looks) + 1))
    first, last = looks[0], looks[-1]
    assert first["stage"] == "float"
    assert first["subnets"][0]["steps"] == {}
    assert len(last["subnets"]) == SETTINGS.num_subnets
    largest = last["subnets"][0]
    assert largest["key"] == trainer.supernet.space.key(trainer.supernet.space.highest())
    assert set(largest["bn_std"]) >= {"stem", "head"}
    assert all(value > 0 for value in largest["bn_std"].values())
    quantizers = {f"{q.site.name}.{q.site.role}": q for q in trainer.supernet.quantizers()}
    assert set(largest["steps"]) <= set(quantizers)
    assert {"head.weight", "head.activation"} <= set(largest["steps"])
    assert all(0 <= share < 1 for share in largest["clip_ratios"].values())
    assert last["gradient_norms"]["head"] > 0


def test_clip_ratios_and_deviations_are_those_of_the_tensors(make_trainer):
    trainer = begin(make_trainer((Stage("only", 1, 0.01, True),)))
    supernet, found = trainer.supernet, {}
    supernet.activate(supernet.space.highest())
    head = next(m for m in supernet.modules() if getattr(m, "name", "") == "head")
    seen = {}
    head.input.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0].detach()))
    head.bn.register_forward_pre_hook(lambda module, inputs: seen.update(y=inputs[0].detach()))
    images, _ = next(iter(trainer.batches.epoch(0)))
    with trainer.probe.watching(found):
        supernet(images)
    grid = head.input.extract().grid
    top, bottom = ((q - grid.zero_point) * grid.scale for q in (grid.qmax, grid.qmin))
    outside = (seen["x"] > top + grid.scale / 2) | (seen["x"] < bottom - grid.scale / 2)
    assert found["clip_ratios"]["head.activation"] == pytest.approx(float(outside.float().mean()), abs=1e-4)
    assert found["steps"]["head.activation"] == pytest.approx(float(grid.scale))
    deviation = seen["y"].transpose(0, 1).flatten(1).std(1, correction=0).mean()
    assert found["bn_std"]["head"] == pytest.approx(float(deviation), rel=1e-4)


def test_a_recorder_changes_nothing(make_trainer):
    silent, watched = make_trainer(), make_trainer(recorder=Log())
    silent._looks_inside = lambda step: False
    for trainer in (silent, watched):
        trainer.run(lambda _: None)
    assert_equal_bits(weights(silent), weights(watched))
    assert silent.progress == watched.progress


def test_progress_starts_at_nothing():
    assert Progress() == Progress(0, 0, 0.0, [])


def test_a_stage_draws_only_its_bits_and_inherits_those_below(make_trainer):
    """OQAT's order: train at 4 bits, carry to 2, train there; the bits of the other stage do not move."""
    stages = (
        Stage("four", 1, 0.01, True, w_bits=(4,), a_bits=(4,)),
        Stage("two", 1, 0.01, True, w_bits=(2,), a_bits=(2,), inherit=True),
    )
    trainer = make_trainer(stages)
    drawn = []
    original = trainer.sampler.draw

    def draw(space, rng, n):
        drawn.append({(s["w_bits"], s["a_bits"]) for s in original(space, rng, n)})
        return original(space, rng, n)

    trainer.sampler.draw = draw
    steps = {}

    def save(t):
        quantizer = next(q for q in t.supernet.quantizers() if q.site.name == "head" and q.site.role == "weight")
        steps[len(steps)] = {bits: p.item() for bits, p in quantizer.log_steps.items()}

    trainer.run(save)
    half = len(drawn) // 2
    assert set().union(*drawn[:half]) == {(4, 4)}
    assert set().union(*drawn[half:]) == {(2, 2)}
    assert steps[1]["4"] == steps[0]["4"]
    assert abs(steps[1]["2"] - (steps[0]["4"] + 2 * math.log(2))) < 0.5  # from 2^2 s on, a few steps of training


def test_a_stage_may_quantize_activations_alone(make_trainer):
    stages = (Stage("activations", 1, 0.01, True, roles=("activation",)), Stage("both", 1, 0.01, True))
    trainer = make_trainer(stages)
    weights, activations = (
        [q for q in trainer.supernet.quantizers() if q.site.role == role and hasattr(q, "log_steps")]
        for role in ("weight", "activation")
    )
    seen = []

    def save(t):
        seen.append(
            (t.supernet.mode, [q.log_steps[str(q.site.bits[-1])].item() for q in weights[:3] + activations[:3]])
        )

    trainer.run(save)
    assert seen[0][0] == "weight float, activation quantize"
    assert seen[1][0] == "quantize"
    assert seen[0][1][:3] == [-1.0] * 3  # not started yet
    assert all(value != -1.0 for value in seen[0][1][3:] + seen[1][1])


def test_a_stage_cannot_ask_for_bits_that_the_space_lacks(make_trainer):
    with pytest.raises(ConfigError, match="cannot be restricted to w_bits"):
        make_trainer((Stage("six", 1, 0.01, True, w_bits=(6,)),)).run(lambda t: None)


def test_a_stage_that_only_starts_quantizers_leaves_running_statistics(make_trainer):
    trainer = make_trainer((Stage("only", 0, 0.01, True),))
    before = {name: value.clone() for name, value in trainer.supernet.state_dict().items() if ".bn." in name}
    steps = {name: p.clone() for name, p in trainer.supernet.named_parameters() if "log_steps" in name}
    trainer.run(lambda _: None)
    after = trainer.supernet.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert any(not torch.equal(after[name], value) for name, value in steps.items())


@pytest.mark.parametrize("restart", [False, True])
def test_a_stage_can_start_trained_quantizers_anew(make_trainer, restart):
    stages = (Stage("first", 1, 0.05, True), Stage("second", 0, 0.05, True, restart=restart))
    trainer = make_trainer(stages)
    seen = []

    def save(trainer):
        seen.append({n: p.detach().clone() for n, p in trainer.supernet.named_parameters() if "log_steps" in n})

    trainer.run(save)
    changed = [name for name, step in seen[-1].items() if not torch.equal(step, seen[0][name])]
    assert bool(changed) == restart
